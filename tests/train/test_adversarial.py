"""Adversarial training on distributions that are known: what it learns, what it notices, and how it goes on."""

import logging

import pytest
import torch

from sbi_physics.core.errors import ShapeError, StoreError, TrainingError, UsageError
from sbi_physics.models.gan import GenerativeAdversarialNetwork
from sbi_physics.train.adversarial import train_adversarial
from sbi_physics.train.adversarial_config import AdversarialConfig

FACTOR = torch.tensor([[1.0, 0.0], [0.6, 0.5]])
FEWER_STEPS = {"critic_steps": 3, "generator_rate": 1e-3}
SHORT = {"epochs": 4, "batch_size": 64, "checkpoint_seconds": 0.0}


def shifted_gaussians(n, seed=0):
    """Correlated Gaussians about (2 c, -c), and c, uniform in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    c = 2 * torch.rand(n, 1, generator=generator) - 1
    return torch.randn(n, 2, generator=generator) @ FACTOR.T + torch.cat([2 * c, -c], -1), c


def build(kind=GenerativeAdversarialNetwork, conditional=True, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind((2,), (1,) if conditional else None, **{"hidden_features": 32, "blocks": 1, **options})


def fit(model, x, c=None, *, weights=None, seed=0, checkpoint=None, **settings):
    model.fit_scaling(x, c)
    data = [model.encode(x)[0]] + ([] if c is None else [model.context_scaling(c)])
    config = AdversarialConfig(**settings)
    record = train_adversarial(
        model, data, weights=weights, config=config, seed=seed, checkpoint=checkpoint, progress=False
    )
    return record, model


GAMES = [
    ({"loss": "wasserstein"}, {}),
    pytest.param({"loss": "wasserstein", "spectral": True}, FEWER_STEPS, marks=pytest.mark.slow),
    pytest.param({"loss": "minimax", "penalty": 0.1}, FEWER_STEPS, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("game", "settings"), GAMES, ids=["wasserstein", "spectral", "minimax"])
def test_it_learns_a_gaussian_that_a_context_shifts(game, settings):
    """Means within 0.15 and widths within 15 % of theirs; a model that ignored c would be off by one."""
    x, c = shifted_gaussians(4000)
    record, model = fit(build(**game), x, c, epochs=40, batch_size=128, **settings)
    draws = model.sample(4000, torch.tensor([[0.6], [-0.6]]), seed=1)
    assert float((draws.mean(0) - torch.tensor([[1.2, -0.6], [-1.2, 0.6]])).abs().max()) < 0.15
    assert float((draws.std(0) / FACTOR.norm(dim=-1) - 1).abs().max()) < 0.15
    correlation = torch.stack([torch.corrcoef(rows.T)[0, 1] for rows in draws.unbind(1)])
    assert float((correlation - 0.6 / 0.61**0.5).abs().max()) < 0.1
    assert not record.collapsed
    assert record.warning == ""
    assert record.best_distance < 0.2 * record.distance[0]
    assert record.coverage[record.best_epoch] > 0.85


class Constant(GenerativeAdversarialNetwork):
    """Draws one event, whatever the noise."""

    def generate(self, noise, summary=None):
        return 0 * super().generate(noise, summary)


class Deaf(GenerativeAdversarialNetwork):
    """Draws one event for each context."""

    def generate(self, noise, summary=None):
        return super().generate(0 * noise, summary)


@pytest.mark.parametrize(("kind", "conditional"), [(Constant, False), (Constant, True), (Deaf, True)])
def test_a_planted_collapse_is_noticed(kind, conditional, caplog):
    x, c = shifted_gaussians(1500)
    with caplog.at_level(logging.WARNING):
        record, _ = fit(build(kind, conditional), x, c if conditional else None, epochs=3, batch_size=128)
    assert record.collapsed
    assert record.warning.startswith("the generator has collapsed: ")
    assert record.warning in caplog.text
    assert max(record.spread) < 0.01


def test_one_lost_mode_of_many_is_seen_in_the_coverage():
    """Without training: the untrained generator is right in width, and misses nine tenths of a grid of points."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[-9.0, -9.0], [-9.0, 9.0], [9.0, -9.0], [9.0, 9.0]])
    x = corners[torch.arange(1200) % 4] + 0.01 * torch.randn(1200, 2, generator=generator)
    rates = {"generator_rate": 1e-8, "critic_rate": 1e-8}
    record, _ = fit(build(conditional=False), x, epochs=1, validation_fraction=0.5, **rates)
    assert record.spread[0] == pytest.approx(1.0, abs=0.1)
    assert record.coverage[0] < 0.05
    assert record.collapsed


def test_weights_count_and_negative_ones_take_away():
    """Half of the events belong to a second Gaussian that as many events of opposite weight take away again."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6000, 2, generator=generator)
    x[2000:] = 0.5 * x[2000:] + torch.tensor([2.0, 0.0])
    weights = torch.ones(6000)
    weights[4000:] = -1.0
    settings = {"epochs": 25, "batch_size": 256, **FEWER_STEPS}
    record, weighted = fit(build(conditional=False, penalty=1.0), x, weights=weights, **settings)
    _, plain = fit(build(conditional=False, penalty=1.0), x, **settings)
    right, wrong = (float(model.sample(4000, seed=0)[:, 0].mean()) for model in (weighted, plain))
    assert right == pytest.approx(0.0, abs=0.25)
    assert wrong == pytest.approx(4 / 3, abs=0.25)
    assert not record.collapsed


def same(first, second):
    (record, model), (other_record, other) = first, second
    assert {**record.to_dict(), "seconds": 0} == {**other_record.to_dict(), "seconds": 0}
    tensors = other.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("spectral", [False, True])
def test_same_seed_same_bytes(spectral):
    x, c = shifted_gaussians(600)
    first, second, other = (fit(build(spectral=spectral), x, c, seed=seed, **SHORT) for seed in (1, 1, 2))
    same(first, second)
    assert first[0].critic_loss != other[0].critic_loss
    state = torch.random.get_rng_state()
    fit(build(), x, c, **SHORT)
    assert torch.equal(state, torch.random.get_rng_state())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("spectral", [False, True])
def test_an_interrupted_run_goes_on_exactly(spectral, tmp_path):
    """Interrupted in the second and in the third epoch, at steps of the critic that no generator step follows."""

    class Ends(GenerativeAdversarialNetwork):
        calls = 0
        last = 13

        def critic_loss(self, *arguments):
            self.calls += 1
            if self.calls == self.last:
                raise Interrupted
            return super().critic_loss(*arguments)

    x, c = shifted_gaussians(600)
    options, path = {"spectral": spectral}, tmp_path / "run.ckpt"
    whole = fit(build(**options), x, c, **SHORT)
    for _ in range(2):
        with pytest.raises(Interrupted):
            fit(build(Ends, **options), x, c, checkpoint=path, **SHORT)
        assert path.exists()
    same(whole, fit(build(**options), x, c, checkpoint=path, **SHORT))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Interrupted):
        fit(build(Ends, **options), x, c, checkpoint=path, **SHORT)
    with pytest.raises(StoreError, match="this checkpoint belongs to another run: critic_rate was"):
        fit(build(**options), x, c, checkpoint=path, **SHORT, critic_rate=1e-4)


def test_budgets_end_a_run():
    x, _ = shifted_gaussians(600)
    model = build(conditional=False)
    assert fit(model, x, **SHORT)[0].stopped == "epochs"
    record, _ = fit(model, x, **{**SHORT, "epochs": 1000}, max_seconds=0.05)
    assert record.stopped == "seconds"
    assert len(record.distance) < 1000
    still = {"generator_rate": 1e-12, "critic_rate": 1e-12, "patience": 2}
    record, _ = fit(build(conditional=False), x, **{**SHORT, "epochs": 1000}, **still)
    assert record.stopped == "patience"
    assert len(record.distance) < 100


def test_wrong_use_is_named():
    x, c = shifted_gaussians(600)
    with pytest.raises(UsageError, match="data: expected encoded events and scaled contexts, got 1 tensors"):
        train_adversarial(build(), [x])
    with pytest.raises(ShapeError, match="data: expected at least 32 events to hold out, got 20"):
        fit(build(), x[:200], c[:200])
    with pytest.raises(TrainingError, match="the losses of critic and generator became"):
        fit(build(), x, c, **SHORT, critic_rate=1e30, generator_rate=1e30)
    model = build()
    for weight in model.critic.parameters():
        weight.requires_grad_(False)
    with pytest.raises(UsageError, match="parameters to train on both sides"):
        fit(model, x, c)
    for settings, message in (
        ({"critic_steps": 0}, "critic_steps: expected an integer of at least 1"),
        ({"generator_rate": 0}, "generator_rate: expected a finite number above 0"),
        ({"schedule": "one-cycle"}, "schedule: expected 'cosine' or 'constant'"),
        ({"validation_rows": 8}, "validation_rows: expected an integer of at least 32"),
    ):
        with pytest.raises(UsageError, match=message):
            AdversarialConfig(**settings)

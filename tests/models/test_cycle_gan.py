"""Translation between two simulations, up to a map that is known."""

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.models.cycle_gan import CycleGAN
from sbi_physics.train.adversarial_config import AdversarialConfig
from sbi_physics.train.translation import train_translation

MATRIX = torch.tensor([[1.3, 0.2], [0.0, 0.8]])
SHIFT = torch.tensor([0.5, -0.3])


def fast_events(n, seed):
    """Exponential numbers, which no rotation or reflection leaves as they are, shifted by theta."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(n, 1, generator=generator)
    return -torch.log(torch.rand(n, 2, generator=generator)) + torch.cat([theta, -theta], -1), theta


def full_event(x, theta):
    return x @ MATRIX.T + SHIFT + 0.3 * theta


def build(context=(1,), **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CycleGAN((2,), context, **{"hidden_features": 32, "blocks": 1, **options})


def fit(model, n, m, checkpoint=None, **settings):
    """Fit unpaired samples of n fast and m full events."""
    (fast, theta), (source, other) = fast_events(n, 1), fast_events(m, 2)
    full = full_event(source, other)
    model.fit_scaling(fast, full, torch.cat([theta, other]))
    return train_translation(
        model,
        [model.encode(fast), model.context_scaling(theta)],
        [model.encode(full), model.context_scaling(other)],
        config=AdversarialConfig(**settings),
        checkpoint=checkpoint,
        progress=False,
    )


def root_mean_square(difference):
    return float(difference.square().sum(-1).mean().sqrt())


def test_an_untrained_model_changes_nothing():
    model, (x, theta) = build(), fast_events(50, 0)
    model.fit_scaling(x, 2 * x, theta)
    torch.testing.assert_close(model.translate(x, theta), x)
    torch.testing.assert_close(model.translate_back(x, theta[0]), x)
    ones = torch.ones(50)
    encoded, contexts = model.encode(x), model.context_scaling(theta)
    silent = build(penalty=1.0, cycle=3.0)
    for critic in (silent.full_critic, silent.fast_critic):
        torch.nn.init.zeros_(critic.layers[-1].weight)
        torch.nn.init.zeros_(critic.layers[-1].bias)
    assert float(silent.generator_loss(ones, encoded, ones, encoded, contexts, contexts).detach()) == 0


def test_it_finds_an_affine_map_from_unpaired_samples():
    """What is left is a quarter of the change that the map makes, both ways, and a return trip comes back."""
    model = build(penalty=1.0)
    record = fit(model, 3000, 2500, epochs=40, batch_size=128, critic_steps=3, generator_rate=1e-3)
    x, theta = fast_events(1000, 3)
    full = full_event(x, theta)
    change = root_mean_square(full - x)
    assert root_mean_square(model.translate(x, theta) - full) < 0.25 * change
    assert root_mean_square(model.translate_back(full, theta) - x) < 0.25 * change
    assert root_mean_square(model.translate_back(model.translate(x, theta), theta) - x) < 0.15 * change
    assert not record.collapsed
    assert record.best_distance < 0.2 * record.distance[0]


def test_same_seed_same_bytes_and_an_interrupted_run_goes_on_exactly(tmp_path):
    class Interrupted(Exception):
        pass

    class Ends(CycleGAN):
        calls = 0

        def critic_loss(self, *arguments):
            self.calls += 1
            if self.calls == 15:
                raise Interrupted
            return super().critic_loss(*arguments)

    settings = {"epochs": 3, "batch_size": 64, "checkpoint_seconds": 0.0}
    first, second, resumed = build(), build(), build()
    fit(first, 500, 400, **settings)
    fit(second, 500, 400, **settings)
    path = tmp_path / "run.ckpt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ends = Ends((2,), (1,), hidden_features=32, blocks=1)
    with pytest.raises(Interrupted):
        fit(ends, 500, 400, path, **settings)
    assert path.exists()
    fit(resumed, 500, 400, path, **settings)
    for other in (second, resumed):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_translations_stay_inside_the_support():
    model = build(None, bounds=torch.tensor([[0.0, torch.inf], [0.0, 1.0]]))
    x = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    model.fit_scaling(x, x**2)
    with torch.no_grad():
        for weight in model.forth.parameters():
            weight.add_(0.5)
    moved = model.translate(x)
    assert bool(model.bijection.within(moved).all())
    assert not torch.allclose(moved, x)


def test_wrong_use_is_named():
    model, (x, theta) = build(), fast_events(10, 0)
    with pytest.raises(ShapeError, match=r"x: expected shape \(n, 2\)"):
        model.translate(x[:, :1], theta)
    with pytest.raises(ShapeError, match="context: expected one, got NoneType"):
        model.translate(x)
    with pytest.raises(ShapeError, match=r"context: expected shape \(10, 1\), got \(3, 1\)"):
        model.translate(x, theta[:3])
    with pytest.raises(ShapeError, match="context: expected None, got Tensor"):
        build(None).translate(x, theta)
    with pytest.raises(NonFiniteError, match="x: expected finite"):
        model.translate(x * torch.nan, theta)
    with pytest.raises(UsageError, match="cycle: expected a finite number"):
        build(cycle=-1.0)
    with pytest.raises(UsageError, match="full: expected encoded events and scaled contexts, got 1"):
        train_translation(model, [x, theta], [x])

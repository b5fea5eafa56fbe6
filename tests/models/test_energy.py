"""The energy model, and the Langevin dynamics that it draws with, against Gaussians."""

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.protocols import Density, Generator
from sbi_physics.models.energy import EnergyModel
from sbi_physics.models.langevin import langevin
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.energy import train_energy

FACTOR = torch.tensor([[1.0, 0.0], [0.6, 0.5]])
SHORT = {"epochs": 3, "batch_size": 100, "checkpoint_seconds": 0.0, "optimizer": "adamw", "learning_rate": 2e-3}


def shifted_gaussians(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c = 2 * torch.rand(n, 1, generator=generator) - 1
    return torch.randn(n, 2, generator=generator) @ FACTOR.T + torch.cat([2 * c, -c], -1), c


def build(kind=EnergyModel, context=(1,), dims=2, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind((dims,), context, **{"hidden_features": 32, "blocks": 1, "training_steps": 15, **options})


def fit(model, x, c=None, *, weights=None, checkpoint=None, chains=512, **settings):
    model.fit_scaling(x, c)
    data = [model.encode(x)[0]] + ([] if c is None else [model.context_scaling(c)])
    config = TrainConfig(**{**SHORT, "weight_decay": 0.0, **settings})
    return train_energy(
        model, data, weights=weights, chains=chains, config=config, checkpoint=checkpoint, progress=False
    )


def quadratic(z, beta):
    return 0.5 * beta * (z / torch.tensor([1.0, 0.5])).square().sum(-1)


@pytest.mark.parametrize("adjusted", [True, False])
def test_langevin_keeps_a_gaussian_only_with_metropolis(adjusted):
    """At a long step the unadjusted chain is too wide: 1 / (1 - s^2/4) for a unit Gaussian, 1.96 for half its width."""
    n, size = 20_000, 0.7
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, 2, generator=generator) * torch.tensor([1.0, 0.5])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        z, taken = langevin(quadratic, start, inverse_temperatures=[1.0] * 40, step_size=size, adjusted=adjusted)
    ratio = z.var(0) / torch.tensor([1.0, 0.25])
    expected = torch.ones(2) if adjusted else 1 / (1 - size**2 / (4 * torch.tensor([1.0, 0.25])))
    assert float((ratio / expected - 1).abs().max()) < 5 * (2 / n) ** 0.5
    assert 0.3 < taken < 1
    assert not z.requires_grad


def test_chains_come_back_from_where_the_energy_is_steep():
    """A slope of 500 would carry a step of 0.3 to 7 times as far on the other side, where no proposal is ever taken."""
    n, width = 4000, 0.1
    with torch.random.fork_rng():
        torch.manual_seed(2)
        start = torch.cat([torch.full((n, 1), 5.0), torch.randn(n, 1)], -1)
        z, taken = langevin(
            lambda z, beta: 0.5 * beta * (z / torch.tensor([width, 1.0])).square().sum(-1),
            start,
            inverse_temperatures=[1.0] * 200,
            step_size=0.3,
        )
    assert taken > 0.2
    ratio = z.var(0) / torch.tensor([width**2, 1.0])
    assert float((ratio - 1).abs().max()) < 5 * (2 / n) ** 0.5
    assert float((z.mean(0) / torch.tensor([width, 1.0])).abs().max()) < 5 * (1 / n) ** 0.5


def test_a_tuned_step_comes_to_its_acceptance():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = torch.randn(2000, 2)
        _, taken = langevin(quadratic, start, inverse_temperatures=[1.0] * 150, step_size=0.01, tuned=140)
    assert taken == pytest.approx(0.574, abs=0.05)


def test_an_untrained_model_is_the_standard_normal():
    model, n = build(context=None), 10_000
    assert isinstance(model, Generator)
    assert not isinstance(model, Density)
    draws = model.sample(n, seed=0)
    assert float((draws.var(0) - 1).abs().max()) < 5 * (2 / n) ** 0.5
    torch.testing.assert_close(model.energy(draws).detach(), 0.5 * draws.square().sum(-1))
    # Its score matching loss on its own draws has the mean -D/2.
    assert float(model.loss(draws).mean()) == pytest.approx(-1.0, abs=5 * (1 / n) ** 0.5)
    assert draws.numpy().tobytes() == model.sample(n, seed=0).numpy().tobytes()


def test_score_matching_is_smallest_for_the_truth():
    """For N(0, s^2) and a standard normal model: s^2/2 - 1 for each dimension; many dimensions are probed at random."""
    for dims in (2, 12):
        model = build(context=None, dims=dims)
        x = 0.7 * torch.randn(4000, dims, generator=torch.Generator().manual_seed(0))
        assert float(model.loss(x).mean()) == pytest.approx(dims * (0.49 / 2 - 1), rel=0.02)


def test_it_learns_a_gaussian_that_a_context_shifts():
    """Means within 0.15, the covariance within 15 %, and energies that are those of the Gaussian up to a constant."""
    x, c = shifted_gaussians(3000)
    model = build()
    record = fit(model, x, c, epochs=20)
    assert len(model.chains) == 0
    assert record.best_validation_loss < record.validation_loss[0]
    draws = model.sample(3000, torch.tensor([[0.6], [-0.6]]), seed=1)
    assert float((draws.mean(0) - torch.tensor([[1.2, -0.6], [-1.2, 0.6]])).abs().max()) < 0.15
    covariance = FACTOR @ FACTOR.T
    for rows in draws.unbind(1):
        assert float((torch.cov(rows.T) - covariance).abs().max()) < 0.15
    centre = torch.tensor([1.2, -0.6])
    exact = td.MultivariateNormal(centre, covariance)
    points = centre + torch.randn(500, 2, generator=torch.Generator().manual_seed(2)) @ FACTOR.T
    with torch.no_grad():
        excess = model.energy(points, torch.tensor([0.6])) + exact.log_prob(points)
        other = model.energy(points, torch.tensor([-0.6])) + exact.log_prob(points)
    assert float(excess.std()) < 0.3 < float(other.std())


def test_energies_count_the_maps_to_the_support():
    """Up to a constant the energy of an untrained model is minus the log-density of what it draws."""
    model = build(context=None, bounds=torch.tensor([[0.0, torch.inf], [-1.0, 1.0]]))
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    model.fit_scaling(x)
    z, ladj = model.encode(x)
    expected = -td.Normal(0.0, 1.0).log_prob(z).sum(-1) - ladj
    difference = model.energy(x).detach() - expected
    torch.testing.assert_close(difference, difference[:1].expand(200))
    assert float(model.energy(torch.tensor([-1.0, 0.0])).detach()) == torch.inf
    assert bool(model.bijection.within(model.sample(100, seed=0)).all())


@pytest.mark.parametrize("conditional", [False, True])
def test_weights_take_away(conditional):
    """A second Gaussian that events of opposite weight take away again is not learned."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4500, 2, generator=generator)
    x[1500:] = 0.5 * x[1500:] + torch.tensor([2.0, 0.0])
    weights = torch.ones(4500)
    weights[3000:] = -1.0
    c = torch.rand(4500, 1, generator=generator) if conditional else None
    model = build(context=(1,) if conditional else None)
    fit(model, x, c, weights=weights, epochs=8)
    draws = model.sample(2000, c[:1] if conditional else None, seed=0)
    assert float(draws[..., 0].mean()) == pytest.approx(0.0, abs=0.3)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    class Ends(EnergyModel):
        calls = 0

        def add_gradient(self, *arguments):
            self.calls += 1
            if self.calls == 8:
                raise Interrupted
            return super().add_gradient(*arguments)

    x, c = shifted_gaussians(500)
    path, whole, again, resumed = tmp_path / "run.ckpt", build(), build(), build()
    fit(whole, x, c, chains=64)
    fit(again, x, c, chains=64)
    with pytest.raises(Interrupted):
        fit(build(Ends), x, c, chains=64, checkpoint=path)
    assert path.exists()
    fit(resumed, x, c, chains=64, checkpoint=path)
    for other in (again, resumed):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items())


def test_wrong_use_is_named():
    model, (x, c) = build(), shifted_gaussians(50)
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*, 2\)"):
        model.energy(x[:, :1], c)
    with pytest.raises(ShapeError, match="expected leading axes that broadcast"):
        model.energy(x, c[:3])
    with pytest.raises(NonFiniteError, match="x: expected finite"):
        model.energy(x * torch.nan, c)
    with pytest.raises(UsageError, match="step_size: expected a finite number"):
        build(step_size=0.0)
    with pytest.raises(UsageError, match="data: expected encoded events and scaled contexts, got 1"):
        train_energy(model, [x])
    with pytest.raises(UsageError, match="chains: expected start_chains"):
        model.add_gradient(torch.ones(50) / 50, x, c)

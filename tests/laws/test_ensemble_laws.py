"""An ensemble is the mixture of its members, whatever engine runs them, and is fitted in one pass."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.protocols import Density
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.flows import engines, ensemble
from sbi_physics.models.flows.build import build_flow
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.simulation.resolve import resolve_simulator
from sbi_physics.train import loop
from sbi_physics.train.config import TrainConfig

SMALL = {"transforms": 2, "hidden_features": 12, "blocks": 1}
ENGINES = [
    ("nsf", "eager", torch.float64),
    ("maf", "eager", torch.float64),
    ("nsf-box", "eager", torch.float64),
    ("nsf", "compiled", torch.float32),
]


def build(model="nsf", members=3, engine="eager", dtype=torch.float64, dims=2):
    architecture = Architecture(model, (dims,), (2,), SMALL, members=members)
    parameters = Parameters([Parameter(f"theta_{i}", td.Uniform(-1.0, 1.0)) for i in range(dims)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = build_density(architecture, bounds=parameters.bounds, engine=engine)
        density.fit_scaling(parameters.sample(500), torch.randn(500, 2))
        with torch.no_grad():
            for weight in density.parameters():
                weight.add_(0.15 * torch.randn_like(weight))
    return density.to(dtype).eval(), parameters, architecture


def rows(density, n=51):
    generator = torch.Generator().manual_seed(1)
    dtype = density.event_scaling.mean.dtype
    events = 1.9 * torch.rand(n, *density.event_shape, generator=generator, dtype=dtype) - 0.95
    return events, torch.randn(n, 2, generator=generator, dtype=dtype)


@pytest.fixture(params=ENGINES, ids=lambda p: f"{p[0]}-{p[1]}")
def built(request):
    model, engine, dtype = request.param
    return build(model, engine=engine, dtype=dtype)


def test_the_density_is_the_mean_of_the_members(built):
    density, *_ = built
    assert isinstance(density, Density)
    events, contexts = rows(density)
    encoded, summary = density.encode(events)[0], density._summary(contexts)
    each = torch.stack([engines.log_prob(flow, encoded, summary, engine="eager") for flow in density.flow.members()])
    assert float(each.std(0).mean().detach()) > 0.05
    mixture = ensemble.log_prob(density.flow, encoded, summary, engine=density.engine)
    tolerance = 1e-10 if events.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(mixture, each.exp().mean(0).log(), rtol=tolerance, atol=tolerance)
    # In training the first third of the rows is for the first member, and so on; in validation all are for the mixture.
    scaled = density.context_scaling(contexts)
    torch.testing.assert_close(density.loss(encoded, scaled), -mixture)
    third = len(events) // 3
    own = torch.cat([row[i * third : (i + 1) * third] for i, row in enumerate(each)])
    torch.testing.assert_close(density.train().loss(encoded, scaled), -own, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("contexts_of", ["each", "all"])
def test_gradients_are_those_of_the_members_own_rows(built, contexts_of):
    density, *_ = built
    events, contexts = rows(density)
    encoded, scaled = density.encode(events)[0].detach(), density.context_scaling(contexts)
    scaled = scaled if contexts_of == "each" else scaled[:1]
    weights = torch.randn(51, generator=torch.Generator().manual_seed(2)).to(encoded)
    losses = density.train().loss(encoded, scaled)
    expected = torch.autograd.grad(weights @ losses, list(density.parameters()))
    found = density.add_gradient(weights, encoded, scaled)
    torch.testing.assert_close(found, losses.detach(), rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(density.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_an_embedding_network_gets_the_gradient_of_all_members():
    architecture = Architecture("nsf", (2,), (4,), SMALL, embedding=True, members=3)
    gradients = []
    for engine in ("eager", "compiled"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bounds = torch.tensor([[-1.0, 1.0]] * 2)
            density = build_density(architecture, bounds=bounds, embedding=torch.nn.Linear(4, 3), engine=engine)
            for member in density.flow.members():
                torch.nn.init.normal_(member._transform._transforms[-1].conditioner.final_layer.weight)
            density.train().add_gradient(torch.ones(30) / 30, torch.randn(30, 2), torch.randn(30, 4))
        gradients.append(density.embedding.weight.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_density_integrates_to_one():
    density, *_ = build(dims=1)
    grid = torch.linspace(-15, 15, 20_001, dtype=torch.float64)[:, None]
    context = density.context_scaling(torch.tensor([[0.3, -1.0]], dtype=torch.float64))
    mass = torch.trapezoid((-density.loss(grid, context)).exp(), grid[:, 0])
    assert float(mass) == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_draws_follow_the_mixture():
    density, *_ = build(dims=1)
    context = torch.tensor([0.3, -1.0], dtype=torch.float64)
    n = 20_000
    draws, log_prob = density.sample_and_log_prob(n, context, seed=1)
    torch.testing.assert_close(log_prob, density.log_prob(draws, context), rtol=1e-6, atol=1e-6)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 10_000 - 1
    cumulative = density.log_prob(grid[:, None], context).exp().cumsum(0) / 10_000
    empirical = torch.searchsorted(draws[:, 0].sort().values, grid).double() / n
    # Kolmogorov: exceeded once in a thousand.
    assert float((empirical - cumulative).abs().max()) < 1.95 / math.sqrt(n)
    # The twin: draws of one member alone.
    alone = build_one(density).sample(n, context, seed=1)
    empirical = torch.searchsorted(alone[:, 0].sort().values, grid).double() / n
    assert float((empirical - cumulative).abs().max()) > 1.95 / math.sqrt(n)


def build_one(density):
    single, *_ = build(members=1, dims=1)
    single.flow.load_state_dict(density.flow.members()[0].state_dict())
    return single


def test_same_seed_same_draws_and_files_give_them_back(built, tmp_path):
    density, parameters, architecture = built
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    if density.event_scaling.mean.dtype != torch.float32:
        density = density.float()
    events, contexts = rows(density)
    draws = density.sample(9, contexts, seed=1)
    assert draws.shape == (9, 51, 2)
    assert torch.equal(draws, density.sample(9, contexts, seed=1))
    assert not torch.equal(draws, density.sample(9, contexts, seed=2))
    DirectPosterior(parameters, density, architecture, {}).save(tmp_path / "posterior.st")
    again = sp.load(tmp_path / "posterior.st", device="cpu").density
    again.engine = density.engine
    assert len(again.flow.members()) == 3
    assert torch.equal(again.log_prob(events, contexts), density.log_prob(events, contexts))


def test_files_from_before_there_were_ensembles_hold_one_flow():
    description = Architecture("nsf", (2,), (2,)).to_dict()
    del description["members"]
    assert Architecture.from_dict(description).members == 1


def test_an_ensemble_fits_better_than_one_flow():
    """Few events and many parameters: the mixture forgives what each member has made up for itself."""
    simulator = resolve_simulator("slcp")
    held_out = sp.simulate(simulator, 2000, seed=100, progress=False).training_set()
    for seed in range(2):
        theta, x = sp.simulate(simulator, 1000, seed=seed, progress=False).training_set()
        found = []
        for members in (1, 4):
            npe = sp.NPE(simulator.parameters, embedding="flat", ensemble=members, transforms=3, augment=False)
            posterior = npe.fit(theta, x, seed=seed, progress=False)
            found.append(float(posterior.log_prob(*held_out).double().mean()))
        assert found[1] > found[0]


def test_a_batch_is_divided_among_the_members():
    density, *_ = build()
    events, contexts = rows(density, 50)
    with pytest.raises(ShapeError, match="batch: expected a multiple of 3, one part for each member, got 50"):
        density.train().loss(density.encode(events)[0], density.context_scaling(contexts))


def test_an_interrupted_ensemble_goes_on_exactly(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(300, 2, generator=generator)
    x = theta + 0.3 * torch.randn(300, 2, generator=generator)
    prior = td.MultivariateNormal(torch.zeros(2), torch.eye(2))
    config = TrainConfig(epochs=7, checkpoint_seconds=0)

    def fit(checkpoint=None):
        options = {"transforms": 2, "hidden_features": 16, "blocks": 1, "bins": 4}
        npe = sp.NPE(prior, ensemble=3, config=config, augment=False, **options)
        posterior = npe.fit(theta, x, seed=1, checkpoint=checkpoint, progress=False)
        return posterior.log_prob(theta[:50], x[:50])

    class Interrupted(Exception):
        pass

    # Five epochs are shared; the run is interrupted in the first part, then in the second.
    expected, path = fit(), str(tmp_path / "run.st")
    for epochs in (2, 4):
        count = iter(range(epochs))

        def validate(run, original=loop._validate, count=count):
            if next(count, None) is None:
                raise Interrupted
            return original(run)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_validate", validate)
            with pytest.raises(Interrupted):
                fit(path)
        assert (tmp_path / "run.st.beginning").exists()
    assert (tmp_path / "run.st").exists()
    assert torch.equal(fit(path), expected)
    assert not list(tmp_path.iterdir())


def test_ensembles_by_number():
    prior = td.Normal(torch.zeros(1), torch.ones(1))
    with pytest.raises(UsageError, match="ensemble: expected an integer of at least 1, got 0"):
        sp.NPE(prior, ensemble=0)
    with pytest.raises(UsageError, match="ensemble: copies of a flow of your own"):
        sp.NPE(prior, build_flow("nsf", 1, 2), ensemble=2)

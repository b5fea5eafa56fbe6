"""Boltzmann generators against the free theory, sums over a grid, and Hamiltonian Monte Carlo; and one that misses."""

import math

import pytest
import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.base import CompositeTransform
from nflows.transforms.standard import PointwiseAffineTransform

from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, TrainingError, UsageError
from sbi_physics.core.random import seeded
from sbi_physics.integration.boltzmann import BoltzmannGenerator, ReverseDivergence
from sbi_physics.integration.thermodynamic import thermodynamic_integration
from sbi_physics.models.flows.lattice import SpectralScaling, lattice_flow
from sbi_physics.sampling.hmc import hmc
from simulators.lattice import ScalarField, magnetisation, susceptibility

SMALL = {"couplings": 2, "hidden_features": 16}
QUIET = {"device": "cpu", "progress": False}


def observables(field):
    return {
        "absolute magnetisation": lambda phi: magnetisation(phi).abs(),
        "susceptibility": susceptibility,
        "action": lambda phi: field.action(phi) / field.sites,
    }


def scaling_of(side, curvature):
    """A layer that whitens fields of the action sum_k (k^2 + curvature) |phi_k|^2, k the momentum on the lattice."""
    layer = SpectralScaling(side)
    momentum = 2 - 2 * torch.cos(2 * math.pi * torch.arange(side) / side)
    with torch.no_grad():
        layer.log_factors[layer.orbit] = 0.5 * torch.log(2 * (momentum.unsqueeze(1) + momentum + curvature))
    return layer


def gaussian(side, mass_squared, factor=1.0):
    """The flow that a free theory is, or one that is too narrow by a factor."""
    layers = [PointwiseAffineTransform(0.0, factor), scaling_of(side, mass_squared)]
    return Flow(CompositeTransform(layers), StandardNormal([side**2]))


def start(chains, dims, width=0.4):
    return width * torch.randn(chains, dims, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.fixture(scope="module")
def field():
    return ScalarField(2, -4.0, 6.975)


@pytest.fixture(scope="module")
def exact(field):
    return field.exact_moments()


@pytest.fixture(scope="module")
def reference(field):
    return hmc(field.log_density, start(64, 4), steps=200, warmup=150, acceptance=0.8, seed=1, **QUIET)


@pytest.fixture(scope="module")
def trained(field):
    generator = BoltzmannGenerator(field.log_density, lattice_flow(2, **SMALL), device="cpu")
    return generator.fit(steps=200, seed=1, progress=False)


class TestFreeTheory:
    def test_the_flow_that_it_is_gives_the_exact_free_energy(self):
        field = ScalarField(4, 0.7, 0.0)
        found = BoltzmannGenerator(field.log_density, gaussian(4, 0.7), device="cpu").free_energy(1000)
        assert found.value == pytest.approx(field.free_energy(), abs=1e-5)
        assert found.efficiency == pytest.approx(1.0, abs=1e-6)

    def test_the_weights_correct_another_flow(self):
        """Within 3 standard errors, where the mean log-weight alone is far off."""
        field = ScalarField(4, 0.7, 0.0)
        generator = BoltzmannGenerator(field.log_density, gaussian(4, 0.7, 0.9), device="cpu")
        found = generator.free_energy(20_000, seed=2)
        draws, log_q = generator.density.sample_and_log_prob(20_000, seed=3)
        bound = (log_q + field.action(draws)).mean()
        assert abs(found.value - field.free_energy()) < 3 * found.error < 0.05
        assert float(bound) - field.free_energy() > 10 * found.error

    @pytest.mark.parametrize("gradient", ["path", "total"])
    def test_gradients_are_unbiased(self, gradient):
        """Modes with widths 1/f of the right ones: d KL / d ln f = 1 - 1 / f^2 for each."""
        field, n, factor = ScalarField(2, 0.7, 0.0), 20_000, 1.1
        slopes = gradients(field, gaussian(2, 0.7, factor), gradient, n)
        # Momenta (0, 0), (pi, 0) and (0, pi), and (pi, pi): one, two and one modes.
        expected = torch.tensor([1.0, 2.0, 1.0]) * (1 - factor**-2)
        error = (2.0 * torch.tensor([1.0, 2.0, 1.0]) / n) ** 0.5
        assert float(((slopes - expected).abs() / error).max()) < 4

    def test_the_path_gradient_has_no_noise_where_the_flow_is_right(self):
        field = ScalarField(2, 0.7, 0.0)
        path, total = (gradients(field, gaussian(2, 0.7), name, 100) for name in ("path", "total"))
        assert float(path.abs().max()) < 1e-5
        assert float(total.abs().min()) > 1e-2


def gradients(field, flow, gradient, n):
    """Of the divergence in the logarithms of the spectrum, from n draws."""
    generator = BoltzmannGenerator(field.log_density, flow, device="cpu")
    objective = ReverseDivergence(generator.density, field.log_density, 1).train()
    rows, weights = torch.zeros(n, 1), torch.full((n,), 1 / n)
    with seeded(3):
        if gradient == "path":
            objective.add_path_gradient(weights, rows)
        else:
            (weights * objective.loss(rows)).sum().backward()
    return flow._transform._transforms[1].log_factors.grad


class TestInteracting:
    def test_the_free_energy_is_that_of_the_grid(self, trained, exact, reference):
        found = trained.free_energy(20_000, reference=reference, seed=4)
        assert found.trusted, found.verdict
        assert found.efficiency > 0.9
        assert abs(found.value - exact.free_energy) < 3 * found.error
        assert abs(found.reference_value - exact.free_energy) < 3 * found.reference_error
        assert max(found.error, found.reference_error) < 0.01

    def test_the_chains_agree_with_the_grid(self, trained, field, exact):
        """Within 3 standard errors, which the autocorrelation time gives."""
        draws = trained.sample(40_000, observables=observables(field), seed=5)
        assert draws.diagnostics["converged"], draws.diagnostics["verdict"]
        assert draws.diagnostics["acceptance"] > 0.8
        assert_means(draws, field, exact)

    def test_hmc_agrees_with_the_grid(self, field, exact, reference):
        assert_means(reference, field, exact)

    def test_the_correction_is_needed_after_a_short_training(self, field, exact):
        generator = BoltzmannGenerator(field.log_density, lattice_flow(2, width=0.7, **SMALL), device="cpu")
        generator.fit(steps=25, learning_rate=1e-4, seed=1, progress=False)
        draws = generator.density.sample(40_000, seed=6).double()
        raw = susceptibility(draws)
        assert abs(float(raw.mean()) - exact.susceptibility) > 10 * float(raw.std()) / 200
        assert_means(generator.sample(40_000, observables=observables(field), seed=7), field, exact)

    def test_thermodynamic_integration_agrees_with_the_grid(self, field, exact):
        free = ScalarField(2, 1.0, 0.0)
        found = thermodynamic_integration(
            free.log_density,
            field.log_density,
            start(48, 4),
            nodes=5,
            steps=100,
            warmup=100,
            acceptance=0.8,
            seed=2,
            **QUIET,
        )
        assert found.converged, found.verdict
        assert abs(found.value + free.free_energy() - exact.free_energy) < 3 * found.error < 0.1
        # The free energy is concave along the path.
        assert list(found.integrand) == sorted(found.integrand, reverse=True)

    def test_the_same_seed_gives_the_same_numbers(self, field):
        def run():
            generator = BoltzmannGenerator(field.log_density, lattice_flow(2, **SMALL), device="cpu")
            generator.fit(steps=25, seed=3, progress=False)
            return generator.free_energy(100, seed=1).value, generator.sample(100, seed=1).values

        (value, draws), (again, redrawn) = run(), run()
        assert value == again
        assert torch.equal(draws, redrawn)


def assert_means(draws, field, exact):
    """The means of all observables within 3 standard errors of the exact ones."""
    expected = (exact.absolute_magnetisation, exact.susceptibility, exact.action)
    chains = draws.diagnostics["chains"]
    by_step = "step_size" not in draws.diagnostics
    for (name, function), value in zip(observables(field).items(), expected, strict=True):
        each = function(draws.values)
        means = (each.reshape(-1, chains).mean(0)) if by_step else each.reshape(chains, -1).mean(1)
        pull = (float(means.mean()) - value) / (float(means.std()) / chains**0.5)
        assert abs(pull) < 3, f"{name}: {pull}"


class TestAMissedMode:
    """A 2 x 2 torus with wells at phi = 2 and -2, and a flow that knows only the first."""

    field = ScalarField(2, -4.0, 0.5)
    # The action of small fluctuations about a well is that of a mass squared of -2 m^2.
    flow = Flow(CompositeTransform([PointwiseAffineTransform(-2.0, 1.0), scaling_of(2, 8.0)]), StandardNormal([4]))

    def test_its_own_draws_do_not_tell(self):
        """It is wrong by ln 2, and would be trusted for its weights."""
        found = BoltzmannGenerator(self.field.log_density, self.flow, device="cpu").free_energy(20_000)
        assert found.value - self.field.exact_moments().free_energy == pytest.approx(math.log(2), abs=0.03)
        assert found.efficiency > 0.5
        assert found.pareto_k < 0.7
        assert not found.trusted
        assert found.verdict.startswith("not confirmed")

    def test_draws_of_hmc_tell(self):
        reference = hmc(self.field.log_density, start(64, 4, 2.0), steps=100, warmup=150, seed=1, **QUIET).values
        found = BoltzmannGenerator(self.field.log_density, self.flow, device="cpu").free_energy(
            20_000, reference=reference.unflatten(0, (64, -1))
        )
        assert not found.trusted
        assert 0.2 < found.missed < 0.8
        assert "it misses a part of the distribution" in found.verdict

    def test_a_reference_that_has_not_converged_confirms_nothing(self, trained, reference):
        stuck = BoltzmannGenerator(ScalarField(2, -4.0, 6.975).log_density, trained.density.flow, device="cpu")
        doubtful = reference.__class__(
            reference.values,
            reference.names,
            diagnostics={**reference.diagnostics, "converged": False, "verdict": "not converged: too few"},
        )
        found = stuck.free_energy(2000, reference=doubtful)
        assert not found.trusted
        assert "the reference itself is not converged: too few" in found.verdict


def test_a_budget_of_seconds_ends_the_training(field):
    generator = BoltzmannGenerator(field.log_density, lattice_flow(2, **SMALL), device="cpu")
    generator.fit(steps=100_000, max_seconds=0.5, progress=False)
    assert generator.record.stopped == "seconds"
    with pytest.raises(BudgetError, match="within the warm-up"):
        generator.sample(1000, max_calls=100)
    assert len(generator.sample(10_000, max_calls=64 * 40)) == 64 * 19


def test_wrong_use_is_named(field, trained):
    flow = lattice_flow(2, **SMALL)
    with pytest.raises(UsageError, match="log_density: expected a function, got ScalarField"):
        BoltzmannGenerator(field, flow)
    with pytest.raises(UsageError, match="gradient: expected one of path, total"):
        BoltzmannGenerator(field.log_density, flow).fit(gradient="score")
    with pytest.raises(UsageError, match="log_density: expected a function that torch can differentiate"):
        BoltzmannGenerator(lambda phi: field.log_density(phi.detach()), flow, device="cpu").fit(progress=False)
    with pytest.raises(ShapeError, match="log_density: expected shape"):
        BoltzmannGenerator(lambda phi: -phi.square(), flow, device="cpu").fit(progress=False)
    with pytest.raises(ShapeError, match=r"reference: expected shape \(m, 4\)"):
        trained.free_energy(100, reference=torch.zeros(10, 3))
    with pytest.raises(NonFiniteError, match="reference: expected finite"):
        trained.free_energy(100, reference=torch.full((10, 4), torch.nan))
    with pytest.raises(TrainingError, match=r"not finite|being finite|became"):
        BoltzmannGenerator(field.log_density, lattice_flow(2, **SMALL), device="cpu").fit(
            steps=100, learning_rate=1e9, progress=False
        )
    with pytest.raises(ShapeError, match="at least 4 chains"):
        thermodynamic_integration(field.log_density, field.log_density, torch.zeros(2, 4))
    with pytest.raises(UsageError, match="parameters: thermodynamic integration"):
        thermodynamic_integration(field.log_density, field.log_density, torch.zeros(4, 4), parameters=None)


@pytest.mark.slow
def test_a_larger_torus_agrees_with_hamiltonian_monte_carlo():
    """4 x 4: free energy by integration from the free theory, moments by chains, all within 3 standard errors."""
    field, free = ScalarField(4, -4.0, 6.0), ScalarField(4, 1.0, 0.0)
    generator = BoltzmannGenerator(field.log_density, lattice_flow(4), device="cpu").fit(
        steps=400, seed=1, progress=False
    )
    reference = hmc(field.log_density, start(64, 16), steps=300, warmup=200, acceptance=0.8, seed=1, **QUIET)
    path = thermodynamic_integration(
        free.log_density, field.log_density, start(64, 16), nodes=8, steps=200, acceptance=0.8, seed=1, **QUIET
    )
    found = generator.free_energy(20_000, reference=reference)
    assert found.trusted, found.verdict
    assert found.efficiency > 0.9
    gap = found.value - free.free_energy() - path.value
    assert abs(gap) < 3 * math.hypot(found.error, path.error) < 0.1
    draws = generator.sample(20_000, observables=observables(field), seed=2)
    assert draws.diagnostics["converged"], draws.diagnostics["verdict"]
    for function in observables(field).values():
        by_flow = function(draws.values)[: 64 * 312].reshape(312, 64).mean(0)
        by_hmc = function(reference.values).reshape(64, 300).mean(1)
        error = math.hypot(float(by_flow.std()), float(by_hmc.std())) / 8
        assert abs(float(by_flow.mean() - by_hmc.mean())) < 3 * error

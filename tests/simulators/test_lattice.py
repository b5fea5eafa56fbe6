"""A scalar field on a torus against the free theory, sums over a grid and its symmetries."""

import math

import pytest
import torch

from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from simulators.lattice import ScalarField, magnetisation, susceptibility, two_point_function

FIELDS = torch.randn(5, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(fields, down, right):
    side = math.isqrt(fields.shape[-1])
    return fields.unflatten(-1, (side, side)).roll((down, right), (-2, -1)).flatten(-2)


def test_the_action_is_that_of_the_paper():
    """Sum over sites of phi (2 phi - phi(x + mu) - phi(x - mu)) + m^2 phi^2 + lambda phi^4, site by site."""
    phi, expected = FIELDS[0].reshape(6, 6), 0.0
    for i in range(6):
        for j in range(6):
            here = float(phi[i, j])
            around = sum(
                2 * here - float(phi[(i + a) % 6, (j + b) % 6]) - float(phi[i - a, j - b]) for a, b in ((1, 0), (0, 1))
            )
            expected += here * around - 4 * here**2 + 6.975 * here**4
    field = ScalarField(6, -4.0, 6.975)
    assert float(field.action(FIELDS[0])) == pytest.approx(expected)
    torch.testing.assert_close(field.log_density(FIELDS), -field.action(FIELDS))


def test_the_action_has_the_symmetries_of_the_torus():
    field = ScalarField(6, -4.0, 5.0)
    square = FIELDS.unflatten(-1, (6, 6))
    for other in (-FIELDS, moved(FIELDS, 1, 0), moved(FIELDS, 2, 5), square.mT.flatten(1), square.flip(1).flatten(1)):
        torch.testing.assert_close(field.action(other), field.action(FIELDS))


def test_the_action_is_differentiable():
    assert torch.autograd.gradcheck(ScalarField(6, -4.0, 6.975).action, FIELDS[:2].clone().requires_grad_())


def test_the_free_theory_is_a_gaussian():
    """Free energy and propagator against the matrix of the quadratic form."""
    field = ScalarField(4, 0.7, 0.0)
    matrix = torch.autograd.functional.hessian(field.action, torch.zeros(16, dtype=torch.float64)) / 2
    assert field.free_energy() == pytest.approx(0.5 * float(torch.logdet(matrix)) - 8 * math.log(math.pi))
    torch.testing.assert_close(field.propagator().flatten(), torch.linalg.inv(2 * matrix)[0])


def test_exact_draws_of_the_free_theory_have_its_two_point_function():
    """Within 4 standard errors, and not that of another mass."""
    n, field = 20_000, ScalarField(6, 0.5, 0.0)
    matrix = torch.autograd.functional.hessian(field.action, torch.zeros(36, dtype=torch.float64))
    noise = torch.randn(36, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = torch.linalg.solve_triangular(torch.linalg.cholesky(matrix).T, noise, upper=True).T
    each = two_point_function(draws)
    error = each.std(0) / n**0.5
    assert float(((each.mean(0) - field.propagator()).abs() / error).max()) < 4
    assert float(((each.mean(0) - ScalarField(6, 0.6, 0.0).propagator()) / error).abs().min()) > 4
    torch.testing.assert_close(each.sum((-2, -1)), susceptibility(draws))
    torch.testing.assert_close(each[:, 0, 0], draws.square().mean(1))


def test_the_grid_agrees_with_the_free_theory():
    field = ScalarField(2, 1.3, 0.0)
    exact = field.exact_moments()
    assert exact.free_energy == pytest.approx(field.free_energy(), abs=1e-8)
    assert exact.susceptibility == pytest.approx(float(field.propagator().sum()), abs=1e-8)
    assert exact.action == pytest.approx(0.5, abs=1e-8)
    # M is a Gaussian; the kink of |M| makes the grid slower.
    assert exact.absolute_magnetisation == pytest.approx(math.sqrt(2 * exact.susceptibility / 4 / math.pi), abs=3e-3)


@pytest.mark.parametrize(("mass_squared", "coupling"), [(-4.0, 6.975), (-4.0, 0.5), (1.0, 0.1)])
def test_the_grid_has_converged(mass_squared, coupling):
    field = ScalarField(2, mass_squared, coupling)
    coarse, fine = field.exact_moments(), field.exact_moments(47)
    assert coarse.free_energy == pytest.approx(fine.free_energy, abs=1e-5)
    assert coarse.susceptibility == pytest.approx(fine.susceptibility, rel=1e-5)


def test_the_free_energy_generates_the_moments():
    """dF/dm^2 = L^2 <phi^2> and dF/dlambda = L^2 <phi^4>, and with them the exact <phi dS/dphi> = 1 of each site."""
    step, m, coupling = 1e-3, -4.0, 6.975

    def slope(*direction):
        up, down = (
            ScalarField(2, m + s * direction[0], coupling + s * direction[1]).exact_moments(33).free_energy
            for s in (step, -step)
        )
        return (up - down) / (2 * step) / 4

    action = ScalarField(2, m, coupling).exact_moments(33).action
    quartic = coupling * slope(0, 1)
    assert 2 * (action - quartic) + 4 * quartic == pytest.approx(1.0, abs=1e-5)
    assert slope(1, 0) > 0


def test_observables_are_those_of_a_field():
    constant = torch.full((36,), -0.5, dtype=torch.float64)
    assert float(magnetisation(constant)) == -0.5
    assert float(susceptibility(constant)) == pytest.approx(9.0)
    torch.testing.assert_close(two_point_function(constant), torch.full((6, 6), 0.25, dtype=torch.float64))
    direct = (FIELDS.unflatten(-1, (6, 6)) * moved(FIELDS, 2, 1).unflatten(-1, (6, 6))).mean((-2, -1))
    torch.testing.assert_close(two_point_function(FIELDS)[:, 2, 1], direct)


def test_wrong_use_is_named():
    with pytest.raises(UsageError, match="side: expected at least 2"):
        ScalarField(1, 1.0, 0.0)
    with pytest.raises(UsageError, match="coupling: expected a finite number of at least 0"):
        ScalarField(4, 1.0, -0.1)
    with pytest.raises(UsageError, match="mass_squared: expected a finite number"):
        ScalarField(4, math.nan, 1.0)
    with pytest.raises(SupportError, match="without a coupling expected a number above 0"):
        ScalarField(4, -1.0, 0.0)
    with pytest.raises(UsageError, match="only the free theory is solved"):
        ScalarField(4, 1.0, 0.1).free_energy()
    with pytest.raises(UsageError, match="expected a 2 x 2 torus"):
        ScalarField(4, 1.0, 0.1).exact_moments()
    with pytest.raises(ShapeError, match=r"field: expected shape \(\*, 16\)"):
        ScalarField(4, 1.0, 0.1).action(torch.ones(3, 9))
    with pytest.raises(ShapeError, match="square lattice"):
        two_point_function(torch.ones(3, 15))

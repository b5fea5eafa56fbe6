"""Pulsar timing arrays: what is simulated, correlations between pulsars, calibration of the exact posterior."""

import math

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import ShapeError, UsageError
from simulators.hellings_downs import earth_term, hellings_downs, hellings_downs_matrix
from simulators.pulsar_timing import PulsarTimingArray, pulsar_timing, pulsar_timing_small
from simulators.red_noise import fourier_basis, power_law_variance
from simulators.synthetic_array import small_array, synthetic_array


@pytest.fixture(scope="module")
def small():
    return pulsar_timing_small()


class TestHellingsDowns:
    def test_known_values(self):
        angle = torch.deg2rad(torch.tensor([0.0, 60.0, 90.0, 180.0], dtype=torch.float64))
        expected = [0.5, 0.375 * math.log(0.25) - 0.0625 + 0.5, 0.75 * math.log(0.5) - 0.125 + 0.5, 0.25]
        torch.testing.assert_close(hellings_downs(angle), torch.tensor(expected, dtype=torch.float64))

    def test_minimum(self):
        """The derivative vanishes at x = exp(-5/6), an angle of 82.5 degrees."""
        angle = torch.linspace(0.0, 180.0, 180_001, dtype=torch.float64)
        curve = hellings_downs(torch.deg2rad(angle))
        assert float(angle[curve.argmin()]) == pytest.approx(82.48, abs=0.01)
        assert float(curve.min()) == pytest.approx(0.5 - 1.5 * math.exp(-5 / 6), abs=1e-9)

    def test_mean_over_the_sky_is_zero(self):
        """An isotropic background has no monopole: the integral of the curve over the cosine vanishes."""
        nodes = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
        assert float(torch.trapezoid(hellings_downs(torch.arccos(nodes)), nodes)) == pytest.approx(0.0, abs=1e-8)

    def test_matrix_has_one_on_the_diagonal_and_is_positive(self):
        positions = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), dim=1)
        matrix = hellings_downs_matrix(positions)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(40, dtype=torch.float64))
        torch.testing.assert_close(matrix, matrix.T)
        assert float(torch.linalg.eigvalsh(earth_term(positions)).min()) > -1e-12
        cosine = positions.double() @ positions.double().T
        off = ~torch.eye(40, dtype=torch.bool)
        torch.testing.assert_close(matrix[off], hellings_downs(torch.arccos(cosine[off])), atol=1e-6, rtol=0)

    def test_shape_is_checked(self):
        with pytest.raises(ShapeError, match="positions: expected shape"):
            hellings_downs_matrix(torch.zeros(3))


class TestRedNoise:
    def test_power_law_against_the_formula(self):
        """At one per year P is A^2 / (12 pi^2) yr^3, so that the mode of ten years has P / T."""
        variance = power_law_variance(*torch.tensor([-14.0, 13 / 3], dtype=torch.float64), 10, 10 * 365.25)
        year = 365.25 * 86400e6
        assert float(variance[9]) == pytest.approx(1e-28 / (12 * math.pi**2) / 10 * year**2, rel=1e-12)
        assert float(variance[0] / variance[9]) == pytest.approx(10 ** (13 / 3), rel=1e-12)

    def test_basis_is_orthogonal_on_a_regular_grid(self):
        times = 50_000 + torch.arange(200, dtype=torch.float64) * 5
        basis = fourier_basis(times, 20, 1000.0, 50_000.0)
        torch.testing.assert_close(basis.T @ basis, 100 * torch.eye(40, dtype=torch.float64), atol=1e-9, rtol=0)

    def test_variance_of_simulated_residuals(self, small, dense_timing):
        """Each residual is normal with the variance of the projected covariance; 5 sigma of N = 20,000."""
        theta = torch.tensor([-13.8, 4.0, -13.5, 3.0, -19.0, 1.0, -14.0, 5.0], dtype=torch.float64)
        n = 20_000
        x = small(theta.expand(n, -1), seed=3).double()
        total, place = dense_timing.covariance(small, theta)
        for p, pulsar in enumerate(small.pulsars):
            inverse = torch.linalg.inv(pulsar.white_covariance.dense())
            m = pulsar.matrix
            project = torch.eye(len(pulsar)) - m @ torch.linalg.solve(m.T @ inverse @ m, m.T @ inverse)
            here = torch.from_numpy(total[place[p], place[p]].astype(float))
            expected = (project @ here @ project.T).diagonal()
            pull = (x[:, p].var(0) / expected - 1) / math.sqrt(2 / n)
            assert float(pull.abs().max()) < 5
            assert float((x[:, p].mean(0) / torch.sqrt(expected / n)).abs().max()) < 5

    def test_timing_model_is_projected_out(self, small):
        x = small(small.parameters.sample(20, seed=1), seed=2).double()
        for p, pulsar in enumerate(small.pulsars):
            fitted = pulsar.matrix.T @ torch.linalg.solve(pulsar.white_covariance.dense(), x[:, p].T)
            raw = pulsar.matrix.T.abs() @ torch.linalg.solve(pulsar.white_covariance.dense(), x[:, p].T).abs()
            assert float((fitted / raw).abs().max()) < 1e-6


def correlations(simulator, theta, n, seed):
    """Mean products of the first whitened coefficients of each pair of pulsars, and their expectation."""
    z = simulator.coefficients(simulator(theta.expand(n, -1), seed=seed))[..., :4]
    shared = power_law_variance(theta[0], theta[1], 2, simulator.span * 365.25).repeat_interleave(2)
    earth = earth_term(torch.stack([p.position for p in simulator.pulsars]))
    corner = [simulator.likelihood.projection(p).triangle[:4] for p in range(len(simulator.pulsars))]
    phi = power_law_variance(theta[0], theta[1], simulator.gw_modes, simulator.span * 365.25).repeat_interleave(2)
    assert len(shared) == 4
    pairs = [(a, b) for a in range(len(corner)) for b in range(a)]
    size = 2 * simulator.gw_modes
    expected = torch.stack(
        [((corner[a][:, :size] * phi) @ corner[b][:, :size].T).diagonal() * earth[a, b] for a, b in pairs]
    )
    products = torch.stack([z[:, a] * z[:, b] for a, b in pairs], 1)
    return products.mean(0), products.std(0) / math.sqrt(n), expected


class TestBackground:
    theta = torch.cat([torch.tensor([-13.3, 13 / 3]), torch.tensor([-19.0, 7.0]).repeat(5)]).double()

    def test_hellings_downs_correlations_are_recovered(self):
        simulator = PulsarTimingArray(synthetic_array(5, seed=2, epochs=40), red_modes=5)
        mean, error, expected = correlations(simulator, self.theta, 8000, seed=3)
        pull = (mean - expected) / error
        assert float(pull.abs().max()) < 5
        assert float((pull**2).mean()) < 2

    def test_uncorrelated_background_fails_the_same_test(self):
        simulator = PulsarTimingArray(synthetic_array(5, seed=2, epochs=40), red_modes=5, correlated=False)
        mean, error, expected = correlations(simulator, self.theta, 8000, seed=3)
        assert float(((mean - expected) / error).abs().max()) > 10
        assert float((mean / error).abs().max()) < 5


class TestCoefficients:
    def test_are_white_without_a_signal(self, small):
        """Standard normal and independent; 5 sigma of N = 20,000."""
        n = 20_000
        quiet = torch.tensor([-18.0, 1.0] + [-19.0, 1.0] * 3).expand(n, -1)
        z = small.coefficients(small(quiet, seed=4)).flatten(1)
        covariance = z.T @ z / n
        off = ~torch.eye(len(covariance), dtype=torch.bool)
        assert float((covariance.diagonal() - 1).abs().max()) < 5 * math.sqrt(2 / n)
        assert float(covariance[off].abs().max()) < 5 / math.sqrt(n)

    def test_are_those_of_the_usual_notation(self, small):
        """z = L^-1 F^T K^-1 r, with K^-1 = N^-1 - N^-1 M (M^T N^-1 M)^-1 M^T N^-1 and L L^T = F^T K^-1 F."""
        x = small(small.parameters.sample(3, seed=1), seed=2).double()
        days, start = small.span * 365.25, min(float(p.toas.min()) for p in small.pulsars)
        for p, pulsar in enumerate(small.pulsars):
            inverse, m = torch.linalg.inv(pulsar.white_covariance.dense()), pulsar.matrix
            k = inverse - inverse @ m @ torch.linalg.solve(m.T @ inverse @ m, m.T @ inverse)
            f = fourier_basis(pulsar.toas, small.red_modes, days, start)
            lower = torch.linalg.cholesky(f.T @ k @ f)
            expected = torch.linalg.solve_triangular(lower, f.T @ k @ x[:, p].T, upper=False).T
            torch.testing.assert_close(small.coefficients(x)[:, p], expected, rtol=1e-6, atol=1e-6)

    def test_are_sufficient(self, small):
        """Data with the same coefficients differ in log-likelihood by a number that does not depend on theta."""
        theta = small.parameters.sample(9, seed=1).double()
        x, other = small(theta[:2], seed=2).double()
        difference = other - x
        for p in range(3):
            projection = small.likelihood.projection(p)
            whitened = projection.white.whiten(difference[p].unsqueeze(1))
            part = projection.modes @ (projection.modes.T @ whitened)
            difference[p] -= torch.linalg.lstsq(projection.white.whiten(torch.eye(100).double()), part).solution[:, 0]
        torch.testing.assert_close(small.coefficients(x + difference), small.coefficients(x), rtol=1e-7, atol=1e-7)
        change = small.log_likelihood(theta, x + difference) - small.log_likelihood(theta, x)
        assert float(change.std()) < 1e-7
        assert float(change.abs().mean()) > 1

    def test_absent_pulsar_has_zeros_and_others_are_as_before(self, small):
        x = small(small.parameters.sample(4, seed=1), seed=2)
        full = small.coefficients(x)
        x[1:3, 1] = torch.nan
        x[2, 0, :10] = torch.nan
        z = small.coefficients(x)
        assert bool((z[1:3, 1] == 0).all())
        torch.testing.assert_close(z[[0, 3]], full[[0, 3]])
        torch.testing.assert_close(z[1, [0, 2]], full[1, [0, 2]])
        assert bool(torch.isfinite(z).all())
        assert not torch.allclose(z[2, 0], full[2, 0])


def ranks_of_exact_posterior(n, inflate):
    """Ranks of the truth in the exact posterior on a grid, of the red noise of one pulsar."""
    simulator = PulsarTimingArray(
        synthetic_array(1, seed=3, epochs=40), red_modes=10, gwb=False, log10_A_rn=(-15.0, -12.0), gamma_rn=(1.0, 6.0)
    )
    axes = [torch.linspace(float(a), float(b), 61, dtype=torch.float64) for a, b in simulator.parameters.bounds]
    grid = torch.cartesian_prod(*axes)
    theta = simulator.parameters.sample(n, seed=11).double()
    x = simulator(theta, seed=12)
    log_posterior = simulator.log_likelihood(grid.unsqueeze(1), x).reshape(61, 61, n) * inflate
    ranks = []
    for axis in (0, 1):
        marginal = torch.exp(log_posterior - log_posterior.amax((0, 1))).sum(1 - axis)
        # The cumulative trapezoidal integral along the axis, at the truth.
        steps = torch.cumulative_trapezoid(marginal, axes[axis], dim=0)
        cdf = torch.cat([torch.zeros(1, n), steps]) / steps[-1]
        at = (theta[:, axis] - axes[axis][0]) / (axes[axis][1] - axes[axis][0])
        low = at.long().clamp(max=59)
        weight = at - low
        column = torch.arange(n)
        ranks.append((1 - weight) * cdf[low, column] + weight * cdf[low + 1, column])
    return torch.stack(ranks)


def kolmogorov(ranks):
    n = ranks.shape[-1]
    ordered = torch.sort(ranks, dim=-1).values
    return float(math.sqrt(n) * (ordered - (torch.arange(n) + 0.5) / n).abs().max())


class TestCalibration:
    """Simulation-based calibration: Kolmogorov's statistic exceeds 1.95 by chance once in a thousand."""

    def test_exact_posterior_is_calibrated(self):
        assert kolmogorov(ranks_of_exact_posterior(600, inflate=1.0)) < 1.95

    def test_overconfident_posterior_fails(self):
        assert kolmogorov(ranks_of_exact_posterior(600, inflate=3.0)) > 1.95


class TestConfigurations:
    def test_ten_pulsars(self):
        simulator = pulsar_timing()
        assert len(simulator.parameters) == 22
        assert sum(map(len, simulator.pulsars)) == 2940
        assert 12.3 < simulator.span < 12.7
        assert simulator.parameters.names[:4] == (
            "log10_A_gw",
            "gamma_gw",
            "log10_A_rn_J1909_3744",
            "gamma_rn_J1909_3744",
        )
        bounds = [[-18.0, -13.0], [1.0, 7.0]] + [[-19.0, -13.0], [1.0, 7.0]] * 10
        assert simulator.parameters.bounds.tolist() == bounds

    def test_observations_are_irregular(self):
        """Gaps of months, a Sun that is avoided, and receivers that start at different times."""
        for pulsar in synthetic_array(seed=1):
            for receiver in set(pulsar.receivers):
                times = pulsar.toas[torch.tensor([name == receiver for name in pulsar.receivers])]
                gaps = torch.diff(times)
                assert len(times) == 147
                assert float(gaps.max()) > 90
                assert float(gaps.std() / gaps.mean()) > 0.5
            assert float(torch.log(pulsar.uncertainties).std()) > 0.2

    def test_seed_decides_the_cadence(self):
        first, again, other = (synthetic_array(2, seed=s, epochs=10)[1].toas for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_single_pulsar_has_plain_names_and_wide_priors(self):
        simulator = PulsarTimingArray(small_array()[:1], gwb=False, red_modes=5)
        assert simulator.parameters.names == ("log10_A_rn", "gamma_rn")
        assert simulator.parameters.bounds.tolist() == [[-20.0, -11.0], [0.0, 7.0]]

    def test_priors_can_be_given(self):
        prior = td.Normal(4.0, 0.5)
        simulator = PulsarTimingArray(small_array(), red_modes=5, gamma_gw=prior, log10_A_rn=(-16.0, -14.0))
        assert simulator.parameters.bounds[1].tolist() == [-math.inf, math.inf]
        assert simulator.parameters.bounds[2].tolist() == [-16.0, -14.0]

    def test_unequal_lengths_are_padded_with_nan_and_the_padding_is_ignored(self):
        pulsars = [*synthetic_array(1, seed=1, epochs=20), small_array()[1]]
        simulator = PulsarTimingArray(pulsars, red_modes=5)
        theta = simulator.parameters.sample(4, seed=1)
        x = simulator(theta, seed=2)
        assert x.shape == (4, 2, 100)
        assert bool(x[:, 0, 40:].isnan().all())
        assert bool(torch.isfinite(x[:, 1]).all())
        assert bool(torch.isfinite(x[:, 0, :40]).all())
        torch.testing.assert_close(simulator.log_likelihood(theta, x), simulator.log_likelihood(theta, x.nan_to_num()))

    def test_observed_residuals_are_those_given_less_the_timing_model(self):
        pulsar = small_array()[0]
        signal = 1e-6 * torch.sin(pulsar.toas / 200.0)
        observed = [
            PulsarTimingArray([pulsar.with_residuals(r)], gwb=False, red_modes=5).observed
            for r in (signal, signal + 1e-3 * pulsar.matrix.sum(1))
        ]
        assert observed[0].shape == (1, 100)
        torch.testing.assert_close(*observed, rtol=0, atol=1e-4)
        assert 0.1 < float(observed[0].std()) < 1.0
        assert PulsarTimingArray([pulsar], gwb=False, red_modes=5).observed is None

    def test_errors(self):
        pulsars = small_array()
        with pytest.raises(UsageError, match="expected at least one"):
            PulsarTimingArray([])
        with pytest.raises(UsageError, match="distinct names"):
            PulsarTimingArray([pulsars[0], pulsars[0]])
        with pytest.raises(UsageError, match="gw_modes: expected at most red_modes"):
            PulsarTimingArray(pulsars, red_modes=3, gw_modes=4)
        with pytest.raises(UsageError, match="log10_A_gw: expected a lower and an upper bound"):
            PulsarTimingArray(pulsars, log10_A_gw=(-13.0, -18.0))
        with pytest.raises(UsageError, match="n_pulsars: expected at most 10"):
            synthetic_array(11, seed=1)
        with pytest.raises(ShapeError, match="x: expected shape"):
            PulsarTimingArray(pulsars, red_modes=5).coefficients(torch.zeros(3, 99))

"""Supernovae: distances against astropy, the likelihood against scipy and a numerical integral, both file layouts."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as td
from astropy.cosmology import Flatw0waCDM
from scipy.stats import multivariate_normal

from sbi_physics.core.errors import NonFiniteError, ShapeError, StoreError, UsageError
from simulators.expansion import ComovingDistance
from simulators.supernova_table import read_supernovae
from simulators.supernovae import HUBBLE_CONSTANT, Supernovae, supernovae

MODELS = {"LambdaCDM": ["Omega_m"], "wCDM": ["Omega_m", "w"], "w0waCDM": ["Omega_m", "w0", "wa"]}
Z = [0.02, 0.3, 0.9]
COVARIANCE = [[0.02, 0.01, 0.005], [0.01, 0.03, 0.0], [0.005, 0.0, 0.01]]

UNION = """#name zcmb zhel dz mb dmb x1 dx1 color
a 0.02 0.021 0.0 34.7 0.1 0 0
b 0.3 0.3 0.0 40.9 0.2 0 0

c 0.9 0.899 0.0 43.7 0.3 0 0
"""
PANTHEON_PLUS = """CID zHD zHDERR zHEL m_b_corr m_b_corr_err_DIAG IS_CALIBRATOR
2011fe 0.00122 0.0008 0.00082 9.7 1.5 1
a 0.02 0.0008 0.021 15.4 0.1 0
b 0.3 0.0008 0.3 21.6 0.2 0
"""


def numbers(matrix, first=True):
    rows = [len(matrix)] if first else []
    return "\n".join(f"{value:.10g}" for value in [*rows, *np.ravel(matrix)]) + "\n"


def write(folder, table=UNION, covariance=numbers(COVARIANCE)):
    paths = folder / "table.txt", folder / "covariance.txt"
    for path, text in zip(paths, (table, covariance), strict=True):
        path.write_text(text)
    return paths


def corners_and_draws(simulator, n=40):
    """Draws of the prior, and all corners of its box."""
    bounds = simulator.parameters.bounds
    corners = torch.cartesian_prod(*bounds).reshape(-1, len(bounds))
    return torch.cat([corners, simulator.parameters.sample(n, seed=1).double()])


class TestDistances:
    @pytest.mark.parametrize("model", MODELS)
    def test_agree_with_astropy_over_the_prior(self, model):
        """Phantom dark energy, w below -1, and all corners of (w0, wa) included."""
        z, z_hel = np.geomspace(1e-3, 2.3, 15), np.geomspace(1.1e-3, 2.31, 15)
        simulator = Supernovae(z, None, np.ones(15), heliocentric=z_hel, model=model)
        theta = corners_and_draws(simulator)
        cosmologies = [
            Flatw0waCDM(
                HUBBLE_CONSTANT, Om0=row[0], w0=row[1] if len(row) > 2 else -1, wa=row[2] if len(row) > 3 else 0
            )
            for row in theta.tolist()
        ]
        transverse = np.stack([each.comoving_distance(z).to_value("pc") for each in cosmologies])
        expected = 5 * np.log10((1 + z_hel) * transverse / 10)
        moduli = simulator.model(theta) - theta[:, -1:]
        # A relative error of 1e-6 in the distance is one of 2.2e-6 mag.
        np.testing.assert_allclose(moduli.numpy(), expected, rtol=0, atol=2e-7)
        assert simulator.parameters.names == (*MODELS[model], "offset")

    def test_high_redshifts(self):
        z = np.geomspace(1e-3, 10, 12)
        expected = Flatw0waCDM(70, Om0=0.05, w0=-2.5, wa=1.5).comoving_distance(z).to_value("Mpc") * 70 / 299_792.458
        found = ComovingDistance(torch.as_tensor(z))(torch.tensor(0.05), -2.5, 1.5)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)

    def test_matter_alone_has_a_closed_form(self):
        """Einstein and de Sitter: D_C = 2 (1 - 1 / sqrt(1 + z))."""
        z = torch.logspace(-4, 1, 20, dtype=torch.float64)
        found = ComovingDistance(z)(torch.tensor(1.0))
        torch.testing.assert_close(found, 2 * (1 - (1 + z).rsqrt()), rtol=1e-10, atol=0)

    def test_batches_broadcast(self):
        distance = ComovingDistance(torch.tensor(Z))
        together = distance(torch.rand(4, 1), torch.full((5,), -0.9), torch.tensor(0.1))
        assert together.shape == (4, 5, 3)

    def test_gradient(self):
        distance = ComovingDistance(torch.tensor(Z))
        theta = torch.tensor([[0.3, -1.0, 0.0], [0.1, -2.2, 1.5]]).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda t: distance(*t.unbind(-1)), theta)

    @pytest.mark.parametrize(
        ("redshifts", "error"),
        [([0.1, 0.0], UsageError), ([0.1, math.nan], NonFiniteError), ([], ShapeError), ([[0.1]], ShapeError)],
    )
    def test_wrong_redshifts_are_named(self, redshifts, error):
        with pytest.raises(error, match="redshifts: expected"):
            ComovingDistance(torch.tensor(redshifts))


class TestLikelihood:
    @pytest.mark.parametrize("model", MODELS)
    def test_is_the_multivariate_normal(self, model):
        simulator = supernovae(model)
        theta = simulator.parameters.sample(5, seed=1).double()
        x = simulator(theta, seed=2)
        expected = [
            multivariate_normal(mean, simulator.covariance.numpy()).logpdf(row)
            for mean, row in zip(simulator.model(theta).numpy(), x.double().numpy(), strict=True)
        ]
        np.testing.assert_allclose(simulator.log_likelihood(theta, x).numpy(), expected, rtol=1e-9)

    @pytest.mark.parametrize("shift", [0.0, 0.97, -3.0])
    def test_marginalised_offset_is_the_integral_over_its_prior(self, shift):
        """Where the data put the offset inside the prior, at its edge, and far outside of it."""
        free, marginal = supernovae("wCDM"), supernovae("wCDM", marginalise_offset=True)
        x = free.observed + shift
        low, high = float(free.parameters.bounds[-1, 0]), float(free.parameters.bounds[-1, 1])
        offsets = torch.linspace(low, high, 20_001, dtype=torch.float64)
        theta = torch.tensor([0.35, -1.1], dtype=torch.float64)
        values = free.log_likelihood(torch.cat([theta.expand(len(offsets), 2), offsets[:, None]], -1), x)
        top = values.max()
        integral = torch.trapezoid(torch.exp(values - top), offsets)
        expected = float(top + integral.log() - math.log(high - low))
        assert float(marginal.log_likelihood(theta, x)) == pytest.approx(expected, rel=1e-5)

    def test_a_wide_flat_prior_gives_the_known_formula(self):
        """Chi squared less (1^T C^-1 r)^2 / (1^T C^-1 1), as with a prior flat on the real line."""
        simulator = Supernovae(Z, [15.0, 22.0, 24.0], COVARIANCE, marginalise_offset=True)
        theta = torch.tensor([[0.2], [0.3]], dtype=torch.float64)
        inverse, residual = torch.linalg.inv(simulator.covariance), simulator.observed.double() - simulator.model(theta)
        chi2 = ((residual @ inverse) * residual).sum(-1) - (residual @ inverse).sum(-1) ** 2 / inverse.sum()
        wide = Supernovae(
            Z, [15.0, 22.0, 24.0], COVARIANCE, marginalise_offset=True, priors={"offset": td.Uniform(-90.0, 90.0)}
        )
        found = wide.log_likelihood(theta, simulator.observed)
        torch.testing.assert_close(found.diff(), -0.5 * chi2.diff(), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("marginalise", [False, True])
    @pytest.mark.parametrize("model", MODELS)
    def test_gradient(self, model, marginalise):
        simulator = supernovae(model, marginalise_offset=marginalise)
        theta = torch.tensor([[0.3, -1.0, 0.2], [0.2, -1.8, -1.0]])[:, : len(MODELS[model])].double()
        if not marginalise:
            theta = torch.cat([theta, torch.tensor([[-19.3], [-19.2]])], -1)
        assert torch.autograd.gradcheck(
            lambda t: simulator.log_likelihood(t, simulator.observed), theta.requires_grad_(), atol=1e-5, rtol=1e-5
        )

    def test_noise_has_the_covariance(self):
        simulator = Supernovae(Z, None, COVARIANCE)
        n = 20_000
        x = simulator(torch.tensor([[0.3, 0.0]]).expand(n, -1), seed=1).double()
        variance = simulator.covariance.diagonal()
        error = torch.sqrt((variance[:, None] * variance + simulator.covariance**2) / n)
        assert float(((x.T.cov() - simulator.covariance) / error).abs().max()) < 5

    def test_whitened_noise_is_standard(self):
        simulator = supernovae()
        n = 5_000
        theta = torch.tensor([[0.3, float(simulator.offset_prior.mean)]]).double()
        white = simulator.whiten(simulator(theta.expand(n, -1), seed=1)).double()
        assert white.dtype == torch.float64
        assert float(white.mean(0).abs().max()) < 5 / n**0.5
        assert float((white.T.cov() - torch.eye(40)).abs().max()) < 5 * (2 / n) ** 0.5

    def test_a_matter_density_that_no_universe_has_is_impossible(self):
        simulator = supernovae()
        theta = torch.tensor([[-0.5, -19.3], [0.3, -19.3], [-0.01, -19.3]]).double().requires_grad_()
        found = simulator.log_likelihood(theta, simulator.observed)
        assert found.detach()[0].item() == -math.inf
        assert bool(torch.isfinite(found[1:]).all())
        assert bool(torch.isnan(simulator.model(theta)[0]).all())
        (gradient,) = torch.autograd.grad(found[1:].sum(), theta)
        assert bool(torch.isfinite(gradient).all())


class TestPriors:
    def test_the_offset_lies_where_the_data_put_it(self):
        low, high = supernovae().parameters.bounds[-1].tolist()
        assert low < -19.3 < high
        assert high - low == pytest.approx(2, abs=1e-5)

    def test_own_priors(self):
        simulator = Supernovae(Z, None, COVARIANCE, priors={"Omega_m": td.Uniform(0.2, 0.4)})
        assert simulator.parameters.bounds[0].tolist() == pytest.approx([0.2, 0.4])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "CDM"}, "model: expected one of LambdaCDM, w0waCDM, wCDM; got 'CDM'"),
            ({"priors": {"w": td.Uniform(-2.0, 0.0)}}, "priors: expected one of Omega_m, offset; got 'w'"),
            ({"priors": {"offset": td.Normal(0.0, 1.0)}, "marginalise_offset": True}, "expected a uniform prior"),
            ({"heliocentric": [-1.5, 0.3, 0.9]}, "heliocentric: expected more than -1"),
        ],
    )
    def test_wrong_options_are_named(self, options, message):
        with pytest.raises(UsageError, match=message):
            Supernovae(Z, None, COVARIANCE, **options)

    @pytest.mark.parametrize(
        ("covariance", "error", "message"),
        [
            (np.eye(2), ShapeError, r"expected shape \(3, 3\), got \(2, 2\)"),
            (np.triu(np.ones((3, 3))), UsageError, "expected a symmetric matrix"),
            (np.ones((3, 3)), UsageError, "positive definite"),
            (np.full((3, 3), np.nan), NonFiniteError, "covariance: expected finite numbers"),
        ],
    )
    def test_wrong_covariances_are_named(self, covariance, error, message):
        with pytest.raises(error, match=message):
            Supernovae(Z, None, covariance)

    def test_wrong_magnitudes_are_named(self):
        with pytest.raises(ShapeError, match=r"magnitudes: expected shape \(3,\)"):
            Supernovae(Z, [1.0, 2.0], COVARIANCE)


class TestFiles:
    def test_union3_and_pantheon(self, tmp_path):
        """The errors of the table join the covariance of the file; rows may end before the names of columns do."""
        simulator = Supernovae.from_files(*write(tmp_path), model="wCDM")
        assert simulator.redshifts.tolist() == Z
        assert simulator.heliocentric.tolist() == [0.021, 0.3, 0.899]
        assert simulator.observed.tolist() == pytest.approx([34.7, 40.9, 43.7])
        expected = torch.tensor(COVARIANCE) + torch.diag(torch.tensor([0.01, 0.04, 0.09]))
        torch.testing.assert_close(simulator.covariance, expected.double())

    def test_pantheon_plus(self, tmp_path):
        """The covariance is complete, and what is too near for the Hubble flow is left out."""
        paths = write(tmp_path, PANTHEON_PLUS)
        simulator = Supernovae.from_files(*paths)
        assert simulator.redshifts.tolist() == [0.02, 0.3]
        assert simulator.heliocentric.tolist() == [0.021, 0.3]
        assert simulator.observed.tolist() == pytest.approx([15.4, 21.6])
        torch.testing.assert_close(simulator.covariance, torch.tensor(COVARIANCE).double()[1:, 1:])
        assert len(Supernovae.from_files(*paths, minimum_redshift=0).redshifts) == 3

    def test_covariance_without_its_size_and_in_rows(self, tmp_path):
        rows = "\n".join(" ".join(map(str, row)) for row in COVARIANCE)
        table = read_supernovae(*write(tmp_path, PANTHEON_PLUS, rows), minimum_redshift=0)
        torch.testing.assert_close(table.covariance, torch.tensor(COVARIANCE).double())

    def test_errors_of_the_table_alone(self, tmp_path):
        path, _ = write(tmp_path)
        assert read_supernovae(path).covariance.diagonal().tolist() == pytest.approx([0.01, 0.04, 0.09])
        path.write_text(UNION.replace(" 0.2 ", " 0.0 "))
        with pytest.raises(UsageError, match="expected positive errors dmb where no covariance is given"):
            read_supernovae(path)

    @pytest.mark.parametrize(
        ("table", "covariance", "error", "message"),
        [
            ("", numbers(COVARIANCE), StoreError, "got an empty file"),
            ("#name zcmb zhel dz mb dmb\n", numbers(COVARIANCE), StoreError, "at least one supernova"),
            (
                "z m\n1 2\n",
                numbers(COVARIANCE),
                StoreError,
                "expected columns zcmb and mb, or zHD and m_b_corr; got z, m",
            ),
            (UNION.replace("40.9", "bright"), numbers(COVARIANCE), StoreError, "line 3: column mb: .* got 'bright'"),
            (UNION.replace("40.9", "nan"), numbers(COVARIANCE), NonFiniteError, "line 3: column mb: .* got nan"),
            (UNION + "d 0.95 0.95\n", numbers(COVARIANCE), StoreError, "line 6: expected 5 columns or more, got 3"),
            (UNION.replace("a 0.02", "a 0.0"), numbers(COVARIANCE), UsageError, "redshifts: expected positive"),
            (UNION, numbers(COVARIANCE)[:-8], StoreError, "expected 3 and 3 x 3 numbers, .* got 8 numbers"),
            (UNION, "4" + numbers(COVARIANCE)[1:], StoreError, "expected the first number to be 3, .* got 4"),
            (UNION, "", StoreError, "got 0 numbers"),
            (UNION, numbers(COVARIANCE).replace("0.03", "x"), StoreError, r"covariance\.txt: expected numbers alone"),
            (UNION, numbers(COVARIANCE).replace("0.03", "inf"), NonFiniteError, r"covariance\.txt: expected finite"),
            (UNION, numbers(-np.eye(3)), UsageError, "covariance: expected a positive definite matrix"),
        ],
    )
    def test_malformed_files_are_named(self, tmp_path, table, covariance, error, message):
        with pytest.raises(error, match=message):
            Supernovae.from_files(*write(tmp_path, table, covariance))

    def test_files_that_cannot_be_read(self, tmp_path):
        path, covariance = write(tmp_path)
        with pytest.raises(StoreError, match="there is no such file"):
            Supernovae.from_files(tmp_path / "none.txt", covariance)
        with pytest.raises(StoreError, match="there is no such file"):
            Supernovae.from_files(path, tmp_path / "none.txt")
        covariance.write_bytes(bytes(range(256)))
        with pytest.raises(StoreError, match="cannot be read as text"):
            Supernovae.from_files(path, covariance)
        with pytest.raises(UsageError, match=r"expected redshifts of 2 or more, got 0\.9 at most"):
            Supernovae.from_files(path, minimum_redshift=2)


def union3(**options):
    folder = Path(os.environ.get("SBI_PHYSICS_DATA", "")) / "union3"
    if not (folder / "mag_covmat.txt").is_file():
        pytest.skip("Union3 is not here: name the folder of the data sets in SBI_PHYSICS_DATA")
    return Supernovae.from_files(folder / "lcparam_full.txt", folder / "mag_covmat.txt", **options)


def test_union3_gives_the_published_matter_density():
    """Omega_m = 0.356 +0.028 -0.026 for flat LambdaCDM (Rubin et al. 2023, arXiv:2311.12098)."""
    simulator = union3(marginalise_offset=True)
    assert simulator.x_shape == (22,)
    omega_m = torch.linspace(0.01, 0.99, 4_001, dtype=torch.float64)
    below = torch.softmax(simulator.log_likelihood(omega_m[:, None], simulator.observed), 0).cumsum(0)
    low, median, high = (float(omega_m[torch.searchsorted(below, q)]) for q in (0.16, 0.5, 0.84))
    assert median == pytest.approx(0.356, abs=0.005)
    assert high - median == pytest.approx(0.028, abs=0.003)
    assert median - low == pytest.approx(0.026, abs=0.003)

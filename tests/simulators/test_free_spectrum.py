"""Free spectra: how tables become a likelihood, known posteriors, folders that are damaged, and the published ones."""

import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Uniform

from sbi_physics.core.errors import NonFiniteError, ShapeError, StoreError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from simulators.free_spectrum import YEAR, FreeSpectrum, broken_power_law, power_law, turnover

SPAN = 12 * YEAR
FREQUENCIES = np.arange(1, 9) / SPAN
GRID = np.linspace(-10.0, -4.0, 4_001)
TRUTH = torch.tensor([-14.4, 3.5], dtype=torch.float64)
SPECTRA = [power_law, turnover, broken_power_law]


def gaussian(sigma=0.1, frequencies=FREQUENCIES, means=None):
    """Tables of normal densities around the power law of TRUTH."""
    flat = FreeSpectrum(frequencies, GRID, np.zeros((len(frequencies), len(GRID))))
    means = flat.log10_rho(TRUTH).numpy() if means is None else means
    return -0.5 * ((GRID - means[:, None]) / sigma) ** 2


def write(folder, **replaced):
    """A folder in the layout of ceffyl; a name without a value is left out."""
    files = {"freqs": FREQUENCIES, "log10rhogrid": GRID, "density": gaussian()[None]} | replaced
    for name, value in files.items():
        if value is not None:
            np.save(folder / f"{name}.npy", value)
    (folder / "log10rholabels.txt").write_text("".join(f"gw_log10_rho_{k}\n" for k in range(len(FREQUENCIES))))
    (folder / "pulsar_list.txt").write_text("freespec\n")
    return folder


def published(name):
    folder = os.environ.get("SBI_PHYSICS_DATA")
    if not folder or not (Path(folder) / "pta_freespec" / name).is_dir():
        pytest.skip(f"the free spectrum {name} is not here: name the folder of the data sets in SBI_PHYSICS_DATA")
    return Path(folder) / "pta_freespec" / name


def on_a_grid(spectrum, n=301, low=(-18.0, 0.0), high=(-12.0, 7.0)):
    """The posterior of (log10 A, gamma) under flat priors, by quadrature: axes and probabilities that sum to one."""
    axes = [torch.linspace(a, b, n, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    theta = torch.cartesian_prod(*axes)
    return axes, torch.softmax(spectrum.log_likelihood(theta), 0).reshape(n, n)


def test_rho_is_the_strain_of_a_power_law():
    """rho^2 = A^2 / (12 pi^2) (f / f_yr)^-gamma f_yr^-3 / T, of which f = f_yr leaves A and T alone."""
    spectrum = FreeSpectrum([1 / (10 * YEAR), 1 / YEAR], GRID, np.zeros((2, len(GRID))))
    theta = torch.tensor([[-14.7, 13 / 3], [-15.0, 2.0]])
    rho = spectrum.log10_rho(theta)
    assert spectrum.span == pytest.approx(10 * YEAR)
    expected = 10.0 ** theta[:, 0].double() / math.sqrt(12 * math.pi**2) * YEAR**1.5 / math.sqrt(10 * YEAR)
    torch.testing.assert_close(10 ** rho[:, 1], expected)
    torch.testing.assert_close(rho[:, 0] - rho[:, 1], 0.5 * theta[:, 1].double())


def test_spectra_with_a_bend_are_power_laws_far_from_it():
    f = torch.tensor(FREQUENCIES)
    theta = torch.tensor([[-14.4, 3.5]], dtype=torch.float64)
    plain = power_law(f, theta)
    low, high = -20.0, 0.0
    kappa = 2.0
    torch.testing.assert_close(turnover(f, torch.tensor([[-14.4, 3.5, low, kappa]])), plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(broken_power_law(f, torch.tensor([[-14.4, 3.5, high]])), plain, rtol=1e-6, atol=0)
    # Far below the turnover the strain rises by kappa / 2 more; far above the break P(f) is flat, h_c ~ f^(3/2).
    turned = turnover(f, torch.tensor([[-14.4, 3.5, high, kappa]], dtype=torch.float64)) - plain
    torch.testing.assert_close(turned.diff(), 0.5 * kappa * torch.log10(f).diff()[None])
    broken = broken_power_law(f, torch.tensor([[-14.4, 3.5, low]], dtype=torch.float64))
    torch.testing.assert_close(broken.diff(), 1.5 * torch.log10(f).diff()[None])


@pytest.mark.parametrize("law", SPECTRA)
def test_each_spectrum_comes_with_a_prior_and_is_differentiable(law):
    spectrum = FreeSpectrum(FREQUENCIES, GRID, gaussian(0.5), spectrum=law)
    theta = spectrum.parameters.sample(200, seed=1)
    inside = theta[(spectrum.off_grid(theta) == 0).all(-1)][:20].double().requires_grad_()
    assert len(inside) == 20
    assert torch.autograd.gradcheck(spectrum.log10_rho, inside)
    batch = spectrum.log_likelihood(theta.reshape(50, 4, -1))
    assert batch.shape == (50, 4)
    assert batch.dtype == torch.float64
    one_by_one = torch.stack([spectrum.log_likelihood(row) for row in theta]).reshape(50, 4)
    torch.testing.assert_close(batch, one_by_one, rtol=1e-13, atol=0)


def test_interpolation_is_that_of_numpy_on_an_irregular_grid():
    random = np.random.default_rng(1)
    grid = np.sort(random.uniform(-10, -4, 40))
    table = random.normal(size=(8, 40))
    spectrum = FreeSpectrum(FREQUENCIES, grid, table)
    theta = spectrum.parameters.sample(500, seed=2).double()
    rho = spectrum.log10_rho(theta).numpy()
    expected = sum(np.interp(rho[:, k], grid, table[k]) for k in range(8))
    np.testing.assert_allclose(spectrum.log_likelihood(theta).numpy(), expected, rtol=1e-11, atol=1e-11)
    at_knots = FreeSpectrum(FREQUENCIES[:1], grid, table[:1])
    shift = torch.tensor(grid) - at_knots.log10_rho(torch.tensor([0.0, 3.0]))
    knots = at_knots.log_likelihood(torch.stack([shift, torch.full_like(shift, 3.0)], -1))
    np.testing.assert_allclose(knots.numpy(), table[0], atol=1e-11)


def test_the_gradient_is_the_slope_of_the_cell():
    spectrum = FreeSpectrum(FREQUENCIES, GRID, gaussian(0.3))
    theta = (TRUTH + 0.1 * torch.randn(50, 2, generator=torch.Generator().manual_seed(1))).requires_grad_()
    (gradient,) = torch.autograd.grad(spectrum.log_likelihood(theta).sum(), theta)
    step = 1e-7
    for i in range(2):
        change = torch.zeros(2, dtype=torch.float64)
        change[i] = step
        numeric = spectrum.log_likelihood(theta + change) - spectrum.log_likelihood(theta - change)
        # A step across a knot, which one in five thousand takes, sees two slopes that differ by (cell / sigma^2).
        torch.testing.assert_close(gradient[:, i], numeric.detach() / (2 * step), rtol=1e-3, atol=0.2)


def test_beyond_the_grid_its_end_counts_and_that_is_told(caplog):
    spectrum = FreeSpectrum(FREQUENCIES, GRID, gaussian(2.0), name="an array")
    faint, loud = torch.tensor([-18.0, 3.0]), torch.tensor([-6.0, 3.0])
    for theta, end, side in ((faint, 0, -1), (loud, -1, 1)):
        theta = theta.double().requires_grad_()
        value = spectrum.log_likelihood(theta)
        torch.testing.assert_close(value, spectrum.observed[:, end].sum())
        assert not bool(torch.autograd.grad(value, theta)[0].any())
        assert spectrum.off_grid(theta.detach()).tolist() == [side] * 8
    assert not bool(spectrum.off_grid(TRUTH).any())
    with caplog.at_level(logging.WARNING):
        assert not bool(spectrum.off_grid_shares(TRUTH.expand(10, 2)).any())
        assert not caplog.records
        shares = spectrum.off_grid_shares(torch.stack([faint, loud, TRUTH.float(), TRUTH.float()]))
    assert shares.tolist() == [[0.25] * 8] * 2
    (record,) = caplog.records
    assert "an array: 0.5 of the draws leave the grid" in record.getMessage()
    assert "-10 or -4" in record.getMessage()


def test_normal_densities_give_the_posterior_of_least_squares():
    """log10 rho is linear in theta, so that normal tables give a normal posterior: (D^T D)^-1 sigma^2."""
    sigma = 0.1
    offsets = np.random.default_rng(2).normal(0, sigma, 8)
    line = FreeSpectrum(FREQUENCIES, GRID, gaussian(sigma)).log10_rho(TRUTH).numpy()
    spectrum = FreeSpectrum(FREQUENCIES, GRID, gaussian(sigma, means=line + offsets))
    design = torch.autograd.functional.jacobian(spectrum.log10_rho, TRUTH)
    covariance = sigma**2 * torch.linalg.inv(design.T @ design)
    mean = TRUTH + covariance @ design.T @ torch.tensor(offsets) / sigma**2
    widths = covariance.diagonal().sqrt()
    low, high = (mean - 7 * widths).tolist(), (mean + 7 * widths).tolist()
    axes, p = on_a_grid(spectrum, 301, low, high)
    found = torch.stack([(p.sum(1) * axes[0]).sum(), (p.sum(0) * axes[1]).sum()])
    centred = [axis - middle for axis, middle in zip(axes, found, strict=True)]
    spread = torch.stack([(p.sum(1) * centred[0] ** 2).sum(), (p.sum(0) * centred[1] ** 2).sum()])
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-3 * float(widths.min()))
    torch.testing.assert_close(spread, covariance.diagonal(), rtol=1e-3, atol=0)
    cross = (p * centred[0][:, None] * centred[1]).sum()
    torch.testing.assert_close(cross, covariance[0, 1], rtol=1e-3, atol=0)


def test_data_may_be_handed_in_and_are_broadcast():
    spectrum = FreeSpectrum(FREQUENCIES, GRID, gaussian())
    theta = TRUTH + torch.tensor([[0.0, 0.0], [0.1, 0.1], [-0.1, 0.2]])
    expected = spectrum.log_likelihood(theta)
    assert torch.equal(spectrum.log_likelihood(theta, spectrum.observed), expected)
    pair = torch.stack([spectrum.observed, 2 * spectrum.observed])
    torch.testing.assert_close(spectrum.log_likelihood(theta[:, None], pair), torch.stack([expected, 2 * expected], 1))
    meta = spectrum.log_likelihood(theta.to("meta"))
    assert meta.device.type == "meta"
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*, 8, 4001\)"):
        spectrum.log_likelihood(theta, spectrum.observed[:4])
    with pytest.raises(ShapeError, match=r"theta: expected shape \(\*, 2\)"):
        spectrum.log_likelihood(theta[:, :1])


def test_a_spectrum_of_ones_own_needs_parameters():
    def level(frequencies, theta):
        return theta.expand(*theta.shape[:-1], len(frequencies)) + 1.5 * torch.log10(frequencies)

    with pytest.raises(UsageError, match="parameters: expected the names and priors"):
        FreeSpectrum(FREQUENCIES, GRID, gaussian(), spectrum=level)
    flat = Parameters([Parameter("level", Uniform(-10.0, 0.0))])
    spectrum = FreeSpectrum(FREQUENCIES, GRID, gaussian(), spectrum=level, parameters=flat)
    rho = spectrum.log10_rho(torch.zeros(3, 1))
    torch.testing.assert_close(rho, rho[0, 0].expand(3, 8))


def test_a_folder_gives_the_bins_that_are_asked_for(tmp_path):
    folder = write(tmp_path)
    whole = FreeSpectrum.from_folder(folder)
    assert whole.parameters.names == ("log10_A", "gamma")
    assert whole.parameters.bounds.tolist() == [[-18, -12], [0, 7]]
    assert whole.x_shape == (8, len(GRID))
    for bins, expected in ((3, [0, 1, 2]), ([4, 1], [1, 4]), (range(2, 5), [2, 3, 4]), (np.int64(1), [0])):
        some = FreeSpectrum.from_folder(str(folder), bins)
        assert some.frequencies.tolist() == whole.frequencies[expected].tolist()
        assert torch.equal(some.observed, whole.observed[expected])
        # The span is that of the data, whichever bins are taken.
        assert some.span == whole.span == pytest.approx(SPAN)
        assert torch.equal(some.log10_rho(TRUTH), whole.log10_rho(TRUTH)[expected])
    for bins in (0, 9, True, -1, [], [0, 0], [8], [1.0], "3", 2.5):
        with pytest.raises(UsageError, match="bins: expected a number from 1 to 8"):
            FreeSpectrum.from_folder(folder, bins)
    assert FreeSpectrum.from_folder(folder, 2, span=1e8).span == 1e8
    with pytest.raises(UsageError, match="span: expected a positive number"):
        FreeSpectrum.from_folder(folder, span=-1.0)


def test_densities_of_several_pulsars_multiply(tmp_path):
    tables = np.stack([gaussian(0.2), gaussian(0.4), gaussian(0.8)])
    folder = write(tmp_path, density=tables)
    (folder / "pulsar_list.txt").write_text("J0030+0451\nJ1713+0747\nJ1909-3744\n")
    every = FreeSpectrum.from_folder(folder).log_likelihood(TRUTH + 0.05)
    each = [FreeSpectrum.from_folder(folder, pulsars=[p]) for p in ("J0030+0451", "J1713+0747", "J1909-3744")]
    torch.testing.assert_close(every, sum(one.log_likelihood(TRUTH + 0.05) for one in each))
    with pytest.raises(UsageError, match=r"pulsars: expected different ones of J0030\+0451"):
        FreeSpectrum.from_folder(folder, pulsars=["B1855+09"])
    (folder / "pulsar_list.txt").write_text("J0030+0451\n")
    with pytest.raises(StoreError, match=r"pulsar_list.txt: expected 3 lines, got 1"):
        FreeSpectrum.from_folder(folder)


def test_files_in_several_folders_are_one_spectrum(tmp_path):
    """As the cache of downloads keeps them."""
    folder = write(tmp_path)
    files = {}
    for file in list(folder.iterdir()):
        (folder / file.stem).mkdir()
        files[file.name] = file.rename(folder / file.stem / file.name)
    assert torch.equal(FreeSpectrum.from_folder(files).observed, torch.tensor(gaussian()))
    del files["freqs.npy"]
    with pytest.raises(StoreError, match=r"there is no freqs.npy"):
        FreeSpectrum.from_folder(files)


def test_optional_files_may_be_absent_and_a_plain_table_has_two_axes(tmp_path):
    folder = write(tmp_path, density=gaussian())
    for name in ("pulsar_list.txt", "log10rholabels.txt"):
        (folder / name).unlink()
    spectrum = FreeSpectrum.from_folder(folder)
    assert torch.equal(spectrum.observed, torch.tensor(gaussian()))


def test_a_density_of_zero_is_the_floor_of_the_published_tables(tmp_path):
    table = gaussian(0.1)
    table[table < -30] = -np.inf
    spectrum = FreeSpectrum.from_folder(write(tmp_path, density=table))
    assert float(spectrum.observed.min()) == pytest.approx(-36.04365338911715)
    value = spectrum.log_likelihood(torch.tensor([-12.0, 3.5]))
    assert float(value) == pytest.approx(8 * -36.04365338911715)


BROKEN = {
    "missing density": ({"density": None}, "density.npy: there is no such file"),
    "missing grid": ({"log10rhogrid": None}, "log10rhogrid.npy: there is no such file"),
    "too few bins": ({"density": gaussian()[None, :5]}, r"expected shape \(8, 4001\)"),
    "too many axes": ({"density": gaussian()[None, None]}, r"log_density: expected shape \(8, 4001\)"),
    "another grid": ({"log10rhogrid": GRID[:-1]}, "log_density: expected shape"),
    "no pulsars": ({"density": np.zeros((0, 8, 4001))}, "log_density: expected shape"),
    "NaN": ({"density": np.full((1, 8, 4001), np.nan)}, "log_density: expected numbers or minus infinity"),
    "infinity": ({"density": np.full((1, 8, 4001), np.inf)}, "log_density: expected numbers or minus infinity"),
    "unsorted grid": ({"log10rhogrid": GRID[::-1]}, "grid: expected ascending numbers"),
    "repeated frequency": ({"freqs": np.full(8, 1e-9)}, "frequencies: expected ascending numbers"),
    "negative frequency": ({"freqs": np.linspace(-1, 1, 8)}, "frequencies: expected positive numbers"),
    "grid of NaN": ({"log10rhogrid": np.full(4001, np.nan)}, "grid: expected finite numbers"),
    "frequencies of two axes": ({"freqs": FREQUENCIES[None]}, "frequencies: expected shape"),
    "words": ({"freqs": np.array(["a"] * 8)}, "freqs.npy: expected a NumPy array of numbers"),
    "pickle": ({"freqs": np.array([None] * 8)}, "freqs.npy: expected a NumPy array of numbers"),
}


@pytest.mark.parametrize(("replaced", "message"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_folder_is_refused(tmp_path, replaced, message):
    with pytest.raises(StoreError, match=message) as caught:
        FreeSpectrum.from_folder(write(tmp_path, **replaced))
    assert str(tmp_path) in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    folder = write(tmp_path)
    (folder / "log10rholabels.txt").write_text("one\n")
    with pytest.raises(StoreError, match=r"log10rholabels.txt: expected 8 lines, got 1"):
        FreeSpectrum.from_folder(folder)
    for content in (b"", b"not a table", (folder / "density.npy").read_bytes()[:1000]):
        (folder / "density.npy").write_bytes(content)
        with pytest.raises(StoreError, match=r"density.npy: expected a NumPy array"):
            FreeSpectrum.from_folder(folder)
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match="there is no such file"):
        FreeSpectrum.from_folder(folder)


def test_wrong_arrays_are_named():
    with pytest.raises(NonFiniteError, match="log_density"):
        FreeSpectrum(FREQUENCIES, GRID, np.full((8, 4001), np.nan))
    with pytest.raises(ShapeError, match=r"grid: expected shape \(n,\) with n at least 2"):
        FreeSpectrum(FREQUENCIES, GRID[:1], np.zeros((8, 1)))


def test_the_injected_values_of_sim51_are_inside_the_95_percent_region():
    """The simulated array of Lamb et al. 2023 (arXiv:2303.15442): log10 A = -14.698, gamma = 4.173."""
    spectrum = FreeSpectrum.from_folder(published("sim51"))
    assert spectrum.x_shape == (10, 10_000)
    axes, p = on_a_grid(spectrum, 601, (-15.5, 2.0), (-13.5, 6.0))
    i, j = ((axis - value).abs().argmin() for axis, value in zip(axes, (-14.698, 4.173), strict=True))
    assert float(p[p > p[i, j]].sum()) < 0.95
    # A span wrong by a factor of two moves log10 A by 0.15: the region does not hold the injected values any more.
    wrong = FreeSpectrum.from_folder(published("sim51"), span=0.5 * spectrum.span)
    _, p = on_a_grid(wrong, 601, (-15.5, 2.0), (-13.5, 6.0))
    assert float(p[p > p[i, j]].sum()) > 0.95


@pytest.mark.parametrize("bins", [9, 20])
def test_the_median_of_epta_dr2new_is_inside_the_published_interval(bins):
    """EPTA 2023 (arXiv:2306.16214): log10 A = -13.94 (+0.23 -0.48), gamma = 2.71 (+1.18 -0.73)."""
    axes, p = on_a_grid(FreeSpectrum.from_folder(published("epta_dr2_new_hd"), bins))
    below = [marginal.cumsum(0) for marginal in (p.sum(1), p.sum(0))]
    medians = [float(axis[(share < 0.5).sum()]) for axis, share in zip(axes, below, strict=True)]
    assert -13.94 - 0.48 < medians[0] < -13.94 + 0.23
    assert 2.71 - 0.73 < medians[1] < 2.71 + 1.18

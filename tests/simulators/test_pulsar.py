"""Pulsars: their white noise, timing model, epochs, and the files that they are read from."""

import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord

from sbi_physics.core.errors import NonFiniteError, ShapeError, StoreError, UsageError
from simulators.pulsar import Pulsar, averaged
from simulators.pulsar_file import read_white_noise
from simulators.pulsar_positions import TEN_PULSARS
from simulators.pulsar_timing import PulsarTimingArray
from simulators.timing_model import design_matrix, orthonormal_span
from simulators.white_noise import WhiteNoise, epochs_of

NANOGRAV = Path(os.environ.get("SBI_PHYSICS_DATA", "")) / "nanograv15"
DIRECTION = [1.0, 2.0, 2.0]
TOAS = 55_000 + np.array([0.0, 0.0, 0.0, 30.0, 30.0, 61.0, 90.0, 90.0, 120.0, 150.0, 181.0, 200.0])
RECEIVERS = ["a", "a", "b", "a", "a", "a", "b", "b", "b", "a", "a", "b"]
NOISE = {"a": WhiteNoise(1.1, -6.5, -6.2), "b": WhiteNoise(0.9, None, -6.0)}


def pulsar(**changes):
    fields = {
        "name": "J0000+0000",
        "position": DIRECTION,
        "toas": TOAS,
        "uncertainties": np.linspace(0.5e-6, 2e-6, 12),
        "receivers": RECEIVERS,
        "noise": NOISE,
    }
    return Pulsar(**(fields | changes))


class TestWhiteNoise:
    def test_convention_of_equad(self):
        """t2equad: EFAC^2 (sigma^2 + EQUAD^2)."""
        variance = WhiteNoise(2.0, -6.0).variance(torch.tensor([1e-6]))
        assert float(variance) == pytest.approx(4 * (1e-12 + 1e-12))

    @pytest.mark.parametrize("smallest", [1, 2, 3])
    def test_covariance_against_its_definition(self, smallest):
        here = pulsar(smallest_epoch=smallest)
        expected = torch.zeros(12, 12, dtype=torch.float64)
        for i in range(12):
            noise = NOISE[RECEIVERS[i]]
            expected[i, i] = noise.variance(here.uncertainties[i])
            epoch = [j for j in range(12) if RECEIVERS[j] == RECEIVERS[i] and TOAS[j] == TOAS[i]]
            if len(epoch) >= smallest:
                expected[i, epoch] += noise.ecorr**2
        torch.testing.assert_close(here.white_covariance.dense(), expected * 1e12)

    def test_whitening_is_a_root_of_the_inverse(self):
        covariance = pulsar().white_covariance
        root = covariance.whiten(torch.eye(12, dtype=torch.float64))
        torch.testing.assert_close(root.T @ root, torch.linalg.inv(covariance.dense()))
        torch.testing.assert_close(covariance.whiten_transposed(torch.eye(12, dtype=torch.float64)), root.T)
        torch.testing.assert_close(covariance.log_determinant(), torch.logdet(covariance.dense()))

    def test_draws_have_the_covariance(self):
        """5 sigma of N = 40,000 draws."""
        n, covariance = 40_000, pulsar().white_covariance
        torch.manual_seed(1)
        draws = covariance.draw(n)
        scale = covariance.dense().diagonal().sqrt()
        difference = (draws.T @ draws / n - covariance.dense()) / (scale.unsqueeze(0) * scale.unsqueeze(1))
        assert float(difference.abs().max()) < 5 * math.sqrt(2 / n)

    def test_epochs_join_what_lies_within_the_window_of_the_first(self):
        toas = torch.tensor([0.0, 0.4, 0.8, 1.2, 0.1], dtype=torch.float64) / 86400
        assert epochs_of(toas, ["a"] * 5, 1.0).tolist() == [0, 0, 0, 1, 0]
        assert len(set(epochs_of(toas, ["a", "b", "a", "a", "b"], 1.0).tolist())) == 3
        assert len(set(epochs_of(toas, ["a"] * 5, 0.05).tolist())) == 5


class TestTimingModel:
    def test_spans_quadratics_a_year_half_a_year_and_proper_motion(self):
        t = torch.linspace(52_000, 56_000, 200, dtype=torch.float64)
        span = orthonormal_span(design_matrix(t))
        assert span.shape == (200, 9)
        year = 2 * math.pi * t / 365.25
        inside = torch.stack([t**2 - 3e4 * t, torch.sin(year + 1), torch.cos(2 * year + 2), t * torch.cos(year)], 1)
        inside = inside / inside.norm(dim=0)
        assert float((inside - span @ (span.T @ inside)).norm(dim=0).max()) < 1e-6
        outside = torch.sin(3 * year)
        assert float((outside - span @ (span.T @ outside)).norm() / outside.norm()) > 0.9

    def test_empty_and_repeated_columns_do_not_count(self):
        matrix = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        assert orthonormal_span(matrix).shape == (4, 1)
        assert orthonormal_span(matrix[:, 2:]).shape == (4, 0)


class TestPulsar:
    def test_position_is_a_unit_vector_of_either_kind(self):
        sky = SkyCoord(30.0, 60.0, unit="deg", frame="icrs")
        expected = [0.5 * math.cos(math.pi / 6), 0.25, math.sin(math.pi / 3)]
        torch.testing.assert_close(pulsar(position=sky).position, torch.tensor(expected, dtype=torch.float64))
        assert float(pulsar().position.norm()) == pytest.approx(1.0)

    def test_names_of_the_ten_say_where_they_are(self):
        for entry in TEN_PULSARS:
            sky = entry.sky
            hours, degrees = sky.ra.hourangle, abs(sky.dec.deg)
            place = f"{int(hours):02d}{int(hours % 1 * 60):02d}", f"{int(degrees):02d}{int(degrees % 1 * 60):02d}"
            assert entry.name == "J" + ("-" if sky.dec.deg < 0 else "+").join(place)

    def test_average_over_epochs(self):
        here = pulsar()
        means = averaged(here)
        assert means.receivers == ("a", "b", "a", "a", "b", "b", "a", "a", "b")
        sigma = torch.sqrt(NOISE["a"].variance(here.uncertainties[:2]))
        weights = sigma**-2
        assert float(means.uncertainties[0]) == pytest.approx(float(torch.sqrt(1 / weights.sum() + 10**-12.4)))
        assert float(means.uncertainties[3]) == pytest.approx(float(NOISE["a"].variance(here.uncertainties[5]).sqrt()))
        x = torch.arange(12, dtype=torch.float64).repeat(2, 1)
        x[1, 0], x[1, 5] = torch.nan, torch.nan
        result = means.mean(x)
        assert float(result[0, 0]) == pytest.approx(float(weights[1] / weights.sum()))
        assert float(result[1, 0]) == pytest.approx(1.0)
        assert bool(result[1, 3].isnan())
        assert float(result[0, 3]) == 5.0

    def test_errors(self):
        with pytest.raises(ShapeError, match="uncertainties: expected 12 numbers"):
            pulsar(uncertainties=np.ones(3))
        with pytest.raises(UsageError, match="uncertainties: expected positive numbers, got 0"):
            pulsar(uncertainties=np.zeros(12))
        with pytest.raises(NonFiniteError, match="toas"):
            pulsar(toas=np.full(12, np.nan))
        with pytest.raises(ShapeError, match="receivers: expected 12"):
            pulsar(receivers=["a"])
        with pytest.raises(UsageError, match="none for b"):
            pulsar(noise={"a": WhiteNoise()})
        with pytest.raises(ShapeError, match=r"matrix: expected shape \(12, M\)"):
            pulsar(matrix=np.ones((3, 2)))
        with pytest.raises(UsageError, match="zero vector"):
            pulsar(position=[0.0, 0.0, 0.0])


def write(path, **changes):
    """A file of the format derivative_file with three arrival times."""
    n = 3
    content = {
        "Name": np.array([b"J0000+0000"]),
        "Pulsar sky position": np.array([0.0, 0.0, 1.0]),
        "TOAs in seconds": 86400.0 * (55_000 + np.arange(n)),
        "TOA uncertainties": np.full(n, 1e-6),
        "Residuals": 1e-6 * np.arange(n),
        "Radio frequencies": np.full(n, 1400.0),
        "Design matrix": np.ones((n, 1)),
        "Flags/f": np.array([b"L_X", b"L_X", b"S_X"]),
    }
    with h5py.File(path, "w") as file:
        for name, value in (content | changes).items():
            if value is not None:
                file[name] = value
    return path


TABLE = {"J0000+0000_L_X_efac": 1.1, "J0000+0000_L_X_log10_t2equad": -6.0, "J0000+0000_S_X_efac": 0.9}


class TestFiles:
    def test_reads_what_is_there(self, tmp_path):
        table = tmp_path / "noise.json"
        table.write_text(json.dumps(TABLE))
        here = Pulsar.from_file(write(tmp_path / "p.hdf5"), noise=table)
        assert here.name == "J0000+0000"
        assert here.toas.tolist() == [55_000.0, 55_001.0, 55_002.0]
        assert here.receivers == ("L_X", "L_X", "S_X")
        assert here.noise == {"L_X": WhiteNoise(1.1, -6.0, None), "S_X": WhiteNoise(0.9, None, None)}
        assert here.residuals.tolist() == [0.0, 1e-6, 2e-6]

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"Residuals": None}, StoreError, "expected a data set 'Residuals'"),
            ({"Flags/f": None}, StoreError, "expected a data set 'Flags/f'"),
            ({"Residuals": np.zeros(4)}, ShapeError, "expected equally many rows, got .*Residuals: 4"),
            ({"Residuals": np.full(3, np.nan)}, NonFiniteError, "Residuals: expected finite numbers"),
            ({"Design matrix": np.ones(3)}, ShapeError, "Design matrix: expected 2 axes"),
            ({"Pulsar sky position": np.ones(2)}, ShapeError, "Pulsar sky position: expected shape"),
            ({"TOA uncertainties": np.array([b"a"] * 3)}, StoreError, "TOA uncertainties: expected numbers"),
            ({"Flags/f": np.ones(3)}, StoreError, "Flags/f: expected words"),
        ],
    )
    def test_malformed_files(self, tmp_path, changes, error, message):
        with pytest.raises(error, match=message):
            Pulsar.from_file(write(tmp_path / "p.hdf5", **changes), noise={})

    def test_missing_and_foreign_files(self, tmp_path):
        with pytest.raises(StoreError, match="there is no such file"):
            Pulsar.from_file(tmp_path / "no.hdf5", noise={})
        (tmp_path / "text").write_text("no HDF5")
        with pytest.raises(StoreError, match="expected an HDF5 file"):
            Pulsar.from_file(tmp_path / "text", noise={})
        with pytest.raises(StoreError, match="expected a JSON dictionary"):
            read_white_noise(tmp_path / "text", "J", ["a"])
        with pytest.raises(StoreError, match="there is no such file"):
            read_white_noise(tmp_path / "no.json", "J", ["a"])

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({}, "expected the key 'J_a_efac'"),
            ({"J_a_efac": 1.0, "J_a_log10_equad": -6.0}, "EQUAD is of another convention"),
            ({"J_a_efac": "one"}, "expected a finite number, got 'one'"),
        ],
    )
    def test_malformed_noise(self, tmp_path, table, message):
        (tmp_path / "noise.json").write_text(json.dumps(table))
        with pytest.raises(UsageError, match=message):
            read_white_noise(tmp_path / "noise.json", "J", ["a"])


@pytest.fixture(scope="module")
def real_array():
    path = NANOGRAV / "J1453+1902.hdf5"
    return PulsarTimingArray([Pulsar.from_file(path, noise=NANOGRAV / "15yr_wn_dict.json")], gwb=False)


@pytest.mark.skipif(not (NANOGRAV / "J1453+1902.hdf5").is_file(), reason="needs nanograv15 in SBI_PHYSICS_DATA")
class TestRealPulsar:
    def test_everything_is_read(self, real_array):
        (real,) = real_array.pulsars
        assert real.name == "J1453+1902"
        assert real.matrix.shape == (2551, 78)
        assert set(real.receivers) == {"430_PUPPI", "L-wide_PUPPI", "S-wide_PUPPI"}
        assert len(averaged(real).toas) == 127
        hours, degrees = 14 + 53 / 60, 19 + 2 / 60
        sky = SkyCoord(hours * 15, degrees, unit="deg").cartesian.xyz.value
        assert float(real.position @ torch.from_numpy(sky)) > math.cos(math.radians(0.3))

    def test_white_noise_explains_the_residuals(self, real_array):
        """Chi-squared of what neither the timing model nor the Fourier modes take, within 4 sigma of its freedom."""
        projection = real_array.likelihood.projection(0)
        x = real_array.observed.double()
        chi2 = float(projection.remainder(x, projection.coefficients(x)))
        freedom = 2551 - 78 - 60
        assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)

    def test_red_noise_is_bounded_from_above(self, real_array):
        theta = torch.tensor([[-19.0, 3.0], [-11.5, 3.0]], dtype=torch.float64)
        quiet, loud = real_array.log_likelihood(theta, real_array.observed).tolist()
        assert quiet > loud + 20

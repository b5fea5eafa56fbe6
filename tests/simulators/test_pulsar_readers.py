"""What networks see of pulsar timing arrays: sufficient coefficients, and series of epochs."""

import pytest
import torch
from scipy.stats import ks_2samp

import sbi_physics as sp
from sbi_physics.core.errors import ShapeError, UsageError
from simulators.pulsar_coefficients import PulsarCoefficients
from simulators.pulsar_series import PulsarSeries
from simulators.pulsar_timing import pulsar_timing_small


@pytest.fixture(scope="module")
def array():
    return pulsar_timing_small()


@pytest.fixture(scope="module")
def theta(array):
    return array.parameters.sample(3000, seed=1)


class TestPulsarCoefficients:
    def test_drawn_at_once_as_they_are_of_residuals(self, array, theta):
        """Two-sample tests of each coefficient, and of one that mixes pulsars; the twin has half the noise."""
        reader = PulsarCoefficients(array)
        drawn = reader(theta, seed=1).flatten(1)[:, :]
        of_residuals = reader.observe(array(theta, seed=2)).flatten(1)
        varies = of_residuals.std(0) > 1e-6
        assert int(varies.sum()) == 3 * 20
        columns = torch.nonzero(varies)[:, 0]
        p_values = [ks_2samp(drawn[:, c].numpy(), of_residuals[:, c].numpy()).pvalue for c in columns.tolist()]
        assert min(p_values) > 0.01 / len(p_values)
        product = [(each[:, 0] * each[:, 40]).numpy() for each in (drawn, of_residuals)]
        assert ks_2samp(*product).pvalue > 0.01
        assert ks_2samp(0.5 * drawn[:, 19].numpy(), of_residuals[:, 19].numpy()).pvalue < 1e-6

    def test_absent_pulsars_are_rows_of_nan(self, array, theta):
        x = PulsarCoefficients(array, absent=0.6)(theta, seed=1)
        gone = torch.isnan(x).all(2)
        assert bool((torch.isnan(x).any(2) == gone).all())
        assert not bool(gone.all(1).any())
        # 0.6 of two of three pulsars, and the third stays: each with the same chance.
        assert float(gone.double().mean()) == pytest.approx(0.4, abs=4 * (0.24 / 9000) ** 0.5)
        residuals = array(theta[:2], seed=1)
        residuals[0, 1] = torch.nan
        seen = PulsarCoefficients(array).observe(residuals)
        assert torch.isnan(seen).all(2).tolist() == [[False, True, False], [False, False, False]]

    def test_a_run_with_absent_pulsars_has_not_failed(self, array, caplog):
        """Rows with NaN are marked, and kept; a reader that leaves nothing out says so."""
        whole, part = PulsarCoefficients(array), PulsarCoefficients(array, absent=0.5)
        assert (whole.missing, part.missing) == (False, True)
        counts = sp.simulate(part, 200, seed=1, workers=1, progress=False).counts()
        assert counts["ok"] + counts["nonfinite"] == 200
        assert counts["nonfinite"] > 50
        assert "none of" not in caplog.text

    def test_other_cadences_say_what_they_see(self, array, theta):
        reader = PulsarCoefficients(array, cadences=5, seed=3)
        seen = reader(theta, seed=1)[..., 20:]
        assert [len(torch.unique(seen[:, p], dim=0)) for p in range(3)] == [5, 5, 5]
        own = PulsarCoefficients(array).observe(array(theta[:1], seed=1))[0, :, 20:]
        # Fewer times never see more.
        assert bool((seen.amax(0)[:, :2] <= own[:, :2] + 1e-5).all())

    def test_same_seed_same_numbers(self, array, theta):
        reader = PulsarCoefficients(array, absent=0.2, cadences=3)
        first, again = reader(theta[:50], seed=4), reader(theta[:50], seed=4)
        torch.testing.assert_close(first, again, equal_nan=True, rtol=0, atol=0)
        assert not torch.equal(torch.nan_to_num(first), torch.nan_to_num(reader(theta[:50], seed=5)))


class TestPulsarSeries:
    def test_channels(self, array, theta):
        reader = PulsarSeries(array)
        x = reader(theta[:4], seed=1)
        assert tuple(x.shape) == (4, *reader.x_shape)
        assert x.shape[-1] == 3 + len(reader.receivers)
        there = torch.isfinite(x).all(-1)
        time = torch.where(there, x[..., 0], 0.0)
        assert float(time.min()) == -1.0
        assert float(time.max()) == pytest.approx(1.0)
        assert bool((x[there][:, 3:].sum(1) == 1).all())
        later = (x[0, :, 1:, 0] - x[0, :, :-1, 0])[there[0, :, 1:]]
        assert bool((later >= 0).all())

    def test_noise_alone_is_of_order_one(self, array):
        quiet = torch.tensor([[-18.0, 4.0] + [-19.0, 4.0] * 3]).repeat(200, 1)
        x = PulsarSeries(array)(quiet, seed=1)
        scaled = torch.sinh(x[..., 1][torch.isfinite(x[..., 1])])
        assert 0.7 < float(scaled.std()) < 2.5

    def test_missing_times_and_pulsars(self, array, theta):
        reader, residuals = PulsarSeries(array), array(theta[:1], seed=1)
        whole = reader.observe(residuals)
        residuals[0, 0], residuals[0, 1, :4] = torch.nan, torch.nan
        part = reader.observe(residuals)
        assert bool(torch.isnan(part[0, 0]).all())
        assert int(torch.isnan(part[0, 1]).all(-1).sum()) == 2  # two epochs of two times each
        torch.testing.assert_close(part[0, 2], whole[0, 2])


@pytest.mark.parametrize("reader", [PulsarCoefficients, PulsarSeries])
def test_wrong_use(reader, array):
    with pytest.raises(UsageError, match="absent: expected a probability"):
        reader(array, absent=1.0)
    with pytest.raises(ShapeError, match="residuals: expected shape"):
        reader(array).observe(torch.zeros(2, 100))

"""The public events of searches: what the loaders say of them is what is in the files."""

import pytest
import torch

from sbi_physics.core.errors import StoreError
from sbi_physics.store import cms_dijet
from sbi_physics.store.cms_dijet import load_cms_dijet
from sbi_physics.store.datasets import available, fetch, location
from sbi_physics.store.lhco import LHCO_FEATURES, load_lhco
from sbi_physics.store.tables import read_table


def test_events_of_the_olympics():
    if next(location(dataset) for dataset in available() if dataset.name == "lhco") == "download":
        pytest.skip("the LHC Olympics events are not here: name their folder in SBI_PHYSICS_DATA")
    events = load_lhco(progress=False)
    for part, rows, signal in (
        (events.train, 60_000, 395),
        (events.test, 62_124, 377),
        (events.extra_signal, 27_264, 27_264),
    ):
        assert part.features.shape == (rows, len(LHCO_FEATURES))
        assert len(part) == rows
        assert int(part.labels.sum()) == signal
        assert bool(((part.mass >= 3.3) & (part.mass <= 3.7)).all())
        assert bool(((part.features[:, 2:] >= 0) & (part.features[:, 2:] <= 1)).all())
    # W' -> X Y with 0.1 and 0.5 TeV: the lighter jet, and what the heavier has more.
    typical = events.extra_signal.features.median(0).values
    torch.testing.assert_close(typical[:2], torch.tensor([0.11, 0.38], dtype=torch.float64), rtol=0.05, atol=0)


def test_spectrum_of_cms():
    spectrum = load_cms_dijet()
    assert len(spectrum) == 42
    assert spectrum.edges.shape == (43,)
    assert bool((spectrum.edges.diff() > 0).all())
    torch.testing.assert_close(spectrum.edges[[0, 1, -1]], torch.tensor([1.530, 1.607, 8.752], dtype=torch.float64))
    assert torch.equal(spectrum.counts, spectrum.counts.round())
    assert int(spectrum.counts[0]) == round(149.28 * 0.077 * 137_000)
    # Far out the published cross sections are of so few events that each is nearly whole before it is rounded.
    assert spectrum.counts[-5:].tolist() == [8, 8, 0, 3, 1]
    assert (spectrum.luminosity, spectrum.energy) == (137.0, 13.0)


def test_counts_are_those_of_the_published_errors():
    """A Poisson count of n has a relative error of 1 / sqrt(n), which the table gives for its cross sections."""
    table = read_table(fetch("cms_dijet", progress=False)["spectrum.csv"])
    many = load_cms_dijet().counts > 1_000
    relative = (table["err_up"] / table["dsigma_dm"])[many]
    torch.testing.assert_close(relative, load_cms_dijet().counts[many].rsqrt(), rtol=0.03, atol=0)


def test_bins_with_gaps_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "spectrum.csv"
    path.write_text("m_center,m_width,dsigma_dm\n1000,100,1\n1200,100,1\n")
    monkeypatch.setattr(cms_dijet, "fetch", lambda *_, **__: {"spectrum.csv": path})
    with pytest.raises(StoreError, match="bins that follow each other without gaps"):
        load_cms_dijet()

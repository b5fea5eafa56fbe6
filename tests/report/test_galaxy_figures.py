"""Maps of phase space: a column for each set, a row for each plane, one colour scale in a row."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.report.figures import save_figure
from sbi_physics.report.galaxy_figures import phase_space_maps


def stars(n, seed):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def panels(figure):
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def test_maps(tmp_path):
    figure = phase_space_maps({"true": stars(4000, 0), "particles": stars(400, 1).numpy()}, bins=20)
    save_figure(figure, tmp_path / "maps.png")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    axes = panels(figure)
    assert len(axes) == 4
    assert [axis.get_title() for axis in axes] == ["true", "particles", "", ""]
    assert axes[0].get_xlabel() == "$x$ [kpc]"
    assert axes[2].get_ylabel() == "$v_z$ [km/s]"


def test_a_row_has_one_colour_scale_and_shares():
    figure = phase_space_maps({"many": stars(4000, 0), "few": stars(400, 1)}, bins=10, limits=[(-9, 9)] * 6)
    first, second = (axis.collections[0] for axis in panels(figure)[:2])
    assert first.get_clim() == second.get_clim()
    for drawn in (first, second):
        assert float(np.ma.sum(drawn.get_array())) == pytest.approx(1.0)


def test_bad_input():
    w = stars(50, 0)
    with pytest.raises(UsageError, match="expected at least one set"):
        phase_space_maps({})
    with pytest.raises(ShapeError, match=r"true: expected shape \(n, 6\)"):
        phase_space_maps({"true": w[:, :3]})
    with pytest.raises(NonFiniteError, match="true"):
        phase_space_maps({"true": w / 0})
    for planes in ([], [(1, 1)], [(0, 6)]):
        with pytest.raises(UsageError, match="planes: expected pairs"):
            phase_space_maps({"true": w}, planes=planes)
    with pytest.raises(UsageError, match="limits: expected one pair"):
        phase_space_maps({"true": w}, limits=[(0, 1)])
    with pytest.raises(UsageError, match="limits: expected a lower and an upper one"):
        phase_space_maps({"true": w}, limits=[(1, 0)] * 6)

"""What the benchmark of networks compares with: its exact answers and simple peers, held to laws."""

import json
import math
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_fit_of_the_law_reaches_the_bound_of_cramer_and_rao():
    from benchmarks.models import autoencoders as part

    theta, clean, noisy = part._series(1000, 3)
    fitted = part.OSCILLATOR.displacement(part._maximum(theta, noisy), part.TIMES).float()
    # Three parameters of 40 numbers; a chi-square of 3 for each series, and 5 sigma of their mean.
    share = part._distance(fitted, clean) / part.OSCILLATOR.noise**2 * len(part.TIMES) / 3
    assert share == pytest.approx(1.0, abs=0.05 + 5 * math.sqrt(2 / 3 / 1000))


def test_the_density_of_the_ring_integrates_to_one():
    from benchmarks.models import energy as part

    size = 0.02
    axis = -part.EDGE + size * (torch.arange(round(2 * part.EDGE / size), dtype=torch.float64) + 0.5)
    grid = torch.cartesian_prod(axis, axis)
    assert float(part._exact_log_prob(1.3, grid).exp().sum()) * size**2 == pytest.approx(1.0, abs=1e-4)


def test_there_are_thirty_patterns_of_bars_and_stripes():
    from benchmarks.models import rbm as part

    patterns = part._patterns().reshape(-1, part.SIDE, part.SIDE)
    assert len(patterns) == 30
    rows, columns = ((patterns == patterns.roll(1, axis)).all((1, 2)) for axis in (2, 1))
    assert bool((rows | columns).all())


def test_the_linear_map_has_the_moments_of_its_target():
    from benchmarks.models import cycle as part

    source, target = part._fast(3000, 1), part._true_map(part._fast(3000, 2))
    moved = part._linear(source, target, source)
    torch.testing.assert_close(moved.mean(0), target.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(target.T), rtol=0, atol=1e-3)


def test_the_true_map_is_the_gradient_of_a_convex_function():
    from benchmarks.models import cycle as part

    slopes = torch.func.vmap(torch.func.jacrev(part._true_map))(part._fast(200, 1))
    torch.testing.assert_close(slopes, slopes.mT)
    assert float(torch.linalg.eigvalsh(slopes).min()) > 0


def test_the_report_has_a_line_for_each_answer():
    from benchmarks.report_networks import known_answers

    result = json.loads((ROOT / "benchmarks" / "results" / "known_answers.json").read_text())
    title, lines, *_ = known_answers(result)
    assert title == "## Networks with a known answer"
    assert len(lines.splitlines()) == 2 + sum(len(row["sides"]) for row in result["rows"])
    assert all(len(side["values"]) == len(row["quantities"]) for row in result["rows"] for side in row["sides"])

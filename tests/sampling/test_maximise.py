"""Climbs of many rows at once, to maxima that are known."""

import math

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.sampling.maximise import maximise


def starts(n, dims, seed=0):
    return 2 * torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 60])
def test_a_skewed_parabola(steps):
    """Curvatures from 1 to 400, turned away from the axes."""
    turn, _ = torch.linalg.qr(starts(4, 4, seed=1))
    matrix = turn @ torch.diag(torch.tensor([1.0, 5.0, 50.0, 400.0], dtype=torch.float64)) @ turn.T
    centre = starts(20, 4, seed=2)

    def function(x, rows):
        away = x - centre[rows]
        return -0.5 * ((away @ matrix) * away).sum(-1)

    found = maximise(function, starts(20, 4), steps=steps)
    assert found.value.min() > -1e-4
    assert found.gain.max() < 1e-6
    assert (found.at - centre).abs().max() < 0.02


def test_a_bent_valley():
    """Rosenbrock's function."""
    found = maximise(lambda x, _: -((1 - x[:, 0]) ** 2) - 100 * (x[:, 1] - x[:, 0] ** 2) ** 2, starts(20, 2))
    torch.testing.assert_close(found.at, torch.ones(20, 2, dtype=torch.float64), rtol=0, atol=0.1)
    assert found.value.min() > -1e-3


def test_ripples_in_single_precision():
    """Adam walks over ripples on which BFGS alone stays."""

    def function(x, _):
        x = x.float()
        return (0.02 * torch.cos(60 * x) - 0.5 * x**2).sum(-1)

    begin = starts(50, 2)
    walked, stuck = maximise(function, begin), maximise(function, begin, steps=0)
    # The highest ripple is at 0.04, the next ones at 0.035 and 0.029.
    assert (0.04 - walked.value).mean() < 0.04
    assert (0.04 - stuck.value).mean() > 0.1


def test_the_edge_of_a_support():
    """Minus infinity and NaN beyond an edge turn rows back; a row that starts there and stays says so."""

    def function(x, _):
        return torch.where(x[:, 0] < 1, -0.5 * ((x - 0.9) ** 2).sum(-1), torch.log(1 - x[:, 0]))

    begin = torch.tensor([[0.0, 0.0], [-3.0, 2.0], [5.0, 0.0]], dtype=torch.float64)
    found = maximise(function, begin)
    assert (found.value[:2] > -1e-5).all()
    assert found.value[2] == -math.inf
    assert found.gain[2] == math.inf


def test_rows_do_not_know_of_each_other():
    centre = starts(5, 3, seed=3)

    def function(x, rows):
        return -torch.cosh(x - centre[rows]).sum(-1)

    together = maximise(function, starts(5, 3))
    alone = [
        maximise(lambda x, _, i=i: function(x, torch.tensor([i]).expand(len(x))), starts(5, 3)[i : i + 1])
        for i in range(5)
    ]
    torch.testing.assert_close(together.at, torch.cat([one.at for one in alone]), rtol=0, atol=1e-8)


def test_a_budget():
    calls = []

    def function(x, _):
        calls.append(len(x))
        return -x.square().sum(-1)

    found = maximise(function, starts(4, 2), stop=lambda: len(calls) >= 5)
    assert len(calls) < 20
    assert torch.isfinite(found.value).all()
    assert (found.value > -starts(4, 2).square().sum(-1)).all()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x, _: x, ShapeError, r"function: expected shape \(4,\), got \(4, 2\)"),
        (lambda x, _: x.detach().sum(-1), UsageError, "differentiable in theta"),
        (lambda x, _: torch.ones(len(x), requires_grad=True), UsageError, "does not"),
    ],
)
def test_wrong_functions(function, error, message):
    with pytest.raises(error, match=message):
        maximise(function, starts(4, 2))

"""What the comparisons of real and generated events take, and what they refuse."""

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics.events import checked_events, column, observable_names, shuffled, standardise


def test_events_become_rows():
    real, generated = checked_events(torch.ones(5, 2, 3), torch.zeros(4, 2, 3).numpy())
    assert real.shape == (5, 6)
    assert generated.shape == (4, 6)
    assert real.dtype == torch.float64
    assert checked_events([1.0, 2.0], [3.0, 4.0, 5.0])[1].tolist() == [[3.0], [4.0], [5.0]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"\(5, 2\) and \(5, 3\)"):
        checked_events(torch.ones(5, 2), torch.ones(5, 3))
    with pytest.raises(ShapeError, match="at least 9"):
        checked_events(torch.ones(9, 2), torch.ones(8, 2), minimum=9)
    with pytest.raises(ShapeError):
        checked_events(torch.ones(5, 0), torch.ones(5, 0))
    with pytest.raises(NonFiniteError, match="generated"):
        checked_events(torch.ones(5, 1), torch.full((5, 1), torch.nan))
    with pytest.raises(UsageError, match="got 1"):
        observable_names(["energy"], 2)
    with pytest.raises(ShapeError, match="energy"):
        column(torch.ones(3, 2), "energy")


def test_one_scale_for_all():
    real = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.0]) + 3
    first, second = standardise(real, real + 2 * real.std(0))
    torch.testing.assert_close(first.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(second.mean(0), torch.tensor([2.0, 0.0]), atol=1e-5, rtol=0)
    assert first[:, 1].tolist() == [0.0] * 1000


def test_shuffling_keeps_the_events_and_the_global_generator():
    events = torch.arange(10.0).unsqueeze(1)
    before = torch.get_rng_state()
    mixed = shuffled(events, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(mixed, shuffled(events, 3))
    assert not torch.equal(mixed, events)
    assert torch.equal(mixed.sort(0).values, events)

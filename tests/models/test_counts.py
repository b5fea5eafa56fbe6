"""Counts in the outputs of a surrogate come back as counts."""

import torch

from sbi_physics.models.columns import ColumnKind, Columns


def test_counts_stay_counts():
    """Whole numbers that were never negative are none in draws either; those that were may be."""
    counts = torch.poisson(torch.full((500, 1), 0.8), generator=torch.Generator().manual_seed(0))
    both = torch.cat([counts, counts - 3], 1)
    columns = Columns(2).fit(both)
    assert columns.kinds.tolist() == [int(ColumnKind.NATURAL), int(ColumnKind.COUNT)]
    assert torch.equal(columns.decode(columns.encode(both, seed=1)), both)
    assert columns.decode(torch.tensor([[-1.7, -7.2]])).tolist() == [[0.0, -7.0]]

r"""Sobol nets with Owen's nested uniform scrambling: uniform points that fill the cube evenly.

Each binary digit of a coordinate is flipped or not, at random for each value of the digits before it (Owen 1995, in
Monte Carlo and Quasi-Monte Carlo Methods in Scientific Computing, 299).  A net of $n = 2^k$ points has one point in
each of n equal intervals of every axis, so that beyond k digits all are independent.  Each point is uniform, the mean
over a net is unbiased, its variance is smaller than that of independent points for smooth integrands ($n^{-3}$ for
very smooth ones; Owen 1997, Annals of Statistics 25, 1541), and its error is nearly normal (Loh 2003, Annals of
Statistics 31, 1282).  The cheaper scrambling by a random matrix has the same variance, but most of it from rare nets
(Pan and Owen 2021, arXiv:2111.12676): the scatter of a few repetitions then says nothing of the error.
"""

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive

__all__ = ["scrambled_nets"]


def scrambled_nets(n: int, dims: int, repetitions: int, seed: int) -> Tensor:
    """Independently scrambled nets.

    Args:
        n: points of each, a power of two.
        dims: D, at most 21,201.
        repetitions: R.
        seed: of the scrambling.

    Returns:
        ``(R, n, D)`` float64 in [0, 1).

    Raises:
        UsageError: n is no power of two.
    """
    if n < 1 or n & (n - 1):
        raise UsageError(f"n: expected a power of two, got {n}")
    random = torch.Generator().manual_seed(derive(seed, "net"))
    digits = n.bit_length() - 1
    net = torch.quasirandom.SobolEngine(dims).draw(n, dtype=torch.float64)
    cells = (net * n).long()
    # The flips of all values of the first digits, one digit after the other.
    flips = torch.zeros(repetitions, 1, dims, dtype=torch.int32)
    for _ in range(digits):
        fresh = torch.randint(0, 2, flips.shape, generator=random, dtype=torch.int32)
        flips = (2 * flips + fresh).repeat_interleave(2, dim=1)
    scrambled = cells ^ flips.gather(1, cells.expand(repetitions, -1, -1))
    offset = torch.rand((repetitions, n, dims), generator=random, dtype=torch.float64)
    return (scrambled + offset) / n

r"""Are generated events where real ones are, and are they everywhere that real ones are?

Around each event lies the ball that reaches to its k-th nearest neighbour among its own kind.

* precision: the share of generated events in any ball of a real one; recall: the share of real events in any ball of a
  generated one (Kynkäänniemi et al. 2019, arXiv:1904.06991);
* density: how many balls of real events a generated one lies in, over k; coverage: the share of balls of real events
  with a generated one inside (Naeem et al. 2020, arXiv:2002.09797).

A generator that loses a mode keeps its precision and loses recall and coverage; one that invents events loses precision
and density.  What equal distributions give depends on the dimension and on the number of events, so it is measured:
each half of the real events is compared with generated events, and with as many real ones from the other half.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.events import checked_events, shuffled, standardise
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["ManifoldShares", "precision_recall_density_coverage"]

NAMES = ("precision", "recall", "density", "coverage")

_GROUPS = 10
_NUMBERS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class ManifoldShares:
    """Precision, recall, density and coverage, in this order in all ``(4,)``.

    Attributes:
        value: of generated events.
        error: standard deviation, from the spread between groups of events.
        expected: of real events in place of the generated ones.
        expected_error: its standard deviation.
        difference_error: the standard deviation of ``value - expected``, which have real events in common.
        degrees_of_freedom: with which the errors are known.
        events: in each of the sets that are compared.
        neighbours: k.
        level: the probability that equal distributions flunk.
    """

    value: Tensor
    error: Tensor
    expected: Tensor
    expected_error: Tensor
    difference_error: Tensor
    degrees_of_freedom: int
    events: int
    neighbours: int
    level: float

    @property
    def precision(self) -> float:
        """The share of generated events near real ones."""
        return float(self.value[0])

    @property
    def recall(self) -> float:
        """The share of real events near generated ones."""
        return float(self.value[1])

    @property
    def density(self) -> float:
        """How many balls of real events a generated one lies in, over k."""
        return float(self.value[2])

    @property
    def coverage(self) -> float:
        """The share of balls of real events with a generated one inside."""
        return float(self.value[3])

    @property
    def p_values(self) -> Tensor:
        """That equal distributions differ as much, ``(4,)``, by Student's t."""
        from scipy.stats import t

        size = (self.value - self.expected).abs() / self.difference_error
        return torch.as_tensor(2 * t.sf(size.nan_to_num(0.0, posinf=math.inf).numpy(), self.degrees_of_freedom))

    @property
    def passed(self) -> bool:
        """Whether none of the four differs significantly from what real events give."""
        return bool((self.p_values > self.level / len(NAMES)).all())

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        wrong = [i for i in range(len(NAMES)) if float(self.p_values[i]) <= self.level / len(NAMES)]
        shown = wrong or range(len(NAMES))
        text = ", ".join(
            f"{NAMES[i]} {float(self.value[i]):.3f} ± {float(self.error[i]):.1g} (real events: "
            f"{float(self.expected[i]):.3f})"
            for i in shown
        )
        return f"{'generated events are not where real ones are' if wrong else 'as real events'}: {text}"


def precision_recall_density_coverage(
    real: Any,
    generated: Any,
    neighbours: int = 5,
    *,
    scale: bool = True,
    level: float = 0.01,
    seed: int = 0,
) -> ManifoldShares:
    """Precision, recall, density and coverage of generated events, and what real events would give.

    The time goes with the square of the number of events; 10,000 to 50,000 of each are usual.

    Args:
        real: ``(n, *event)``; features in which distance means something.
        generated: ``(m, *event)``.
        neighbours: k.
        scale: whether features are first put in standard deviations of the real ones.
        level: the probability that equal distributions flunk.
        seed: of the order of the events.

    Raises:
        ShapeError: the shapes do not fit, or there are too few events.
        NonFiniteError: a number is NaN or infinite.
        UsageError: an argument is out of range.
    """
    first, second = checked_events(real, generated)
    k, half = positive_integer(neighbours, "neighbours"), min(len(first), len(second)) // 2
    checked_level(level)
    groups = min(_GROUPS, half // (4 * k + 1))
    if groups < 2:
        raise ShapeError(
            f"expected at least {4 * (4 * k + 1)} real and generated events for {k} neighbours, got {len(first)} and "
            f"{len(second)}"
        )
    if scale:
        first, second = standardise(first, second)
    first, second = shuffled(first, derive(seed, "real")), shuffled(second, derive(seed, "generated"))
    halves = [(first[:half], first[half : 2 * half]), (first[half : 2 * half], first[:half])]
    others = [second[:half], second[half : 2 * half]]
    value = torch.stack([_shares(a, g, k) for (a, _), g in zip(halves, others, strict=True)]).mean(0)
    # The second comparison of the real halves is the first one seen from the other side.
    expected = torch.stack([_shares(a, b, k) for a, b in halves]).mean(0)
    found, null = [], []
    for (a, b), g in zip(halves, others, strict=True):
        for x, y, z in zip(a.tensor_split(groups), b.tensor_split(groups), g.tensor_split(groups), strict=True):
            found.append(_shares(x, z, k))
            null.append(_shares(x, y, k))
    per_group, null_per_group = torch.stack(found), torch.stack(null)
    # Both real halves serve both sides of the null: what is left to chance is one number for each pair of groups.
    per_pair, null_per_pair = (part.reshape(2, groups, -1).mean(0) for part in (per_group, null_per_group))
    narrower = _narrower(0.5 * (value + expected), 0.5 * (per_group + null_per_group).mean(0), half)
    return ManifoldShares(
        value,
        _narrower(value, per_group.mean(0), half) * per_group.std(0) / math.sqrt(2 * groups),
        expected,
        _narrower(expected, null_per_group.mean(0), half) * null_per_pair.std(0) / math.sqrt(groups),
        narrower * (per_pair - null_per_pair).std(0) / math.sqrt(groups),
        groups - 1,
        half,
        k,
        level,
    )


def _narrower(value: Tensor, in_groups: Tensor, n: int) -> Tensor:
    """How much less shares ``(4,)`` vary because with more events they are nearer to one; densities as they are."""
    smooth = [(share.clamp(max=1.0) * n + 1) / (n + 2) for share in (value, in_groups)]
    ratio = torch.sqrt(smooth[0] * (1 - smooth[0]) / (smooth[1] * (1 - smooth[1])))
    return torch.where(torch.tensor([name == "density" for name in NAMES]), torch.ones_like(ratio), ratio)


def _shares(real: Tensor, generated: Tensor, k: int) -> Tensor:
    """The four numbers for two sets ``(n, D)`` and ``(m, D)``, on the CPU."""
    reach, other_reach = _reach(real, k), _reach(generated, k)
    inside = torch.zeros(len(generated), dtype=torch.float64, device=real.device)
    recalled, covered = 0.0, 0.0
    for start, distance in _distances(real, generated):
        rows = slice(start, start + len(distance))
        hit = distance <= reach[rows].unsqueeze(1)
        inside += hit.sum(0)
        covered += float(hit.any(1).sum())
        recalled += float((distance <= other_reach).any(1).sum())
    precision = float((inside > 0).double().mean())
    density = float(inside.mean()) / k
    return torch.tensor([precision, recalled / len(real), density, covered / len(real)], dtype=torch.float64)


def _reach(events: Tensor, k: int) -> Tensor:
    """Distance to the k-th nearest other event ``(n,)``."""
    # The nearest of all is the event itself.
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for _, distance in _distances(events, events)])


def _distances(rows: Tensor, columns: Tensor) -> Any:
    """Distances of all rows from all columns, in pieces that fit in a bounded memory."""
    size = max(1, _NUMBERS_AT_ONCE // len(columns))
    for start in range(0, len(rows), size):
        yield start, torch.cdist(rows[start : start + size], columns)

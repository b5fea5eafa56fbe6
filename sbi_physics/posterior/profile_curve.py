"""`Profile`: the maximum of a log-likelihood over nuisance parameters, and the sets that follow from it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.samples import Cost
from sbi_physics.posterior.crossings import crossings, opened

__all__ = ["Profile"]

_SETTLED = 0.05


@dataclass(frozen=True)
class Profile:
    """The profile of a log-likelihood over one or two parameters of interest.

    Attributes:
        interest: their k names.
        names: all P names.
        units: their P units.
        labels: their P LaTeX labels.
        points: ``(m, k)`` values of the parameters of interest, float64; a grid is in the order of its first axis, and
            that of a periodic parameter may go beyond a bound, by a turn at most.
        shape: of the grid, ``(m1,)`` or ``(m1, m2)``; ``(m,)`` where the points were given.
        log_likelihood: ``(m,)`` maximised over the others, relative to the maximum over all parameters: at most 0.
        theta: ``(m, P)`` all parameters where that maximum is.
        estimate: ``(P,)`` the maximum over all parameters.
        maximum: the log-likelihood there.
        bounds: ``(k, 2)`` of the parameters of interest.
        unsettled: by how many nats the profile still rose when the search ended.
        stopped: ``"converged"`` or ``"budget"``.
        cost: seconds and rows at which the likelihood was evaluated.
        periodic: whether each of the k is periodic; none is where nothing is said.
    """

    interest: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    labels: tuple[str, ...]
    points: Tensor
    shape: tuple[int, ...]
    log_likelihood: Tensor
    theta: Tensor
    estimate: Tensor
    maximum: float
    bounds: Tensor
    unsettled: float
    stopped: str
    cost: Cost
    periodic: tuple[bool, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether further starts did not raise the profile any more."""
        return self.stopped == "converged" and self.unsettled <= _SETTLED

    def ends_inside(self, level: float = 0.68) -> tuple[str, ...]:
        """Parameters of interest whose confidence set goes on beyond the points: an end of theirs is not known."""
        found = []
        for axis, name in enumerate(self.interest):
            at, value = self._with_best(axis)
            low, high = self.bounds[axis].to(at)
            reach = 1e-6 * (high - low).nan_to_num(posinf=0.0) + 1e-9 * (at.amax() - at.amin())
            wraps = any(self.periodic) and self.periodic[axis]
            closed = wraps and bool(at.amax() - at.amin() >= (high - low) - reach)
            depth = -self.threshold(level)
            ends = ((at.argmin(), at.amin() - low), (at.argmax(), high - at.amax()))
            beyond = [bool(value[i] > depth) and (wraps or bool(rest > reach)) for i, rest in ends]
            if any(beyond) and not closed:
                found.append(name)
        return tuple(found)

    def threshold(self, level: float) -> float:
        """By how many nats the profile falls at the edge of the set of this level (Wilks)."""
        from scipy.stats import chi2

        return 0.5 * float(chi2.ppf(_probability(level), len(self.interest)))

    def contains(self, level: float = 0.68) -> Tensor:
        """Which of the points are inside the confidence set: boolean ``(m,)``."""
        return self.log_likelihood >= -self.threshold(level)

    def interval(self, level: float = 0.68) -> Tensor:
        """Lower and upper end of the confidence set for each parameter of interest: ``(k, 2)``.

        Of a set in `pieces` these are the outermost ends; for two parameters they bound the joint set.  Where the end
        lies beyond the points it is the bound of the parameter, which is infinite where there is none.
        """
        return torch.stack([torch.stack([piece[0, 0], piece[-1, 1]]) for piece in self.pieces(level)])

    def pieces(self, level: float = 0.68) -> tuple[Tensor, ...]:
        """The intervals that the confidence set of each parameter of interest consists of, from below: ``(n, 2)`` each.

        One of a periodic parameter that goes over a bound has its middle within them: from 358 over 0 to 5 degrees is
        -2 to 5.
        """
        most, result = self.threshold(level), []
        for axis in range(len(self.interest)):
            at, value = self._with_best(axis)
            bounds = self.bounds[axis].to(at)
            if any(self.periodic) and self.periodic[axis]:
                at, value, bounds = opened(at, value, bounds)
            ends = crossings(at, value, most, bounds).clamp(*bounds)
            if any(self.periodic) and self.periodic[axis]:
                ends = _within(ends, self.bounds[axis].to(at))
            result.append(ends)
        return tuple(result)

    @property
    def best(self) -> Tensor:
        """The estimate of the parameters of interest ``(k,)``, if they are periodic on the turn of the points."""
        best = self.estimate[[self.names.index(name) for name in self.interest]].clone()
        for axis in (i for i, wraps in enumerate(self.periodic) if wraps):
            low, high = self.bounds[axis].tolist()
            middle = (self.points[:, axis].amin() + self.points[:, axis].amax()) / 2
            best[axis] += (high - low) * torch.round((middle - best[axis]) / (high - low))
        return best

    @property
    def verdict(self) -> str:
        """One plain sentence: the intervals, and whether the search can be trusted."""
        parts = []
        for name, pieces in zip(self.interest, self.pieces(), strict=True):
            i = self.names.index(name)
            unit = f" {self.units[i]}" if self.units[i] else ""
            within = " or ".join(f"[{low:.4g}, {high:.4g}]" for low, high in pieces.tolist())
            parts.append(f"{name} = {float(self.estimate[i]):.4g}, 68 % within {within}{unit}")
        nuisance = len(self.names) - len(self.interest)
        others = f"{nuisance} nuisance parameter{'' if nuisance == 1 else 's'}"
        how = f"{others} maximised at each of {len(self.points)} points"
        if self.converged and (open_ones := self.ends_inside()):
            trust = f"the points end within the set of {' and '.join(open_ones)}: its ends beyond them are not known"
        elif self.converged:
            trust = "converged"
        elif self.stopped == "budget":
            trust = "not converged: the budget ended; give it more calls or seconds"
        else:
            trust = f"not converged: the profile still rose by {self.unsettled:.2g} nats; give it more starts or steps"
        return f"{'; '.join(parts)}; {how}; {trust}"

    def _with_best(self, axis: int) -> tuple[Tensor, Tensor]:
        """Values of one parameter of interest, its estimate among them, and the profile over it alone."""
        at, value = self._along(axis)
        return torch.cat([at, self.best[axis].reshape(1)]), torch.cat([value, value.new_zeros(1)])

    def _along(self, axis: int) -> tuple[Tensor, Tensor]:
        """Values of one parameter of interest, and the profile over it alone."""
        if len(self.interest) == 1 or len(self.shape) == 1:
            return self.points[:, axis], self.log_likelihood
        grid = self.log_likelihood.view(self.shape).movedim(axis, 0)
        at = self.points[:, axis].view(self.shape).movedim(axis, 0)[:, 0]
        return at, _peaks(grid)


def _within(pieces: Tensor, bounds: Tensor) -> Tensor:
    """Pieces ``(n, 2)`` of a circle, in whole turns moved so that the middle of each is within the bounds."""
    turn = bounds[1] - bounds[0]
    moved = pieces - turn * torch.floor((pieces.mean(1, keepdim=True) - bounds[0]) / turn)
    whole = (pieces[:, 1] - pieces[:, 0] >= turn * (1 - 1e-9)).unsqueeze(1)
    moved = torch.where(whole, bounds, moved)
    return moved[moved[:, 0].argsort()]


def _peaks(grid: Tensor) -> Tensor:
    """The maxima of rows ``(m1, m2)``, between the points of a row by the parabola through the highest three."""
    top = grid.argmax(1).clamp(1, grid.shape[1] - 2)
    left, middle, right = (grid.gather(1, (top + i).unsqueeze(1)).squeeze(1) for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    slope = (right - left) / 2
    peak = middle - slope.square() / (2 * torch.where(bend < 0, bend, -torch.inf))
    inside = (slope / bend.abs().clamp(min=1e-300)).abs() <= 1
    return torch.where(inside, peak, grid.amax(1)).clamp(max=0.0)


def _probability(level: float) -> float:
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability in (0, 1), got {level!r}")
    return float(level)

"""The run of `tempered_smc`: B clouds on their way from the prior to their posteriors, each at its own pace.

A cloud that has forgotten the start of its stage is weighted and resampled to the next temperature; at temperature 1 it
is kept, again and again, until there are enough draws.  All clouds that are not yet done are moved together.  The two
halves of a cloud are resampled separately: the copies of a particle must not stand in the half that its proposals are
built from, or it would leave its place more often than it should.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.core.errors import ConvergenceError
from sbi_physics.sampling.ensemble import Cloud, move
from sbi_physics.sampling.tempering import next_temperature, normal_scores, systematic_rows

__all__ = ["Annealing"]

Evaluate = Callable[[Tensor, Tensor], Cloud]

_MOST_TEMPERATURES = 500

_MOST_CORRELATION = 0.3
"""Between the ranks of the particles now and at the start of a stage, for the stage to be done."""

_MOST_UNMOVED, _MOST_UNMOVED_BETWEEN = 0.01, 0.03
"""The share of the particles that may still stand where the stage began, in places that proposals seldom reach; and
between draws."""

_FEWEST_MOVES, _MOST_MOVES_BELOW, _MOST_MOVES = 3, 12, 20
"""Of a stage, below temperature 1 and at it."""

_SCALED_ACCEPTANCE = 0.25


class Annealing:
    """B clouds, their temperatures, and the draws that they have left.

    Args:
        clouds: draws of the prior with finite likelihoods.
        families: ``(B, N)`` numbers that copies of one draw share.
        copies: how many clouds are kept of each.
        share: of the particles that a step of the temperature leaves effective.
        evaluate: gives the densities at places ``(k, m, P)`` for observations ``(k,)``.
        random: of resampling and moves.

    Attributes:
        temperature: ``(B,)``, the power of the likelihood.
        steps: ``(B,)`` number of temperatures after 0.
        log_evidence: ``(B,)`` sum of the logarithms of the mean weights.
        variance: ``(B,)`` of that.
        draws: ``(B, copies, N, P)`` places of the clouds kept.
        kept: ``(B,)`` how many there are.
    """

    def __init__(
        self,
        clouds: Cloud,
        families: Tensor,
        copies: int,
        share: float,
        evaluate: Evaluate,
        random: torch.Generator,
    ) -> None:
        b, n, p = clouds.z.shape
        zeros = torch.zeros(b, dtype=torch.float64, device=clouds.z.device)
        counts = torch.zeros(b, dtype=torch.int64, device=clouds.z.device)
        self.clouds, self.families, self.copies = clouds, families, copies
        self.temperature, self.steps = zeros.clone(), counts.clone()
        self.log_evidence, self.variance = zeros.clone(), zeros.clone()
        self.draws = clouds.z.new_empty((b, copies, n, p))
        self.kept = counts.clone()
        self._share, self._evaluate, self._random = share, evaluate, random
        self._scale = zeros + 1
        self._ready, self._moves, self._start = counts == 0, counts.clone(), clouds.z.clone()
        self._accepted, self._accepted_moves = zeros.clone(), zeros.clone()

    @property
    def acceptance(self) -> Tensor:
        """The share ``(B,)`` of the proposals at temperature 1 that were accepted; NaN before the first."""
        return self._accepted / self._accepted_moves

    def advance(self) -> bool:
        """Take all clouds that are not done one move further; whether there were any.

        Raises:
            BudgetError: as `evaluate` does; everything stays as it was before the move.
            ConvergenceError: a cloud has had too many temperatures.
        """
        which = torch.nonzero(self.kept < self.copies)[:, 0]
        if not len(which):
            return False
        self._anneal(which[self._ready[which]])
        moved = self.clouds.of(which)
        accepted, scaled = move(
            moved, self.temperature[which], self._scale[which], lambda z: self._evaluate(z, which), self._random
        )
        self.clouds.put(which, moved)
        self._moves[which] += 1
        at_one = (self.temperature[which] == 1).double()
        self._accepted[which] += at_one * accepted
        self._accepted_moves[which] += at_one
        # The moves of draws that are kept do not depend on the draws.
        factor = torch.where(self.kept[which] == 0, scaled - _SCALED_ACCEPTANCE, 0.0).exp()
        self._scale[which] = (self._scale[which] * factor).clamp(0.05, 2.0)
        done = which[self._done(which)]
        below = self.temperature[done] < 1
        self._ready[done[below]] = True
        self._keep(done[~below])
        return True

    def _anneal(self, which: Tensor) -> None:
        """Weight and resample clouds to their next temperature."""
        if not len(which):
            return
        clouds = self.clouds.of(which)
        before = self.temperature[which]
        after = next_temperature(clouds.log_likelihood, before, self._share)
        log_weights = (after - before).unsqueeze(-1) * clouds.log_likelihood
        n = log_weights.shape[-1]
        self.log_evidence[which] += torch.logsumexp(log_weights, -1) - torch.log(torch.tensor(n, dtype=torch.float64))
        self.variance[which] += torch.softmax(log_weights, -1).square().sum(-1) - 1 / n
        rows = torch.stack([2 * systematic_rows(log_weights[:, i::2], self._random) + i for i in (0, 1)], -1).flatten(1)
        clouds = clouds.take(rows)
        self.clouds.put(which, clouds)
        self.families[which] = self.families[which].gather(1, rows)
        self.temperature[which] = after
        self.steps[which] += 1
        if bool((self.steps > _MOST_TEMPERATURES).any()):
            slow = int(self.steps.argmax())
            raise ConvergenceError(
                f"observation {slow} is only at temperature {float(self.temperature[slow]):.3g} after "
                f"{_MOST_TEMPERATURES} steps: its likelihood is too narrow for its prior"
            )
        self._ready[which] = False
        self._start[which], self._moves[which] = clouds.z, 0

    def _done(self, which: Tensor) -> Tensor:
        """Whether clouds have forgotten where their stage began, or have moved often enough in vain."""
        start, now, moves = self._start[which], self.clouds.z[which], self._moves[which]
        scores = normal_scores(start, 1)
        correlation = (normal_scores(now, 1) * scores).mean(1) / scores.square().mean(1)
        unmoved = (now == start).all(-1).double().mean(-1)
        below, arrived = self.temperature[which] < 1, self.kept[which] > 0
        enough = unmoved < torch.where(arrived, _MOST_UNMOVED_BETWEEN, _MOST_UNMOVED)
        forgotten = (correlation.amax(-1) < _MOST_CORRELATION) & enough & (moves >= _FEWEST_MOVES)
        n = self.families.shape[1]
        reset = forgotten & ~arrived
        own = torch.arange(n, device=start.device).expand(len(which), n)
        self.families[which] = torch.where(reset.unsqueeze(-1), own, self.families[which])
        return forgotten | (moves >= torch.where(below, _MOST_MOVES_BELOW, _MOST_MOVES))

    def _keep(self, which: Tensor) -> None:
        """Take the present clouds as draws, and begin another stage."""
        self.draws[which, self.kept[which]] = self.clouds.z[which]
        self.kept[which] += 1
        self._start[which], self._moves[which] = self.clouds.z[which], 0

    def stop(self) -> bool:
        """Keep the present cloud where none was kept yet; whether all are at temperature 1."""
        self._keep(torch.nonzero((self.temperature == 1) & (self.kept == 0))[:, 0])
        return bool((self.temperature == 1).all())

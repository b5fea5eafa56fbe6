"""All checks of calibration from one pass of posterior draws: ranks, intervals, random points, highest density."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive
from sbi_physics.core.validity import Failed
from sbi_physics.diagnostics.calibration import Calibration, sbc_from_samples
from sbi_physics.diagnostics.draws import PosteriorDraws, posterior_draws
from sbi_physics.diagnostics.random_points import RandomPointCoverage, tarp_from_samples
from sbi_physics.diagnostics.regions import Coverage, expected_coverage, highest_density_coverage
from sbi_physics.diagnostics.training_rows import warn_if_trained_on
from sbi_physics.diagnostics.uniformity import LEVELS, checked_level, checked_levels, left_out

__all__ = ["CalibrationReport", "calibrate"]

_DENSITY_DRAWS = 64


@dataclass(frozen=True)
class CalibrationReport:
    """What all checks of calibration say of one posterior.

    Attributes:
        sbc: ranks of each parameter.
        coverage: central intervals of each parameter.
        tarp: regions about random points, all parameters together.
        highest_density: regions of highest density, all parameters together; None where the density is not known.
        level: the probability that a calibrated posterior flunks, over all checks together.
        failed: simulations that were left out.
    """

    sbc: Calibration
    coverage: Coverage
    tarp: RandomPointCoverage
    highest_density: Coverage | None
    level: float
    failed: int = 0

    def __repr__(self) -> str:
        return f"CalibrationReport({self.verdict})"

    @property
    def checks(self) -> dict[str, Calibration | Coverage | RandomPointCoverage]:
        """The checks that were made, by name."""
        made: dict[str, Any] = {
            "ranks": self.sbc,
            "intervals": self.coverage,
            "random points": self.tarp,
            "highest density": self.highest_density,
        }
        return {name: check for name, check in made.items() if check is not None}

    @property
    def passed(self) -> bool:
        """Whether every check passes."""
        return all(check.passed for check in self.checks.values())

    @property
    def conservative(self) -> bool:
        """Whether checks flunk, and all of them because regions are wider than they need be."""
        joint = () if self.highest_density is None else self.highest_density.kinds
        kinds = {*self.sbc.kinds, *self.coverage.kinds, self.tarp.kind, *joint}
        return kinds - {"calibrated"} == {"under-confident"}

    @property
    def verdict(self) -> str:
        """What the checks that flunk say, or that all pass."""
        if self.passed:
            n = len(self.sbc.ranks)
            text = "; ".join([f"calibrated over {n} simulations: {', '.join(self.checks)}", *self.sbc.borderline])
        else:
            wrong = {name: check.verdict for name, check in self.checks.items() if not check.passed}
            if "ranks" in wrong:  # which say the same of the intervals
                wrong.pop("intervals", None)
            text = "; ".join(f"{name}: {verdict}" for name, verdict in wrong.items())
        return text + left_out(self.failed)


def calibrate(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    draws: int = 256,
    highest_density: bool | None = None,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    level: float = 0.01,
    chunk: int | None = None,
    failed: Failed = "refuse",
    missing: bool = False,
    progress: bool = False,
) -> CalibrationReport:
    """Check a posterior in every way, on simulated pairs that it was not trained on; see `sbc` for the arguments.

    Args:
        posterior: has ``sample(n, x_obs, seed=...)``, and ``log_prob(theta, x_obs)`` for the highest density.
        theta: ``(N, P)`` drawn from the prior.
        x: ``(N, *x_shape)`` simulated from theta, or a dictionary of such.
        draws: posterior draws for each pair.
        highest_density: whether to check the regions of highest density, by the densities of up to 64 draws, which
            cost some models far more than the draws; None does where the posterior has `log_prob`.
        levels: credibility levels in (0, 1).
        seed: of everything random.
        level: the probability that a calibrated posterior flunks, over all checks together.
        chunk: observations that are sampled together.
        failed: what to do with failed simulations.
        missing: whether NaN marks missing entries of x.
        progress: whether to show a bar.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: theta or a draw is NaN or infinite, or a simulation failed and is to be refused.
        UsageError: an argument is out of range, or the posterior has no density.
    """
    checked_level(level)
    checked_levels(levels)
    has_density = callable(getattr(posterior, "log_prob", None))
    if highest_density and not has_density:
        raise UsageError("highest_density: expected a posterior with log_prob, got one without")
    evaluate = has_density if highest_density is None else highest_density
    made = posterior_draws(
        posterior,
        theta,
        x,
        draws=draws,
        log_prob=evaluate,
        density_draws=_DENSITY_DRAWS,
        seed=seed,
        chunk=chunk,
        failed=failed,
        missing=missing,
        progress=progress,
    )
    warn_if_trained_on(posterior, theta, x)
    return _report(made, levels, level, seed)


def _report(made: PosteriorDraws, levels: Sequence[float], level: float, seed: int) -> CalibrationReport:
    each = level / (3 if made.log_prob_samples is None else 4)
    pairs, failed = (made.samples, made.theta, made.names), made.failed
    joint = None
    if made.log_prob_samples is not None:
        joint = highest_density_coverage(
            made.log_prob_samples, made.log_prob_theta, levels=levels, level=each, seed=derive(seed, "joint")
        )
    return CalibrationReport(
        sbc_from_samples(*pairs, level=each, seed=seed),
        expected_coverage(*pairs, levels=levels, level=each, seed=seed),
        tarp_from_samples(*pairs, levels=levels, level=each, seed=derive(seed, "tarp")),
        joint,
        level,
        failed,
    )

r"""Boltzmann distributions that are known up to their normalisation: draws and free energies by a flow.

For $p(\phi) = e^{-S(\phi)}/Z$ a flow q is trained without any data, by the reverse Kullback-Leibler divergence

$$ E_q[\ln q(\phi) + S(\phi)] = \mathrm{KL}(q\,\|\,p) - \ln Z, $$

and then corrected (Boltzmann generators: Noe et al. 2019, arXiv:1812.01729; lattice fields: Albergo, Kanwar and
Shanahan 2019, arXiv:1904.12072):

* **draws**: proposals of an independence Metropolis chain, exact in the limit whatever q is;
* **free energy** $F = -\ln Z$: with the weights $w = e^{-S}/q$ (Nicoli et al. 2021, arXiv:2007.07115)
  $F = -\ln E_q[w]$, which the flow's own draws give.

The training is content with a flow that misses a mode of p altogether, and so are its own weights: they agree with one
another, and F is too high by the share that is missing.  What tells are draws from p by other means: for them
$F = \ln E_p[1/w]$ (Nicoli et al. 2023, arXiv:2302.14082), and where q has no density, w is larger than any that the
flow has seen.  A free energy counts as trusted only where such a reference confirms it.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.checks import as_tensor, finite, known_keys, positive_integer, resolve_device
from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, TrainingError, UsageError
from sbi_physics.core.protocols import LogDensity
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.diagnostics.chains import chain_report
from sbi_physics.diagnostics.weights import importance_efficiency, pareto_k
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.generator import rows_at_once
from sbi_physics.sampling.importance import propose
from sbi_physics.sampling.independence import independence_metropolis
from sbi_physics.sampling.target import checked_log_density
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.loop import train

__all__ = ["BoltzmannGenerator", "FreeEnergy", "ReverseDivergence"]

_GRADIENTS = ("path", "total")
_STEPS_IN_EPOCH = 25
_VALIDATION_SHARE = 0.1
_CHECKED = 32
_FEWEST_STEPS = 4

_MAX_PARETO_K = 0.7
_FEWEST_EFFECTIVE = 100
_MOST_SIGMAS = 4.0
_MOST_MISSED = 0.05
"""With Pareto k at 0.7, draws of p that are beyond all of some ten thousand draws of a good flow are about as many."""


@dataclass(frozen=True)
class FreeEnergy:
    """A free energy from the weights of a flow, and whether to trust it.

    Attributes:
        value: F = -ln Z.
        error: its standard error.
        efficiency: effective sample size per draw.
        pareto_k: shape of the tail of the weights; below 0.7 they can be trusted.
        draws: of the flow.
        reference_value: ln E_p[1/w] of the reference; None without one.
        reference_error: its standard error.
        missed: share of the reference whose weights are above all of the flow's own draws.
        trusted: whether the weights are good and the reference confirms them.
        verdict: a sentence that says why.
    """

    value: float
    error: float
    efficiency: float
    pareto_k: float
    draws: int
    reference_value: float | None
    reference_error: float | None
    missed: float | None
    trusted: bool
    verdict: str


class BoltzmannGenerator:
    """A flow for one Boltzmann distribution on R^P.

    Args:
        log_density: -S of fields ``(n, P)``, float64: ``(n,)``; up to a constant, and differentiable by torch.
        flow: from fields ``(n, P)`` to noise, such as `models.flows.lattice.lattice_flow`; it is trained in place.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Attributes:
        density: q.
        record: of the last training; None before.

    Raises:
        UsageError: `log_density` is no function.
    """

    def __init__(self, log_density: LogDensity, flow: Flow, *, device: str | torch.device = "auto") -> None:
        if not callable(log_density):
            raise UsageError(f"log_density: expected a function, got {type(log_density).__name__}")
        self.log_density = log_density
        dims = torch.Size(flow._distribution._shape)
        self.density = FlowDensity(flow, tuple(dims)).to(resolve_device(device)).eval()
        self.record: TrainingRecord | None = None

    def fit(
        self,
        *,
        steps: int = 1500,
        draws: int = 128,
        learning_rate: float = 1e-2,
        gradient: Literal["path", "total"] = "path",
        seed: int = 0,
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> Self:
        """Train the flow from where it is: Muon and Adam, a one-cycle schedule and clipped gradients (`train.loop`).

        Args:
            steps: gradient steps.
            draws: of each step.
            learning_rate: peak of the schedule.
            gradient: ``"path"`` leaves out the part of the gradient that is zero on average (Vaitl et al. 2022,
                arXiv:2207.08219): without noise where q is p, for twice the time; ``"total"`` is the plain one.
            seed: of the draws.
            max_seconds: wall-clock budget; the best flow so far is kept.
            progress: whether to show a progress bar.

        Returns:
            Itself.

        Raises:
            UsageError: an argument has a value that it cannot have, or the log-density is not differentiable.
            ShapeError, NonFiniteError: the log-density is not one.
            TrainingError: the loss is not finite.
        """
        batch, epochs = positive_integer(draws, "draws"), math.ceil(positive_integer(steps, "steps") / _STEPS_IN_EPOCH)
        known_keys([gradient], _GRADIENTS, "gradient")
        check_seed(seed)
        self._check_target(seed)
        objective = ReverseDivergence(self.density, self.log_density, derive(seed, "validation"))
        rows = round(_STEPS_IN_EPOCH * batch / (1 - _VALIDATION_SHARE))
        config = TrainConfig(
            epochs=epochs,
            batch_size=batch,
            learning_rate=learning_rate,
            weight_decay=0.0,
            validation_fraction=_VALIDATION_SHARE,
            patience=epochs,
            max_seconds=max_seconds,
        )
        try:
            self.record = train(
                objective,
                objective.loss,
                [torch.zeros(rows, 1)],
                gradient=objective.add_path_gradient if gradient == "path" else None,
                config=config,
                seed=derive(seed, "train"),
                progress=progress,
                description="Boltzmann generator",
            )
        except NonFiniteError as error:
            raise TrainingError(
                f"the flow or the log-density stopped being finite ({error}); lower the learning rate "
                f"(now {learning_rate:g})"
            ) from error
        return self

    def sample(
        self,
        n: int,
        *,
        observables: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        chains: int = 64,
        warmup: int = 20,
        seed: int = 0,
        max_calls: int | None = None,
        max_seconds: float | None = None,
    ) -> Samples:
        """Draw by parallel independence Metropolis chains that the flow proposes for.

        Args:
            n: number of draws.
            observables: functions of fields ``(m, P)`` to ``(m,)``, by name, by which the chains are judged; the
                log-density where None.
            chains: parallel chains; fewer where n is small.
            warmup: steps of each chain that are thrown away.
            seed: of proposals and acceptances.
            max_calls: most evaluations of the log-density.
            max_seconds: wall-clock budget.

        Returns:
            Draws ``(n, P)``, float64, one of each chain after the other; fewer where a budget ended.  The diagnostics
            are ``acceptance``; ``autocorrelation_time`` in steps, ``effective_sample_size`` and ``r_hat``, lists with
            one number for each observable; ``converged`` and ``verdict``; ``chains`` and ``likelihood_calls``.

        Raises:
            ConvergenceError: hardly any proposal is accepted.
            BudgetError: a budget ended within the warm-up, or after fewer than four steps.
            ShapeError, NonFiniteError: the log-density or an observable is not one.
        """
        began, wanted = time.monotonic(), positive_integer(n, "n")
        walkers = min(positive_integer(chains, "chains"), max(1, wanted // _FEWEST_STEPS))
        whole = walkers * max(math.ceil(wanted / walkers), _FEWEST_STEPS)
        limits: dict[str, Any] = {"max_calls": max_calls, "max_seconds": max_seconds}
        fields, numbers = independence_metropolis(
            self._propose, self.log_density, whole, chains=walkers, warmup=warmup, seed=seed, **limits
        )
        steps = len(fields) // walkers
        if steps < _FEWEST_STEPS:
            raise BudgetError(
                f"the budget (max_calls={max_calls}, max_seconds={max_seconds}) ended after {steps} steps of {walkers} "
                f"chains; expected at least {_FEWEST_STEPS}"
            )
        named = observables or {"log_density": self.log_density}
        values = torch.stack([checked_log_density(f(fields), fields, name) for name, f in named.items()], -1)
        report = chain_report(values.reshape(steps, walkers, -1), tuple(named))
        diagnostics = {
            "acceptance": numbers["acceptance"],
            "autocorrelation_time": report.autocorrelation_time.tolist(),
            "effective_sample_size": report.effective_sample_size.tolist(),
            "r_hat": report.r_hat.tolist(),
            "converged": report.converged,
            "verdict": report.verdict,
            "chains": walkers,
            "likelihood_calls": int(numbers["likelihood_calls"]),
        }
        cost = Cost(time.monotonic() - began, 0, int(numbers["likelihood_calls"]))
        names = tuple(f"phi_{i}" for i in range(fields.shape[1]))
        return Samples(fields[:wanted], names, cost=cost, diagnostics=diagnostics)

    def free_energy(self, n: int, *, reference: Any = None, seed: int = 0) -> FreeEnergy:
        """Estimate -ln Z from the weights of n draws of the flow.

        Args:
            n: number of draws.
            reference: draws from p by other means: what `hmc` gives, started where all modes are within reach (from
                fields at random, about as wide as p, but not from those of the flow); or fields ``(m, P)`` that are
                independent, or chains of them ``(C, m, P)``.
            seed: of the draws.

        Raises:
            ShapeError, NonFiniteError: the log-density is not one, or the reference has another shape or is not finite.
        """
        wanted = positive_integer(n, "n")
        rows = rows_at_once(self.density.device)
        own = torch.cat(
            [
                propose(self._propose, self.log_density, min(rows, wanted - i), derive(seed, "weights", i))[1]
                for i in range(0, wanted, rows)
            ]
        )
        log_mean, error = _log_mean(own.unsqueeze(1))
        other = None if reference is None else self._log_weights(_chains(reference, self.density.event_shape[0]))
        doubt = ""
        if isinstance(reference, Samples) and not reference.diagnostics.get("converged", True):
            doubt = str(reference.diagnostics.get("verdict", "not converged"))
        return _judged(-log_mean, error, own, other, doubt)

    def _propose(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        fields, log_q = self.density.sample_and_log_prob(n, seed=seed)
        return fields.double(), log_q

    @torch.no_grad()
    def _log_weights(self, chains: Tensor) -> Tensor:
        """-S - ln q, float64 ``(C, m)``, of chains ``(C, m, P)``."""
        parts = []
        for rows in chains.flatten(0, 1).split(rows_at_once(self.density.device)):
            here = rows.to(self.density.device)
            log_p = checked_log_density(self.log_density(here), here)
            parts.append((log_p.double() - self.density.log_prob(here.float())).cpu())
        return torch.cat(parts).unflatten(0, chains.shape[:2])

    def _check_target(self, seed: int) -> None:
        fields = self.density.sample(_CHECKED, seed=derive(seed, "check")).double().requires_grad_()
        value = checked_log_density(self.log_density(fields), fields)
        if not value.requires_grad:
            raise UsageError("log_density: expected a function that torch can differentiate, got values without it")


class ReverseDivergence(nn.Module):
    """KL(q || p) - ln Z as a loss over rows that carry nothing: each stands for a fresh draw.

    Args:
        density: q.
        log_density: -S.
        seed: of the draws of validations.
    """

    def __init__(self, density: FlowDensity, log_density: LogDensity, seed: int) -> None:
        super().__init__()
        self.density, self.log_density, self.seed = density, log_density, seed

    def loss(self, rows: Tensor) -> Tensor:
        """Ln q + S of as many draws as there are rows: ``(n,)``; the same draws in every validation."""
        with seeded(None if self.training else self.seed, self.density.device):
            fields, log_q = self.density.rsample(len(rows))
        return (log_q.double() - self.log_density(fields.double())).float()

    def add_path_gradient(self, weights: Tensor, rows: Tensor) -> Tensor:
        r"""The loss; a gradient of ``sum(weights * loss)`` is added to the `grad` of the parameters.

        Of the gradient of $\ln q_\theta(\phi_\theta) + S(\phi_\theta)$ only what comes through the draw $\phi_\theta$
        is taken: the rest, $\partial_\theta \ln q_\theta$ at a fixed draw, is zero on average.
        """
        fields, _ = self.density.rsample(len(rows))
        place = fields.detach().requires_grad_()
        each = (self.density.log_prob(place).double() - self.log_density(place.double())).float()
        (slope,) = torch.autograd.grad(each.sum(), place)
        (weights.unsqueeze(1) * slope * fields).sum().backward()
        return each.detach()


def _chains(reference: Any, dims: int) -> Tensor:
    """Reference draws as chains ``(C, m, P)``; independent ones are chains of one draw."""
    values = reference.values if isinstance(reference, Samples) else reference
    fields = finite(as_tensor(values, "reference", dtype=torch.float64), "reference")
    if fields.ndim not in (2, 3) or fields.shape[-1] != dims or fields.shape[:-1].numel() < 2:
        raise ShapeError(f"reference: expected shape (m, {dims}) or (C, m, {dims}), got {tuple(fields.shape)}")
    if fields.ndim == 3:
        return fields
    # As `hmc` gives them: chain after chain.
    walkers = reference.diagnostics.get("chains", len(fields)) if isinstance(reference, Samples) else len(fields)
    return fields.unflatten(0, (walkers, -1))


def _log_mean(log_values: Tensor) -> tuple[float, float]:
    """Ln of the mean of values ``(C, m)``, with its standard error from the means of the C chains."""
    count = len(log_values)
    log_mean = float(torch.logsumexp(log_values.flatten(), 0)) - math.log(log_values.numel())
    relative = torch.exp(log_values - log_mean).mean(1)
    return log_mean, float(relative.std()) / math.sqrt(count) if count > 1 else math.inf


def _judged(value: float, error: float, own: Tensor, other: Tensor | None, doubt: str) -> FreeEnergy:
    """The free energy with a verdict.

    Args:
        value: F.
        error: its standard error.
        own: log-weights ``(n,)`` of the flow's draws.
        other: log-weights ``(C, m)`` of a reference, or None.
        doubt: what the reference says against itself, if anything.
    """
    efficiency, shape = float(importance_efficiency(own)), float(pareto_k(own))
    weights = f"weights of efficiency {efficiency:.2g} and Pareto k {shape:.2f}"
    reference_value = reference_error = missed = None
    if other is not None:
        reference_value, reference_error = _log_mean(-other)
        missed = float((other > own.max()).double().mean())
    objection = ""
    if not shape < _MAX_PARETO_K or not efficiency * len(own) >= _FEWEST_EFFECTIVE:
        objection = (
            f"not trusted: {weights} of {len(own)} draws, expected k below {_MAX_PARETO_K:g} and an effective sample "
            f"of at least {_FEWEST_EFFECTIVE}; train for longer, or with a larger flow"
        )
    elif reference_value is None or reference_error is None or missed is None:
        objection = (
            f"not confirmed: {weights} look good, but the flow's own draws cannot tell of modes that it misses; hand "
            "in reference draws"
        )
    elif doubt:
        objection = f"not confirmed: {weights} look good, but the reference itself is {doubt}"
    elif missed > _MOST_MISSED or abs(value - reference_value) > _MOST_SIGMAS * math.hypot(error, reference_error):
        objection = (
            f"not trusted: the reference gives {reference_value:.4f} +- {reference_error:.4f}, the flow {value:.4f} "
            f"+- {error:.4f}, and has not been where {missed:.1%} of the reference are: it misses a part of the "
            "distribution; begin wider, or let it be odd where the distribution is even"
        )
    verdict = objection or (
        f"trusted: {weights}; the reference gives {reference_value:.4f} +- {reference_error:.4f}, and the flow has "
        f"been where all but {missed:.1%} of it are"
    )
    return FreeEnergy(
        value,
        error,
        efficiency,
        shape,
        len(own),
        reference_value,
        reference_error,
        missed,
        not objection,
        verdict,
    )

"""`Samples`: draws with their names, units, weights and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, positive_integer
from sbi_physics.core.circle import on_one_turn
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import numpy_generator

__all__ = ["Cost", "Samples"]


@dataclass(frozen=True)
class Cost:
    """What a result cost.

    Attributes:
        seconds: wall-clock time.
        simulator_calls: rows simulated.
        likelihood_calls: rows at which an exact likelihood was evaluated.
    """

    seconds: float = 0.0
    simulator_calls: int = 0
    likelihood_calls: int = 0


@dataclass(frozen=True)
class Samples:
    """Draws of P named parameters.

    Attributes:
        values: ``(n, P)``, or ``(B, n, P)`` for B separate observations; arrays become tensors.
        names: P names; of `Parameters` in hand, `Samples.of` takes these and all else.
        units: P astropy unit strings, empty for pure numbers.
        labels: P LaTeX labels.
        log_weights: ``(n,)`` or ``(B, n)`` natural logarithms of importance weights up to a constant; None when equal.
        cost: seconds and calls spent.
        diagnostics: named numbers that say how far to trust the draws (``pareto_k``, ``acceptance``, ...).
        bounds: ``(P, 2)`` lower and upper ends of the prior, infinite where there is none; None where not known.
        periodic: P flags: whether both bounds are one point, as of an angle; none is where nothing is said.
    """

    values: Tensor
    names: tuple[str, ...]
    units: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    log_weights: Tensor | None = None
    cost: Cost = field(default_factory=Cost)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    bounds: Tensor | None = None
    periodic: tuple[bool, ...] = ()

    def __repr__(self) -> str:
        """Numbers of draws, and medians with 68 % intervals where they are of one observation."""
        count = " x ".join(f"{size:,}" for size in self.values.shape[:-1])
        weighted = "" if self.log_weights is None else "weighted "
        units = [f" {unit}" if unit else "" for unit in self.units]
        if self.values.ndim == 3 or not len(self.values):
            columns = [name + unit for name, unit in zip(self.names, units, strict=True)]
        else:
            low, middle, high = self.quantile([0.16, 0.5, 0.84]).double().tolist()
            columns = [
                f"{name} = {m:.4g} [{a:.4g}, {b:.4g}]{unit}"
                for name, a, m, b, unit in zip(self.names, low, middle, high, units, strict=True)
            ]
        return f"Samples({count} {weighted}draws: {', '.join(columns)})"

    def __post_init__(self) -> None:
        if isinstance(self.names, Parameters):
            raise UsageError("names: expected names, got Parameters; write Samples.of(values, parameters)")
        object.__setattr__(self, "values", as_tensor(self.values, "values", dtype=None))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "units", tuple(self.units) or ("",) * len(self.names))
        object.__setattr__(self, "labels", tuple(self.labels) or self.names)
        if self.values.ndim not in (2, 3) or self.values.shape[-1] != len(self.names):
            raise ShapeError(
                f"values: expected (n, {len(self.names)}) or (B, n, {len(self.names)}), got {tuple(self.values.shape)}"
            )
        if self.log_weights is not None and self.log_weights.shape != self.values.shape[:-1]:
            raise ShapeError(
                f"log_weights: expected {tuple(self.values.shape[:-1])}, got {tuple(self.log_weights.shape)}"
            )
        if self.bounds is not None and self.bounds.shape != (len(self.names), 2):
            raise ShapeError(f"bounds: expected ({len(self.names)}, 2), got {tuple(self.bounds.shape)}")
        object.__setattr__(self, "periodic", tuple(map(bool, self.periodic)) or (False,) * len(self.names))
        if len(self.periodic) != len(self.names) or (any(self.periodic) and self.bounds is None):
            raise ShapeError(f"periodic: expected {len(self.names)} flags, and bounds, got {len(self.periodic)}")

    @classmethod
    def of(cls, values: Tensor, parameters: Parameters, **more: Any) -> "Samples":
        """Draws ``(n, P)`` or ``(B, n, P)`` of the given parameters."""
        known: dict[str, Any] = {"bounds": parameters.bounds, "periodic": parameters.periodic}
        return cls(values, parameters.names, parameters.units, parameters.labels, **known, **more)

    def __len__(self) -> int:
        return int(self.values.shape[-2])

    def __getitem__(self, name: str) -> Tensor:
        """The draws of one parameter: ``(n,)`` or ``(B, n)``."""
        if name not in self.names:
            raise UsageError(f"parameter: expected one of {', '.join(self.names)}; got {name!r}")
        return self.values[..., self.names.index(name)]

    def observation(self, b: int) -> "Samples":
        """The draws for the b-th of B separate observations."""
        if self.values.ndim == 2:
            raise ShapeError("these samples are for a single observation")
        weights = None if self.log_weights is None else self.log_weights[b]
        return replace(self, values=self.values[b], log_weights=weights)

    def select(self, names: str | Sequence[str]) -> "Samples":
        """The draws of some parameters, in the order given: their marginal distribution.

        Nothing else is needed to be rid of nuisance parameters: draws of all parameters, looked at in the columns of
        interest alone, are draws of the distribution that is integrated over the others.  Weights, cost and
        diagnostics stay.

        Raises:
            UsageError: a name is not known or comes twice, or there is none.
        """
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in self.names:
                raise UsageError(f"parameter: expected one of {', '.join(self.names)}; got {name!r}")
        if not chosen or len(set(chosen)) < len(chosen):
            raise UsageError(f"names: expected one or more different parameters, got {chosen}")
        index = [self.names.index(name) for name in chosen]
        return replace(
            self,
            values=self.values[..., index],
            names=tuple(chosen),
            units=tuple(self.units[i] for i in index),
            labels=tuple(self.labels[i] for i in index),
            bounds=None if self.bounds is None else self.bounds[index],
            periodic=tuple(self.periodic[i] for i in index),
        )

    @property
    def weights(self) -> Tensor:
        """Weights that sum to one over the draws, float64: ``(n,)`` or ``(B, n)``."""
        if self.log_weights is None:
            return torch.full(self.values.shape[:-1], 1.0 / len(self), dtype=torch.float64)
        return torch.softmax(self.log_weights.detach().double().cpu(), dim=-1)

    @property
    def effective_sample_size(self) -> Tensor:
        """Kish's effective sample size ``1 / sum(w**2)`` of the weights: a number, or ``(B,)``.

        For a Markov chain, whose draws are correlated, the chain's own estimate is in `diagnostics`.
        """
        return 1.0 / self.weights.square().sum(-1)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The values alone, as a numpy array; use `resample` first where there are weights."""
        return self.values.detach().cpu().numpy()

    def resample(self, n: int, *, seed: int = 0, replace: bool = True) -> "Samples":
        """Draw n equally weighted rows in proportion to the weights.

        Args:
            n: number of rows.
            seed: of the random choice.
            replace: whether a row may come twice.  Without replacement rows are distinct, which needs at least n rows
                with a weight, and flattens the weights as n nears their number.
        """
        positive_integer(n, "n")
        random = numpy_generator(seed)
        weights = self.weights.reshape(-1, len(self)).numpy()
        for row in weights:
            if not replace and np.count_nonzero(row) < n:
                raise UsageError(f"n: expected at most {np.count_nonzero(row)} distinct rows, got {n}")
        rows = np.stack([random.choice(len(self), n, replace=replace, p=row / row.sum()) for row in weights])
        index = torch.as_tensor(rows.reshape(*self.values.shape[:-2], n), device=self.values.device)
        values = torch.take_along_dim(self.values, index.unsqueeze(-1), dim=-2)
        # Rows in a random order are no chains any more.
        diagnostics = {name: value for name, value in self.diagnostics.items() if name != "chains"}
        known = (self.names, self.units, self.labels)
        return Samples(values, *known, None, self.cost, diagnostics, self.bounds, self.periodic)

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Weighted quantiles of each parameter.

        The circle of a periodic parameter is cut where there are fewest draws; its quantiles, in order from there, may
        therefore lie beyond a bound: 358, 2 and 5 degrees are -2, 2 and 5.

        Args:
            q: one probability, or k of them.

        Returns:
            float64 ``(P,)`` for one probability, ``(k, P)`` for several; with B in front for separate observations.
        """
        levels = torch.atleast_1d(torch.as_tensor(q, dtype=torch.float64))
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise UsageError(f"q: expected probabilities in [0, 1], got {q}")
        values = self._unwrapped()
        weights = self.weights.unsqueeze(-1).expand_as(values)
        # Rows without weight do not count: they go to the end, at the largest value that does.
        values, order = torch.where(weights > 0, values, torch.inf).sort(dim=-2)
        weights = torch.take_along_dim(weights, order, dim=-2)
        values = torch.minimum(values, torch.where(weights > 0, values, -torch.inf).amax(-2, keepdim=True))
        # The midpoint rule: the i-th smallest value stands at the middle of its own weight.
        position = (weights.cumsum(-2) - 0.5 * weights).movedim(-2, -1).contiguous()
        values = values.movedim(-2, -1)
        at = levels.expand(*position.shape[:-1], len(levels)).contiguous()
        right = torch.searchsorted(position, at).clamp(0, len(self) - 1)
        left = (right - 1).clamp(min=0)
        span = position.gather(-1, right) - position.gather(-1, left)
        share = ((at - position.gather(-1, left)) / span.clamp(min=1e-300)).clamp(0, 1)
        result = torch.lerp(values.gather(-1, left), values.gather(-1, right), share).movedim(-1, -2)
        return result if not isinstance(q, float | int) else result.squeeze(-2)

    def _unwrapped(self) -> Tensor:
        """The values, float64, those of periodic parameters on one turn from where there are fewest."""
        values = self.values.detach().double().cpu()
        if self.bounds is None or not any(self.periodic):
            return values
        values, weights = values.clone(), self.weights
        for i in (i for i, wraps in enumerate(self.periodic) if wraps):
            low, high = self.bounds[i].double().tolist()
            values[..., i] = on_one_turn(values[..., i], weights, low, high - low)
        return values

    def to_qtable(self) -> Any:
        """An `astropy.table.QTable`: a column of quantities for each parameter, and ``log_weight`` if there is one."""
        from astropy.table import QTable
        from astropy.units import Unit

        if self.values.ndim != 2:
            raise ShapeError("to_qtable: expected the samples of one observation; use .observation(b) first")
        table = QTable()
        for i, (name, unit) in enumerate(zip(self.names, self.units, strict=True)):
            column = self.to_numpy()[:, i]
            table[name] = column * Unit(unit) if unit else column
        if self.log_weights is not None:
            table["log_weight"] = self.log_weights.detach().cpu().numpy()
        return table

    def to_arviz(self) -> Any:
        """An `arviz.InferenceData` with the group ``posterior`` (extra ``arviz``), with equal weights."""
        try:
            import arviz
        except ImportError as error:
            raise UsageError("to_arviz needs ArviZ: pip install 'sbi-physics[arviz]'") from error
        if self.values.ndim != 2:
            raise ShapeError("to_arviz: expected the samples of one observation; use .observation(b) first")
        equal = self if self.log_weights is None else self.resample(len(self))
        values = equal.to_numpy()
        chains = int(self.diagnostics.get("chains", 1))
        # A chain-major layout lets ArviZ compute R-hat between the walkers.
        shaped = values.reshape(chains, -1, values.shape[-1]) if len(values) % chains == 0 else values[None]
        return arviz.from_dict({name: shaped[..., i] for i, name in enumerate(self.names)})

    def to_getdist(self) -> Any:
        """A `getdist.MCSamples` (extra ``getdist``): weights, names, labels with units, and the bounds of the prior.

        GetDist keeps densities from leaking over bounds that it knows.  Weighted and independent draws are said to be
        uncorrelated; chains, where `diagnostics` counts them, stay apart, and GetDist estimates their correlation.
        Log-likelihoods are not kept with draws: what GetDist says of a best fit means nothing.

        Raises:
            UsageError: GetDist is not installed.
            ShapeError: there are several observations.
        """
        try:
            from getdist import MCSamples
        except ImportError as error:
            raise UsageError("to_getdist needs GetDist: pip install 'sbi-physics[getdist]'") from error
        if self.values.ndim != 2:
            raise ShapeError("to_getdist: expected the samples of one observation; use .observation(b) first")
        values, weights = self.to_numpy().astype(float), self.weights.numpy() * len(self)
        chains = int(self.diagnostics.get("chains", 1))
        several = self.log_weights is None and chains > 1 and len(values) % chains == 0
        rows = weights > 0
        ends = [] if self.bounds is None else self.bounds.tolist()
        return MCSamples(
            # GetDist cannot tell chains apart that come without log-likelihoods.
            loglikes=np.split(np.zeros(len(values)), chains) if several else None,
            samples=np.split(values, chains) if several else values[rows],
            weights=np.split(weights, chains) if several else weights[rows],
            names=list(self.names),
            labels=[_latex(label, unit) for label, unit in zip(self.labels, self.units, strict=True)],
            ranges={n: [x if np.isfinite(x) else None for x in row] for n, row in zip(self.names, ends, strict=False)},
            sampler="mcmc" if several else "uncorrelated",
            settings={"ignore_rows": 0},
        )


def _latex(label: str, unit: str) -> str:
    """A label and its unit in LaTeX, without the dollar signs."""
    if not unit:
        return label.replace("$", "")
    from astropy.units import Unit

    return f"{label.replace('$', '')}\\;[{Unit(unit).to_string('latex_inline').strip('$')}]"

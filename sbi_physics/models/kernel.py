r"""`KernelDensity`: a Gaussian kernel on every event, weighted by how near its context is.

A kernel density estimate of events and contexts together, with kernels of the shape of their covariance, is divided by
the one of the contexts alone (Rosenblatt 1969; Nadaraya 1964 and Watson 1964 for the weights):

$$ q(z|c) = \sum_i W_i(c)\, N\big(z; z_i + B(c - c_i),\; h_z^2 S\big), \qquad
   W_i(c) \propto w_i\, N(c; c_i, h_c^2 C), $$

where C is the covariance of the contexts, B the linear regression of the events on them and S the covariance of what
that leaves.  With $h_z = h_c = h$ it is exactly the ratio p(z, c) / p(c) of kernel density estimates whose bandwidth is
h times the joint covariance; without a context it is the ordinary estimate.

Bandwidths: h = $N_e^{-1/(d+4)}$ (Scott 1992) or $(N_e (d+2)/4)^{-1/(d+4)}$ (Silverman 1986) with the effective number
$N_e$ of weighted events and the number d of dimensions; or the pair that maximises the log-density of each event given
all the others (Duin 1976, doi:10.1109/TC.1976.1674577; conditional: Hall, Racine and Li 2004,
doi:10.1198/016214504000000548), which also learns how much the context matters.
"""

import math
from typing import Any, Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from sbi_physics.core.checks import as_tensor, batch_of, finite, known_keys, same_length
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.models.density import ConditionalDensity

__all__ = ["BANDWIDTHS", "KernelDensity"]

BANDWIDTHS = ("scott", "silverman", "likelihood")
_PAIRS_AT_ONCE = 1 << 22
# Events whose density given all others decides on the bandwidth, as many as fit below a number of pairs.
_JUDGES, _FEWEST_JUDGES, _MOST_PAIRS = 2000, 64, 1 << 24
_EVALUATIONS = 80
# Bandwidths further than this factor from Scott's are not looked at.
_WIDEST_SEARCH = 30.0
# Of encoded events, whose variance is one; the other as a share of the largest.
_SMALLEST_VARIANCE = 1e-10
_SMALLEST_EIGENVALUE = 1e-10
_BUFFERS = ("points", "contexts", "log_weights", "regression", "event_root", "context_whitening", "bandwidths")


class KernelDensity(ConditionalDensity):
    """A conditional kernel density estimate; satisfies `Density` once `fit` has been called.

    Nothing is trained: it keeps the events.  Draws carry no gradients.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)`` that needs no training; None
            flattens the context.
        bandwidth: ``"scott"``, ``"silverman"``, ``"likelihood"``, or h itself, a number above 0.

    Raises:
        UsageError: the bandwidth is none of these.
    """

    points: Tensor
    contexts: Tensor
    log_weights: Tensor
    regression: Tensor
    event_root: Tensor
    context_whitening: Tensor
    bandwidths: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        bandwidth: str | float = "scott",
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        if isinstance(bandwidth, str):
            known_keys([bandwidth], BANDWIDTHS, "bandwidth")
        elif isinstance(bandwidth, bool) or not 0 < bandwidth < math.inf:
            raise UsageError(f"bandwidth: expected one of {', '.join(BANDWIDTHS)} or a number, got {bandwidth!r}")
        self.bandwidth, dims, width = bandwidth, event_shape[0], 0
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        self.register_buffer("points", torch.zeros(0, dims))
        self.register_buffer("contexts", torch.zeros(0, width))
        self.register_buffer("log_weights", torch.zeros(0))
        self.register_buffer("regression", torch.zeros(width, dims))
        self.register_buffer("event_root", torch.eye(dims))
        self.register_buffer("context_whitening", torch.eye(width))
        self.register_buffer("bandwidths", torch.ones(2))

    def fit(self, events: Any, contexts: Any = None, weights: Any = None) -> Self:
        """Keep events as the centres of the kernels, and choose the bandwidth.

        Args:
            events: ``(N, D)`` inside the support, N of at least 2.
            contexts: ``(N, *context_shape)``, or None for an unconditional density.
            weights: ``(N,)``, none negative, with a positive sum; None for equal weights.

        Raises:
            ShapeError, NonFiniteError: events, contexts or weights have another shape, or hold NaN or infinity.
            SupportError: an event lies outside the support.
            UsageError: a weight is negative, fewer than two are above zero, or the embedding is to be trained.
        """
        like = self.event_scaling.mean
        rows = batch_of(as_tensor(events, "events", dtype=like.dtype), self.event_shape, "events", minimum=2)
        finite(rows, "events")
        outside = ~self.bijection.within(rows)
        if bool(outside.any()):
            first = int(torch.nonzero(outside)[0, 0])
            raise SupportError(f"events: expected all inside the bounds, got {rows[first].tolist()} in row {first}")
        if (contexts is not None) != self.conditional:
            raise ShapeError(f"contexts: expected {'some' if self.conditional else 'None'}")
        given = None
        if contexts is not None:
            given = as_tensor(contexts, "contexts", dtype=like.dtype)
            finite(batch_of(given, self.context_shape, "contexts"), "contexts")
            same_length(events=rows, contexts=given)
        self.fit_scaling(rows.to(like.device), None if given is None else given.to(like.device))
        scaled = None if given is None else self.context_scaling(given.to(like.device))
        return self.fit_encoded(self.encode(rows.to(like.device))[0], scaled, weights)

    @torch.no_grad()
    def fit_encoded(self, encoded: Tensor, contexts: Tensor | None = None, weights: Any = None) -> Self:
        """As `fit`, for encoded events and *scaled* contexts of a density whose scalings are fitted."""
        if any(parameter.requires_grad for parameter in self.embedding.parameters()):
            raise UsageError("embedding: a kernel density estimate trains none; expected 'flat', or a frozen network")
        mass = _checked_weights(weights, len(encoded), encoded.device)
        z = encoded.double()
        summary = self._embedded(contexts)
        c = z.new_zeros(len(z), 0) if summary is None else summary.double()
        z_mean, c_mean = mass @ z, mass @ c
        # Of a sample: the covariance that scipy and numpy give for weights that stand for shares.
        unbiased = 1 / (1 - float(mass.square().sum()))
        deviations, around = z - z_mean, c - c_mean
        covariance = unbiased * (mass[:, None] * around).T @ around
        whitening = _inverse_root(covariance)
        regression = whitening @ whitening.T @ (unbiased * (mass[:, None] * around).T @ deviations)
        left = deviations - around @ regression
        root = _root(unbiased * (mass[:, None] * left).T @ left)
        self._keep(points=z, contexts=c, log_weights=mass.log(), regression=regression, event_root=root)
        self._keep(context_whitening=whitening, bandwidths=z.new_ones(2))
        self._keep(bandwidths=self._chosen(1 / float(mass.square().sum())))
        return self

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Minus the log-density of encoded events in their own space: ``(n,)``."""
        return -self._log_prob(encoded, self._embedded(contexts))

    def _log_prob(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        whitened, centres = self._residuals(encoded, summary), self._residuals(self.points, self.contexts)
        h, parts = self.bandwidths[0], []
        constant = self.event_root.diagonal().log().sum() + len(self.event_root) * (
            h.log() + 0.5 * math.log(2 * math.pi)
        )
        for part in self._parts(len(encoded)):
            kernels = -0.5 * (_distances(whitened[part], centres) / h).square()
            # One row of weights where there is one context for all.
            weights = self._log_shares(summary if summary is None or len(summary) == 1 else summary[part])
            parts.append((kernels + weights).logsumexp(-1) - constant)
        return torch.cat(parts)

    def _draw(self, n: int, summary: Tensor | None, *, densities: bool) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            raise UsageError("rsample: draws of a kernel density estimate carry no gradients; use a flow")
        share = torch.rand(n, 1, device=self.device, dtype=torch.float64)
        noise = torch.randn(n, *self.event_shape, device=self.device, dtype=self.points.dtype)
        parts = []
        for part in self._parts(n):
            rows = None if summary is None or len(summary) == 1 else summary[part]
            weights = self._log_shares(summary if rows is None else rows)
            total = weights.double().softmax(-1).cumsum(-1)
            # Never above the last one, whatever the rounding of the sum; never one of weight zero.
            wanted = share[part] * total[:, -1:]
            chosen = torch.searchsorted(total.expand(len(wanted), -1).contiguous(), wanted, right=True)[:, 0]
            parts.append(chosen.clamp(max=len(self.points) - 1))
        chosen = torch.cat(parts)
        events = self.points[chosen] + self.bandwidths[0] * noise @ self.event_root.T
        if summary is not None:
            events = events + (summary - self.contexts[chosen]) @ self.regression
        return events, self._log_prob(events, summary) if densities else None

    def _parts(self, rows: int) -> list[slice]:
        """Slices of so many rows that their pairs with all kernels fit into memory."""
        if not len(self.points):
            raise UsageError("fit: a kernel density estimate has no density before it is fitted to events")
        size = max(1, _PAIRS_AT_ONCE // (len(self.points) * (1 + len(self.event_root) // 8)))
        return [slice(start, start + size) for start in range(0, max(rows, 1), size)]

    def _residuals(self, events: Tensor, summary: Tensor | None) -> Tensor:
        """What the regression leaves of events ``(n, D)``, with the identity as covariance: ``(n, D)``."""
        left = events if summary is None else events - summary @ self.regression
        return torch.linalg.solve_triangular(self.event_root, left.T, upper=False).T

    def _log_shares(self, summary: Tensor | None) -> Tensor:
        """Logarithms of W ``(n, N)`` for summaries ``(n, C)``; one row where there is no context."""
        if summary is None:
            return self.log_weights.unsqueeze(0)
        distances = _distances(summary @ self.context_whitening, self.contexts @ self.context_whitening)
        return (self.log_weights - 0.5 * (distances / self.bandwidths[1]).square()).log_softmax(-1)

    def _chosen(self, effective: float) -> Tensor:
        """The bandwidths of events and contexts ``(2,)`` for so many effective events."""
        dims = self.points.shape[1] + self.contexts.shape[1]
        scott = effective ** (-1 / (dims + 4))
        if self.bandwidth == "likelihood":
            return self._most_likely(scott)
        if self.bandwidth == "silverman":
            scott = (effective * (dims + 2) / 4) ** (-1 / (dims + 4))
        h = scott if isinstance(self.bandwidth, str) else float(self.bandwidth)
        return torch.full((2,), h, dtype=torch.float64)

    def _most_likely(self, start: float) -> Tensor:
        """The bandwidths at which some events are most likely given all the others."""
        possible = torch.nonzero(self.log_weights > -torch.inf)[:, 0]
        judges = min(len(possible), _JUDGES, max(_FEWEST_JUDGES, _MOST_PAIRS // len(self.points)))
        # Evenly over the rows, and on no random stream.
        rows = possible[
            torch.linspace(0, len(possible) - 1, judges, dtype=torch.float64).round().long().to(self.device)
        ]
        centres, contexts = self._residuals(self.points, self.contexts), self.contexts @ self.context_whitening
        squares = [_distances(whole[rows], whole).square() for whole in (centres, contexts)]
        others = self.log_weights.expand(judges, -1).clone()
        others[torch.arange(judges, device=self.device), rows] = -torch.inf
        weights, dims = self.log_weights[rows].exp().double(), self.points.shape[1]

        def objective(log_factors: np.ndarray) -> float:
            limited = np.clip(log_factors, -math.log(_WIDEST_SEARCH), math.log(_WIDEST_SEARCH))
            h = start * np.exp(limited)
            near = others - 0.5 * squares[1] / (h[1] if len(h) > 1 else 1.0) ** 2
            both = (near - 0.5 * squares[0] / h[0] ** 2).logsumexp(-1)
            each = (both - near.logsumexp(-1)).double() - dims * math.log(h[0])
            return -float((weights * each).sum() / weights.sum()) + float(np.abs(log_factors - limited).sum())

        unknown = 2 if self.contexts.shape[1] else 1
        found = minimize(objective, np.zeros(unknown), method="Nelder-Mead", options={"maxfev": _EVALUATIONS})
        factors = np.clip(np.resize(found.x, 2), -math.log(_WIDEST_SEARCH), math.log(_WIDEST_SEARCH))
        return torch.as_tensor(start * np.exp(factors), dtype=torch.float64)

    def _keep(self, **values: Tensor) -> None:
        for name, value in values.items():
            # Laid out as it will be when read from a file: the last bits of a product depend on it.
            setattr(self, name, value.to(self.event_scaling.mean).contiguous())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A fitted estimate has as many kernels as there were events: take over the sizes first.
        for name in _BUFFERS:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Distances ``(n, N)`` without the cancellation that products of matrices bring."""
    return torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist")


def _checked_weights(weights: Any, events: int, device: torch.device) -> Tensor:
    """Shares ``(N,)`` of the weight, float64."""
    if weights is None:
        return torch.full((events,), 1 / events, device=device, dtype=torch.float64)
    mass = finite(as_tensor(weights, "weights", dtype=torch.float64), "weights").to(device)
    if mass.shape != (events,):
        raise ShapeError(f"weights: expected shape ({events},), got {tuple(mass.shape)}")
    if bool((mass < 0).any()):
        first = int(torch.nonzero(mass < 0)[0, 0])
        raise UsageError(f"weights: expected none below 0, got {float(mass[first]):g} in row {first}")
    if int((mass > 0).sum()) < 2:
        raise UsageError(f"weights: expected at least 2 above 0, got {int((mass > 0).sum())}")
    return mass / mass.sum()


def _root(covariance: Tensor) -> Tensor:
    """A lower triangular root; what is certain gets a tiny variance."""
    return torch.linalg.cholesky(covariance + _SMALLEST_VARIANCE * torch.eye(len(covariance)).to(covariance))


def _inverse_root(covariance: Tensor) -> Tensor:
    """V with V V^T the inverse of a covariance; directions without variance are left out."""
    if not len(covariance):
        return covariance
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    alive = eigenvalues > _SMALLEST_EIGENVALUE * eigenvalues.max()
    return vectors * torch.where(alive, eigenvalues, torch.inf).rsqrt()

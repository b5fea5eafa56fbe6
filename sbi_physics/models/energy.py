r"""`EnergyModel`: a network for the energy of an event; where it is low, events are likely.

For an encoded event z and the summary c of its context,

$$ q(z|c) \propto e^{-E(z, c)}, \qquad E(z, c) = \tfrac12 |z|^2 + f(z, c), $$

with a residual network f that starts at zero, where q is the standard normal distribution.  The normalisation is never
known, and the gradient of the log-likelihood is that of

$$ E_{data}[E(z, c)] - E_q[E(z, c)] $$

(contrastive divergence: Hinton 2002, doi:10.1162/089976602760128018), with a small penalty on the squares of f.  Draws
from q come from chains that go on from step to step (Tieleman 2008, doi:10.1145/1390156.1390290), by Langevin dynamics
in a replay buffer of which a few chains start anew each time (Du and Mordatch 2019, arXiv:1903.08689; Nijkamp et al.
2020, arXiv:1904.09770).  A chain keeps the context and the weight of the event that it started with.

Validation needs no normalisation either: the score matching loss $\tfrac12|\nabla E|^2 - \Delta E$ is smallest, in
expectation, for the density of the data (Hyvarinen 2005, JMLR 6, 695).  Draws are annealed: from the standard normal
distribution f is switched on gradually, and Metropolis steps end the chain (`models.langevin`).
"""

from typing import Self

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.generator import ConditionalGenerator, as_rows, rows_of
from sbi_physics.models.langevin import langevin
from sbi_physics.models.residual import ResidualNetwork

__all__ = ["EnergyModel"]

_ROWS_AT_ONCE = 1 << 14
# Of the chains that a step moves, those that start anew.
_RESTARTED = 0.05
# Of the annealing, the steps on the way; the others are all at the end.
_ON_THE_WAY = 0.5
_MOST_EXACT = 8


class EnergyModel(ConditionalGenerator):
    """A deep energy-based model; satisfies `Generator`, and knows its density up to a factor.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional model.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        hidden_features: width of the network.
        blocks: its residual blocks.
        steps: of Langevin dynamics for a draw.
        training_steps: of Langevin dynamics for each step of training.
        step_size: of Langevin dynamics, in units of the width of the data; draws tune it.
        adjusted: whether the chains of training refuse proposals as Metropolis does.
        regulariser: weight of the squares of f.
    """

    chains: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        hidden_features: int = 128,
        blocks: int = 2,
        steps: int = 200,
        training_steps: int = 10,
        step_size: float = 0.3,
        adjusted: bool = True,
        regulariser: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        self.steps = positive_integer(steps, "steps")
        self.training_steps = positive_integer(training_steps, "training_steps")
        for name, value, least in (("step_size", step_size, 1e-6), ("regulariser", regulariser, 0.0)):
            if not least <= value < float("inf"):
                raise UsageError(f"{name}: expected a finite number of at least {least:g}, got {value!r}")
        self.step_size, self.adjusted, self.regulariser = float(step_size), adjusted, float(regulariser)
        width = None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        self.network = ResidualNetwork(
            event_shape[0], 1, hidden_features=hidden_features, blocks=blocks, condition_features=width
        )
        # While training: an encoded event, its scaled context and its weight, for each of the chains.
        self.register_buffer("chains", torch.empty(0, event_shape[0] + self.context_shape.numel() + 1))

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Minus the log-density of x ``(*batch, D)`` up to a constant for each context; plus infinity off the support.

        In nats, in the space of x: the maps to it are counted in.  Leading axes of x and context broadcast.

        Raises:
            ShapeError: the shapes do not fit.
            NonFiniteError: x or the context holds NaN or infinity.
        """
        if x.shape[-1:] != self.event_shape:
            raise ShapeError(f"x: expected shape (*, {self.event_shape[0]}), got {tuple(x.shape)}")
        finite(x, "x")
        summary = self._summary(context)
        try:
            batch = torch.broadcast_shapes(x.shape[:-1], () if summary is None else summary.shape[:-1])
        except RuntimeError as error:
            raise ShapeError(
                f"x and context: expected leading axes that broadcast, got {tuple(x.shape)} and {tuple(context.shape)}"  # type: ignore[union-attr]
            ) from error
        rows = x.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        inside = self.bijection.within(rows)
        centre = self.bijection.to_support(self.event_scaling.mean)[0]
        encoded, ladj = self.encode(torch.where(inside.unsqueeze(-1), rows, centre))
        value = self._energy(encoded, None if summary is None else as_rows(summary, batch)) - ladj
        return torch.where(inside, value, torch.inf).reshape(batch)

    def start_chains(self, count: int, encoded: Tensor, contexts: Tensor | None, weights: Tensor | None) -> Self:
        """Fill the replay buffer with standard normal events, on the current random stream.

        Args:
            count: how many chains.
            encoded: events of the training ``(n, D)``.
            contexts: their *scaled* contexts ``(n, *context_shape)``.
            weights: their weights ``(n,)``, of mean one; None for one each.
        """
        rows = torch.randint(len(encoded), (positive_integer(count, "count"),), device=self.device)
        weights = torch.ones(len(encoded), device=self.device) if weights is None else weights
        some = None if contexts is None else contexts[rows]
        self.chains = self._new_chains(len(rows), some, weights[rows].to(self.event_scaling.mean))
        return self

    def end_chains(self) -> Self:
        """Empty the replay buffer."""
        self.chains = self.chains[:0].clone()
        return self

    def add_gradient(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Add the gradient of contrastive divergence to the `grad` of the parameters, and move the chains.

        Args:
            weights: of the events ``(n,)``; their sum is one if all weights are equal.
            encoded: events ``(n, D)``.
            contexts: *scaled* contexts ``(n, *context_shape)``.

        Returns:
            What each event contributes ``(n,)``: its energy minus the mean energy of the chains.
        """
        if not len(self.chains):
            raise UsageError("chains: expected start_chains before the training of an energy model")
        chains = self._moved_chains(weights * len(weights), contexts)
        dims = self.event_shape[0]
        events, flat, chain_weights = chains[:, :dims], chains[:, dims:-1], chains[:, -1]
        others = flat.reshape(len(flat), *self.context_shape) if self.conditional else None
        real, drawn = self._tilt(encoded, self._embedded(contexts)), self._tilt(events, self._embedded(others))
        each = real + 0.5 * encoded.square().sum(-1) - (drawn + 0.5 * events.square().sum(-1)).mean()
        shares = chain_weights / len(chains) if self.conditional else weights.sum() / len(chains)
        loss = (weights * real).sum() - (shares * drawn).sum()
        loss = loss + self.regulariser * (real.square().mean() + drawn.square().mean())
        loss.backward()
        return each.detach()

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The score matching loss of each event ``(n,)``, for validation; it carries no gradient.

        The Laplacian is exact up to 8 dimensions, and beyond those a mean over 8 random directions, always the same.
        """
        summary = self._embedded(contexts)
        with torch.enable_grad():
            z = encoded.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._energy(z, summary).sum(), z, create_graph=True)
            laplacian = torch.zeros_like(z[:, 0])
            for direction in self._directions():
                (second,) = torch.autograd.grad((slope @ direction).sum(), z, retain_graph=True)
                laplacian = laplacian + second @ direction
        return (0.5 * slope.square().sum(-1) - laplacian).detach()

    def _directions(self) -> Tensor:
        """Vectors whose outer products add up to the unit matrix, in expectation."""
        dims, like = self.event_shape[0], self.event_scaling.mean
        if dims <= _MOST_EXACT:
            return torch.eye(dims).to(like)
        signs = torch.randint(0, 2, (_MOST_EXACT, dims), generator=torch.Generator().manual_seed(0))
        return ((2.0 * signs - 1.0) / _MOST_EXACT**0.5).to(like)

    def _tilt(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        return self.network(encoded, summary).squeeze(-1)

    def _energy(self, encoded: Tensor, summary: Tensor | None, beta: float = 1.0) -> Tensor:
        return 0.5 * encoded.square().sum(-1) + beta * self._tilt(encoded, summary)

    def _new_chains(self, count: int, contexts: Tensor | None, weights: Tensor) -> Tensor:
        like = self.event_scaling.mean
        events = torch.randn(count, *self.event_shape, device=like.device, dtype=like.dtype)
        flat = events[:, :0] if contexts is None else contexts.flatten(1).to(like)
        return torch.cat([events, flat, weights.unsqueeze(-1)], -1)

    @torch.no_grad()
    def _moved_chains(self, weights: Tensor, contexts: Tensor | None) -> Tensor:
        """Move as many chains as there are events, some of them from a new beginning, and put them back."""
        count = min(len(weights), len(self.chains))
        places = torch.randperm(len(self.chains), device=self.device)[:count]
        chains = self.chains[places]
        new = max(1, round(_RESTARTED * count))
        chains[:new] = self._new_chains(new, None if contexts is None else contexts[:new], weights[:new].to(chains))
        dims = self.event_shape[0]
        others = chains[:, dims:-1].reshape(count, *self.context_shape) if self.conditional else None
        summary = self._embedded(others)
        chains[:, :dims], _ = langevin(
            lambda z, beta: self._energy(z, summary, beta),
            chains[:, :dims],
            inverse_temperatures=[1.0] * self.training_steps,
            step_size=self.step_size,
            adjusted=self.adjusted,
        )
        self.chains[places] = chains
        return chains

    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        like, parts = self.event_scaling.mean, []
        rising = max(1, round(_ON_THE_WAY * self.steps))
        betas = [(i + 1) / rising for i in range(rising)] + [1.0] * (self.steps - rising)
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            given = rows_of(summary, part)
            noise = torch.randn(part.stop - start, *self.event_shape, device=like.device, dtype=like.dtype)
            drawn, _ = langevin(
                lambda z, beta, given=given: self._energy(z, given, beta),  # type: ignore[misc]
                noise,
                inverse_temperatures=betas,
                step_size=self.step_size,
                tuned=rising,
            )
            parts.append(drawn)
        return torch.cat(parts)

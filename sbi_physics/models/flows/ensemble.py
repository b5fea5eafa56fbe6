r"""Several flows as one density: their mixture with equal weights.

What is reported is the mixture of the members,

$$ q(x|c) = \frac{1}{k}\sum_{i=1}^{k} q_i(x|c), $$

which is wider where they disagree, that is where the data do not decide (Lakshminarayanan, Pritzel and Blundell 2017,
arXiv:1612.01474), and by Jensen's inequality never below the mean of their log-densities.  In training each member is
fitted on its own, to its own part of every batch.  Members that run eagerly are evaluated together with stacked
parameters (`torch.func`); those that are one function in turn, each in all threads.

The functions here take a single flow as well.
"""

import math
from collections.abc import Iterable

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.flows import engines

__all__ = ["FlowEnsemble", "add_gradient", "from_noise", "log_prob", "training_log_prob"]


class FlowEnsemble(nn.Module):
    """Flows of one architecture with weights of their own.

    Args:
        flows: two or more.

    Attributes:
        active: how many of them there are for now: one while they share the beginning of their training.
    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.active = len(self.flows)

    def members(self) -> list[Flow]:
        """The active flows."""
        return list(self.flows)[: self.active]

    def share_beginning(self) -> None:
        """From now on there is the first member alone."""
        self.active = 1
        for flow in list(self.flows)[1:]:
            flow.requires_grad_(False)

    def part(self) -> None:
        """Let all members go on from where the first one is."""
        self.active = len(self.flows)
        for flow in list(self.flows)[1:]:
            flow.load_state_dict(self.flows[0].state_dict())
            flow.requires_grad_(True)


def log_prob(flow: Flow | FlowEnsemble, inputs: Tensor, context: Tensor | None, *, engine: str = "auto") -> Tensor:
    """Log-density ``(n,)`` of inputs ``(n, D)`` given embedded contexts ``(n, C)``, ``(1, C)`` or None."""
    if isinstance(flow, Flow):
        return engines.log_prob(flow, inputs, context, engine=engine)
    each = _members_log_prob(flow, inputs.expand(flow.active, *inputs.shape), context, engine)
    return torch.logsumexp(each, dim=0) - math.log(len(each))


def training_log_prob(
    flow: Flow | FlowEnsemble, inputs: Tensor, context: Tensor | None, *, engine: str = "auto"
) -> Tensor:
    """As `log_prob`, but with k members each row by one of them: the first n/k rows by the first, and so on."""
    if isinstance(flow, Flow):
        return engines.log_prob(flow, inputs, context, engine=engine)
    return _members_log_prob(flow, _parts(flow, inputs), context, engine).flatten()


def add_gradient(
    flow: Flow | FlowEnsemble, inputs: Tensor, context: Tensor | None, weights: Tensor, *, engine: str = "auto"
) -> Tensor:
    """`training_log_prob`; the gradient of its weighted sum is added to the `grad` of all that it depends on."""
    if isinstance(flow, Flow):
        return engines.add_gradient(flow, inputs, context, weights, engine=engine)
    if not _in_turn(flow, inputs, engine):
        found = training_log_prob(flow, inputs, context, engine=engine)
        (weights * found).sum().backward()
        return found.detach()
    # A leaf collects the gradients of all members before they go on into the embedding network, once.
    leaf = None if context is None else context.detach().requires_grad_(context.requires_grad)
    contexts = _contexts(flow, leaf)
    parts = zip(flow.members(), _parts(flow, inputs), contexts, _parts(flow, weights), strict=True)
    each = [engines.add_gradient(member, rows, c, w, engine=engine) for member, rows, c, w in parts]
    if context is not None and leaf is not None and leaf.grad is not None:
        context.backward(leaf.grad)
    return torch.cat(each)


def from_noise(
    flow: Flow | FlowEnsemble,
    noise: Tensor,
    context: Tensor | None,
    member: Tensor | None = None,
    *,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Events ``(n, D)`` from noise of the base distribution, with their log-densities ``(n,)``.

    Args:
        flow: a flow or an ensemble.
        noise: ``(n, D)``.
        context: embedded contexts ``(n, C)``, ``(1, C)`` or None.
        member: for an ensemble the member ``(n,)``, from 0, that each event is drawn from.
        engine: how the flows are run.
    """
    if isinstance(flow, Flow):
        return engines.from_noise(flow, noise, context, engine=engine)
    if member is None:
        raise UsageError("member: an ensemble is drawn from by its members, expected their numbers, got None")
    events = torch.empty_like(noise)
    for i, single in enumerate(flow.members()):
        rows = torch.nonzero(member == i)[:, 0]
        chosen = context if context is None or len(context) == 1 else context[rows]
        events[rows] = engines.from_noise(single, noise[rows], chosen, engine=engine)[0]
    return events, log_prob(flow, events, context, engine=engine)


def _in_turn(flow: FlowEnsemble, inputs: Tensor, engine: str) -> bool:
    """Whether the members run one after the other, each being one function."""
    return all(engines.runs_compiled(member, inputs, engine) for member in flow.members())


def _parts(flow: FlowEnsemble, rows: Tensor) -> Tensor:
    """Rows ``(n, *)`` as one part for each member: ``(k, n / k, *)``."""
    if len(rows) % flow.active:
        raise ShapeError(f"batch: expected a multiple of {flow.active}, one part for each member, got {len(rows)}")
    return rows.unflatten(0, (flow.active, -1))


def _contexts(flow: FlowEnsemble, context: Tensor | None) -> list[Tensor | None]:
    """What each member gets of a context in training."""
    if context is None or len(context) == 1:
        return [context] * flow.active
    return list(_parts(flow, context))


def _members_log_prob(flow: FlowEnsemble, inputs: Tensor, context: Tensor | None, engine: str) -> Tensor:
    """The log-density ``(k, n)`` of each member for its inputs ``(k, n, D)``.

    The contexts are one row; or ``(n, C)``, the same for each; or ``(k n, C)``, one part for each.
    """
    members = flow.members()
    divided = context is not None and len(context) not in (1, inputs.shape[1])
    contexts = _contexts(flow, context) if divided else [context] * len(members)
    if _in_turn(flow, inputs[0], engine):
        parts = zip(members, inputs, contexts, strict=True)
        return torch.stack([engines.log_prob(member, rows, c, engine=engine) for member, rows, c in parts])
    first = _LogProb(members[0])
    stacked = {
        name: torch.stack([member.get_parameter(name.removeprefix("flow.")) for member in members])
        for name, _ in first.named_parameters()
    }

    def one(parameters: dict[str, Tensor], rows: Tensor, c: Tensor | None) -> Tensor:
        return functional_call(first, parameters, (rows, c))

    together = _parts(flow, context) if context is not None and divided else context
    return vmap(one, in_dims=(0, 0, 0 if divided else None), randomness="different")(stacked, inputs, together)


class _LogProb(nn.Module):
    """The eager log-density as the forward pass of a module, as `functional_call` wants it."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return engines.log_prob(self.flow, inputs, context, engine="eager")

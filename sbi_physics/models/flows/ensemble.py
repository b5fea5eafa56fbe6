r"""Several flows as one density: their mixture with equal weights, trained in one pass over the data.

Each member is fitted on its own, from its own initial weights; what is reported is the mixture

$$ q(x|c) = \frac{1}{k}\sum_{i=1}^{k} q_i(x|c), $$

which is wider where the members disagree, that is where the data do not decide (Lakshminarayanan, Pritzel and Blundell
2017, arXiv:1612.01474), and by Jensen's inequality never below the mean of their log-densities.  Members that run
eagerly are evaluated together with stacked parameters (`torch.func`); compiled ones in turn, each in all threads.

The functions here take a single flow as well.
"""

import math
from collections.abc import Iterable

import torch
from nflows.flows.base import Flow
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sbi_physics.core.errors import UsageError
from sbi_physics.models.flows import engines

__all__ = ["FlowEnsemble", "add_gradient", "from_noise", "log_prob", "mean_log_prob"]


class FlowEnsemble(nn.Module):
    """Flows of one architecture with weights of their own.

    Args:
        flows: two or more.
    """

    def __init__(self, flows: Iterable[Flow]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def members(self) -> list[Flow]:
        """The flows."""
        return list(self.flows)


def log_prob(flow: Flow | FlowEnsemble, inputs: Tensor, context: Tensor | None, *, engine: str = "auto") -> Tensor:
    """Log-density ``(n,)`` of inputs ``(n, D)`` given embedded contexts ``(n, C)``, ``(1, C)`` or None."""
    if isinstance(flow, Flow):
        return engines.log_prob(flow, inputs, context, engine=engine)
    each = _members_log_prob(flow, inputs, context, engine)
    return torch.logsumexp(each, dim=0) - math.log(len(each))


def mean_log_prob(flow: Flow | FlowEnsemble, inputs: Tensor, context: Tensor | None, *, engine: str = "auto") -> Tensor:
    """The mean of the log-densities of the members ``(n,)``: what each of them is trained by."""
    if isinstance(flow, Flow):
        return engines.log_prob(flow, inputs, context, engine=engine)
    return _members_log_prob(flow, inputs, context, engine).mean(0)


def add_gradient(
    flow: Flow | FlowEnsemble, inputs: Tensor, context: Tensor | None, weights: Tensor, *, engine: str = "auto"
) -> Tensor:
    """`mean_log_prob`; the gradient of its weighted sum is added to the `grad` of all that it depends on."""
    if isinstance(flow, Flow):
        return engines.add_gradient(flow, inputs, context, weights, engine=engine)
    if not _in_turn(flow, inputs, engine):
        found = mean_log_prob(flow, inputs, context, engine=engine)
        (weights * found).sum().backward()
        return found.detach()
    # A leaf collects the gradients of all members before they go on into the embedding network, once.
    leaf = None if context is None else context.detach().requires_grad_(context.requires_grad)
    share = weights / len(flow.flows)
    each = [engines.add_gradient(member, inputs, leaf, share, engine=engine) for member in flow.members()]
    if context is not None and leaf is not None and leaf.grad is not None:
        context.backward(leaf.grad)
    return torch.stack(each).mean(0)


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


def _members_log_prob(flow: FlowEnsemble, inputs: Tensor, context: Tensor | None, engine: str) -> Tensor:
    """The log-density of each member: ``(k, n)``."""
    members = flow.members()
    if _in_turn(flow, inputs, engine):
        return torch.stack([engines.log_prob(member, inputs, context, engine=engine) for member in members])
    first = _LogProb(members[0])
    stacked = {
        name: torch.stack([member.get_parameter(name.removeprefix("flow.")) for member in members])
        for name, _ in first.named_parameters()
    }
    # A copy of the inputs for each member, in appearance only: nflows sums log-determinants into what is like them.
    each = inputs.expand(len(members), *inputs.shape)

    def one(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        return functional_call(first, parameters, (rows, context))

    return vmap(one, randomness="different")(stacked, each)


class _LogProb(nn.Module):
    """The eager log-density as the forward pass of a module, as `functional_call` wants it."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return engines.log_prob(self.flow, inputs, context, engine="eager")

"""Priors: what the package reads off a `torch.distributions` object, and how it is written to a file without pickle.

`bounds_of` turns the support of a distribution into intervals; `ProductPrior` joins one-dimensional distributions;
`to_spec` and `from_spec` turn the distributions of torch into JSON and back.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import constraints

from sbi_physics.core.errors import StoreError, SupportError, UsageError
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.random import seeded

__all__ = ["ProductPrior", "as_vector_prior", "bounds_of", "from_spec", "masked_log_prob", "to_spec"]

# In single precision, as torch draws: a little more than pi.
_HALF_TURN = float(torch.tensor(math.pi))


class ProductPrior(td.Distribution):
    """The product of independent one-dimensional distributions, with event shape ``(P,)``.

    Args:
        components: P distributions, each with empty batch and event shapes.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  torch.distributions declares it so
    has_rsample = False

    def __init__(self, components: Sequence[td.Distribution]) -> None:
        if not components:
            raise UsageError("prior: expected at least one parameter, got none")
        for i, component in enumerate(components):
            if component.batch_shape or component.event_shape:
                raise UsageError(
                    f"prior: component {i} must be one-dimensional with a single value, got batch shape "
                    f"{tuple(component.batch_shape)} and event shape {tuple(component.event_shape)}"
                )
        self.components = tuple(components)
        self._groups = _batched(self.components)
        super().__init__(event_shape=torch.Size([len(components)]), validate_args=False)

    @property
    def support(self) -> Any:
        """The product of the supports of the components."""
        return constraints.stack([c.support for c in self.components], dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, P)``."""
        return torch.stack([c.sample(torch.Size(sample_shape)) for c in self.components], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of value ``(*, P)`` inside the support: ``(*,)``."""
        return torch.stack([_log_prob_of(group, value, columns) for columns, group in self._groups]).sum(0)


def _log_prob_of(group: td.Distribution, value: Tensor, columns: list[int]) -> Tensor:
    if len(columns) == 1:
        return group.log_prob(value[..., columns[0]])
    return group.log_prob(value[..., columns]).sum(-1)


def _batched(components: Sequence[td.Distribution]) -> list[tuple[list[int], td.Distribution]]:
    """Columns and one distribution for each family, so that five uniform priors cost one evaluation."""
    families: dict[Any, list[int]] = {}
    for i, component in enumerate(components):
        families.setdefault(type(component) if "arguments" in to_spec(component) else i, []).append(i)
    groups = []
    for columns in families.values():
        group = components[columns[0]]
        if len(columns) > 1:
            each = [_arguments(components[i]) for i in columns]
            build: Callable[..., td.Distribution] = type(group)
            group = build(**{a: torch.stack([e[a] for e in each]) for a in each[0]}, validate_args=False)
        groups.append((columns, group))
    return groups


def masked_log_prob(prior: td.Distribution, inside: Tensor, interior: Tensor, value: Tensor) -> Tensor:
    """Log-density that is minus infinity, instead of an error, outside the support.

    Args:
        prior: has event shape ``(P,)``.
        inside: ``(*,)`` whether each row is within the bounds.
        interior: ``(P,)`` any point inside the support.
        value: ``(*, P)``.
    """
    safe = torch.where(inside.unsqueeze(-1), value, interior.to(value.dtype))
    return torch.where(inside, _log_prob(prior, safe), -torch.inf)


def _log_prob(prior: td.Distribution, value: Tensor) -> Tensor:
    try:
        return prior.log_prob(value)
    except RuntimeError:
        # Some families (LowRankMultivariateNormal) do not mix a value in double with parameters in single precision.
        with seeded(0):
            own = prior.sample().dtype
        if value.dtype == own:
            raise
        return prior.log_prob(value.to(own)).to(value.dtype)


def as_vector_prior(prior: Any) -> td.Distribution:
    """Return a distribution with event shape ``(P,)`` from any distribution over P numbers.

    Raises:
        UsageError: `prior` is no torch distribution, or not one over a vector.
    """
    if not isinstance(prior, td.Distribution):
        raise UsageError(
            f"prior: expected Parameters or a torch.distributions.Distribution, got {type(prior).__name__}"
        )
    if len(prior.event_shape) == 1 and not prior.batch_shape:
        return prior
    if not prior.event_shape and len(prior.batch_shape) == 1:
        return td.Independent(prior, 1)
    if not prior.event_shape and not prior.batch_shape:
        return ProductPrior([prior])
    raise UsageError(
        f"prior: expected a distribution over a vector of parameters, got batch shape {tuple(prior.batch_shape)} "
        f"and event shape {tuple(prior.event_shape)}"
    )


def bounds_of(prior: td.Distribution) -> Tensor:
    """Lower and upper bounds ``(P, 2)``, float64, of the support of a prior with event shape ``(P,)``.

    Raises:
        SupportError: the support is not a product of intervals (a simplex, integers).
    """
    return _ends(prior, int(prior.event_shape[0]))


def _ends(prior: td.Distribution, dims: int) -> Tensor:
    if isinstance(prior, ProductPrior):
        return torch.cat([_ends(one, 1) for one in prior.components])
    if isinstance(prior, td.Independent):
        return _ends(prior.base_dist, dims)
    if isinstance(prior, td.VonMises):
        # Torch draws on the circle, and states the whole real line.
        return torch.tensor([[-_HALF_TURN, _HALF_TURN]], dtype=torch.float64).expand(dims, 2)
    # Torch takes the codomain of the last transform, which for a shift of a bounded base is the whole real space.
    if type(prior) is td.TransformedDistribution:
        ends = _ends(prior.base_dist, dims)
        for transform in td.ComposeTransform(list(prior.transforms)).parts:
            ends = _moved(ends, transform, dims)
        return ends
    try:
        support = prior.support
    except NotImplementedError as error:
        raise SupportError(f"prior: {type(prior).__name__} does not state its support") from error
    return _interval(support, dims)


def _moved(ends: Tensor, transform: td.Transform, dims: int) -> Tensor:
    """Where a transform takes intervals ``(P, 2)``; of one that is not elementwise and monotonic the whole codomain.

    Raises:
        SupportError: such a one is given intervals that are only a part of its domain.
    """
    if isinstance(transform, td.ComposeTransform):
        for part in transform.parts:
            ends = _moved(ends, part, dims)
        return ends
    if isinstance(transform, td.IndependentTransform):
        return _moved(ends, transform.base_transform, dims)
    domain, codomain = _interval(transform.domain, dims), _interval(transform.codomain, dims)
    try:
        sign = torch.as_tensor(transform.sign).detach().cpu().expand(dims)
    except (NotImplementedError, RuntimeError, AttributeError):
        if torch.equal(ends, domain):
            return codomain
        raise SupportError(
            f"prior: the support after {type(transform).__name__} of {ends.tolist()} is not known to be a product of "
            "intervals; give the parameters in coordinates where that holds"
        ) from None
    codomain = torch.where(sign.unsqueeze(-1) < 0, codomain.flip(-1), codomain)
    there = transform(ends.T).detach().cpu().T.to(torch.float64)
    return torch.where(ends == domain, codomain, there).sort(-1).values


def _interval(support: Any, dims: int, *, mixture: bool = False) -> Tensor:
    if isinstance(support, constraints.independent):
        return _interval(support.base_constraint, dims, mixture=mixture)
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _interval(support.base_constraint, dims, mixture=True)
    if isinstance(support, constraints.stack):
        return torch.cat([_interval(one, 1) for one in support.cseq])
    if support is constraints.real or support is constraints.real_vector:
        low, high = -torch.inf, torch.inf
    elif isinstance(support, constraints.interval | constraints.half_open_interval):
        low, high = support.lower_bound, support.upper_bound
    elif isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        low, high = support.lower_bound, torch.inf
    elif isinstance(support, constraints.less_than):
        low, high = -torch.inf, support.upper_bound
    else:
        raise SupportError(
            f"prior: its support must be a product of intervals or the whole real space, got {support}; "
            "give the parameters in coordinates where that holds"
        )
    columns = [torch.as_tensor(b, dtype=torch.float64).detach().cpu() for b in (low, high)]
    if mixture:
        columns = [_shared_by_components(column) for column in columns]
    return torch.stack([column.expand(dims) for column in columns], dim=-1)


def _shared_by_components(bound: Tensor) -> Tensor:
    """The bound of a mixture from those of its K components ``(K, *)``."""
    if not bound.ndim:
        return bound
    if not bool((bound == bound[:1]).all()):
        raise SupportError("prior: the components of a mixture must all have the same bounds")
    return bound[0]


def to_spec(prior: td.Distribution) -> dict[str, Any]:
    """Describe a distribution of torch by its family and its numbers, in types that JSON knows.

    A distribution of another library is described as ``{"family": "opaque", ...}``: what was learned with it can be
    stored and sampled, while evaluating the prior needs it handed in again.
    """
    if isinstance(prior, ProductPrior):
        parts = [to_spec(c) for c in prior.components]
        return _opaque(parts) or {"family": "Product", "components": parts}
    if isinstance(prior, td.Independent):
        base = to_spec(prior.base_dist)
        return _opaque([base]) or {"family": "Independent", "base": base, "dims": prior.reinterpreted_batch_ndims}
    if isinstance(prior, td.MixtureSameFamily):
        mixture, component = to_spec(prior.mixture_distribution), to_spec(prior.component_distribution)
        return _opaque([mixture, component]) or {
            "family": "MixtureSameFamily",
            "mixture": mixture,
            "component": component,
        }
    name = type(prior).__name__
    if _family(name) is not type(prior) or not prior.arg_constraints:
        return {
            "family": "opaque",
            "class": f"{type(prior).__module__}.{name}",
            "reason": "not a family of torch",
        }
    return {"family": name, "arguments": {a: [str(v.dtype)[6:], v.tolist()] for a, v in _arguments(prior).items()}}


def _family(name: str) -> type[td.Distribution] | None:
    """The distribution of that name, of torch or of this package, if there is one."""
    cls = LogUniform if name == "LogUniform" else getattr(td, name, None) if name in td.__all__ else None
    return cls if isinstance(cls, type) and issubclass(cls, td.Distribution) else None


def _opaque(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first part that is opaque, which makes the whole so."""
    return next((part for part in parts if part["family"] == "opaque"), None)


def _arguments(prior: td.Distribution) -> dict[str, Tensor]:
    """The arguments that build the distribution again, one of each set of equivalent ones."""
    names = set(prior.arg_constraints)
    names -= {"covariance_matrix", "precision_matrix"} if "scale_tril" in names else set()
    names -= {"logits"} if {"probs", "logits"} <= names else set()
    return {a: torch.as_tensor(getattr(prior, a)).detach().cpu() for a in sorted(names)}


def from_spec(spec: dict[str, Any]) -> td.Distribution | None:
    """Build the distribution that `to_spec` described; None for an opaque one.

    Raises:
        StoreError: the description is not one that `to_spec` makes.
    """
    try:
        family = spec["family"]
        if family == "opaque":
            return None
        if family == "Product":
            return ProductPrior([_required(c) for c in spec["components"]])
        if family == "Independent":
            return td.Independent(_required(spec["base"]), int(spec["dims"]))
        if family == "MixtureSameFamily":
            return td.MixtureSameFamily(_required(spec["mixture"]), _required(spec["component"]))  # type: ignore[arg-type]
        cls = _family(family)
        if cls is None:
            raise KeyError(family)
        values = {a: torch.tensor(v, dtype=getattr(torch, t)) for a, (t, v) in spec["arguments"].items()}
        build: Callable[..., td.Distribution] = cls
        # By default damage would be let in where a library (zuko does) has turned validation off for the process.
        return build(**values, validate_args=True)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StoreError(f"the stored prior cannot be read: {error}") from error


def _required(spec: dict[str, Any]) -> td.Distribution:
    prior = from_spec(spec)
    if prior is None:
        raise KeyError(spec.get("class", "opaque"))
    return prior

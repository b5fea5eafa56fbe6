"""The prior of an analysis as a table: what an answer rests on belongs beside it."""

from typing import Any

from torch import Tensor

from sbi_physics.core.parameters import Parameters
from sbi_physics.run.findings import SectionWriter

__all__ = ["prior_table", "prior_words", "unlike_prior"]

_DRAWS = 20_000
_SURE = 1e-6


def prior_table(section: SectionWriter, parameters: Parameters) -> None:
    """Add the family of each parameter, its numbers, and where its middle and its central 68 % lie."""
    draws = parameters.sample(_DRAWS, seed=0)
    low, middle, high = draws.quantile(draws.new_tensor([0.16, 0.5, 0.84]), dim=0).tolist()
    rows = [
        [name, unit, words, *(f"{value:.4g}" for value in numbers)]
        for name, unit, words, *numbers in zip(
            parameters.names, parameters.units, prior_words(parameters), middle, low, high, strict=True
        )
    ]
    section.table(
        ["parameter", "unit", "prior", "median", "68 % from", "to"],
        rows,
        caption=f"What was assumed before the data; quantiles of {_DRAWS:,} draws.",
    )


def unlike_prior(parameters: Parameters, theta: Tensor) -> list[str]:
    """Names of parameters whose values ``(n, P)`` were surely not drawn from their prior (Kolmogorov and Smirnov)."""
    from scipy.stats import ks_2samp

    draws = parameters.sample(_DRAWS, seed=0)
    tests = zip(parameters.names, theta.double().T.numpy(), draws.double().T.numpy(), strict=True)
    return [name for name, values, prior in tests if ks_2samp(values, prior).pvalue < _SURE]


def prior_words(parameters: Parameters) -> list[str]:
    """For each parameter the family of its prior and its numbers, as ``Uniform(low 0, high 15)``."""
    spec = parameters.to_dict()["prior"]
    parts = spec.get("components", [spec])
    if len(parts) == len(parameters):
        return [_words(part, 0) for part in parts]
    base = spec["base"] if spec.get("family") == "Independent" else spec
    return [_words(base, i) for i in range(len(parameters))]


def _words(spec: dict[str, Any], i: int) -> str:
    """A distribution of single numbers, the i-th of an array of such; of others, the family alone."""
    family = str(spec.get("class", spec["family"])).rpartition(".")[2]
    numbers = {
        name: value[i] if isinstance(value, list) and i < len(value) else value
        for name, (_, value) in spec.get("arguments", {}).items()
    }
    if not numbers or any(isinstance(value, list) for value in numbers.values()):
        return f"{family}, of all parameters together"
    return f"{family}({', '.join(f'{name} {value:.6g}' for name, value in sorted(numbers.items(), key=_order))})"


def _order(item: tuple[str, Any]) -> tuple[bool, str]:
    """Low before high; else by name."""
    return item[0] != "low", item[0]

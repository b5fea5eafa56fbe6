"""Whether draws that are correlated are worth enough independent ones to be trusted, in numbers and in a sentence."""

from typing import Any

from torch import Tensor

__all__ = ["MAX_R_HAT", "judge", "plain"]

MAX_R_HAT = 1.05
_ENOUGH = 400
"""Below this, the estimates of the sampling error are themselves unreliable (Vehtari et al. 2021, arXiv:1903.08008)."""


def judge(effective: Tensor, r_hat: Tensor, draws: int, advice: str) -> tuple[list[bool], list[str]]:
    """Say of each of B results whether it can be trusted.

    Args:
        effective: effective sample sizes ``(B,)`` of the worst parameter.
        r_hat: ``(B,)`` of the worst parameter.
        draws: how many draws each has.
        advice: what to do if there are too few.

    Returns:
        Whether each is converged, and a sentence on each.
    """
    needed = min(_ENOUGH, draws / 4)
    converged, sentences = [], []
    for size, ratio in zip(effective.tolist(), r_hat.tolist(), strict=True):
        worth = f"{draws} draws are worth {size:.0f} independent ones"
        if not size >= needed:
            sentences.append(f"not converged: {worth}, expected at least {needed:.0f}; {advice}")
        elif not ratio < MAX_R_HAT:
            sentences.append(f"not converged: R-hat is {ratio:.3f}, expected below {MAX_R_HAT:g}; {advice}")
        else:
            sentences.append(f"converged: {worth}, R-hat at most {ratio:.3f}")
        converged.append(sentences[-1].startswith("converged"))
    return converged, sentences


def plain(values: Tensor | list[Any], single: bool) -> Any:
    """B numbers or words as a list, or the only one as it is."""
    items = values if isinstance(values, list) else values.tolist()
    return items[0] if single else items

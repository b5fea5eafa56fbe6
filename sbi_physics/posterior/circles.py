"""Periodic parameters in networks that do not know of circles: what is said of them."""

import logging

from sbi_physics.core.parameters import Parameters
from sbi_physics.models.flows.build import BOX

__all__ = ["cut_circles", "tell_cut_circles"]

_log = logging.getLogger(__name__)


def cut_circles(parameters: Parameters, model: object, *, boxes: bool) -> str:
    """What a user is to know where a model is not continuous across the cut of a circle; nothing where all is well.

    Args:
        parameters: some of them perhaps periodic.
        model: the name of the model; ``"nsf-box"`` knows of circles.
        boxes: whether the method takes that one.
    """
    cut = [i for i, wraps in enumerate(parameters.periodic) if wraps]
    if not cut or model == BOX:
        return ""
    names = " and ".join(f"{parameters.names[i]} (at {parameters.bounds[i, 0]:.4g})" for i in cut)
    other = f", or take the model {BOX!r}" if boxes else f", or take NPE with the model {BOX!r}"
    return (
        f"the model is not continuous where the circle of {names} is cut: where the answer may lie there, put the cut "
        f"elsewhere by other bounds of the prior{other}"
    )


def tell_cut_circles(parameters: Parameters, model: object, *, boxes: bool) -> None:
    """Log that as a warning."""
    if text := cut_circles(parameters, model, boxes=boxes):
        _log.warning("%s", text)

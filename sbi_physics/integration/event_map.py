r"""`event_map`: the map of which the largest share of points becomes unweighted events.

An event is kept with probability $w / w_\mathrm{max}$, so what counts is how far the largest weights are above the
mean, while the error of an integral is made by their variance: the two ask for different maps.  All maps that the
integration has tried are judged by the first measure, at points that it knows; no call is made.  A tree of cells costs
next to nothing and joins them; where none is good, flows are trained until their largest weights are small (``tail``
of `neural`).
"""

from collections.abc import Mapping, Sequence

import torch

from sbi_physics.core.random import derive
from sbi_physics.integration.channels import Mixture
from sbi_physics.integration.modes import cover
from sbi_physics.integration.neural import train_flows
from sbi_physics.integration.rounds import MOST_CELL_DIMS, Round, cells_of, gathered, reweighted
from sbi_physics.integration.unweight import maximum_weight
from sbi_physics.train.config import TrainConfig

__all__ = ["event_map", "unweighting_efficiency"]

_GOOD = 0.7
_FEWEST = 8192
_POINTS_KEPT = 400_000
_EPOCHS, _PATIENCE, _SECONDS = 30, 6, 120.0


def event_map(
    known: Mapping[str, Mixture],
    rounds: Sequence[Round],
    judge: Round,
    *,
    neural: bool,
    seed: int,
    progress: bool = False,
) -> Mixture:
    """The best map for events.

    Args:
        known: the map of each kind that the integration has tried.
        rounds: its rounds.
        judge: the one of them by which maps are judged.
        neural: whether flows may be trained.
        seed: of the training.
        progress: whether to show a bar meanwhile.
    """
    others = [each for each in rounds if each is not judge]
    found = {kind: unweighting_efficiency(mixture, judge) for kind, mixture in known.items()}
    candidates = dict(known)
    dims = judge.draws.points.shape[1]
    if 1 < dims <= MOST_CELL_DIMS and sum(len(each.values) for each in others) >= _FEWEST:
        found["cells"] = unweighting_efficiency(cells_of(*gathered(others, _POINTS_KEPT)[:3]), judge)
        candidates["cells"] = cells_of(*gathered(rounds, _POINTS_KEPT)[:3])
    enough = sum(len(each.values) for each in rounds) >= _FEWEST
    if neural and dims > 1 and enough and max(found.values()) < _GOOD:
        candidates["flows"] = _flows(known, rounds, seed, progress)
        found["flows"] = unweighting_efficiency(candidates["flows"], judge)
    return candidates[max(found, key=lambda kind: found[kind])]


def unweighting_efficiency(mixture: Mixture, of: Round) -> float:
    """Mean over largest weight that a mixture would have, by the points of a round of another one."""
    weights, chance = reweighted(mixture, of)
    weights = weights.abs()
    if not bool((weights > 0).any()):
        return 0.0
    return float((chance * weights).sum() / chance.sum()) / maximum_weight(weights, probability=chance)


def _flows(known: Mapping[str, Mixture], rounds: Sequence[Round], seed: int, progress: bool) -> Mixture:
    """Flows that first learn where the integrand is, unless the integration has some, then to have no large weights."""
    points, values, log_q, worth = gathered(rounds, _POINTS_KEPT)
    config = TrainConfig(epochs=_EPOCHS, patience=_PATIENCE, max_seconds=_SECONDS)
    flows = known.get("flows")
    if flows is None:
        weights = worth * values * torch.exp(-log_q)
        start = known["grids"] if "grids" in known else cover(points, weights, seed=derive(seed, "events"))
        flows = train_flows(
            start, points, values, log_q, worth=worth, config=config, seed=derive(seed, "kl"), progress=progress
        )
    return train_flows(
        flows, points, values, log_q, worth=worth, loss="tail", config=config, seed=derive(seed, "tail"),
        progress=progress,
    )  # fmt: skip

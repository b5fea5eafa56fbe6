"""Searches for a known signal: how much of what the best possible classifier finds do they find?

Claim, simulated dijets (100,000 background events and 0.6 % of signal in the signal region, 3.3 to 3.7 TeV, about as
many as in the LHC Olympics, and twice as many beside it): the interpolated density reaches 0.9 of the maximum
significance improvement of the idealized classifier, which is trained between the data and true background, and that
one 0.9 of the exact likelihood ratio; with features that shift with the mass, 0.85, where weak supervision with the
sidebands falls below a third of it.

Claim, LHC Olympics R&D events (signal region 3.4 to 3.6, control region 3.3 to 3.4 and 3.6 to 3.7): with a clean
control region 0.95 of the idealized, and at least 9.5; with the signal left in the control region at least 7.5, and
more than weak supervision.  The background of the signal region is split at random, half of it stays in the data with
all signal, and the other half is the template of the idealized classifier.

Scores are of events which the models have not seen: of background by cross-fitting or other events, of signal by other
events.  The maximum is taken over cuts that leave at least 25 background events in the data.  Labels are used for
scoring, and to take the signal out of the clean control region, never to fit.

    python -m benchmarks.anomaly.methods [--data dijet shifted clean contaminated] [--seeds 1 2 3 4 5] [--methods ...]
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe_machine, keep_row
from sbi_physics.anomaly.classify import RatioClassifier
from sbi_physics.anomaly.search import ResonantSearch
from sbi_physics.anomaly.significance import significance_improvement
from sbi_physics.core.random import derive, seeded
from sbi_physics.diagnostics.classifier import classifier_auc
from sbi_physics.store.lhco import load_lhco
from simulators.dijet import DijetResonance

NAME = "anomaly_methods"
IDEALIZED, EXACT = "idealized", "exact"
METHODS = ("interpolation", "latent", "morphing", "densities", "sidebands")
RANGE, REGION, SHIFT = (3.0, 4.2), (3.3, 3.7), 0.1
BACKGROUND, RATIO = 100_000, 0.006
TEST_SIGNAL, TEST_BACKGROUND = 20_000, 200_000
LHCO_REGION = (3.4, 3.6)
CLOSURE = 20_000
FEWEST = 25
ENSEMBLE = 4
SINGLE = ("latent", "morphing", "sidebands")


@dataclass(frozen=True)
class Problem:
    """Data to search in, and what judges the search.

    Attributes:
        features: ``(n, D)``.
        mass: ``(n,)``.
        labels: ``(n,)``.
        region: the signal region.
        template: true background of the signal region ``(k, D)``.
        signal: other signal events of the region, features and masses.
        background: other background events of the region; None for those of the data, which are then cross-fitted.
        simulator: that knows the exact likelihood ratio, or None.
        share: of the background of the signal region that is among the data.
        minimum: events of the background that judges which pass where 25 of the data do.
    """

    features: Tensor
    mass: Tensor
    labels: Tensor
    region: tuple[float, float]
    template: Tensor
    signal: tuple[Tensor, Tensor]
    background: tuple[Tensor, Tensor] | None
    simulator: DijetResonance | None
    share: float = 1.0
    minimum: int = FEWEST


def main() -> None:
    """Search in each data set by each method, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["dijet", "shifted", "clean", "contaminated"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=[IDEALIZED, EXACT, *METHODS])
    parser.add_argument("--ensemble", type=int, default=ENSEMBLE)
    options = parser.parse_args()
    for seed in options.seeds:
        for data in options.data:
            problem = _dijet(data == "shifted", seed) if data in ("dijet", "shifted") else _lhco(data == "clean", seed)
            for method in options.methods:
                if method == EXACT and problem.simulator is None:
                    continue
                began = time.monotonic()
                found = _measured(problem, method, seed, options.ensemble)
                row = {"data": data, "method": method, "seed": seed, **found, "seconds": time.monotonic() - began}
                print(row, flush=True)
                keep_row(NAME, {**row, "machine": describe_machine("scikit-learn")}, ["data", "method", "seed"])


def _dijet(shifted: bool, seed: int) -> Problem:
    simulator = DijetResonance(mass_range=RANGE, shift=SHIFT if shifted else 0.0)
    everywhere = round(BACKGROUND / simulator.background_share(*REGION))
    signal = round(RATIO * BACKGROUND / simulator.signal_share(*REGION))
    events = simulator.events(everywhere, signal, seed=derive(seed, "events"))
    template, _ = simulator.sample_background(2 * BACKGROUND, window=REGION, seed=derive(seed, "template"))
    return Problem(
        events.features,
        events.mass,
        events.labels,
        REGION,
        template,
        simulator.sample_signal(TEST_SIGNAL, window=REGION, seed=derive(seed, "signal")),
        simulator.sample_background(TEST_BACKGROUND, window=REGION, seed=derive(seed, "background")),
        simulator,
        minimum=FEWEST * TEST_BACKGROUND // BACKGROUND,
    )


def _lhco(clean: bool, seed: int) -> Problem:
    data = load_lhco(progress=False)
    parts, more = (data.train, data.test), data.extra_signal
    features, mass, labels = (torch.cat([getattr(p, name) for p in parts]) for name in ("features", "mass", "labels"))
    low, high = LHCO_REGION
    inside = (mass > low) & (mass <= high)
    with seeded(derive(seed, "half")):
        background = torch.nonzero(inside & (labels == 0))[:, 0]
        background = background[torch.randperm(len(background))]
    half = len(background) // 2
    beside = torch.nonzero(~inside & ((labels == 0) | (not clean)))[:, 0]
    kept = torch.cat([beside, background[:half], torch.nonzero(inside & (labels == 1))[:, 0]])
    chosen = (more.mass > low) & (more.mass <= high)
    return Problem(
        features[kept],
        mass[kept],
        labels[kept],
        LHCO_REGION,
        features[background[half:]],
        (more.features[chosen], more.mass[chosen]),
        None,
        None,
        half / len(background),
    )


def _measured(problem: Problem, method: str, seed: int, ensemble: int) -> dict[str, Any]:
    low, high = problem.region
    inside = (problem.mass > low) & (problem.mass <= high)
    background = inside & (problem.labels == 0)
    more: dict[str, Any] = {}
    if method == EXACT:
        assert problem.simulator is not None
        pairs = [problem.background, problem.signal]
        scores = [problem.simulator.log_likelihood_ratio(*pair) for pair in pairs if pair is not None]
    elif method == IDEALIZED:
        classifier = RatioClassifier().fit(
            problem.features[inside], problem.template, seed=derive(seed, "idealized"), progress=False
        )
        of_data = classifier.data_scores[problem.labels[inside] == 0]
        scores = _scores(problem, of_data, lambda x, _: classifier(x), lambda x, _: classifier.as_data(x, seed=seed))
    else:
        search = ResonantSearch(problem.region, method=method, ensemble=1 if method in SINGLE else ensemble)
        search.fit(problem.features, problem.mass, seed=derive(seed, "search"), progress=False)
        of_data = search.data_scores[background]
        scores = _scores(problem, of_data, search.score, lambda x, m: search.score_as_data(x, m, seed=seed))
        more = _judged(problem, search, background, seed)
    curve = significance_improvement(*scores, minimum=problem.minimum)
    return {"maximum": curve.maximum, "at": curve.best_background_efficiency, **more}


def _scores(problem: Problem, of_data: Tensor, of_others: Any, as_data: Any) -> list[Tensor]:
    """Scores of background and signal: both by all models, or both by those of one fold."""
    if problem.background is not None:
        return [of_others(*problem.background), of_others(*problem.signal)]
    return [of_data, as_data(*problem.signal)]


def _judged(problem: Problem, search: ResonantSearch, background: Tensor, seed: int) -> dict[str, Any]:
    """Closure of the template against true background, and the background after a cut against what there was."""
    result = search.search()
    # The fit beside the signal region expects all of its background, of which the data may have a half.
    share = problem.share
    point = next(point for point in result.points if point.efficiency == 0.01)
    passed = search.data_selection >= point.threshold
    found: dict[str, Any] = {
        "background_passing": int((passed & background).sum()),
        "by_fit": [share * point.fit.background, share * point.fit.uncertainty],
        "by_template": [share * point.template.background, share * point.template.uncertainty],
    }
    if search.method in ("interpolation", "morphing"):
        made = search.sample_background(CLOSURE, seed=derive(seed, "closure")).features
        test = classifier_auc(problem.template[:CLOSURE], made, kind="trees", seed=seed)
        found |= {"closure_auc": test.auc, "closure_error": test.error, "closure_expected_error": test.expected_error}
    return found


if __name__ == "__main__":
    main()

"""The background of a signal region by the template of a flow, by a fit, and by Markov chain Monte Carlo on that fit.

Claim: after each cut the template of the flow, the maximum-likelihood fit of the spectrum beside the region, and its
posterior by emcee agree within their uncertainties with each other and with what there was.  Claim: the dijet function
fits the spectrum of CMS (arXiv:1911.03947) with a chi2 per degree of freedom between 0.5 and 1.5, and no window is
beyond three standard deviations globally, as published.

    python -m benchmarks.anomaly.background [--events 100000] [--toys 1000]
"""

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, write_result
from sbi_physics.anomaly.bump_hunt import bump_hunt
from sbi_physics.anomaly.search import ResonantSearch
from sbi_physics.anomaly.search_result import WorkingPoint
from sbi_physics.anomaly.spectrum import fit_spectrum
from sbi_physics.store.cms_dijet import load_cms_dijet
from simulators.dijet import DijetResonance

NAME = "anomaly_background"
REGION = (3.3, 3.7)
STEPS = 4000


def main() -> None:
    """Estimate, sample, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--toys", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    data = DijetResonance().events(options.events, 0, seed=options.seed)
    began = time.monotonic()
    search = ResonantSearch(REGION).fit(data.features, data.mass, seed=options.seed, progress=False)
    result = search.search(seed=options.seed)
    seconds = time.monotonic() - began
    rows = [_row(point, options.seed) for point in result.points]
    for row in rows:
        print(row, flush=True)
    cms = _cms(options.toys, options.seed)
    print(cms)
    found = {"events": options.events, "search_seconds": seconds, "rows": rows, "cms": cms}
    write_result(NAME, {**found, "machine": describe_machine("emcee", "scikit-learn")})


def _row(point: WorkingPoint, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "efficiency": point.efficiency,
        "observed": point.observed,
        "by_template": [point.template.background, point.template.uncertainty],
        "by_fit": [point.fit.background, point.fit.uncertainty],
    }
    if point.spectrum is not None:
        began = time.monotonic()
        chain = point.spectrum.posterior(steps=STEPS, seed=seed, progress=False)
        drawn = chain.values[:, -1]
        row |= {
            "by_emcee": [float(drawn.mean()), float(drawn.std())],
            "emcee_seconds": time.monotonic() - began,
            "emcee_converged": bool(chain.diagnostics["converged"]),
        }
    return row


def _cms(toys: int, seed: int) -> dict[str, Any]:
    spectrum = load_cms_dijet()
    fit = fit_spectrum(spectrum.edges, spectrum.counts)
    began = time.monotonic()
    hunt = bump_hunt(spectrum.edges, spectrum.counts, toys=toys, seed=seed, progress=False)
    return {
        "bins": len(np.asarray(spectrum.counts)),
        "parameters": fit.order,
        "chi2": fit.chi2,
        "ndf": fit.ndf,
        "p_value": fit.p_value,
        "windows": len(hunt.windows),
        "largest_local_significance": float(np.max(hunt.local_significances)),
        "window": [float(edge) for edge in hunt.best_window],
        "global_p_value": hunt.global_p_value,
        "toys": toys,
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    main()

"""Parts of searches beside other packages and exact answers: bump hunts, upper limits, outliers.

Claim (bumps): without a signal the global p-values of our bump hunt are uniform though its background is fitted; those
of pyBumpHunter that is told the same fit are too large, for its pseudo-experiments are not fitted again.  With a bump
ours has no less power than that, and less than pyBumpHunter that is told the true background.  It takes some sixty
times as long as either.

Claim (limits): our asymptotic limits are those of pyhf to a relative 1e-4; our marginal ones are those of a direct
solution to 1e-6, and of emcee within three of its standard deviations.

Claim (outliers): where the density of what is usual is known, the area under the flow's curve is that of minus its
logarithm within 0.005.  This says nothing of a given signal: no detector is the best in all cases, and at a cut of 1 %
none of them gains by the signals of dijets.

Seconds are of one processor, those of other programs left out.

    python -m benchmarks.anomaly.peers [--parts bumps limits outliers] [--spectra 100] [--injected 50] [--events 8000]
"""

import argparse
from typing import Any

from benchmarks.anomaly.bump_peers import bumps
from benchmarks.anomaly.limit_peers import limits
from benchmarks.anomaly.outlier_peers import CASES, outliers
from benchmarks.machine import describe_machine, keep_row

NAME = "anomaly_peers"
PARTS = ("bumps", "limits", "outliers")
TOYS = 199


def main() -> None:
    """Measure the parts one after the other, and write each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--spectra", type=int, default=100, help="without a signal")
    parser.add_argument("--injected", type=int, default=50, help="spectra with a signal")
    parser.add_argument("--events", type=int, default=8_000, help="from which outlier detectors learn")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="of outliers")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if "bumps" in options.parts:
        _keep("bumps", "", bumps(options.spectra, options.injected, TOYS, options.seed), "pyBumpHunter")
    if "limits" in options.parts:
        _keep("limits", "", limits(options.seed), "pyhf", "emcee")
    if "outliers" in options.parts:
        for case in options.cases:
            rows = outliers(case, options.events, options.seed)
            _keep("outliers", case, {"events": options.events, "detectors": rows}, "scikit-learn")


def _keep(part: str, case: str, found: dict[str, Any], *packages: str) -> None:
    row = {"part": part, "case": case, **found, "machine": describe_machine(*packages)}
    print(f"written to {keep_row(NAME, row, ['part', 'case'])}", flush=True)


if __name__ == "__main__":
    main()

"""Networks against exact answers: a part for each kind, one row of the result for each part.

Claim: on problems of which the answer is known, each network comes closer to it than the simple peer that would be
taken in its place; the levels of a variational autoencoder are compared with one level, and lose to a peer that knows
the family.  Claim, problem and peers of each part are told by its module: `rbm`, `energy`, `autoencoders`, `hierarchy`,
`cycle`.  What was chosen was chosen on other seeds.

    python -m benchmarks.models.known_answers [--parts rbm energy autoencoders hierarchy cycle] [--seed 0]
"""

import argparse
import time
from collections.abc import Callable

from benchmarks.machine import describe_machine, keep_row
from benchmarks.models import autoencoders, cycle, energy, hierarchy, rbm
from benchmarks.models.answer import Answer
from sbi_physics.core.random import derive

NAME = "known_answers"
PARTS: dict[str, Callable[[int], Answer]] = {
    "rbm": rbm.measure,
    "energy": energy.measure,
    "autoencoders": autoencoders.measure,
    "hierarchy": hierarchy.measure,
    "cycle": cycle.measure,
}


def main() -> None:
    """Measure part by part, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in options.parts:
        began = time.monotonic()
        answer = PARTS[part](derive(options.seed, part))
        row = {
            "part": part,
            **answer._asdict(),
            "sides": [side._asdict() for side in answer.sides],
            "seconds": round(time.monotonic() - began, 1),
        }
        keep_row(NAME, {**row, "machine": describe_machine("scikit-learn", "scipy")}, ("part",))
        print(row, flush=True)


if __name__ == "__main__":
    main()

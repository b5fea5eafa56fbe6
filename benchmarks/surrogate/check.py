"""How often `check_surrogate` flunks the simulator itself, and how often it catches what was planted.

Claim: a perfect surrogate flunks at the stated level at most, an energy scale that is off by 2 % and a lost mode are
caught.  The events are electromagnetic showers of 1 to 30 GeV; half of the events are the reference.  The classifiers
are small, since they are not what catches these.  Rows of earlier runs are kept; the same case and size again replaces
its row.

    python -m benchmarks.surrogate.check [--case simulator] [--events 2000] [--repeats 50]
"""

import argparse
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, describe_machine, keep_row
from sbi_physics.surrogate.check import check_surrogate
from sbi_physics.surrogate.surrogate_report import SurrogateReport
from simulators.calorimeter import ElectromagneticShowers

NAME = "surrogate_check"
LEVEL = 0.01
CLASSIFIER = {"hidden_features": 64, "epochs": 5}


class Spoiled:
    """Showers, and what is wrong with them.

    Args:
        case: ``"simulator"`` for nothing, ``"scale 1.02"`` for all energies times a number, ``"late lost"`` where
            photons that convert late, a tenth, are replaced by electrons, which start at once.
    """

    def __init__(self, case: str) -> None:
        self.simulator = ElectromagneticShowers(energies=(1e3, 3e4))
        self.electrons = ElectromagneticShowers(energies=(1e3, 3e4), converts=False)
        self.parameters, self.geometry, self.case = self.simulator.parameters, self.simulator.geometry, case

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Showers at theta."""
        x = self.simulator(theta, seed=seed)
        if self.case.startswith("scale"):
            return x * float(self.case.split()[1])
        if self.case == "late lost":
            first = self.geometry.layer_slices[1].stop
            share = x[:, :first].sum(1) / x.sum(1).clamp(min=1e-9)
            late = share <= share.quantile(0.1)
            return torch.where(late.unsqueeze(1), self.electrons(theta, seed=seed + 1), x)
        return x


def main() -> None:
    """Check many times, and write how often what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="simulator")
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    reports = [_check(options.case, options.events, seed) for seed in range(options.repeats)]
    found = Counter(name for report in reports for name in report.failed)
    smallest = {name: min(report.p_values[name] for report in reports) for name in reports[0].p_values}
    row = {
        "case": options.case,
        "events": options.events,
        "repeats": options.repeats,
        "level": LEVEL,
        "flunked": sum(not report.passed for report in reports),
        "by_test": dict(found),
        "smallest_p_values": smallest,
        "machine": describe_machine(),
    }
    print({key: value for key, value in row.items() if key != "machine"}, flush=True)
    keep_row(NAME, row, ("case", "events"))
    print(f"written to {RESULTS / NAME}.json")


def _check(case: str, events: int, seed: int) -> SurrogateReport:
    generator: Any = Spoiled(case)
    theta = generator.parameters.sample(events, seed=10_000 + seed)
    x = generator.simulator(theta, seed=20_000 + seed)
    return check_surrogate(
        generator,
        theta,
        x,
        geometry=generator.geometry,
        threshold=1.0,
        classifier=CLASSIFIER,
        batches=(),
        level=LEVEL,
        seed=seed,
        progress=False,
    )


if __name__ == "__main__":
    main()

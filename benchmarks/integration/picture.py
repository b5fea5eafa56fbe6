"""The picture of an integration: Drell-Yan with a Z', by the maps of this package and by vegas, 300,000 calls each.

python -m benchmarks.integration.picture
"""

from pathlib import Path

import torch

from benchmarks.integration.events import CASES, COMPARED, brute_force, learned, observables
from sbi_physics.core.random import derive
from sbi_physics.integration.cross_section import CrossSection
from sbi_physics.integration.unweight import accept, maximum_weight
from sbi_physics.report.figures import save_figure
from sbi_physics.report.integration_figures import integration_figure

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "integration.png"
CASE = "drell_yan"
NAMES = {"maps": "sbi_physics", "vegas_map": "vegas, map alone", "vegas": "vegas, defaults"}
OBSERVED = ("log10 of the mass of the pair [GeV]", "rapidity of the pair", "pseudorapidity of the lepton")


def main() -> None:
    """Learn, draw and save."""
    torch.set_num_threads(1)
    f = CrossSection.of(CASES[CASE]())
    runs = {method: learned(f, method, derive(1, CASE)) for method in NAMES}
    points, weights, _ = runs["maps"]
    largest = maximum_weight(weights)
    events, _ = accept(points, weights, largest, 1)
    pairs = zip(brute_force(CASE, f, 1).T, observables(CASE, f, events[:COMPARED]).T, strict=True)
    figure = integration_figure(
        {name: runs[method][2]["rounds"] for method, name in NAMES.items()},
        {name: runs[method][1] for method, name in NAMES.items()},
        dict(zip(OBSERVED, pairs, strict=True)),
        title="Drell-Yan pairs with a Z' of 1 TeV, 300,000 evaluations to learn from; "
        f"{float(weights.mean()) / largest:.0%} of the points of the learned map become events",
    )
    save_figure(figure, PICTURE)


if __name__ == "__main__":
    main()

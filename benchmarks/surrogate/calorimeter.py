"""Showers in 368 voxels: every kind of surrogate against the simulator it stands in for.

Claim: from 200,000 showers with energies log-uniform from 256 MeV to 4.2 TeV, trained within half an hour on two cores,
the variational autoencoder is told from the simulator with an AUC of at most 0.60 on high-level features and at most
0.75 on voxels, where the simulator against itself gives the floor; the GAN with at most 0.85 on high-level features, at
a coverage of at least 0.7; the mean response is right within 1 % and the resolution within 5 % in each of ten bins of
energy; 2,000 showers a second and ten times the simulator's own rate at 100 GeV are exceeded, both at batches that suit
them best.  The classifiers are those of the Fast Calorimeter Simulation Challenge (arXiv:2410.21611): log10 of the
incident energy beside the voxels over the incident energy, or beside the high-level features; that of `check`, which
sees radii and shares of empty voxels, too, is the harder judge.  None of the settings was
chosen on the showers that judge.  Surrogates that know nothing of showers (their preprocessing does) have a smaller
budget: they are the scale, not the claim.  The density of the simulator is not explicit, so there is no MCMC to beat.

    python -m benchmarks.surrogate.calorimeter [--models vae gan ...] [--showers 200000] [--events 50000]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import RESULTS, describe_machine, keep_row
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.classifier import ClassifierTest, classifier_auc
from sbi_physics.diagnostics.manifold import precision_recall_density_coverage
from sbi_physics.store.datasets import cache_folder
from sbi_physics.surrogate.showers import Showers
from simulators.calorimeter import ElectromagneticShowers

NAME = "surrogate_calorimeter"
FLOOR = "simulator"
HUNDRED_GEV = 1e5
BINS = 10
_SMALL = 50_000
_TURNS = 3
# Showers to train on, None for all, and settings of the training.
MODELS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "vae": (None, {"epochs": 10, "batch_size": 512, "max_seconds": 1800}),
    "gan": (None, {"epochs": 12, "batch_size": 256, "max_seconds": 1800}),
    "flow": (_SMALL, {"epochs": 10, "max_seconds": 300}),
    "diffusion": (_SMALL, {"epochs": 60, "max_seconds": 300}),
    "autoregressive": (_SMALL, {"epochs": 15, "max_seconds": 300}),
    # Its bandwidths take time that grows as the square.
    "kernel": (10_000, {}),
}


def main() -> None:
    """Fit each model, compare it with the simulator, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = [FLOOR, *MODELS]
    parser.add_argument("--models", nargs="+", default=every, choices=every)
    parser.add_argument("--showers", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trained", action="store_true", help="measure what an earlier run has trained")
    parser.add_argument("--rates", action="store_true", help="time, again, what an earlier run has measured")
    options = parser.parse_args()
    simulator = ElectromagneticShowers()
    if options.rates:
        _time_again(simulator, [model for model in options.models if model != FLOOR])
        return
    theta, x = _simulated(simulator, options.showers, derive(options.seed, "training"))
    judges = _simulated(simulator, 2 * options.events, derive(options.seed, "judges"))
    judge = _Judge(simulator, judges, options.seed)
    for model in options.models:
        if model == FLOOR:
            _keep({"model": FLOOR, "events": options.events, **judge.floor()})
            continue
        rows, config = MODELS[model]
        path = _path(model)
        if not (options.trained and path.exists()):
            preprocessing = Showers(simulator.geometry)
            surrogate = sp.Surrogate(model, preprocessing=preprocessing, prior=simulator.parameters, config=config)
            surrogate.fit(theta[:rows], x[:rows], seed=derive(options.seed, "fit")).save(path)
        surrogate = sp.load(path)
        seconds = surrogate.provenance["seconds"]
        measured = judge.of(surrogate)
        row = {
            "model": model,
            "showers": len(theta[:rows]),
            "events": options.events,
            "training_seconds": seconds,
            **measured,
        }
        _keep(row)


def _path(model: str) -> Path:
    return cache_folder() / f"showers-{model}.safetensors"


def _time_again(simulator: ElectromagneticShowers, models: list[str]) -> None:
    """Put new timings, on a machine that does nothing else, in the place of those of an earlier run."""
    rows = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["model"] in models:
            _keep({**row, **_rates(simulator, sp.load(_path(row["model"])))})


def _rates(simulator: ElectromagneticShowers, surrogate: sp.Surrogate) -> dict[str, Any]:
    """Showers of 100 GeV in a second of both, in turns."""
    rates: dict[int, float] = {}
    simulated = 0.0
    for _ in range(_TURNS):
        simulated = max(simulated, _rate(simulator, 2_000))
        rates = {n: max(rates.get(n, 0.0), _rate(surrogate, n)) for n in (1, 100, 10_000)}
    return {"rates": rates, "simulator_rate": simulated, "speed_up": rates[10_000] / simulated}


def _keep(row: dict[str, Any]) -> None:
    print(row, flush=True)
    keep_row(NAME, {**row, "machine": describe_machine()}, ["model"])


class _Judge:
    """Compares showers that are made for the energies of the second half of real ones with the first half."""

    def __init__(self, simulator: ElectromagneticShowers, showers: tuple[Tensor, Tensor], seed: int) -> None:
        self.simulator, self.seed = simulator, seed
        half = len(showers[0]) // 2
        self.theta, self.x = (values[:half] for values in showers)
        self.other, self.paired = (values[half:] for values in showers)
        self.preprocessing = Showers(simulator.geometry, threshold=simulator.threshold)

    def floor(self) -> dict[str, Any]:
        """The simulator against itself."""
        return self._classifiers(self.paired)

    def of(self, surrogate: sp.Surrogate) -> dict[str, Any]:
        """All figures of a surrogate."""
        made = surrogate(self.other, seed=derive(self.seed, "showers"))
        features = [torch.stack(list(self._features(*one).values()), 1) for one in self._pair(made)]
        shares = precision_recall_density_coverage(*(f[:10_000] for f in features), seed=self.seed)
        return {
            **self._classifiers(made),
            **self._response(made),
            "precision": float(shares.value[0]),
            "coverage": float(shares.value[3]),
            **_rates(self.simulator, surrogate),
        }

    def _pair(self, made: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.theta, self.x), (self.other, made)

    def _features(self, theta: Tensor, x: Tensor) -> dict[str, Tensor]:
        return dict(self.preprocessing.features(theta, x))

    def _classifiers(self, made: Tensor) -> dict[str, Any]:
        low = [torch.cat([theta.log10(), 100 * x / theta], 1) for theta, x in self._pair(made)]
        high = [_challenge_features(theta, self._features(theta, x)) for theta, x in self._pair(made)]
        # Of all features of `check`, which has radii and shares of empty voxels, too.
        every = [torch.stack(list(self._features(*one).values()), 1) for one in self._pair(made)]
        found = {}
        for name, pair in {"low": low, "high": high, "features": every}.items():
            test: ClassifierTest = classifier_auc(*pair, seed=derive(self.seed, name), progress=True)
            found |= {f"{name}_auc": test.auc, f"{name}_error": test.error}
        return found

    def _response(self, made: Tensor) -> dict[str, Any]:
        """Ratios of mean response and of resolution in ten bins of energy, generated over real, and their errors."""
        low, high = self.other.log().aminmax()
        place = ((self.other.log() - low) / (high - low) * BINS).long().clamp(max=BINS - 1)[:, 0]
        ratios = []
        for k in range(BINS):
            real, other = (values[place == k].sum(1) / self.other[place == k, 0] for values in (self.paired, made))
            width, spread = other.std() / other.mean(), real.std() / real.mean()
            errors = float(spread * (2 / len(real)) ** 0.5), float(len(real) ** -0.5)
            ratios.append([float(other.mean() / real.mean()), errors[0], float(width / spread), errors[1]])
        return {"response": ratios}


def _challenge_features(theta: Tensor, features: dict[str, Tensor]) -> Tensor:
    """Energies of the layers by their logarithm, centres and widths in units of 100 mm, as in the challenge."""
    columns = [theta[:, 0].log10()]
    for name, values in features.items():
        if name.startswith("energy"):
            columns.append((values + 1e-8).log10())
        elif name.startswith(("eta", "phi")):
            columns.append(values / 100)
    return torch.stack([column.float() for column in columns], 1)


def _rate(simulator: Any, batch: int) -> float:
    """Showers of 100 GeV in a second, the best of three batches."""
    theta = torch.full((batch, 1), HUNDRED_GEV)
    simulator(theta, seed=0)
    seconds = []
    for repeat in range(3):
        began = time.monotonic()
        simulator(theta, seed=1 + repeat)
        seconds.append(time.monotonic() - began)
    return batch / min(seconds)


def _simulated(simulator: ElectromagneticShowers, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Energies and showers, kept in the cache folder."""
    path = cache_folder() / f"showers-{n}-{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        theta = simulator.parameters.sample(n, seed=seed)
        parts = [simulator(part, seed=derive(seed, "part", k)) for k, part in enumerate(theta.split(5_000))]
        torch.save((theta, torch.cat(parts)), path)
    theta, x = torch.load(path)
    return theta, x


if __name__ == "__main__":
    main()

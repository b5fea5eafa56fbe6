"""Autoencoders of damped oscillations, against principal components and the law itself fitted to each series.

Claim: series of 40 displacements with noise of 0.3 mm follow from three parameters, and a code of three numbers holds
them but for the noise: where as many principal components lose most of a series, the series that an autoencoder gives
back is nearer to the one without noise than the noise is, and nearer than principal components of any number.  It
learns from noisy series only.  The exact answer is the maximum of the likelihood, from the true parameters on, which is
as far from the truth as the Cramer-Rao bound says, 3/40 of the noise.  The number of components is the best on other
series.
"""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.models.answer import Answer, Side, timed
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.autoencoder import Autoencoder
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train
from simulators.oscillator import DampedOscillator

__all__ = ["measure"]

SERIES, HELD_OUT, EPOCHS, CODE = 5000, 1000, 60, 3
OSCILLATOR = DampedOscillator(missing_fraction=0.0)
TIMES = torch.linspace(0.25, 10.0, 40)
STEP, ITERATIONS = 1e-5, 30
# A strength of 1e-2 is the default; the activity is that of a code that is dense, which three numbers must be.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "denoising": {"noise": 0.3},
    "contractive": {"penalty": "contractive", "probes": 1},
    "sparse (l1)": {"penalty": "l1"},
    "sparse (kl)": {"penalty": "kl", "activity": 0.5},
}

Map = Callable[[Tensor], Tensor]


def measure(seed: int) -> Answer:
    """Mean squared distances of what is given back from the noisy series and from the series without noise."""
    theta, clean, noisy = _series(HELD_OUT, derive(seed, "held out"))
    _, _, training = _series(SERIES, derive(seed, "train"))
    fitted = OSCILLATOR.displacement(_maximum(theta, noisy), TIMES).float()
    best = _components(training, derive(seed, "choice"))

    def side(name: str, back: Tensor, seconds: float | None = None) -> Side:
        return Side(name, [_distance(back, noisy), _distance(back, clean)], seconds)

    sides = [side("exact: the law fitted to each series", fitted), side("the noisy series", noisy)]
    for name, options in VARIANTS.items():
        map_, seconds = timed(lambda options=options: _autoencoder(training, seed, options))
        sides.append(side(f"ours, {name}, code of {CODE}", map_(noisy), seconds))
    for count in (CODE, best):
        map_, seconds = timed(lambda count=count: _principal(training, count))
        sides.append(side(f"scikit-learn, {count} principal components", map_(noisy), seconds))
    return Answer(
        f"autoencoders: {len(TIMES)} displacements of a damped oscillator with noise of {OSCILLATOR.noise:g} mm, "
        f"{SERIES:,} series",
        ["mean squared distance from the series given [mm^2]", "from that without noise [mm^2]"],
        sides,
        f"{best} components are the best number on other series.",
    )


def _series(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters ``(n, 3)``, series without noise ``(n, T)``, and with it."""
    with seeded(seed):
        theta = OSCILLATOR.parameters.sample(n)
        noise = OSCILLATOR.noise * torch.randn(n, len(TIMES))
    clean = OSCILLATOR.displacement(theta, TIMES).float()
    return theta, clean, clean + noise


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean())


def _maximum(start: Tensor, x: Tensor) -> Tensor:
    """Least squares by steps of Gauss and Newton, each at most a hundredth of the way across the prior."""
    support = torch.tensor([[1.0, 5.0], [0.02, 0.5], [1.0, 5.0]], dtype=torch.float64)
    width = support[:, 1] - support[:, 0]
    theta, data = start.double(), x.double()
    for _ in range(ITERATIONS):
        residual = data - OSCILLATOR.displacement(theta, TIMES)
        moved = theta.unsqueeze(1) + STEP * torch.eye(3, dtype=torch.float64)
        slope = (OSCILLATOR.displacement(moved, TIMES) - (data - residual).unsqueeze(1)).mT / STEP
        step = torch.linalg.lstsq(slope, residual.unsqueeze(-1)).solution.squeeze(-1)
        theta = (theta + torch.clamp(step, -width / 100, width / 100)).clamp(support[:, 0], support[:, 1])
    return theta


@torch.no_grad()
def _given_back(model: Autoencoder, x: Tensor) -> Tensor:
    return model.event_scaling.inverse(model.decode(model.code(model.encode(x))))


def _autoencoder(training: Tensor, seed: int, options: dict[str, Any]) -> Map:
    with seeded(derive(seed, "weights")):
        model = Autoencoder((len(TIMES),), code=CODE, **options).fit_scaling(training)
    config = TrainConfig(epochs=EPOCHS)
    train(model, model.loss, [model.encode(training)], config=config, seed=seed, progress=False)
    return lambda x: _given_back(model, x)


def _principal(training: Tensor, count: int) -> Map:
    found = PCA(count).fit(training.numpy())
    return lambda x: torch.as_tensor(found.inverse_transform(found.transform(x.numpy())))


def _components(training: Tensor, seed: int) -> int:
    """The number of components that brings other noisy series nearest to those without noise."""
    _, clean, noisy = _series(HELD_OUT, seed)
    return min(range(1, len(TIMES)), key=lambda count: _distance(_principal(training, count)(noisy), clean))

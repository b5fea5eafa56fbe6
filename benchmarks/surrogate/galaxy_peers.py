"""Surrogates of stars beside the packages that fit densities, and students of a slow one beside its shortened draws.

Claim: on the star particles of one galaxy (six dimensions given age and metallicity) our flow and diffusion model are
told from true stars with no larger AUC than the spline flow of zuko and flow matching of sbi 0.27, in less time of
training.  The Gaussian mixture (components by BIC) and the kernels (bandwidth by cross-validation) of scikit-learn know
nothing of the conditions, which the AUC does not ask for: our mixture of as many is level with theirs, our default one
and our kernels are behind.  The packages of flows get the same particles, whitened; zuko trains
with the loop of its tutorials (Adam at 1e-3, batches of 256, early stopping after 20 epochs), sbi with its defaults.

A consistency model distilled from the diffusion model draws in one or two evaluations of its network, where the teacher
loses more when its ordinary differential equation is cut to as few.

    python -m benchmarks.surrogate.galaxy_peers [--parts packages students] [--stars 50000] [--seed 1]
"""

import argparse
import contextlib
import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, keep_row
from benchmarks.surrogate.galaxy import SECONDS, auc, conditions_of, some
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.classifier import classifier_auc
from simulators.galaxy import Galaxy

NAME = "galaxy_peers"
COMPONENTS, BANDWIDTHS = (10, 20, 40, 80), np.geomspace(0.05, 0.5, 11)
PATIENCE, BATCH, MOST_EPOCHS = 20, 256, 300
# From particles to a function that draws one star at each row of the conditions.
Fit = Callable[[Tensor, Tensor, int], Callable[[Tensor], Tensor]]


def main() -> None:
    """Fit, judge, and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("packages", "students"), default=["packages", "students"])
    parser.add_argument("--particles", type=int, default=20_000)
    parser.add_argument("--stars", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seed, galaxy = options.seed, Galaxy()
    particles = galaxy.sample_particles(options.particles, seed=derive(seed, "particles")).stars
    truth = galaxy.sample_stars(options.stars, seed=derive(seed, "truth", 0)).phase_space
    c, w = conditions_of(particles), particles.phase_space
    theta = c[some(len(c), len(c), derive(seed, "some"))].repeat(-(-options.stars // len(c)), 1)[: options.stars]

    def judge(package: str, model: str, draw: Callable[[Tensor], Tensor], fit_seconds: float) -> None:
        began = time.monotonic()
        stars = draw(theta).double()
        row = {"package": package, "model": model, "fit_seconds": fit_seconds}
        row |= {"seconds_per_star": (time.monotonic() - began) / len(stars)}
        row |= auc(classifier_auc(truth, stars, seed=seed))
        print(row, flush=True)
        keep_row(NAME, row | {"machine": describe_machine("scikit-learn", "zuko", "sbi")}, ["package", "model"])

    if "packages" in options.parts:
        for (package, model), fit in _PACKAGES.items():
            began = time.monotonic()
            draw = fit(w, c, seed)
            judge(package, model, draw, time.monotonic() - began)
    if "students" in options.parts:
        _students(w, c, seed, judge)


def _students(w: Tensor, c: Tensor, seed: int, judge: Callable[..., None]) -> None:
    began = time.monotonic()
    config = {"max_seconds": SECONDS}
    teacher = sp.Surrogate("diffusion", config=config, device="cpu").fit(c, w, seed=seed, progress=False)
    trained = time.monotonic() - began

    def drawn(surrogate: sp.Surrogate) -> Callable[[Tensor], Tensor]:
        return lambda theta: surrogate.sample(theta, seed=derive(seed, "draws"))

    judge("sbi_physics", "diffusion", drawn(teacher), trained)
    for steps in (1, 2, 4, 8):
        judge("sbi_physics", f"diffusion in {steps} steps", drawn(teacher.with_sampling_steps(steps)), trained)
    for steps in (1, 2):
        began = time.monotonic()
        student = teacher.distill("consistency", theta=c, steps=steps, config=config, seed=seed, progress=False)
        judge("sbi_physics", f"consistency in {steps} steps", drawn(student), time.monotonic() - began)


def _ours(model: str, **options: Any) -> Fit:
    def fit(w: Tensor, c: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        config = {} if model == "kernel" else {"max_seconds": SECONDS}
        surrogate = sp.Surrogate(model, config=config, device="cpu", **options).fit(c, w, seed=seed, progress=False)
        return lambda theta: surrogate.sample(theta, seed=derive(seed, model))

    return fit


def _zuko(w: Tensor, c: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    import zuko

    torch.manual_seed(seed)
    z, context, back, whitened = _scaled(w, c)
    flow = zuko.flows.NSF(features=6, context=2, transforms=5, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    order = torch.randperm(len(z))
    held, rows = order[: len(z) // 10], order[len(z) // 10 :]
    best, kept, waited = float("inf"), copy.deepcopy(flow.state_dict()), 0
    for _ in range(MOST_EPOCHS):
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            loss = -flow(context[batch]).log_prob(z[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            judged = float(-flow(context[held]).log_prob(z[held]).mean())
        waited += 1
        if judged < best:
            best, kept, waited = judged, copy.deepcopy(flow.state_dict()), 0
        if waited >= PATIENCE:
            break
    flow.load_state_dict(kept)

    def draw(theta: Tensor) -> Tensor:
        with torch.no_grad():
            return back(torch.cat([flow(part).sample() for part in whitened(theta).split(10_000)]))

    return draw


def _sbi(w: Tensor, c: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Flow matching of the stars, taken for parameters, given age and metallicity, taken for observables."""
    from sbi.inference import FMPE

    torch.manual_seed(seed)
    z, context, back, whitened = _scaled(w, c)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        inference = FMPE(None, show_progress_bars=False)
        network = inference.append_simulations(z, context).train()

    def draw(theta: Tensor) -> Tensor:
        posterior = inference.build_posterior(
            network, prior=torch.distributions.MultivariateNormal(torch.zeros(6), 1e4 * torch.eye(6))
        )
        parts = [
            posterior.sample_batched((1,), x=part, show_progress_bars=False)[0]
            for part in whitened(theta).split(10_000)
        ]
        return back(torch.cat(parts))

    return draw


def _sklearn_mixture(w: Tensor, c: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    from sklearn.mixture import GaussianMixture

    z, _, back, _ = _scaled(w, c)
    rows = z.double().numpy()
    fits = [GaussianMixture(k, random_state=seed).fit(rows) for k in COMPONENTS]
    best = min(fits, key=lambda fit: fit.bic(rows))
    return lambda theta: back(torch.from_numpy(best.sample(len(theta))[0]).float())


def _sklearn_kernels(w: Tensor, c: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.neighbors import KernelDensity

    z, _, back, _ = _scaled(w, c)
    folds = KFold(3, shuffle=True, random_state=seed)
    search = GridSearchCV(KernelDensity(rtol=1e-3), {"bandwidth": BANDWIDTHS}, cv=folds, refit=False)
    search.fit(z[some(len(z), 6_000, seed)].double().numpy())
    # Scott's rule for how it changes with the number of events.
    bandwidth = search.best_params_["bandwidth"] * (6_000 * 2 / 3 / len(z)) ** 0.1
    kernels = KernelDensity(bandwidth=bandwidth).fit(z.double().numpy())
    return lambda theta: back(torch.from_numpy(kernels.sample(len(theta), random_state=seed)).float())


def _scaled(w: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Particles and conditions of zero mean and unit variance; the way back, and that of other conditions."""
    mean, std, c_mean, c_std = w.mean(0), w.std(0), c.mean(0), c.std(0)

    def whitened(theta: Tensor) -> Tensor:
        return ((theta - c_mean) / c_std).float()

    return ((w - mean) / std).float(), whitened(c), lambda z: z.double() * std + mean, whitened


_PACKAGES: dict[tuple[str, str], Fit] = {
    ("sbi_physics", "flow"): _ours("flow"),
    ("zuko", "neural spline flow"): _zuko,
    ("sbi", "flow matching"): _sbi,
    ("sbi_physics", "mixture"): _ours("mixture"),
    ("sbi_physics", "mixture of 40"): _ours("mixture", components=40),
    ("scikit-learn", "Gaussian mixture"): _sklearn_mixture,
    ("sbi_physics", "kernel"): _ours("kernel"),
    ("sbi_physics", "kernel, bandwidth by likelihood"): _ours("kernel", bandwidth="likelihood"),
    ("scikit-learn", "kernels"): _sklearn_kernels,
}


if __name__ == "__main__":
    main()

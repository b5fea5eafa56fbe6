"""Star particles of a galaxy upsampled into stars: a conditional flow against fixed kernels, where the truth is known.

Claim: a classifier cannot tell upsampled stars from true ones in the six dimensions of phase space (AUC at most 0.55),
and tells those of fixed kernels with more success in the same run; streams stay visible.  The kernels are given the
scale that is best for particles which they have not seen, so that they are no straw man; that the flow has not seen is
known by the same particles.  The floor is the AUC of true stars against other true stars.  Surrogates that know nothing
of galaxies, trained on the same particles (position and velocity given age and metallicity), are the scale of what the
upsampler gains.  For comparison, emcee draws from the exact density of the galaxy: what an independent star costs.

    python -m benchmarks.surrogate.galaxy [--particles 20000] [--stars 50000] [--seeds 1 2 3] [--part PART]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import RESULTS, describe_machine, write_result
from sbi_physics.core.random import derive, seeded
from sbi_physics.diagnostics.classifier import ClassifierTest, classifier_auc
from sbi_physics.report.figures import save_figure
from sbi_physics.report.galaxy_figures import phase_space_maps
from sbi_physics.surrogate.upsampling import UpsampledStars, Upsampler
from simulators.galaxy import Galaxy
from simulators.galaxy_stars import StarParticles, Stars
from simulators.galaxy_upsample import fixed_kernel_log_density, fixed_kernel_upsample

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
HELD_OUT = 2_000
PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "galaxy.png"
LIMITS = ((-40.0, 25.0), (-25.0, 45.0), (-35.0, 35.0), (-320.0, 320.0), (-320.0, 320.0), (-320.0, 320.0))
PLANES = ((1, 2), (2, 5))
MCMC_STEPS, MCMC_WALKERS = 40_000, 128
MODELS = ("flow", "autoregressive", "diffusion", "vae", "gan", "mixture", "kernel")
SECONDS = 300


def main() -> None:
    """Upsample each galaxy in both ways, judge, draw the picture and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=20_000)
    parser.add_argument("--stars", type=int, default=50_000)
    parser.add_argument("--ensemble", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=MCMC_STEPS, help="of emcee")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--part", choices=("stars", "models", "emcee"), help="one part; the others stay as they were")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    galaxy, parts = Galaxy(), (options.part,) if options.part else ("stars", "models", "emcee")
    written = RESULTS / "galaxy.json"
    result: dict[str, Any] = json.loads(written.read_text()) if options.part and written.exists() else {}
    result |= {"particles": options.particles, "stars": options.stars, "ensemble": options.ensemble}
    if "stars" in parts:
        result["rows"] = [_measure(galaxy, options, seed) for seed in options.seeds]
    if "models" in parts:
        result["models"] = _models(galaxy, options, options.seeds[0])
    if "emcee" in parts:
        result["emcee"] = _emcee(galaxy, options.steps, options.seeds[0])
    result["machine"] = describe_machine("emcee", "scikit-learn")
    print(f"written to {write_result('galaxy', result)}")


def _measure(galaxy: Galaxy, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One draw of the particles."""
    particles = galaxy.sample_particles(options.particles, seed=derive(seed, "particles"))
    truth, again = (galaxy.sample_stars(options.stars, seed=derive(seed, "truth", i)) for i in (0, 1))
    scale = _best_scale(particles, seed)
    each = -(-options.stars // options.particles)
    kernels = fixed_kernel_upsample(particles, each, scale=scale, seed=derive(seed, "kernels"))
    began = time.monotonic()
    upsampler = _fitted(particles, options, seed)
    fit_seconds = time.monotonic() - began
    began = time.monotonic()
    stars = upsampler.sample(each, seed=derive(seed, "stars"))
    sample_seconds = time.monotonic() - began
    conditions = torch.stack([particles.stars.ages, particles.stars.metallicities], 1)
    chosen, of_kernels = (some(len(those), options.stars, derive(seed, "some")) for those in (stars, kernels))
    sets = {
        "upsampled": (stars.phase_space[chosen], conditions[stars.parents[chosen]]),
        "fixed_kernels": (kernels.phase_space[of_kernels], conditions_of(kernels)[of_kernels]),
        "floor": (again.phase_space, conditions_of(again)),
    }
    row: dict[str, Any] = {"seed": seed, "kernel_scale": scale, "fit_seconds": fit_seconds}
    row |= {"seconds_per_star": sample_seconds / len(stars), "structures": upsampler.provenance["structures"]}
    row |= {"share_in_structures": upsampler.provenance["share_in_structures"]}
    row["log_density"] = _log_densities(galaxy, truth[:HELD_OUT], particles, scale, upsampler)
    for name, (w, c) in sets.items():
        row[name] = auc(classifier_auc(truth.phase_space, w, seed=seed))
        with_conditions = [torch.cat(pair, 1) for pair in ((truth.phase_space, conditions_of(truth)), (w, c))]
        row[f"{name}_with_conditions"] = auc(classifier_auc(*with_conditions, seed=seed))
    print(row, flush=True)
    if seed == options.seeds[0]:
        _picture(options.picture, galaxy, particles, scale, upsampler, seed)
    return row


def _models(galaxy: Galaxy, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Surrogates of every kind on the particles of the first galaxy: AUC, training and time of a star."""
    particles = galaxy.sample_particles(options.particles, seed=derive(seed, "particles"))
    truth = galaxy.sample_stars(options.stars, seed=derive(seed, "truth", 0))
    conditions = conditions_of(particles.stars)
    chosen = conditions[some(len(particles), len(particles), derive(seed, "some"))]
    theta = chosen.repeat(-(-options.stars // len(chosen)), 1)[: options.stars]
    found = {}
    for model in options.models:
        config = {} if model == "kernel" else {"max_seconds": SECONDS}
        began = time.monotonic()
        surrogate = sp.Surrogate(model, config=config, device="cpu")
        surrogate.fit(conditions, particles.stars.phase_space, seed=seed, progress=False)
        trained = time.monotonic() - began
        began = time.monotonic()
        w = surrogate.sample(theta, seed=derive(seed, model)).double()
        seconds = time.monotonic() - began
        found[model] = {
            "fit_seconds": trained,
            "seconds_per_star": seconds / len(w),
            **auc(classifier_auc(truth.phase_space, w, seed=seed)),
        }
        print(model, found[model], flush=True)
    return found


def _fitted(particles: StarParticles, options: argparse.Namespace, seed: int) -> Upsampler:
    smoothing = torch.stack([particles.position_smoothing, particles.velocity_smoothing], 1)
    return Upsampler(ensemble=options.ensemble).fit(
        particles.stars.phase_space, smoothing, conditions_of(particles.stars), seed=seed, progress=False
    )


def _best_scale(particles: StarParticles, seed: int) -> float:
    """The scale of the kernels that is best for a tenth of the particles, held out."""
    order = some(len(particles), len(particles), derive(seed, "held out"))
    held_out, kept = order[: min(len(order) // 10, HELD_OUT)], order[len(order) // 10 :]
    rest = StarParticles.from_stars(particles.stars[kept], particles.masses[kept])
    w = particles.stars[held_out].phase_space
    values = {scale: float(fixed_kernel_log_density(rest, w, scale=scale).mean()) for scale in SCALES}
    return max(values, key=lambda scale: values[scale])


def _log_densities(
    galaxy: Galaxy, stars: Stars, particles: StarParticles, scale: float, upsampler: Upsampler
) -> dict[str, Any]:
    """Mean log-density of true stars, under the truth and less under the others, by component too."""
    w = stars.phase_space
    truth = galaxy.log_density(w)
    lost = {
        "upsampled": truth - upsampler.log_density(w),
        "fixed_kernels": truth - fixed_kernel_log_density(particles, w, scale=scale),
    }
    found: dict[str, Any] = {"truth": float(truth.mean())}
    for name, values in lost.items():
        found[name] = {
            "lost": float(values.mean()),
            "error": float(values.std()) / len(values) ** 0.5,
            "by_component": {
                component: float(values[stars.components == k].mean())
                for k, component in enumerate(stars.names)
                if bool((stars.components == k).any())
            },
        }
    return found


def _emcee(galaxy: Galaxy, steps: int, seed: int) -> dict[str, Any]:
    """What an independent star costs by Markov chain Monte Carlo on the exact density."""
    start = galaxy.sample_stars(MCMC_WALKERS, seed=derive(seed, "walkers")).phase_space
    samples = sp.mcmc(
        galaxy.log_density, start, steps=steps, walkers=MCMC_WALKERS, seed=seed, device="cpu", progress=False
    )
    size = samples.diagnostics.get("effective_sample_size")
    independent = None if size is None else float(torch.as_tensor(size).min())
    return {
        "steps": steps,
        "walkers": MCMC_WALKERS,
        "seconds": samples.cost.seconds,
        "calls": samples.cost.likelihood_calls,
        "independent_stars": independent,
        "seconds_per_star": None if not independent else samples.cost.seconds / independent,
        "calls_per_star": None if not independent else samples.cost.likelihood_calls / independent,
        "converged": bool(samples.diagnostics["converged"]),
        "verdict": samples.diagnostics.get("verdict"),
    }


def _picture(
    path: Path, galaxy: Galaxy, particles: StarParticles, scale: float, upsampler: Upsampler, seed: int
) -> None:
    each = 25
    stars: UpsampledStars = upsampler.sample(each, seed=derive(seed, "picture"))
    sets = {
        "true stars": galaxy.sample_stars(each * len(particles), seed=derive(seed, "picture")).phase_space,
        "star particles": particles.stars.phase_space,
        "fixed kernels": fixed_kernel_upsample(particles, each, scale=scale, seed=seed).phase_space,
        "upsampled": stars.phase_space,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(phase_space_maps(sets, planes=PLANES, limits=LIMITS, bins=110), path)


def conditions_of(stars: Stars) -> Tensor:
    return torch.stack([stars.ages, stars.metallicities], 1)


def some(n: int, wanted: int, seed: int) -> Tensor:
    with seeded(seed):
        return torch.randperm(n)[:wanted]


def auc(test: ClassifierTest) -> dict[str, Any]:
    return {
        "auc": test.auc,
        "error": test.error,
        "expected_error": test.expected_error,
        "jensen_shannon": test.jensen_shannon,
    }


if __name__ == "__main__":
    main()

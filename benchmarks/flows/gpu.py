"""Training steps, a million draws and a whole fit on a GPU, ours against nflows, alternating in one run.

Claims on an H200-class GPU, for the flow of `benchmarks.flows.steps`: the training step at batch 4,096 at least 10
times as fast as nflows'; one million draws for one context at least 20 times as fast, and at least 100 million draws
per second; NPE on 100,000 simulations of slcp in under 20 s.

    python -m benchmarks.flows.gpu [--device cuda]

With ``--device cpu --draws 1000 --simulations 1000`` the script runs anywhere, and shows nothing but that it runs.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.flows.steps import BINS, CONTEXT, FEATURES, LAYERS, MULTIPLY_ADDS, nflows_flow
from benchmarks.machine import describe_machine, write_result
from sbi_physics.models.flows import engines
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.simulation.resolve import resolve_simulator
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.parallel import Processes
from sbi_physics.train.split import split_events
from sbi_physics.train.state import TrainingState
from sbi_physics.train.step import Step

BATCH, REPEATS = 4096, 30


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--simulations", type=int, default=100_000)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device was found")
    torch.manual_seed(0)
    steps = _alternate(_steps(device), device)
    with torch.no_grad():
        draws = _alternate(_draws(device, options.draws), device)
    result = {
        "device": str(device),
        "batch": BATCH,
        "step milliseconds": steps,
        "draws": options.draws,
        "draws milliseconds": draws,
        "operations of a step": 6 * MULTIPLY_ADDS * LAYERS * BATCH,
        "million draws per second, fused": options.draws / draws["fused"] / 1e3,
        "fit": _fit(device, options.simulations),
        "machine": describe_machine(),
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    print(f"written to {write_result('flow_gpu', result)}" if device.type == "cuda" else "not written: not on a GPU")


def _alternate(tasks: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Median time of each task in milliseconds, until the device has done it; the tasks take turns."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(REPEATS + 5):
        for name, task in tasks.items():
            _wait(device)
            began = time.perf_counter()
            task()
            _wait(device)
            if repeat >= 5:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _steps(device: torch.device) -> dict[str, Callable[[], Any]]:
    events, contexts = torch.randn(2 * BATCH, FEATURES), torch.randn(2 * BATCH, CONTEXT)
    theirs = nflows_flow().to(device)
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-4, fused=True)
    batch = events[:BATCH].to(device), contexts[:BATCH].to(device)

    def nflows_step() -> None:
        optimizer.zero_grad()
        theirs.log_prob(*batch).mean().neg().backward()
        optimizer.step()

    tasks: dict[str, Callable[[], Any]] = {"nflows": nflows_step}
    config = TrainConfig(batch_size=BATCH, optimizer="adamw", learning_rate=1e-4)
    for engine in ("eager", "graphed", "fused"):
        density = FlowDensity(build_flow("nsf", FEATURES, CONTEXT), (FEATURES,), (CONTEXT,), engine=engine).to(device)
        split = split_events([events, contexts], None, config, 0, device)
        state = TrainingState.begin(density, config)
        state.record.batch_size = BATCH
        graphed = engine != "eager"
        step = Step(state, density.add_gradient, split, config, Processes(), copies=1, graphed=graphed)
        tasks[engine] = partial(step, torch.arange(BATCH, device=device), 1e-4, 0.99)
    return tasks


def _draws(device: torch.device, n: int) -> dict[str, Callable[[], Any]]:
    theirs, ours = nflows_flow().to(device).eval(), build_flow("nsf", FEATURES, CONTEXT).to(device).eval()
    context = torch.randn(1, CONTEXT, device=device)

    def draw(engine: str) -> tuple[Tensor, Tensor]:
        return engines.from_noise(ours, torch.randn(n, FEATURES, device=device), context, engine=engine)

    tasks: dict[str, Callable[[], Any]] = {"nflows": lambda: theirs.sample(n, context=context)}
    return tasks | {engine: partial(draw, engine) for engine in ("eager", "fused")}


def _fit(device: torch.device, simulations: int) -> dict[str, Any]:
    simulator = resolve_simulator("slcp")
    theta, x = sp.simulate(simulator, simulations, seed=0, progress=False).training_set()
    held_out = sp.simulate(simulator, 2000, seed=1, progress=False).training_set()
    began = time.monotonic()
    posterior = sp.NPE(simulator.parameters, device=device, bins=BINS).fit(theta, x, seed=0, progress=False)
    seconds = time.monotonic() - began
    return {
        "task": "slcp",
        "simulations": simulations,
        "seconds": seconds,
        "held-out log-density": float(posterior.log_prob(*held_out).double().mean()),
    }


if __name__ == "__main__":
    main()

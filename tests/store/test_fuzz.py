"""Two thousand damaged and malicious files: each is read correctly or refused, in one clear line.

Damage (flipped bits, lost and exchanged bytes) may be harmless, and then what is read is what was written.  Editing is
what a stranger can do: the file is well-formed and may say anything; it is read or refused.  The readers run in
processes of their own, so that a crash of a library, a hang or a burst of memory is seen for what it is.
"""

import importlib.util
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Uniform

import sbi_physics as sp
from sbi_physics.core.samples import Samples
from sbi_physics.store.event_files import write_events
from sbi_physics.store.samples import write_samples

PATH = Path(__file__).parent / "fuzzing.py"
_spec = importlib.util.spec_from_file_location("fuzzing", PATH)
fuzzing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzzing)

MUTANTS = 2000
WORKERS = 2
SECONDS = 20.0
START_SECONDS = 120.0
# What building a small model may take: libraries that are loaded for the first time are most of it.
MEGABYTES = 600


def _simulations(folder):
    parameters = sp.Parameters(
        [sp.Parameter("a", Uniform(0.0, 1.0), unit="m / s"), sp.Parameter("b", Uniform(-2.0, 1.0))]
    )
    generator = torch.Generator().manual_seed(0)
    theta, x = torch.rand(40, 2, generator=generator), torch.randn(40, 3, generator=generator)
    x[3, 1] = torch.nan
    plain = sp.Simulations.from_arrays(theta, x, parameters, simulator="test")
    plain._load().errors.update({3: "not bound", 7: "é" * 30})
    plain.save(folder / "plain.h5")
    named = {"u": x, "v": torch.rand(40, 2, 2, generator=generator)}
    sp.Simulations.from_arrays(theta, named, parameters).save(folder / "named.h5")
    samples = Samples.of(theta, parameters)
    write_samples(folder / "samples.h5", {"npe": samples, "mcmc": samples})
    arrays = {"points": theta.double(), "weights": torch.ones(40), "outgoing": torch.rand(40, 2, 4)}
    write_events(folder / "events.h5", arrays, {"value": 1.5, "unit": "pbarn"})
    return theta, x.nan_to_num(), parameters


def _models(folder, theta, x, parameters):
    theta, x = theta.repeat(5, 1), x.repeat(5, 1)
    small = {"hidden_features": 8, "blocks": 1}
    config = sp_config(epochs=1)
    fits = {
        "nsf": sp.NPE(parameters, embedding="flat", augment=False, config=config, transforms=2, bins=4, **small),
        "mixture": sp.NPE(parameters, "mixture", embedding="residual", augment=False, config=config, components=2),
        "nle": sp.NLE(parameters, config=config, transforms=1, bins=4, **small),
    }
    for name, estimator in fits.items():
        estimator.fit(theta, x, progress=False).save(folder / f"{name}.st")
    for model in ("vae", "mixture"):
        options = {"hidden_features": 8} if model == "vae" else {"components": 2}
        surrogate = sp.Surrogate(model, prior=parameters, config={"epochs": 1}, device="cpu", **options)
        surrogate.fit(theta, x, progress=False).save(folder / f"surrogate-{model}.st")


def sp_config(**settings):
    from sbi_physics.train.config import TrainConfig

    return TrainConfig(**settings)


KINDS = {"plain.h5": "simulations", "named.h5": "simulations", "samples.h5": "samples", "events.h5": "events"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    _models(folder, *_simulations(folder))
    return sorted(folder.iterdir())


def mutants(originals, folder):
    """Kind, file, mutation, and whether it is damage, which must not go unseen."""
    random = np.random.default_rng(2026)
    for number in range(MUTANTS):
        original = originals[number % len(originals)]
        kind = KINDS.get(original.name, "model")
        path = folder / f"{number:04d}-{original.name}"
        if number // len(originals) % 2:
            mutation = fuzzing.edit_model if kind == "model" else fuzzing.edit_hdf5
            path.write_bytes(original.read_bytes())
            mutation(path, random)
            yield kind, path, original, mutation.__name__, False
        else:
            mutation = fuzzing.BYTES[random.integers(len(fuzzing.BYTES))]
            path.write_bytes(mutation(original.read_bytes(), random))
            yield kind, path, original, mutation.__name__, True


class Reader:
    """A process that reads files, started again whenever it ends."""

    def __init__(self):
        self.process = None

    def ask(self, kind, path):
        fresh = self.process is None
        if fresh:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(PATH)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self.process.stdin.write(f"{kind} {path}\n")
        self.process.stdin.flush()
        late = threading.Timer(START_SECONDS if fresh else SECONDS, self.process.kill)
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.close()
        return {"ended": code}

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def answers(questions):
    """What the readers say to each question, in order."""
    waiting, found = queue.SimpleQueue(), [None] * len(questions)
    for numbered in enumerate(questions):
        waiting.put(numbered)

    def work():
        reader = Reader()
        try:
            while True:
                number, question = waiting.get_nowait()
                found[number] = reader.ask(*question)
        except queue.Empty:
            pass
        finally:
            reader.close()

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.slow
def test_two_thousand_mutants(originals, tmp_path):
    whole = [(KINDS.get(path.name, "model"), path) for path in originals]
    made = list(mutants(originals, tmp_path))
    found = answers([*whole, *((kind, path) for kind, path, *_ in made)])
    digests = {path: answer["read"] for (_, path), answer in zip(whole, found, strict=False)}
    wrong, refused, same = [], 0, 0
    for (_, path, original, mutation, damage), answer in zip(made, found[len(whole) :], strict=True):
        told = answer.get("refused")
        refused += told is not None
        same += answer.get("read") == digests[original]
        clear = told is None or (str(path) in told and "\n" not in told)
        right = "read" not in answer or not damage or answer["read"] == digests[original]
        if answer.get("ran") or not clear or not right or not {"read", "refused"} & set(answer):
            wrong.append((mutation, path.name, answer))
        elif answer["grown"] > MEGABYTES:
            wrong.append((mutation, path.name, f"took {answer['grown']} MB"))
    assert not wrong, f"{len(wrong)} of {MUTANTS}: " + "\n".join(map(str, wrong[:20]))
    assert refused > MUTANTS // 2
    assert same > MUTANTS // 50

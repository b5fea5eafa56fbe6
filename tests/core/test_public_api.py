"""The public names, one by one, and an import that costs and changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sbi_physics as sp

NAMES = [
    "BudgetError",
    "ConfidenceSets",
    "ConvergenceError",
    "Estimate",
    "ExecutableSimulator",
    "ModelComparison",
    "NLE",
    "NPE",
    "NRE",
    "NonFiniteError",
    "OutlierDetector",
    "Parameter",
    "Parameters",
    "Posterior",
    "ResonantSearch",
    "SBIPhysicsError",
    "Samples",
    "ShapeError",
    "SimulationError",
    "Simulations",
    "StoreError",
    "SupportError",
    "Surrogate",
    "TSNPE",
    "TrainingError",
    "Upsampler",
    "UsageError",
    "VI",
    "__version__",
    "compare_evidences",
    "corner",
    "diagnostics",
    "integrate",
    "load",
    "mcmc",
    "profile_likelihood",
    "profile_posterior",
    "save",
    "simulate",
]

# What other code may have set, and an import must leave alone.
STATE = """
import locale, logging, os, random, signal, sys, warnings
before = (
    dict(os.environ), random.getstate(), list(warnings.filters), logging.getLogger().handlers[:],
    logging.getLogger().level, signal.getsignal(signal.SIGINT), locale.setlocale(locale.LC_ALL), os.getcwd(),
    sys.getrecursionlimit(),
)
import sbi_physics
after = (
    dict(os.environ), random.getstate(), list(warnings.filters), logging.getLogger().handlers[:],
    logging.getLogger().level, signal.getsignal(signal.SIGINT), locale.setlocale(locale.LC_ALL), os.getcwd(),
    sys.getrecursionlimit(),
)
assert before == after
heavy = {"torch", "numpy", "scipy", "h5py", "astropy", "matplotlib", "emcee", "sklearn", "rich", "nflows"}
print(sorted(heavy & set(sys.modules)))
"""

TORCH_STATE = """
import numpy, torch
def state():
    return (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.random.get_rng_state().tolist(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
        torch.distributions.Distribution._validate_args, numpy.geterr(), numpy.get_printoptions()["precision"],
        numpy.random.get_state()[1].tolist(),
    )
before = state()
import sbi_physics
for name in sbi_physics.__all__:
    getattr(sbi_physics, name)
assert state() == before
"""


def python(code, *options):
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120)


def test_public_names():
    assert sorted(sp.__all__) == NAMES
    assert set(NAMES) - {"__version__"} <= set(dir(sp))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name):
    assert getattr(sp, name) is not None


def test_the_stub_names_the_same():
    stub = ast.parse(Path(sp.__file__).with_suffix(".pyi").read_text())
    imported = [a.asname or a.name for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted([*imported, "__version__"]) == NAMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        sp.no_such_name  # noqa: B018


def test_import_is_silent_light_and_changes_nothing():
    result = python(STATE, "-W", "error")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.strip() == "[]"


def test_using_every_name_changes_no_global_state():
    result = python(TORCH_STATE, "-W", "error")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""

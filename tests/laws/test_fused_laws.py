"""The fused kernels: their laws in Triton's interpreter or on a GPU, their compilation for GPUs, and what falls back.

Triton decides between interpreter and GPU when it is imported, so that the laws run in a process of their own.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sbi_physics.models.flows import engines
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.fused import engine
from sbi_physics.models.flows.fused.engine import fused_flow

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(arguments, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=250)


@needs_triton
def test_laws_in_the_interpreter():
    laws = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "fused_laws.py")]
    result = run(laws, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout + result.stderr


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_laws_on_a_gpu():
    result = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "fused_laws.py")])
    assert result.returncode == 0, result.stdout + result.stderr


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path):
    """Compilation needs the toolchain that comes with Triton, no GPU."""
    result = run([str(HERE / "compile_fused.py")], TRITON_CACHE_DIR=str(tmp_path))
    if result.returncode == 77:
        pytest.skip(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_on_the_cpu_flows_run_eagerly_and_say_so_once(monkeypatch, caplog):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    engine._runs_on.cache_clear()
    flow, events = build_flow("nsf", 2, None), torch.randn(5, 2)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = engines.log_prob(flow, events, None, engine="fused")
            assert torch.equal(found, engines.log_prob(flow, events, None, engine="eager"))
    assert [r.message for r in caplog.records] == [
        "flows run without fused kernels: they need a CUDA GPU, and the tensors are on 'cpu'"
    ]


@pytest.mark.parametrize(
    "flow",
    [build_flow("maf", 3, 2), build_flow("nsf", 3, 2, hidden_features=200), build_flow("nsf", 3, 2, bins=40)],
    ids=["autoregressive", "wide", "many bins"],
)
def test_other_flows_are_not_fused(flow):
    assert fused_flow(flow, torch.device("cpu")) is None

"""`python -m benchmarks`: what it is told, what it runs, and what is left of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def command(*arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required"),
        (("run", "posteriors"), "expected one of posterior, surrogate, integrate, anomaly, flows; got 'posteriors'"),
        (("run", "--device", "tpu"), "invalid choice"),
        (("table", "posterior"), "unrecognized arguments"),
        (("run", "--quick", "--device", "cuda"), "no CUDA device"),
    ],
)
def test_wrong_use_is_told(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_tiny_job(monkeypatch, tmp_path, capfd):
    """A quick script runs to its table; nothing of the full figures is touched."""
    from benchmarks import __main__ as benchmarks

    tiny = benchmarks.Script("integration.lattice", ("--side", "2", "--couplings", "6.975", "--steps", "3"))
    broken = benchmarks.Script("integration.lattice", ("--side", "two"))
    monkeypatch.setitem(benchmarks.JOBS, "flows", (tiny,))
    monkeypatch.setitem(benchmarks.JOBS, "anomaly", (broken,))
    full = {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert benchmarks.main(["run", "flows", "flows", "anomaly", "--quick", "--out", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert "[1/2] flows: integration.lattice ..." in err
    assert "argument --side: invalid int value: 'two'" in err
    (row,) = json.loads((tmp_path / "lattice.json").read_text())["rows"]
    assert row["side"] == 2
    assert "Boltzmann generator and Hamiltonian Monte Carlo" in out
    assert "| flows | integration.lattice |" in out
    assert full == {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("*.json")}


def test_every_job_has_a_script_that_exists():
    from benchmarks.__main__ import JOBS

    for scripts in JOBS.values():
        for script in scripts:
            text = (ROOT / "benchmarks" / f"{script.module.replace('.', '/')}.py").read_text()
            for option in (word for word in script.quick if word.startswith("--")):
                assert f'"{option}"' in text

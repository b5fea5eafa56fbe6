"""What the README shows runs as it stands there, with fewer simulations."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FEWER = {"20000": "2000", "20_000": "2_000", "50_000": "5_000"}
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    for many, few in FEWER.items():
        found = [block.replace(many, few) for block in found]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (simulator,) = (block for block in blocks("python") if block.startswith("# decay.py"))
    (folder / "decay.py").write_text(simulator)
    (folder / "measured.csv").write_text("\n".join(str(round(100 * 0.8**i) + 2) for i in range(20)))
    return folder


def run(command, folder):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MPLBACKEND": "agg"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.mark.slow
def test_the_shell_example(folder):
    (script,) = (block for block in blocks("sh") if "-o simulations.h5" in block)
    run(["bash", "-euc", script], folder)
    for name in ("simulations.h5", "fresh.h5", "posterior.safetensors", "calibration.png", "draws.h5", "corner.png"):
        assert (folder / name).stat().st_size > 1000, name


@pytest.mark.slow
def test_the_python_examples(folder):
    scripts = [block for block in blocks("python") if not block.startswith("# decay.py")]
    assert len(scripts) == 9
    output = run([sys.executable, "-W", "error", "-c", "\n".join(scripts)], folder).stdout
    assert "pareto_k" in output


@pytest.mark.slow
def test_the_analysis_from_one_file(folder):
    (text,) = (block for block in blocks("toml") if block.startswith("# decay.toml"))
    (folder / "decay.toml").write_text(text)
    fewer = ["budget={ simulations = 200, calibration = 20, draws = 200, predictive = 400 }"]
    fewer += ["method={ name = 'npe', augment = false, training.epochs = 1 }"]
    run(["sbi-physics", "run", "decay.toml", *(part for one in fewer for part in ("--set", one))], folder)
    assert (folder / "decay-run" / "report.html").stat().st_size > 10_000


def test_the_make_targets_and_paths_exist():
    targets = re.findall(r"`?make (\w+)", TEXT)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    for folder in re.findall(r"(\w+)/  ", TEXT):
        assert (ROOT / folder).is_dir() or (ROOT / "sbi_physics" / folder).is_dir(), folder

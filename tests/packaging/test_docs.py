"""The pages of docs/: the first analysis runs as it stands there, with fewer simulations, and links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if page.parent.name != "site")]
FEWER = {
    "20000": "1000",
    "20_000": "1_000",
    "1_000, seed=1": "200, seed=1",
    "-n 1000": "-n 200",
    "10_000": "1_000",
    "NPE(simulations.parameters)": "NPE(simulations.parameters, augment=False, config=QUICK)",
    "posterior fit": "posterior fit --epochs 2",
    "measured, 20_000, seed=0": "measured, 1_000, seed=0, max_pareto_k=100.0",
}
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def text(page):
    return page.read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", text(DOCS / "first_analysis.md"), flags=re.MULTILINE | re.DOTALL)
    quick = []
    for block in found:
        for before, after in sorted(FEWER.items(), key=lambda pair: -len(pair[0])):
            block = block.replace(before, after)
        quick.append(block)
    return quick


@pytest.fixture
def folder(tmp_path):
    (simulator,) = (block for block in blocks("python") if block.startswith("# cooling.py"))
    (tmp_path / "cooling.py").write_text(simulator)
    (tmp_path / "measured.csv").write_text("\n".join(str(25 + 60 * 0.9**i) for i in range(15)))
    return tmp_path


def run(command, folder):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_analysis_runs(folder):
    scripts = [block for block in blocks("python") if not block.startswith("# cooling.py")]
    quick = "from sbi_physics.train.config import TrainConfig\nQUICK = TrainConfig(epochs=15)\n"
    run([sys.executable, "-c", quick + "\n".join(scripts)], folder)
    for name in ("cooling.safetensors", "corner.png", "both.png"):
        assert (folder / name).stat().st_size > 1000, name


@pytest.mark.slow
def test_the_first_analysis_runs_from_the_shell(folder):
    (script,) = blocks("sh")
    run(["bash", "-euc", script], folder)
    for name in ("simulations.h5", "fresh.h5", "posterior.safetensors", "calibration.png", "draws.h5", "corner.png"):
        assert (folder / name).stat().st_size > 1000, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(prose):
        target = link.split("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name}: {link}"


def test_the_index_names_every_page():
    named = {(DOCS / link).resolve() for link in LINK.findall(text(DOCS / "README.md")) if link.endswith(".md")}
    missing = [str(page.relative_to(DOCS)) for page in PAGES[1:] if page.resolve() not in named]
    assert missing in ([], ["README.md"])


def test_code_and_tests_that_the_status_names_exist():
    for path in re.findall(r"`((?:tests|simulators|sbi_physics|benchmarks)/[\w/.]+)`", text(DOCS / "status.md")):
        assert (ROOT / path).exists(), path

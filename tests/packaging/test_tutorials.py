"""The tutorials run as they stand there, with fewer events."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
FEWER = {
    "200_000": "600",
    "100_000": "1_000",
    "30_000": "500",
    "steps=2_000": "steps=300",
    "steps=1_000": "steps=100",
    "40_000": "6_000",
    "20_000": "2_000",
    "10_000": "1_000",
    "5_000": "1_000",
    "max_pareto_k=1.0": "max_pareto_k=100.0",
    "sample(50,": "sample(2,",
    'epochs": 10': 'epochs": 1',
}
# Settings which make a short fit, where a tutorial leaves them to the defaults.
QUICK = {
    "signal_region=(3.3, 3.7)": "signal_region=(3.3, 3.7), config={'epochs': 2}, members=1",
    'OutlierDetector("nsf")': 'OutlierDetector("nsf", config={"epochs": 1})',
    "sp.Upsampler()": "sp.Upsampler(config={'epochs': 2})",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.md")))
def test_a_tutorial_runs(name, tmp_path):
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    for before, after in (FEWER | QUICK).items():
        script = script.replace(before, after)
    if "fetch(" in script and "SBI_PHYSICS_DATA" not in os.environ:
        pytest.skip("needs public data: set SBI_PHYSICS_DATA to a folder that holds them")
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pictures_are_there():
    for path in FOLDER.glob("*.md"):
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / picture).resolve().is_file(), f"{path.name}: {picture}"

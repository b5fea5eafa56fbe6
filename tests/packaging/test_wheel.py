import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from pathlib import Path
import sbi_physics
from sbi_physics.core.resources import shipped
from sbi_physics.store.datasets import available, fetch
from simulators.radial_velocity import k2_24

here = Path(sys.argv[1])
assert Path(sbi_physics.__file__).is_relative_to(here), sbi_physics.__file__
table = shipped("radial_velocity/epic203771098.csv")
assert table.is_relative_to(here / "sbi_physics" / "_data"), table
assert "radial_velocity" in [dataset.name for dataset in available()]
assert fetch("radial_velocity", progress=False)["epic203771098.csv"] == table
assert len(k2_24().observed) == 32
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_both_packages_and_the_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        *("sbi_physics/__init__.pyi", "sbi_physics/py.typed", "simulators/two_moons.py"),
        "sbi_physics/models/flows/native/coupling.c",
        *(f"sbi_physics/models/native/{name}" for name in ("hurdle.c", "lanes.h", "rows.h")),
        "sbi_physics/surrogate/native/showers.c",
        *("sbi_physics/_data/registry.toml", "sbi_physics/_data/radial_velocity/epic203771098.csv"),
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "data/")) or ".pyc" in name]


def test_the_wheel_works_outside_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {k: v for k, v in os.environ.items() if k not in ("SBI_PHYSICS_DATA", "SBI_PHYSICS_CACHE")}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, tmp_path / "site"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""

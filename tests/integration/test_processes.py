"""From names to integrands."""

import importlib
import tomllib
from pathlib import Path

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.integration.cross_section import CrossSection
from sbi_physics.integration.processes import available_processes, resolve_integrand
from simulators.muon_pairs import muon_pairs

USER_FILE = """
import torch
from sbi_physics.core.initial_states import AtRest
from sbi_physics.core.processes import Process

class Volume:
    dims = 3
    def __call__(self, u):
        return u.prod(-1)

def process():
    return Process("own", AtRest(10.0), (0.0, 0.0), lambda _, p: torch.ones(len(p), dtype=p.dtype), unit="GeV")

volume, number = Volume(), 3

def broken():
    raise KeyError("mass")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of somebody else's that names one process, and one that cannot be loaded."""
    about = tmp_path / "others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[sbi_physics.processes]\nfrom_elsewhere = simulators.muon_pairs:muon_pairs\nmissing = no_such_module:f\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(USER_FILE)
    return path


def test_processes_of_other_packages_are_found_by_name(installed):
    assert "from_elsewhere" in available_processes()
    found = resolve_integrand("from_elsewhere")
    assert isinstance(found, CrossSection)
    assert found.name == "muon_pairs"
    with pytest.raises(UsageError, match="integrand missing: cannot be made: ModuleNotFoundError"):
        resolve_integrand("missing")


def test_every_process_that_the_project_names_can_be_integrated():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = project["entry-points"]["sbi_physics.processes"]
    assert set(named) == {"muon_pairs", "three_jets", "top_decay", "drell_yan"}
    for name, place in named.items():
        module, function = place.split(":")
        integrand = resolve_integrand(getattr(importlib.import_module(module), function)())
        assert integrand.name == name
        assert integrand(torch.full((2, integrand.dims), 0.4, dtype=torch.float64)).shape == (2,)


def test_objects_are_taken_as_they_are():
    integrand = CrossSection.of(muon_pairs())
    assert resolve_integrand(integrand) is integrand
    assert resolve_integrand(muon_pairs()).dims == 2


def test_files_hold_processes_and_integrands(user_file):
    assert resolve_integrand(f"{user_file}:process").unit == "GeV"
    assert resolve_integrand(f"{user_file}:volume").dims == 3
    assert resolve_integrand(f"{user_file}:Volume").dims == 3


def test_what_cannot_be_integrated_is_refused(user_file):
    for spec, message in (
        ("no_such", r"expected a name \(.*\) or path/file.py:name, got 'no_such'"),
        (f"{user_file}:nothing", "has no 'nothing'"),
        (f"{user_file}:number", "expected a Process, or an object with dims"),
        (f"{user_file}:broken", "cannot be made: KeyError: 'mass'"),
        (f"{user_file.parent / 'other.py'}:f", "no such file"),
        (3, "got a int"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_integrand(spec)

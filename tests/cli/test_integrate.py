"""Integrals on the command line, of a user's own functions and of processes."""

import math

import pylhe
import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.errors import StoreError
from sbi_physics.store.event_files import read_events

FUNCTIONS = """
import numpy as np
import torch


def with_numpy(u):
    return np.exp(-np.sum(np.asarray(u) ** 2, axis=1))


def with_torch(u):
    return torch.exp(-(u**2).sum(1))


class Known:
    dims = 3
    __call__ = staticmethod(with_torch)


known = Known()


def partly(u):
    return torch.where(u[:, 0] > 0.9, torch.nan, 1.0)


def nowhere(u):
    return torch.zeros(len(u))
"""
EXACT = (math.sqrt(math.pi) / 2 * math.erf(1)) ** 3


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("integrate") / "my.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.mark.parametrize("name", ["with_numpy", "with_torch", "known"])
def test_a_function_of_a_file(functions, result, name, tmp_path):
    dims = [] if name == "known" else ["--dims", 3]
    out = tmp_path / "events.h5"
    found = result("integrate", f"{functions}:{name}", *dims, "--rel-error", 1e-3, "-o", out, "--events", 500)
    assert abs(found["value"] - EXACT) < 3.5 * found["error"]
    assert found["trusted"]
    arrays, attributes = read_events(out)
    assert arrays["points"].shape == (500, 3)
    assert torch.equal(sp.load(out)["points"], arrays["points"])
    assert found["unweighting_efficiency"] > 0.5
    assert attributes["value"] == found["value"]
    assert attributes["verdict"] == "trusted"


def test_a_process_becomes_a_file_of_events(result, tmp_path):
    out = tmp_path / "muons.lhe"
    found = result(
        "integrate", "muon_pairs", "--rel-error", 1e-3, "-o", out, "--events", 200, "--incoming", "11,-11",
        "--outgoing", "13,-13",
    )  # fmt: skip
    assert found["unit"] == "pbarn"
    events = list(pylhe.LHEFile.fromfile(str(out)).events)
    assert len(events) == 200
    assert [p.id for p in events[0].particles] == [11, -11, 13, -13]
    total = [sum(p.status * p.e for p in event.particles) for event in events]
    assert max(map(abs, total)) < 1e-4
    assert sum(event.eventinfo.weight for event in events) / 200 == pytest.approx(found["value"], rel=1e-4)


def test_values_that_are_not_finite_count_as_zero_where_that_is_asked_for(functions, result):
    found = result("integrate", f"{functions}:partly", "--dims", 2, "--non-finite-as-zero", "--rel-error", 1e-2)
    assert abs(found["value"] - 0.9) < 3.5 * found["error"]
    assert not found["trusted"]
    assert "were not finite and count as zero" in found["verdict"]


def test_what_is_wrong_is_one_line(functions, program, tmp_path):
    for words, text in [
        ((f"{functions}:nowhere", "--dims", 3, "--calls", 50_000), "integrand: it was zero at "),
        ((f"{functions}:missing", "--dims", 3), "has no 'missing'"),
        ((f"{functions}:partly", "--dims", 3), "got nan at u = "),
        ((f"{functions}:with_torch",), "a plain function needs --dims N, the number of its variables"),
        (("no_such_process",), "expected a name"),
        ((f"{functions}:with_torch", "--dims", 3, "-o", tmp_path / "a.lhe"), "expected --incoming and --outgoing"),
        ((f"{functions}:with_torch", "--dims", 3, "-o", tmp_path / "a.csv"), "HDF5 is written here"),
        ((f"{functions}:with_torch", "--dims", 3, "--calls", 10), "expected at least 2,000"),
    ]:
        status, _, err = program("integrate", *words)
        assert status in (1, 2)
        assert text in err
        assert "Traceback" not in err


def test_files_that_are_no_events_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        read_events(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("no events")
    with pytest.raises(StoreError, match=r"text\.h5"):
        read_events(tmp_path / "text.h5")

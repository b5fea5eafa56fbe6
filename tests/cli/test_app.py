import json
import math
import os
import subprocess
import sys

import pytest

import sbi_physics
from sbi_physics.cli.common import foreign_code, to_json

VERBS = [
    *([], ["simulate"], ["demo"], ["doctor"], ["report"], ["data"], ["data", "list"], ["data", "fetch"], ["posterior"]),
    *(["posterior", verb] for verb in ("fit", "sample", "check", "compare")),
    *(["surrogate", *verb] for verb in ([], ["fit"], ["sample"], ["check"])),
]

SCRIPT = """
import sys
from sbi_physics.cli.app import main
for verb in {verbs}:
    try:
        main([*verb, "--help"])
    except SystemExit as end:
        assert not end.code, verb
    heavy = {{"torch", "numpy", "scipy", "matplotlib", "h5py", "pooch", "emcee", "astropy"}} & set(sys.modules)
    assert not heavy, (verb, heavy)
"""


def test_help_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(verbs=VERBS)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: sbi-physics") == len(VERBS)


@pytest.mark.parametrize("verb", [[], ["posterior"], ["data"]])
def test_without_a_verb_comes_the_help(verb, program):
    status, out, err = program(*verb)
    assert status == 2
    assert "Usage: sbi-physics" in out + err
    assert "Traceback" not in err


def test_version(program):
    assert program("--version") == (0, f"sbi-physics {sbi_physics.__version__}\n", "")


def test_doctor(result, program):
    values = result("doctor")
    assert {
        *("sbi_physics", "python", "platform", "versions", "cuda_devices", "cores", "torch_threads", "compiler"),
        *("data_cache", "data_sets", "simulators", "missing", "optional_missing", "advice"),
    } == set(values)
    assert values["missing"] == []
    assert "two_moons" in values["simulators"]
    assert values["data_sets"]["radial_velocity"] == "shipped"
    status, out, _ = program("doctor")
    assert status == 0
    assert "nothing required is missing" in out


def test_doctor_says_what_is_missing_and_how_to_get_it(program, monkeypatch):
    from sbi_physics.cli import doctor

    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "a-package-that-is-not"))
    status, out, _ = program("doctor", "--json")
    assert status == 1
    values = json.loads(out)
    assert values["missing"] == ["a-package-that-is-not"]
    assert "pip install --upgrade sbi-physics" in values["advice"]


def test_data(result, program):
    listed = {one["name"]: one for one in result("data", "list")["datasets"]}
    assert listed["radial_velocity"]["location"] == "shipped"
    assert set(listed["radial_velocity"]) == {
        "name",
        "location",
        "description",
        "licence",
        "citation",
        "files",
        "bytes",
    }
    fetched = result("data", "fetch", "radial_velocity")
    (path,) = [path for name, path in fetched["files"].items() if name.endswith(".csv")]
    assert os.path.isfile(path)
    status, out, _ = program("data", "fetch", "radial_velocity")
    assert (status, out.strip()) == (0, path)


def test_data_sets_come_with_licence_and_citation(program, result):
    """For people as in JSON."""
    _, out, _ = program("data", "list")
    datasets = result("data", "list")["datasets"]
    names = {"cms_dijet", "lhco", "nanograv15", "pta_freespec", "radial_velocity", "union3"}
    assert {one["name"] for one in datasets} == names
    for one in datasets:
        assert f"licence: {one['licence']}" in out
        assert f"cite: {one['citation']}" in out


def test_json_is_strict():
    values = {"k": math.inf, "rows": [1.5, -math.inf, (math.nan, "inf")], "deep": {"n": math.nan, "b": True, "z": None}}
    strict = {"k": None, "rows": [1.5, None, [None, "inf"]], "deep": {"n": None, "b": True, "z": None}}
    assert json.loads(to_json(values), parse_constant=pytest.fail) == strict


def test_foreign_code_gives_standard_output_back(capfd):
    def noisy():
        print("python")
        os.write(1, b"system\n")
        raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"), foreign_code():
        noisy()
    print("result")
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert "python" in err
    assert "system" in err

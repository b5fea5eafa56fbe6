import pytest

from sbi_physics.core.errors import UsageError
from sbi_physics.simulation.resolve import available_simulators, resolve_simulator, simulator_name


@pytest.mark.parametrize("name", ["Good", "make", "good"])
def test_class_factory_and_instance_in_a_file(name, user_file):
    simulator = resolve_simulator(f"{user_file}:{name}")
    assert simulator.parameters.names == ("a", "b")
    assert simulator_name(simulator) == "user_simulators.py:Good"


def test_an_object_passes_through(user):
    simulator = user("Good")
    assert resolve_simulator(simulator) is simulator


def test_installed_simulators_are_listed():
    assert "two_moons" in available_simulators()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "nothing_of_that_name",
            r"expected a name \(.*two_moons.*\), path/file.py:Class, path/program.toml or path/surrogate.safetensors, "
            "got 'nothing_of_that_name'",
        ),
        ("missing.py:Good", "no such file"),
        ("{file}:Nothing", "has no 'Nothing'; it defines: .*Good"),
        ("{file}:not_a_simulator", "expected an object that can be called"),
        ("{file}:broken", "cannot be made: RuntimeError: no such table"),
        (3, "can be called with"),
        (len, "needs an attribute 'parameters'"),
    ],
)
def test_wrong_specifications(spec, message, user_file):
    with pytest.raises(UsageError, match=message):
        resolve_simulator(spec.replace("{file}", str(user_file)) if isinstance(spec, str) else spec)


def test_a_class_instead_of_an_object(user):
    with pytest.raises(UsageError, match="the class Good"):
        resolve_simulator(type(user("Good")))


def test_a_file_that_does_not_run(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def broken(:\n")
    with pytest.raises(UsageError, match="cannot be loaded: SyntaxError"):
        resolve_simulator(f"{path}:X")


def test_a_function_without_parameters_is_told_what_it_lacks(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("def decay(theta, *, seed):\n    return theta\n")
    with pytest.raises(UsageError, match=r"decay needs theta, seed; expected .* with an attribute 'parameters'"):
        resolve_simulator(f"{path}:decay")


def test_columns_taken_for_rows_are_told(tmp_path, run, caplog):
    path = tmp_path / "model.py"
    path.write_text(
        "import sbi_physics as sp\nfrom torch.distributions import Uniform\n"
        "def model(theta, *, seed):\n    a, b = theta\n    return a\n"
        "model.parameters = sp.Parameters([sp.Parameter(n, Uniform(0.0, 1.0)) for n in 'ab'])\n"
    )
    assert run(f"{path}:model", 8, workers=1).counts()["ok"] == 0
    assert "theta.unbind(-1) gives its columns" in caplog.text


def test_a_file_may_import_its_neighbours(tmp_path, user_file, run):
    (tmp_path / "neighbour_of_the_model.py").write_text(user_file.read_text())
    path = tmp_path / "model.py"
    path.write_text("from neighbour_of_the_model import Good\nclass Model(Good):\n    pass\n")
    assert run(f"{path}:Model", 8, workers=2, block_size=4).counts()["ok"] == 8

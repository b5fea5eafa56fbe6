"""Programs as simulators: how values go in and numbers come out, and all that can go wrong with a run."""

import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.cli.app import main
from sbi_physics.simulation.rowwise import RowResult, RowwiseSimulator
from sbi_physics.store.layout import Status

C = Path(__file__).parent / "linear.c"
# The same program for machines without a compiler.
PYTHON = """
import random, sys, time, os
offset, slope, seed = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
luck = random.random()
if luck < 0.02:
    sys.exit("step 7: no convergence")
if luck < 0.0205:
    time.sleep(1000)
if luck < 0.0225:
    os.abort()
print(*(offset + slope * (i - 1) + random.gauss(0, 0.5) for i in range(5)))
"""
UNIFORM = {"family": "Uniform", "low": 0.0, "high": 1.0}
THETA = torch.tensor([[0.25, 0.5], [0.75, 0.125]])


def script(folder, text, name="program.py"):
    path = folder / name
    path.write_text(f"#!{sys.executable} -IS\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A simulator of a Python program with the parameters a and b; scratch files go to a folder that we can watch."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def build(text, arguments=("{a}", "{b}", "{seed}"), **more):
        script(tmp_path, text)
        parameters = [{"name": name, "prior": UNIFORM} for name in "ab"]
        description = {"command": ["./program.py", *arguments], "parameters": parameters, **more}
        return sp.ExecutableSimulator(description, folder=tmp_path)

    return build


def one(simulator, seed=1):
    return simulator.simulate_rows(THETA[:1], seed=seed)[0]


# How values go in


def test_arguments_are_exact_and_go_through_no_shell(make):
    simulator = make("import sys\nprint(*sys.argv[1:3], len(sys.argv), int(sys.argv[3] == '$(x); *'))",
                     ("{a}", "{b:.1e}", "$(x); *"))  # fmt: skip
    theta = torch.rand(3, 2)
    x = simulator(theta, seed=0)
    assert torch.equal(x[:, 0].float(), theta[:, 0])
    assert torch.allclose(x[:, 1].float(), theta[:, 1], rtol=0.06)
    assert (x[:, 2:] == torch.tensor([4.0, 1.0])).all()


def test_environment_inputs_links_and_places(make, tmp_path):
    (tmp_path / "table.dat").write_text("7")
    (tmp_path / "card.template").write_text('{"b": {b:.3f}, "n": {{seed}}, "set": {1, 2}}')
    text = """
import os, re
card = open("cards/run.card").read()
assert card.endswith('"n": {seed}, "set": {1, 2}}'), card
assert os.getcwd() == os.environ["WHERE"] and "HOME" not in os.environ
print(os.environ["A"], re.search("[0-9.]+", card)[0], open("table.dat").read(), open("note").read())
"""
    simulator = make(
        text,
        (),
        environment={"A": "{a}", "WHERE": "{scratch}"},
        inherit_environment=False,
        inputs=[{"path": "cards/run.card", "template": "card.template"}, {"path": "note", "text": "{seed:d}"}],
        links=["table.dat"],
        seed_bits=16,
    )
    result = one(simulator)
    assert result.error == ""
    np.testing.assert_allclose(result.x, [0.25, 0.5, 7, result.seed])
    assert result.seed < 2**16


def test_rows_have_seeds_of_their_own_that_are_recorded(make):
    simulator = make("import sys\nprint(sys.argv[3])")
    simulations = sp.simulate(simulator, 6, seed=5, block_size=3, progress=False)
    assert len(set(simulations.seeds)) == 6
    assert torch.equal(
        simulations.x[:, 0] if simulations.x.ndim > 1 else simulations.x, torch.tensor(simulations.seeds).float()
    )
    again = sp.simulate(simulator, 6, seed=5, block_size=3, progress=False)
    assert again.seeds == simulations.seeds


# How numbers come out

WRITE = """
import sys
import numpy as np
a, b = map(float, sys.argv[1:3])
values = np.array([[a, b], [1.0, 2.0], [3.0, 4.0]])
"""


CSV = "np.savetxt('x.csv', values, delimiter=',', header='u,v', comments='')"


@pytest.mark.parametrize(
    ("write", "output", "expected"),
    [
        ("np.save('x.npy', values)", {"file": "x.npy"}, "all"),
        ("np.save(open('x.out', 'wb'), values)", {"file": "x.out", "format": "npy"}, "all"),
        ("np.savez('x.npz', u=values, v=values[0])", {"file": "x.npz", "where": "v"}, "first"),
        ("np.savetxt('x.txt', values)", {"file": "x.txt"}, "all"),
        ("np.savetxt('x.txt', values)", {"file": "x.txt", "shape": [6]}, "flat"),
        (CSV, {"file": "x.csv"}, "all"),
        (CSV, {"file": "x.csv", "columns": ["v"]}, "v"),
        ("import h5py; h5py.File('x.h5', 'w')['g/x'] = values", {"file": "x.h5", "where": "/g/x"}, "all"),
        ("import h5py; h5py.File('x.h5', 'w')['g/x'] = values", {"file": "x.h5"}, "all"),
        ("import uproot; uproot.recreate('x.root')['t'] = {'u': values[:, 0], 'v': values[:, 1]}",
         {"file": "x.root", "columns": ["u", "v"]}, "all"),
        ("print('# a comment'); print(a, b, sep=', ')", {}, "first"),
    ],
)  # fmt: skip
def test_formats(write, output, expected, make, tmp_path):
    if "uproot" in write:
        pytest.importorskip("uproot")
    simulator = make(WRITE + write, outputs=[output])
    program = tmp_path / "program.py"
    program.write_text(program.read_text().replace(" -IS", ""))
    values = np.array([[0.25, 0.5], [1, 2], [3, 4]])
    wanted = {"all": values, "first": values[0], "flat": values.ravel(), "v": values[:, 1]}[expected]
    result = one(simulator)
    assert result.error == ""
    np.testing.assert_array_equal(result.x, wanted)


@pytest.mark.parametrize("where", [None, "weights", "cross-section"])
def test_les_houches_events(where, make, tmp_path):
    pytest.importorskip("pylhe")
    from sbi_physics.store.event_files import write_lhe

    momenta = torch.tensor([[[3.0, 0, 0, 3.0], [3.0, 0, 0, -3.0]], [[2.0, 0, 2.0, 0], [2.0, 0, -2.0, 0]]])
    write_lhe(tmp_path / "made.lhe", momenta, momenta, torch.ones(2), incoming_ids=[11, -11],
              outgoing_ids=[13, -13], cross_section=5.0, error=0.1)  # fmt: skip
    simulator = make(
        "import shutil, sys\nshutil.copy('made.lhe', 'events.lhe')",
        links=["made.lhe"],
        outputs=[{"file": "events.lhe", "where": where}],
    )
    result = one(simulator)
    assert result.error == ""
    wanted = {None: momenta[..., [1, 2, 3, 0]].numpy(), "weights": [5.0, 5.0], "cross-section": 5.0}[where]
    np.testing.assert_allclose(result.x, wanted)


def test_named_outputs(make):
    simulator = make(
        "import sys\nopen('u.txt', 'w').write('1 2')\nprint(sys.argv[1])",
        outputs=[{"name": "u", "file": "u.txt"}, {"name": "v"}],
    )
    x = sp.simulate(simulator, 4, progress=False).x
    assert {name: tuple(values.shape) for name, values in x.items()} == {"u": (4, 2), "v": (4, 1)}


# What goes wrong with a run


@pytest.mark.parametrize(
    ("text", "more", "status", "error"),
    [
        ("import sys; sys.exit('no\\n convergence')", {}, Status.FAILED, "exit code 1: no convergence"),
        ("import sys; print('to stdout'); sys.exit(7)", {}, Status.FAILED, "exit code 7: to stdout"),
        ("import sys; print(1); sys.exit(4)", {"failure_codes": [3]}, Status.OK, ""),
        ("import sys; print(1); sys.exit(3)", {"failure_codes": [3]}, Status.FAILED, "exit code 3: 1"),
        ("import os; os.abort()", {}, Status.CRASHED, "ended by signal SIGABRT"),
        ("import time; print(1, flush=True); time.sleep(100)", {"timeout": 0.5}, Status.TIMEOUT,
         "took longer than 0.5 seconds: 1"),
        ("pass", {}, Status.FAILED, "standard output: the file is empty"),
        ("print('all is well')", {}, Status.FAILED, "standard output: there are no numbers in it: all is well"),
        ("pass", {"outputs": [{"file": "x.txt"}]}, Status.FAILED, "x.txt: no such file"),
        ("open('x.npy', 'w').write('junk')", {"outputs": [{"file": "x.npy"}]}, Status.FAILED, "x.npy: cannot be read"),
        ("print(1, 2)", {"outputs": [{"shape": [3]}]}, Status.FAILED, "expected numbers of shape (3,), got (2,)"),
        ("x = bytearray(10**9); print(1)", {"memory_limit": "200 MB"}, Status.FAILED, "MemoryError"),
        ("print(len(bytearray(10**7)))", {"memory_limit": "200 MB"}, Status.OK, ""),
    ],
)  # fmt: skip
def test_what_becomes_of_a_run(text, more, status, error, make, tmp_path):
    result = one(make(text, **more))
    assert (result.x is not None) == (status == Status.OK)
    if result.x is None:
        assert result.status == status
        assert error in result.error
        assert "\n" not in result.error
        assert "sbi-physics-" not in result.error


def test_a_bad_run_costs_one_run(make, tmp_path):
    simulator = make(
        f"import sys\nopen({str(tmp_path / 'calls')!r}, 'a').write('.')\n"
        "if float(sys.argv[1]) > 0.7: sys.exit('too large')\n"
        "print('nan' if float(sys.argv[1]) < 0.2 else sys.argv[1], 2, *([3] if float(sys.argv[2]) > 0.9 else []))"
    )
    simulations = sp.simulate(simulator, 60, block_size=20, progress=False)
    assert (tmp_path / "calls").stat().st_size == 60
    a, b = simulations.theta.T
    wide = (b > 0.9) & (a <= 0.7)
    assert int(wide.sum()) > 0
    assert torch.equal(simulations.ok, (a <= 0.7) & (a >= 0.2) & ~wide)
    assert simulations.counts()["nonfinite"] == int(((a < 0.2) & ~wide).sum())
    texts = set(simulations.errors.values())
    assert any("expected x of shape (2,)" in text for text in texts)
    assert "exit code 1: too large" in texts


def test_no_success_at_all(make):
    simulator = make("import sys; sys.exit('no licence')")
    simulations = sp.simulate(simulator, 5, progress=False)
    assert simulations.counts()["failed"] == 5
    with pytest.raises(sp.SimulationError, match="none of 2 runs succeeded: exit code 1: no licence"):
        simulator(THETA, seed=0)


def alive(path):
    """Whether the process whose number is in a file is there."""
    try:
        state = Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
open({path!r}, "w").write(str(child.pid))
print(1, flush=True)
time.sleep({seconds})
"""


@needs_proc
@pytest.mark.parametrize("seconds", [0, 1000])
def test_what_a_program_started_goes_with_it(seconds, make, tmp_path):
    path = tmp_path / "pid"
    result = one(make(CHILD.format(path=str(path), seconds=seconds), timeout=1.5))
    assert (result.x is None) == (seconds > 0)
    assert path.exists()
    assert not alive(path)


@needs_proc
def test_when_we_are_killed_the_program_and_its_files_go(make, tmp_path):
    make(CHILD.format(path=str(tmp_path / "pid"), seconds=1000))
    code = (
        "import sbi_physics as sp, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path / 'scratch')!r}\n"
        f"p = [{{'name': n, 'prior': {UNIFORM}}} for n in 'ab']\n"
        "d = {'command': ['./program.py', '{a}', '{b}'], 'parameters': p}\n"
        f"sp.simulate(sp.ExecutableSimulator(d, folder={str(tmp_path)!r}), 3, workers=1, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert alive(tmp_path / "pid")
    process.send_signal(signal.SIGKILL)
    process.wait()
    while alive(tmp_path / "pid") or list((tmp_path / "scratch").iterdir()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_scratch_goes_and_failed_runs_are_kept_if_asked(make, tmp_path):
    text = "import sys\nopen('log', 'w').write('deep')\nif float(sys.argv[1]) > 0.5: sys.exit('bad')\nprint(1)"
    simulator = make(text, keep_failed=str(tmp_path / "kept"))
    good, bad = simulator.simulate_rows(THETA, seed=1)
    kept = tmp_path / "kept" / f"run-{bad.seed}"
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [kept.name]
    assert (kept / "log").read_text() == "deep"
    assert (kept / "stderr.txt").read_text() == "bad\n"
    assert good.x is not None
    (session,) = (tmp_path / "scratch").iterdir()
    assert not (session / "run").exists() or not list((session / "run").iterdir())
    simulator._runner().close()
    assert not list((tmp_path / "scratch").iterdir())
    assert one(simulator).x is not None


def test_it_travels_to_other_processes(make, digest, tmp_path):
    simulator = make("import random, sys\nrandom.seed(int(sys.argv[3]))\nprint(sys.argv[1], random.random())")
    again = pickle.loads(pickle.dumps(simulator))
    assert again.name == simulator.name
    for workers in (1, 2):
        sp.simulate(again, 40, workers=workers, out=tmp_path / f"{workers}.h5", progress=False)
    assert digest(tmp_path / "1.h5") == digest(tmp_path / "2.h5")


def test_another_description_is_another_simulator(make):
    names = {make("pass", **more).name for more in ({}, {"timeout": 3}, {"outputs": [{"shape": [2]}]})}
    assert len(names) == 3
    assert make("pass", scratch="/nowhere").name in names
    assert make("pass", name="decay").name.startswith("decay-")


# The protocol by which any simulator may report its failures


class HalfFails:
    parameters = sp.Parameters([sp.Parameter("a", torch.distributions.Uniform(0.0, 1.0))])

    def __init__(self):
        self.calls = []

    def __call__(self, theta, *, seed):
        raise AssertionError("not asked")

    def simulate_rows(self, theta, *, seed):
        self.calls.append(len(theta))
        return [RowResult(a) if float(a) < 0.5 else RowResult(None, Status.CRASHED, "over\nhalf") for a in theta]


def test_a_simulator_that_reports_its_failures_is_called_once():
    simulator = HalfFails()
    assert isinstance(simulator, RowwiseSimulator)
    simulations = sp.simulate(simulator, 40, block_size=10, progress=False)
    assert simulator.calls == [10] * 4
    assert torch.equal(simulations.ok, simulations.theta[:, 0] < 0.5)
    assert set(simulations.errors.values()) == {"over half"}
    assert torch.equal(simulations.x[simulations.ok], simulations.theta[simulations.ok])


# The description

GOOD = """
command = ["./program.py", "{a}", "{seed}"]
[[parameters]]
name = "a"
prior = { family = "Uniform", low = 0.0, high = 1.0 }
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('["./program.py", "{a}", "{seed}"]', "'./x {a}'"), "command: expected a valid list, got './x {a}'"),
        (("./program.py", "./nothing.py"), "command[0]: expected a program that can be run, got './nothing.py'"),
        (("{seed}", "{sead}"), "command[2]: expected one of a, seed, scratch, here in braces, got '{sead}'"),
        (("{a}", "{a:>9}"), "command[1]: expected a format such as .6e or 04d, got '>9'"),
        (("{a}", "1"), "parameters[0].name: expected {a} in the command, the environment or an input file"),
        (("command", "comand"), "command: is missing"),
        (("[[", "timeouts = 3\n[["), "timeouts: there is no such key"),
        (("[[", "timeout = -3\n[["), "timeout: expected greater than 0, got -3"),
        (("[[", "timeout = \"3\"\n[["), "timeout: expected a valid number, got '3'"),
        (("[[", "memory_limit = 'much'\n[["), "memory_limit: expected a number of bytes, such as '500 MB', got 'much'"),
        (("[[", "links = [\"../x\"]\n[["), "links: expected the path of a file inside the folder of the run"),
        (("[[", "links = [\"x\"]\n[["), "links[0]: no such file"),
        (("[[", "inputs = [{path = \"c\"}]\n[["), "inputs[0]: expected a template (a file) or a text"),
        (("[[", "inputs = [{path = \"c\", template = \"no\"}]\n[["), "inputs[0].template: cannot be read"),
        (("[[", "outputs = [{file = \"x.bin\"}]\n[["), "outputs[0]: expected a format, one of text, npy"),
        (("[[", "outputs = [{name = \"a/b\"}]\n[["), "outputs[0].name: expected a name of letters"),
        (("[[", "failure_codes = [300]\n[["), "failure_codes[0]: expected less than or equal to 255, got 300"),
        (("Uniform", "Univorm"), "parameters[0].prior: expected a family, one of Beta"),
        (("high = 1.0", "high = \"x\""), "parameters[0].prior: expected a number for each argument"),
        (("high = 1.0", "high = -1.0"), "parameters[0].prior: expected Uniform with low and high"),
        (("high = 1.0", "top = 1.0"), "parameters[0].prior: expected Uniform with low and high"),
        (("name = \"a\"", "name = \"seed\""), "expected names of parameters other than seed, scratch, here"),
        (("name = \"a\"", "name = \"a\"\nunit = \"furlongs\""), "parameters: unit: expected an astropy unit string"),
        (("[[param", "[[param = "), "not a TOML file"),
    ],
)  # fmt: skip
def test_wrong_descriptions_name_the_key(change, message, tmp_path):
    script(tmp_path, "pass")
    path = tmp_path / "model.toml"
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(sp.SBIPhysicsError) as caught:
        sp.ExecutableSimulator(path)
    assert isinstance(caught.value, sp.UsageError | sp.StoreError)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


def test_the_command_line(tmp_path, capsys):
    script(tmp_path, "import sys\nprint(sys.argv[1])")
    (tmp_path / "model.toml").write_text(GOOD)
    out = tmp_path / "runs.h5"
    with pytest.raises(SystemExit) as ended:
        main(["simulate", str(tmp_path / "model.toml"), "-n", "5", "-o", str(out), "--quiet"])
    assert ended.value.code == 0
    assert "5 ok" in capsys.readouterr().out
    assert torch.equal(sp.Simulations.open(out).x, sp.Simulations.open(out).theta)
    with pytest.raises(SystemExit) as ended:
        main(["simulate", str(tmp_path / "no.toml"), "-n", "5", "-o", str(out)])
    assert ended.value.code == 2


# What it is for


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A description of the program that fails and hangs, compiled as a user would."""
    folder = tmp_path_factory.mktemp("linear")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        subprocess.run([compiler, "-O1", "-o", str(folder / "linear"), str(C), "-lm"], check=True)
    else:
        script(folder, PYTHON, "linear")
    prior = '{ family = "Normal", loc = 0.0, scale = 1.0 }'
    (folder / "linear.toml").write_text(
        'command = ["./linear", "{offset}", "{slope}", "{seed}"]\ntimeout = 1.0\nmemory_limit = "500 MB"\n'
        f'[[parameters]]\nname = "offset"\nprior = {prior}\n[[parameters]]\nname = "slope"\nprior = {prior}\n'
    )
    return folder / "linear.toml"


@pytest.mark.slow
def test_a_program_that_fails_and_hangs_is_simulated_and_its_parameters_recovered(linear, tmp_path):
    n = 10_000
    simulations = sp.simulate(str(linear), n, out=tmp_path / "runs.h5", seed=2, workers=2, progress=False)
    counts = simulations.counts()
    assert len(simulations) == sum(counts.values()) == n
    # Each within five sigma of its probability.
    for status, probability in (("failed", 0.02), ("timeout", 0.0005), ("crashed", 0.002)):
        assert abs(counts[status] - n * probability) < 5 * (n * probability) ** 0.5 + 1
        assert counts[status] > 0
    assert set(simulations.errors.values()) == {
        "exit code 3: step 7: no convergence", "took longer than 1 seconds", "ended by signal SIGABRT",
    }  # fmt: skip
    posterior = sp.NPE(simulations.parameters, augment=False).fit(
        tmp_path / "runs.h5", failed="correct", seed=1, progress=False
    )
    # The exact posterior of a line with normal priors and noise.
    design = torch.stack([torch.ones(5), torch.arange(5.0) - 1], 1)
    covariance = torch.linalg.inv(design.T @ design / 0.25 + torch.eye(2))
    generator = torch.Generator().manual_seed(7)
    x_obs = torch.randn(40, 2, generator=generator) @ design.T + 0.5 * torch.randn(40, 5, generator=generator)
    exact = x_obs @ design @ covariance.T / 0.25
    draws = posterior.sample(2000, x_obs, seed=3).values
    sigma = covariance.diagonal().sqrt()
    bias = (draws.mean(1) - exact) / sigma
    width = draws.std(1) / sigma
    # A tenth of a standard deviation on average over observations; single ones, of few simulations around, a third.
    assert float(bias.square().mean().sqrt()) < 0.15
    assert float(bias.abs().max()) < 0.6
    assert float((width - 1).abs().mean()) < 0.1

import json

import numpy as np
import pytest

from sbi_physics.cli.app import main


@pytest.fixture
def program(capfd):
    """Run the program in this process: exit status, standard output, standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return caught.value.code, out, err

    return run


@pytest.fixture
def result(program):
    """Run the program with --json and --quiet; the object that it prints, strictly read."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    def run(*arguments):
        status, out, err = program(*arguments, "--json", "--quiet")
        assert (status, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out, parse_constant=refuse)

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A file of simulations, a posterior trained on it for a moment, and an observation."""
    import sbi_physics as sp
    from sbi_physics.train.config import TrainConfig
    from simulators.two_moons import TwoMoons

    path = tmp_path_factory.mktemp("cli")
    simulations = sp.simulate(TwoMoons(), 400, out=path / "moons.h5", workers=1, progress=False)
    config = TrainConfig(epochs=1)
    sp.NPE(simulations.parameters, transforms=1, hidden_features=8, blocks=1, config=config).fit(
        simulations, progress=False
    ).save(path / "moons.st")
    np.save(path / "x.npy", np.array([0.1, -0.2]))
    return path

"""A simulator in a file of a user, and small analyses of it."""

import pytest

SIMULATOR = '''
import torch
from torch.distributions import Normal, Uniform

import sbi_physics as sp
from offset import OFFSET


class Line:
    """Four measurements of a line, with normal errors of 0.5."""

    parameters = sp.Parameters(
        [sp.Parameter("slope", Uniform(-1.0, 3.0), unit="m / s"), sp.Parameter("start", Normal(0.0, 1.0), unit="m")]
    )
    observed = torch.tensor([0.1, 0.9, 2.2, 2.8])
    times = torch.arange(4.0)

    def _mean(self, theta):
        return theta[..., :1] * self.times + theta[..., 1:] + OFFSET

    def __call__(self, theta, *, seed):
        noise = torch.randn(len(theta), 4, generator=torch.Generator().manual_seed(seed))
        return self._mean(theta) + 0.5 * noise

    def log_likelihood(self, theta, x):
        return Normal(self._mean(theta), 0.5).log_prob(x.to(theta.dtype)).sum(-1)
'''
POSTERIOR = """job = "posterior"
title = "A line"
seed = 1
simulator = "line.py:Line"
[method]
name = "npe"
augment = false
embedding = "flat"
options = { transforms = 1, hidden_features = 8, blocks = 1 }
training = { epochs = 2, checkpoint_seconds = 0 }
[budget]
simulations = 300
calibration = 50
draws = 200
predictive = 400
[correct]
proposals = 2000
max_pareto_k = 5.0
[diagnostics]
calibration_draws = 30
[compute]
workers = 1
device = "cpu"
"""


@pytest.fixture(scope="session")
def line_files():
    """Write the simulator and the analysis into a folder; the path of the analysis."""

    def make(folder, text=POSTERIOR):
        (folder / "line.py").write_text(SIMULATOR)
        (folder / "offset.py").write_text("OFFSET = 0.0\n")
        path = folder / "analysis.toml"
        path.write_text(text)
        return path

    return make


@pytest.fixture(scope="session")
def posterior_text():
    return POSTERIOR


@pytest.fixture(scope="session")
def finished(tmp_path_factory, line_files):
    """A folder with the analysis and its finished run; tests copy it."""
    from sbi_physics.run.run import run_analysis

    folder = tmp_path_factory.mktemp("finished")
    run_analysis(line_files(folder))
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run: the path of its analysis."""
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return folder / "analysis.toml"

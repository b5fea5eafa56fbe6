"""Jobs of a batch system: dask-jobqueue itself, whose scripts run on this machine."""

import pytest

from sbi_physics.core.errors import UsageError
from sbi_physics.run.analysis import read_analysis
from sbi_physics.run.run import run_analysis

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.slow,
    # Jobs that run here are killed and never waited for by dask-jobqueue, and a cluster half made is never closed.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
FARM = {"system": "local", "jobs": 2, "cores": 1, "memory": "1 GB", "worker_extra_args": ["--no-dashboard"]}
ANALYSIS = """
job = "posterior"
simulator = "radial_velocity"
budget = { simulations = 200, calibration = 20, draws = 200, predictive = 400 }
method = { name = "npe", augment = false, training.epochs = 1 }

[compute.cluster]
system = "local"
jobs = 1
cores = 1
memory = "1 GB"
"""


def test_same_bytes_as_here(user, run, digest, tmp_path):
    run(user("Good"), 300, out=tmp_path / "here.h5", workers=1, seed=3)
    run(user("Good"), 300, out=tmp_path / "there.h5", cluster=FARM, seed=3)
    assert digest(tmp_path / "there.h5") == digest(tmp_path / "here.h5")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"system": "slurn"}, "cluster.system: expected .*slurm"),
        ({"system": None}, "cluster.system"),
        ({"jobs": 0}, "cluster.jobs: expected a positive integer|cluster.jobs: expected an integer"),
        ({"core": 3}, "cluster: local: .*core"),
    ],
)
def test_wrong_descriptions(changed, words, user, run):
    with pytest.raises(UsageError, match=words):
        run(user("Good"), 20, cluster=FARM | changed)


def test_named_in_an_analysis_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planets.toml").write_text(ANALYSIS)
    run_analysis(tmp_path / "planets.toml", progress=False)
    assert (tmp_path / "planets-run" / "report.html").exists()


def test_a_wrong_system_in_an_analysis_file(tmp_path):
    path = tmp_path / "planets.toml"
    path.write_text(ANALYSIS.replace('"local"', '"slurn"'))
    with pytest.raises(UsageError, match=r"planets\.toml, line 8: compute\.cluster.*slurm"):
        read_analysis(path)

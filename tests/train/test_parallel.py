"""Real processes, started by torchrun and connected by gloo, fit what one process fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("parallel_training.py")


def fit(folder, launcher):
    folder.mkdir()
    command = [sys.executable, *launcher, str(SCRIPT), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (folder / "checkpoint.st").exists()
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.timeout(420)
def test_two_processes_fit_what_one_process_fits(tmp_path):
    (alone,) = fit(tmp_path / "alone", [])
    # Each of the two takes half of every batch.
    together = fit(tmp_path / "together", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    assert len(together) == 2
    for members in ("1", "2"):
        expected = alone[members]
        for found in (process[members] for process in together):
            for losses in ("train_loss", "validation_loss"):
                assert found["training"][losses] == pytest.approx(expected["training"][losses], rel=1e-3)
            assert found["training"]["stopped"] == "epochs"
            assert found["log_prob"] == pytest.approx(expected["log_prob"], abs=0.02)
        # The processes stay together to the last bit.
        assert together[0][members]["log_prob"] == together[1][members]["log_prob"]

"""`sp.save` and `sp.load` of samples, files that others may read, and simulations of code that has changed."""

import logging
import os
import re
import shutil
import stat

import pytest
import torch
from torch.distributions import Uniform

import sbi_physics as sp

SIMULATOR = """
import torch
from torch.distributions import Uniform
import sbi_physics as sp

class Shift:
    parameters = sp.Parameters([sp.Parameter("a", Uniform(0.0, 1.0))])
    def __call__(self, theta, *, seed):
        return theta + 1.0
"""


@pytest.fixture
def samples():
    return sp.Samples(torch.rand(20, 2), ("a", "b"), ("m", ""), ("a", "b"))


def test_samples_go_to_a_file_and_come_back(samples, tmp_path):
    sp.save(samples, tmp_path / "one.h5")
    one = sp.load(tmp_path / "one.h5")
    assert torch.equal(one.values, samples.values)
    assert (one.names, one.units) == (samples.names, samples.units)
    sp.save({"npe": samples, "mcmc": samples}, tmp_path / "two.h5")
    assert sorted(sp.load(tmp_path / "two.h5")) == ["mcmc", "npe"]
    with pytest.raises(sp.UsageError, match="simulations or samples, got dict"):
        sp.save({}, tmp_path / "none.h5")


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_models_are_readable_by_others(tmp_path):
    theta = torch.rand(200, 1)
    prior = sp.Parameters([sp.Parameter("a", Uniform(0.0, 1.0))])
    posterior = sp.NPE(prior, "kernel").fit(theta, theta + torch.randn(200, 1), progress=False)
    plain = tmp_path / "plain"
    plain.touch()
    posterior.save(tmp_path / "p.safetensors")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "p.safetensors")]
    assert modes[0] == modes[1]


def test_simulations_of_code_that_has_changed_are_told(tmp_path, caplog):
    path, out = tmp_path / "shift.py", tmp_path / "x.h5"
    path.write_text(SIMULATOR)
    os.utime(path, (1e9, 1e9))
    sp.simulate(f"{path}:Shift", 50, out=out, progress=False)
    with caplog.at_level(logging.INFO):
        sp.simulate(f"{path}:Shift", 50, out=out, progress=False)
    assert "is complete: nothing is simulated" in caplog.text
    assert "was changed" not in caplog.text
    later = out.stat().st_mtime + 10
    os.utime(path, (later, later))
    sp.simulate(f"{path}:Shift", 50, out=out, progress=False)
    assert "shift.py was changed after" in caplog.text


def test_samples_say_what_they_are(samples):
    assert re.fullmatch(r"Samples\(20 draws: a = 0\.\d+ \[.*\] m, b = 0\.\d+ \[.*\]\)", repr(samples))
    several = sp.Samples(torch.rand(3, 20, 2), ("a", "b"), log_weights=torch.zeros(3, 20))
    assert repr(several) == "Samples(3 x 20 weighted draws: a, b)"


@pytest.mark.parametrize("name", ["measured.csv", "x.npy", "t.root", "x.TXT"])
def test_what_load_does_not_read(tmp_path, name):
    (tmp_path / name).write_text("1,2,3\n")
    with pytest.raises(
        sp.StoreError, match=rf"{name}: expected a model .* an observation is given to `sample` as an array"
    ):
        sp.load(tmp_path / name)


def test_a_run_that_was_begun_with_other_code_is_not_gone_on_with(tmp_path):
    path, out = tmp_path / "shift.py", tmp_path / "x.h5"

    def simulate(code):
        path.write_text(code)
        return sp.simulate(f"{path}:Shift", 50, out=out, workers=1, block_size=10, progress=False)

    interrupted = (
        "CALLS.append(1)\n        if len(CALLS) > {}:\n            raise KeyboardInterrupt\n        return theta"
    )
    after = [SIMULATOR.replace("return theta", interrupted.format(n)) + "\nCALLS = []\n" for n in (0, 2)]
    for code in after:  # the first has made nothing yet
        with pytest.raises(KeyboardInterrupt):
            simulate(code)
    with pytest.raises(sp.StoreError, match="the simulator was changed since this run was begun"):
        simulate(SIMULATOR)
    shutil.rmtree(tmp_path / "x.h5.parts")
    assert simulate(SIMULATOR).counts()["ok"] == 50

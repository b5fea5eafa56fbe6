"""Checkpoints: whatever ends a run, the next one goes on to the same bits; files of other runs are refused."""

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sbi_physics.core.errors import StoreError
from sbi_physics.store.models import read_model, write_model

SCRIPT = Path(__file__).with_name("slow_training.py")
SETTINGS = {"epochs": 6, "batch_size": 45, "checkpoint_seconds": 0.0, "seed": 3}
CALLS_OF_AN_EPOCH = 4 + 1


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupt(network, fit, pairs):
    """A run that an exception ends at a certain call of its loss."""

    def run(call, checkpoint, weights=None, **settings):
        class Ends(network):
            calls = 0

            def loss(self, x, y):
                self.calls += 1
                if self.calls == call:
                    raise Interrupted
                return super().loss(x, y)

        with pytest.raises(Interrupted):
            fit(Ends(), pairs, weights, checkpoint=checkpoint, **{**SETTINGS, **settings})

    return run


def same(model, record, other, other_record):
    """Bit for bit; only the time may differ."""
    assert {**record.to_dict(), "seconds": 0} == {**other_record.to_dict(), "seconds": 0}
    tensors = other.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_interrupted_run_goes_on_exactly(schedule, ema, network, fit, pairs, interrupt, tmp_path):
    """Interrupted between two epochs, in the midst of one and while validating, one after the other."""
    settings = {"schedule": schedule, "ema": ema}
    whole, path = network(), tmp_path / "run.ckpt"
    expected = fit(whole, pairs, **SETTINGS, **settings)
    for call in (CALLS_OF_AN_EPOCH + 1, CALLS_OF_AN_EPOCH + 3, 2 * CALLS_OF_AN_EPOCH, CALLS_OF_AN_EPOCH - 1):
        interrupt(call, path, **settings)
        assert path.exists()
    assert read_model(path)[0]["epoch"] == 3
    # Whatever this network starts from is replaced.
    resumed = network(seed=9)
    same(whole, expected, resumed, fit(resumed, pairs, checkpoint=path, **SETTINGS, **settings))
    assert list(tmp_path.iterdir()) == []


def test_patience_goes_on_too(network, fit, pairs, interrupt, tmp_path):
    settings = {"learning_rate": 3.0, "patience": 3, "schedule": "constant", "epochs": 60}
    whole, path = network(), tmp_path / "run.ckpt"
    expected = fit(whole, pairs, **{**SETTINGS, **settings})
    assert expected.stopped == "patience"
    interrupt((expected.best_epoch + 2) * CALLS_OF_AN_EPOCH, path, **settings)
    resumed = network()
    same(whole, expected, resumed, fit(resumed, pairs, checkpoint=path, **{**SETTINGS, **settings}))


def test_a_checkpoint_alone_changes_nothing(network, fit, pairs, tmp_path):
    plain, saved = network(), network()
    expected = fit(plain, pairs, **SETTINGS)
    same(plain, expected, saved, fit(saved, pairs, checkpoint=str(tmp_path / "run.ckpt"), **SETTINGS))
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_before_the_first_checkpoint_leaves_none(interrupt, tmp_path):
    interrupt(CALLS_OF_AN_EPOCH, tmp_path / "run.ckpt")
    interrupt(3 * CALLS_OF_AN_EPOCH, tmp_path / "run.ckpt", checkpoint_seconds=1000.0)
    assert list(tmp_path.iterdir()) == []


def test_seconds_are_added_up_and_may_be_changed(network, fit, pairs, interrupt, tmp_path):
    path = tmp_path / "run.ckpt"
    interrupt(3 * CALLS_OF_AN_EPOCH, path)
    header, tensors = read_model(path)
    header["record"]["seconds"] = 500.0
    write_model(path, tensors, header)
    record = fit(network(), pairs, checkpoint=path, **SETTINGS, max_seconds=400.0)
    assert record.stopped == "seconds"
    assert 500 < record.seconds < 520
    assert len(record.train_loss) == 3


def kill_when(path, epoch):
    """Start the script, and kill it when its checkpoint has come to an epoch."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(path)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 100
    while not (path.exists() and read_model(path)[0]["epoch"] >= epoch):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert read_model(path)[0]["epoch"] < 20


def test_a_killed_run_goes_on_exactly(tmp_path):
    fit = runpy.run_path(str(SCRIPT))["fit"]
    path = tmp_path / "run.ckpt"
    for epoch in (2, 9):
        kill_when(path, epoch)
    same(*fit(None), *fit(path))
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 7}, "epochs was 6, now 7"),
        ({"ema": 0.5}, r"ema was 0\.99, now 0\.5"),
        ({"schedule": "cosine"}, "schedule was 'one-cycle', now 'cosine'"),
        ({"batch_size": None}, "batch_size was 45, now None"),
        ({"seed": 4}, "seed was 3, now 4"),
        ({"data": lambda pairs: [pairs[0] + 1e-6, pairs[1]]}, "data was '[0-9a-f]+', now '[0-9a-f]+'"),
        ({"weights": torch.ones(200)}, "weights was '[0-9a-f]+', now '[0-9a-f]+'"),
        ({"hidden": 17}, r"shape of layers\.0\.weight was \[16, 2\], now \[17, 2\]"),
        ({"prepare": lambda model: model.layers[0].requires_grad_(False)}, "trained was .* now"),
        ({"prepare": lambda model: model.add_module("more", torch.nn.Linear(1, 1))}, r"shape of more\.\w+ was None"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(change, message, network, fit, pairs, interrupt, tmp_path):
    path = tmp_path / "run.ckpt"
    interrupt(2 * CALLS_OF_AN_EPOCH, path)
    before = path.read_bytes()
    model = network(hidden=change.pop("hidden", 16))
    change.pop("prepare", lambda model: None)(model)
    data, weights = change.pop("data", lambda pairs: pairs)(pairs), change.pop("weights", None)
    with pytest.raises(StoreError, match=rf"this checkpoint belongs to another run: {message}") as caught:
        fit(model, data, weights, checkpoint=path, **{**SETTINGS, **change})
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("remove it to start anew")
    assert path.read_bytes() == before


def test_other_weights_are_another_run(network, fit, pairs, interrupt, tmp_path):
    path, weights = tmp_path / "run.ckpt", torch.rand(200, generator=torch.Generator().manual_seed(0))
    interrupt(2 * CALLS_OF_AN_EPOCH, path, weights)
    with pytest.raises(StoreError, match="weights was"):
        fit(network(), pairs, weights.flip(0), checkpoint=path, **SETTINGS)
    assert fit(network(), pairs, weights, checkpoint=path, **SETTINGS).stopped == "epochs"


DAMAGES = {
    "empty": lambda whole: b"",
    "a few bytes": lambda whole: whole[:7],
    "half a header": lambda whole: whole[:200],
    "half": lambda whole: whole[: len(whole) // 2],
    "all but one byte": lambda whole: whole[:-1],
    "text": lambda whole: b"my notes\n" * 100,
    "noise": lambda whole: bytes(reversed(whole)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage, network, fit, pairs, interrupt, tmp_path):
    path = tmp_path / "run.ckpt"
    interrupt(2 * CALLS_OF_AN_EPOCH, path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(StoreError) as caught:
        fit(network(), pairs, checkpoint=path, **SETTINGS)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.exists()


def without(key):
    return lambda header, tensors: header.pop(key)


def without_tensors(prefix):
    def drop(header, tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return drop


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda header, tensors: header.update(kind="posterior"), "expected a checkpoint, got a file of kind"),
        (without("identity"), "a damaged checkpoint"),
        (without("epoch"), "a damaged checkpoint"),
        (without("record"), "a damaged checkpoint"),
        (lambda header, tensors: header.update(identity=[1]), "a damaged checkpoint"),
        (lambda header, tensors: header["record"].update(colour=3), "a damaged checkpoint"),
        (without_tensors("model/layers.0"), "a damaged checkpoint"),
        (without_tensors("average/0"), "a damaged checkpoint"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused(spoil, message, network, fit, pairs, interrupt, tmp_path):
    path = tmp_path / "run.ckpt"
    interrupt(2 * CALLS_OF_AN_EPOCH, path)
    header, tensors = read_model(path)
    spoil(header, tensors)
    write_model(path, tensors, header)
    with pytest.raises(StoreError, match=message) as caught:
        fit(network(), pairs, checkpoint=path, **SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_newer_version_is_refused(network, fit, pairs, interrupt, tmp_path):
    path = tmp_path / "run.ckpt"
    interrupt(2 * CALLS_OF_AN_EPOCH, path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    save_file(read_model(path)[1], path, metadata={"header": json.dumps({**header, "schema": 99})})
    with pytest.raises(StoreError, match="has schema 99"):
        fit(network(), pairs, checkpoint=path, **SETTINGS)


@pytest.mark.parametrize("place", ["missing/run.ckpt", "."])
def test_a_place_that_cannot_be_written_is_named(place, network, fit, pairs, tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        fit(network(), pairs, checkpoint=tmp_path / place, **SETTINGS)

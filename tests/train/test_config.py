"""Settings: wrong ones are named when they are made, and the batch size follows the number of events."""

import json
import math

import numpy as np
import pytest

from sbi_physics.core.errors import UsageError
from sbi_physics.train.config import TrainConfig, TrainingRecord

BAD = {
    "epochs": ([0, -3, 2.5, True, "3", None], "an integer of at least 1"),
    "patience": ([0, 1.5, math.nan], "an integer of at least 1"),
    "batch_size": ([0, -1, 64.5, "auto"], "an integer of at least 1, or None"),
    "optimizer": (["sgd", "Muon", None, 1], "'muon' or 'adamw'"),
    "learning_rate": ([0.0, -1e-3, math.nan, math.inf, "fast", None, True], "a finite number above 0"),
    "weight_decay": ([-1e-9, math.nan, math.inf], "a finite number of at least 0"),
    "schedule": (["linear", "", None, 3, ["cosine"]], "'one-cycle', 'cosine' or 'constant'"),
    "warmup": ([0.0, 1.0, -0.1, math.nan], "a number between 0 and 1"),
    "ema": ([-0.1, 1.0, math.nan, None], r"a number in \[0, 1\)"),
    "precision": (["16", None, "bf16"], "'32-true' or 'bf16-mixed'"),
    "clip_norm": ([0.0, -5.0, math.nan, math.inf], "a finite number above 0"),
    "validation_fraction": ([0.0, 1.0, 1.2, -0.1, math.nan], "a number between 0 and 1"),
    "max_seconds": ([0.0, -1.0, math.nan, "1h"], "a number above 0, or None"),
    "checkpoint_seconds": ([-1.0, math.nan, None], "a number of at least 0"),
    "memory": ([0, -1, 2.5, "1 GB"], "an integer of at least 1, or None"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (values, _) in BAD.items() for value in values])
def test_wrong_settings_are_named(name, value):
    with pytest.raises(UsageError, match=rf"^{name}: expected {BAD[name][1]}, got ") as caught:
        TrainConfig(**{name: value})
    assert str(caught.value).endswith(f"got {value!r}")


def test_numbers_of_numpy_are_numbers():
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), batch_size=np.int32(7))
    assert json.loads(json.dumps([config.epochs, config.learning_rate, config.batch_size])) == [3, 0.5, 7]


def test_every_setting_is_checked():
    assert set(BAD) == set(TrainConfig.__dataclass_fields__)


@pytest.mark.parametrize("events", [1, 2, 50, 63, 64, 1000, 4480, 10_000, 40_000, 10**6])
def test_batches_follow_the_number_of_events(events):
    batch = TrainConfig().batch_for(events)
    assert 1 <= batch <= events
    if events >= 64:
        assert 64 <= batch <= 1024
        assert batch & (batch - 1) == 0
    assert batch <= TrainConfig().batch_for(2 * events)
    assert TrainConfig(batch_size=100).batch_for(events) == min(100, events)


def test_a_record_is_json_and_knows_its_best():
    record = TrainingRecord([3.0, 2.0], [2.5, 2.75], best_epoch=0, stopped="epochs")
    assert record.best_validation_loss == 2.5
    assert TrainingRecord().best_validation_loss == math.inf
    assert TrainingRecord(**json.loads(json.dumps(record.to_dict()))) == record

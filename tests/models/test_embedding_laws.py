"""What holds for every encoder: a new one joins by a line in `ENCODERS_TESTED`."""

import copy
import json

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.build import ENCODERS, build_encoder
from sbi_physics.models.embedding.encoder import Encoder

SMALL = {"features": 5, "hidden": 8}
SERIES = (7, 3)
NAMED = {
    "shapes": {"curve": (6, 2), "image": (4, 4), "points": (5, 2), "count": ()},
    "encoders": {"image": "conv2d", "curve": {"kind": "lstm", "hidden": 8}, "points": "deep-set", "count": "mlp"},
}
# Each: the kind, the shape of one observation, and options.
ENCODERS_TESTED = {
    "mlp": ("mlp", (2, 3), SMALL),
    "mlp of one layer": ("mlp", (4,), {**SMALL, "layers": 1}),
    "rnn": ("rnn", SERIES, SMALL),
    "gru": ("gru", SERIES, SMALL),
    "lstm": ("lstm", SERIES, SMALL),
    "stacked": ("gru", SERIES, {**SMALL, "layers": 2}),
    "times": ("gru", SERIES, {**SMALL, "times": 1}),
    "times alone": ("gru", (7, 1), {**SMALL, "times": 0}),
    "frequencies": ("gru", SERIES, {**SMALL, "times": 1, "frequencies": 3}),
    "frequencies of times alone": ("lstm", (7, 1), {**SMALL, "times": 0, "frequencies": 2}),
    "peephole": ("lstm", SERIES, {**SMALL, "peephole": True}),
    "stacked peephole": ("lstm", SERIES, {**SMALL, "peephole": True, "layers": 2, "times": 0}),
    "both ways": ("lstm", SERIES, {**SMALL, "bidirectional": True, "layers": 2}),
    "peephole both ways": ("lstm", SERIES, {**SMALL, "bidirectional": True, "peephole": True, "times": 0}),
    "deep-set": ("deep-set", SERIES, SMALL),
    "conv1d": ("conv1d", (2, 21), {"features": 5, "channels": 4}),
    "conv1d of one channel": ("conv1d", (50,), {"features": 5, "channels": 4}),
    "conv1d of one entry": ("conv1d", (1,), {"features": 5, "channels": 2}),
    "conv2d": ("conv2d", (2, 9, 12), {"features": 5, "channels": 4}),
    "conv2d of one channel": ("conv2d", (20, 5), {"features": 5, "channels": 4, "blocks": 2, "cells": 3}),
    "transformer": ("transformer", SERIES, SMALL),
    "transformer in time": ("transformer", SERIES, {**SMALL, "times": 0}),
    "transformer with positions": ("transformer", SERIES, {**SMALL, "positions": True}),
    "members": ("members", (3, 6), {**SMALL, "hidden": 8, "each": 3}),
    "members with series": ("members", (3, *SERIES), {**SMALL, "hidden": 8, "member": {"kind": "lstm", **SMALL}}),
    "members apart": ("members", (3, *SERIES), {**SMALL, "hidden": 8, "layers": 0, "member": "deep-set"}),
    "named": ("named", None, NAMED),
}
ROWS = [name for name, (_, shape, _) in ENCODERS_TESTED.items() if shape in (SERIES, (7, 1))]
SETS = ("deep-set", "transformer", "transformer in time")
N = 6


def build(name, seed=0):
    kind, shape, options = ENCODERS_TESTED[name]
    with seeded(seed):
        return build_encoder(kind, shape, **options)


def observations(encoder, n=N, missing=True, seed=1):
    """Some with missing entries, one with missing rows, and one of which nothing is there."""
    x = torch.randn(n, *encoder.shape, generator=torch.Generator().manual_seed(seed))
    if missing:
        flat = x.view(n, -1)
        flat[1, -1] = torch.nan
        x[2, 0] = torch.nan
        flat[3] = torch.nan
    return x


@pytest.fixture(params=ENCODERS_TESTED)
def encoder(request):
    return build(request.param)


@pytest.fixture(params=ROWS)
def of_rows(request):
    return request.param


def test_every_kind_is_tested():
    # The residual one, whole or of discriminants, takes no missing entries, and has tests of its own.
    assert {kind for kind, _, _ in ENCODERS_TESTED.values()} == set(ENCODERS) - {"residual", "discriminant"}


@pytest.mark.parametrize("n", [0, 1, N])
def test_shape_of_the_features(encoder, n):
    assert isinstance(encoder, Encoder)
    assert encoder.accepts_missing
    x = observations(encoder)[:n]
    assert encoder(x).shape == (n, encoder.features)
    assert encoder(x).dtype == torch.float32


def test_a_batch_is_its_observations_one_by_one(encoder):
    x = observations(encoder)
    one_by_one = torch.cat([encoder(x[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(encoder(x), one_by_one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.train()(x), encoder.train(False)(x), rtol=0, atol=0)


def test_observations_differ_in_their_features(encoder):
    features = encoder(observations(encoder, missing=False)).detach()
    assert float(torch.pdist(features).min()) > 1e-3


def test_values_and_gradients_are_finite_where_entries_are_missing(encoder):
    """And every parameter learns."""
    x = observations(encoder).requires_grad_()
    features = encoder(x)
    assert bool(features.isfinite().all())
    features.square().sum().backward()
    assert bool(x.grad.isfinite().all())
    assert all(bool(weight.grad.isfinite().all()) for weight in encoder.parameters())
    assert [name for name, weight in encoder.named_parameters() if not weight.grad.any()] == []


def test_a_missing_entry_is_not_a_zero(encoder):
    x = observations(encoder, missing=False)
    x.view(N, -1)[:, -1] = 0.0
    complete = encoder(x)
    x.view(N, -1)[:, -1] = torch.nan
    assert float((encoder(x) - complete).detach().abs().min(0).values.max()) > 1e-3


@pytest.mark.parametrize("where", [[6], [5, 6], [0], [3], [0, 2, 5]], ids=str)
def test_a_missing_row_is_a_row_that_is_not_there(of_rows, where):
    """Against an encoder with the same weights for shorter series."""
    encoder = build(of_rows)
    x = observations(encoder, missing=False)
    left = [i for i in range(7) if i not in where]
    if of_rows == "transformer with positions":
        moved = torch.randn_like(x)
        moved[:, left], moved[:, where] = x[:, left], torch.nan
        expected = encoder(moved)
    else:
        kind, shape, options = ENCODERS_TESTED[of_rows]
        shorter = build_encoder(kind, (len(left), shape[1]), **options)
        shorter.load_state_dict(encoder.state_dict())
        expected = shorter(x[:, left])
    x[:, where] = torch.nan
    # A whole series beside them, so that nothing is cut from the batch.
    beside = torch.cat([x, observations(encoder, 1, missing=False)])
    torch.testing.assert_close(encoder(beside)[:-1], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["times", "transformer in time"])
def test_a_row_without_its_time_or_with_nothing_else_is_missing(name):
    encoder = build(name)
    x = observations(encoder, missing=False)
    absent = x.clone()
    absent[:, 2] = absent[:, 4] = torch.nan
    x[:, 2, encoder.times] = torch.nan
    others = [channel for channel in range(3) if channel != encoder.times]
    x[:, 4, others] = torch.nan
    torch.testing.assert_close(encoder(x), encoder(absent), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_only_a_set_does_not_see_the_order(name):
    encoder = build(name)
    x = observations(encoder)
    turned = x[:, torch.randperm(7, generator=torch.Generator().manual_seed(2))]
    difference = (encoder(x) - encoder(turned)).detach().abs().max(1).values
    if name in SETS:
        assert float(difference.max()) < 1e-5
    else:
        assert float(difference[[0, 1, 4, 5]].min()) > 1e-3


def test_the_same_seed_gives_the_same_weights(encoder, request):
    name = request.node.callspec.params["encoder"]
    state = torch.random.get_rng_state()
    same, other = build(name).state_dict(), build(name, seed=1).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, same[key]) for key, value in encoder.state_dict().items())
    assert not all(torch.equal(value, other[key]) for key, value in encoder.state_dict().items())


def test_a_description_builds_the_same_structure(encoder):
    """Also after a writer of JSON that sorts the keys of dictionaries."""
    description = json.loads(json.dumps(encoder.describe(), sort_keys=True))
    again = build_encoder(description, encoder.shape)
    again.load_state_dict(encoder.state_dict())
    x = observations(encoder)
    assert torch.equal(again(x), encoder(x))
    assert again.describe() == encoder.describe()
    assert type(again) is type(encoder)


def test_a_copy_is_independent(encoder):
    x = observations(encoder)
    before = encoder(x)
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(0.1)
    assert torch.equal(encoder(x), before)
    assert not torch.equal(twin(x), before)


def test_double_precision(encoder):
    x = observations(encoder)
    expected = encoder(x)
    features = copy.deepcopy(encoder).double()(x.double())
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.float(), expected, rtol=1e-3, atol=1e-4)


def test_mixed_precision(encoder):
    x = observations(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(x)
    assert float((features - encoder(x)).detach().abs().max()) < 0.2


def test_features_start_at_a_scale_of_about_one(encoder):
    features = encoder(observations(encoder, 500, missing=False)).detach()
    assert 0.2 < float(features.square().mean().sqrt()) < 3


def test_scaled_observations_have_a_scale_of_one(encoder):
    x = 7 + 100 * observations(encoder, 3000)
    scaled = encoder.scaling().fit(x)(x)
    assert torch.equal(scaled.isnan(), x.isnan())
    there = scaled[~scaled.isnan()]
    assert float(there.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(there.std()) == pytest.approx(1.0, abs=1e-3)


def test_wrong_shapes_are_named(encoder):
    x = observations(encoder)
    with pytest.raises(ShapeError, match="x: expected shape"):
        encoder(x[..., :-1] if encoder.shape[-1] > 1 else x.squeeze(-1))
    with pytest.raises(ShapeError, match="x: expected shape"):
        encoder(x[0])


MISTAKES = {
    "kind": (lambda: build_encoder("cnn", (3,)), UsageError, "embedding: expected one of conv1d.*; got 'cnn'"),
    "no kind": (lambda: build_encoder({"hidden": 3}, (3,)), UsageError, "the name of an encoder or its description"),
    "option": (lambda: build_encoder("mlp", (3,), width=3), UsageError, "option of the encoder 'mlp'.*got 'width'"),
    "cell": (lambda: build_encoder("gru", SERIES, cell="lstm"), UsageError, "option of the encoder 'gru'"),
    "features": (lambda: build_encoder("mlp", (3,), features=0), UsageError, "features: expected an integer"),
    "hidden": (lambda: build_encoder("deep-set", SERIES, hidden=2.5), UsageError, "hidden: expected an integer"),
    "layers": (lambda: build_encoder("lstm", SERIES, layers=0), UsageError, "layers: expected an integer"),
    "peephole": (lambda: build_encoder("gru", SERIES, peephole=True), UsageError, "peephole: only an lstm has one"),
    "yes": (lambda: build_encoder("lstm", SERIES, bidirectional="yes"), UsageError, "bidirectional: expected True or"),
    "times": (lambda: build_encoder("gru", SERIES, times=3), UsageError, "times: .* 0 to 2, got 3"),
    "frequencies": (lambda: build_encoder("gru", SERIES, frequencies=3), UsageError, "frequencies: expected 0 without"),
    "no frequencies": (lambda: build_encoder("gru", SERIES, times=0, frequencies=-1), UsageError, "frequencies: expec"),
    "drop": (lambda: build_encoder("gru", SERIES, drop=1.0), UsageError, r"drop: expected a number in \[0, 1\), got 1"),
    "heads": (
        lambda: build_encoder("transformer", SERIES, heads=5),
        UsageError,
        "hidden: expected a multiple of heads",
    ),
    "channels": (lambda: build_encoder("conv1d", (9,), channels=1), UsageError, "channels: expected at least 2"),
    "blocks": (lambda: build_encoder("conv2d", (9, 9), blocks=0), UsageError, "blocks: expected an integer"),
    "series": (lambda: build_encoder("gru", (7,)), ShapeError, r"shape: expected \(samples, channels\), got \(7,\)"),
    "set": (lambda: build_encoder("deep-set", (7, 2, 3)), ShapeError, r"shape: expected \(points, channels\)"),
    "spectrum": (lambda: build_encoder("conv1d", (1, 2, 3)), ShapeError, r"shape: expected \(channels, length\) or"),
    "image": (lambda: build_encoder("conv2d", (9,)), ShapeError, r"shape: expected \(channels, height, width\) or"),
    "empty": (lambda: build_encoder("mlp", (0, 3)), ShapeError, r"shape: expected axes of at least 1 entry"),
    "no shape": (lambda: build_encoder("mlp", None), ShapeError, "the encoder 'mlp' needs that of one observation"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    make, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        make()


def test_members_have_names_and_may_be_absent():
    encoder = build("members")
    x = torch.randn(4, *encoder.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (encoder(x) - encoder(x.flip(1))).abs().max() > 1e-3
        other, gone = x.clone(), x.clone()
        gone[:, 1] = torch.nan
        other[:, 1] = 7.0
        assert (encoder(gone) - encoder(x)).abs().max() > 1e-3
        other[:, 1] = torch.nan
        torch.testing.assert_close(encoder(gone), encoder(other))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hidden": 10}, "a multiple of heads"),
        ({"layers": -1}, "an integer of at least 0"),
        ({"member": "residual"}, "an encoder that takes missing entries"),
        ({"width": 3}, "option of the encoder 'members'"),
    ],
)
def test_options_of_members(options, expected):
    with pytest.raises(UsageError, match=expected):
        build_encoder("members", (3, 6), **options)

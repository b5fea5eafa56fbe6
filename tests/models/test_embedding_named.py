"""Observations with several named parts: packed and unpacked, scaled and encoded each on its own."""

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.models.embedding.named import NamedEncoders
from sbi_physics.models.embedding.packing import Packing

SHAPES = {"curve": (4, 2), "count": (), "spectrum": (5,)}
ENCODERS = {"spectrum": "conv1d", "curve": {"kind": "gru", "features": 7}, "count": "mlp"}


def observation(n=3):
    generator = torch.Generator().manual_seed(0)
    parts = {name: torch.randn(n, *shape, generator=generator) for name, shape in SHAPES.items()}
    parts["curve"][0, 1] = torch.nan
    return parts


class TestPacking:
    def test_unpacked_is_what_was_packed(self):
        packing, parts = Packing(SHAPES), observation()
        packed = packing.pack(parts)
        assert packing.total == 14
        assert packing.names == ("curve", "count", "spectrum")
        assert packed.shape == (3, 14)
        for name, part in packing.unpack(packed).items():
            torch.testing.assert_close(part, parts[name], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(packing.pack(packing.unpack(packed)).isnan(), packed.isnan())

    def test_the_order_is_that_of_the_shapes(self):
        packing, parts = Packing(SHAPES), observation()
        turned = dict(reversed(parts.items()))
        torch.testing.assert_close(packing.pack(turned), packing.pack(parts), rtol=0, atol=0, equal_nan=True)
        assert packing.pack(parts)[:, 8].tolist() == parts["count"].tolist()
        assert Packing(dict(reversed(SHAPES.items()))) != packing
        assert Packing(dict(SHAPES)) == packing
        assert hash(Packing(dict(SHAPES))) == hash(packing)

    def test_any_leading_axes_and_arrays(self):
        packing, parts = Packing(SHAPES), observation()
        one = packing.pack({name: part[1].numpy() for name, part in parts.items()})
        assert one.shape == (14,)
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, packing.pack(parts)[1], rtol=0, atol=0)
        many = packing.pack({name: part.reshape(3, 1, *part.shape[1:]) for name, part in parts.items()})
        assert many.shape == (3, 1, 14)
        assert packing.unpack(many)["curve"].shape == (3, 1, 4, 2)
        assert packing.pack({name: np.zeros((0, *shape)) for name, shape in SHAPES.items()}).shape == (0, 14)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda p: p.pop("count"), UsageError, "expected curve, count, spectrum; count missing"),
            (lambda p: p.update(flux=p["count"]), UsageError, "observation: expected one of .*; got 'flux'"),
            (lambda p: p.update(curve=p["curve"][..., 0]), ShapeError, r"curve: expected shape \(\*, 4, 2\), got"),
            (lambda p: p.update(spectrum=p["spectrum"][:2]), ShapeError, r"as curve has, \(3,\), got \(2,\)"),
            (lambda p: p.update(spectrum=torch.zeros(())), ShapeError, r"spectrum: expected shape \(\*, 5\), got \(\)"),
            (lambda p: p.update(count="many"), UsageError, "count: expected"),
        ],
    )
    def test_mistakes_are_named(self, change, error, message):
        parts = observation()
        change(parts)
        with pytest.raises(error, match=message):
            Packing(SHAPES).pack(parts)

    def test_wrong_shapes_are_named(self):
        with pytest.raises(ShapeError, match=r"packed observation: expected shape \(\*, 14\), got \(3, 13\)"):
            Packing(SHAPES).unpack(torch.zeros(3, 13))
        with pytest.raises(ShapeError, match="curve: expected a shape of axes of at least 1 entry"):
            Packing({"curve": (0, 2)})
        with pytest.raises(UsageError, match="at least one named part"):
            Packing({})


class TestNamedEncoders:
    def test_features_are_those_of_the_parts_side_by_side(self):
        curve = build_encoder("gru", (4, 2), features=3)
        encoder = NamedEncoders(SHAPES, {**ENCODERS, "curve": curve})
        parts = observation()
        features = encoder(encoder.packing.pack(parts))
        assert features.shape == (3, encoder.features) == (3, 3 + 32 + 32)
        torch.testing.assert_close(features[:, :3], curve(parts["curve"]))
        torch.testing.assert_close(features[:, -32:], encoder.encoders[2](parts["spectrum"]))

    def test_each_part_is_scaled_by_its_own_scaling(self):
        encoder = NamedEncoders(SHAPES, ENCODERS)
        parts = {name: 10 + 3 * part for name, part in observation(200).items()}
        packed = encoder.packing.pack(parts)
        scaling = encoder.scaling().fit(packed)
        scaled = encoder.packing.unpack(scaling(packed))
        for part, (name, values) in zip(encoder.encoders, parts.items(), strict=True):
            expected = part.scaling().fit(values)(values)
            torch.testing.assert_close(scaled[name], expected, rtol=0, atol=0, equal_nan=True)
        again = encoder.scaling()
        again.load_state_dict(scaling.state_dict())
        torch.testing.assert_close(again(packed[0]), scaling(packed)[0], rtol=0, atol=0, equal_nan=True)

    def test_mistakes_are_named(self):
        with pytest.raises(UsageError, match="one for each of curve, count, spectrum, got those of curve"):
            NamedEncoders(SHAPES, {"curve": "gru"})
        wrong = build_encoder("gru", (5, 2))
        with pytest.raises(ShapeError, match=r"that of curve: expected the shape \(4, 2\), got \(5, 2\)"):
            NamedEncoders(SHAPES, {**ENCODERS, "curve": wrong})
        with pytest.raises(ShapeError, match=r"that of the packed parts, \(14,\), got \(13,\)"):
            build_encoder("named", (13,), shapes=SHAPES, encoders=ENCODERS)
        with pytest.raises(UsageError, match="encoders: expected a dictionary by name, got 'gru'"):
            build_encoder("named", None, shapes=SHAPES, encoders="gru")
        with pytest.raises(UsageError, match="expected shapes and encoders, got shapes"):
            build_encoder("named", None, shapes=SHAPES)
        with pytest.raises(UsageError, match="embedding: expected one of"):
            NamedEncoders({"all": (14,)}, {"all": "named"})
        with pytest.raises(UsageError, match="that of all: expected one for a single part"):
            NamedEncoders({"all": (14,)}, {"all": NamedEncoders(SHAPES, ENCODERS)})

"""The default encoder: whitens, refuses missing entries, and is built again from its description."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.models.embedding.residual import MOST_WHITENED
from sbi_physics.models.scaling import Standardise, Whiten


@pytest.fixture
def encoder():
    with seeded(1):
        return build_encoder("residual", (2, 3), features=5, hidden=8)


def test_a_batch_is_as_one_by_one_and_each_number_counts(encoder):
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    features = encoder(x)
    assert features.shape == (4, 5)
    torch.testing.assert_close(features, torch.cat([encoder(row.unsqueeze(0)) for row in x]))
    features.square().sum().backward()
    assert bool((x.grad != 0).all())
    assert 0.1 < float(features.detach().std()) < 3


def test_it_is_built_again_from_its_description(encoder):
    again = build_encoder(encoder.describe(), (2, 3))
    again.load_state_dict(encoder.state_dict())
    x = torch.ones(1, 2, 3)
    assert torch.equal(encoder(x), again(x))
    assert encoder.describe() == {"kind": "residual", "features": 5, "hidden": 8, "blocks": 2}


def test_it_takes_no_missing_entries_and_whitens_what_is_short(encoder):
    assert not encoder.accepts_missing
    assert isinstance(encoder.scaling(), Whiten)
    assert isinstance(build_encoder("residual", (MOST_WHITENED + 1,)).scaling(), Standardise)


def test_wrong_options_and_shapes_are_named(encoder):
    with pytest.raises(ShapeError, match="x: expected shape"):
        encoder(torch.zeros(4, 6))
    with pytest.raises(UsageError, match="blocks"):
        build_encoder("residual", (3,), blocks=0)

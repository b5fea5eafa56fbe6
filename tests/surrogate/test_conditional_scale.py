"""A response whose scatter falls with the energy becomes a number of one scale."""

import pytest
import torch

from sbi_physics.surrogate.conditional_scale import ConditionalScale


def responses(n, seed):
    source = torch.Generator().manual_seed(seed)
    u = 10 * torch.rand(n, generator=source)
    return u, 1 + 0.01 * u + torch.exp(-u / 2) * torch.randn(n, generator=source)


def test_it_has_one_scale_everywhere_and_goes_back():
    u, y = responses(20_000, 1)
    scale = ConditionalScale().fit(u, y)
    new_u, new_y = responses(20_000, 2)
    scaled = scale(new_u, new_y)
    for low in range(10):
        inside = (new_u >= low) & (new_u < low + 1)
        assert float(scaled[inside].std()) == pytest.approx(1, abs=0.1)
        assert float(scaled[inside].mean()) == pytest.approx(0, abs=0.12)
    assert float(new_y[new_u < 1].std() / new_y[new_u > 9].std()) > 50
    assert torch.allclose(scale.inverse(new_u, scaled), new_y, atol=1e-5)


def test_gaps_few_events_and_zeros_do_no_harm():
    u, y = responses(40, 3)
    gap = (u < 3) | (u > 7)
    scale = ConditionalScale().fit(u[gap], y[gap])
    assert torch.isfinite(scale(u, y)).all()
    same = ConditionalScale().fit(torch.full((30,), 2.0), torch.ones(30))
    assert torch.isfinite(same(torch.full((3,), 2.0), torch.ones(3))).all()
    y[0] = 0
    assert torch.equal(ConditionalScale().fit(u, y)(u, y), y)

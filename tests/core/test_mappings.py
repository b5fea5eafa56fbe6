"""Maps of [0, 1]: inverse of inverse, slope against autograd, ends, and densities; new maps join the list."""

import pytest
import torch

from sbi_physics.core.mappings import BreitWigner, Flat, Mapping, PowerLaw

MAPS = {
    "flat": (Flat(), 0.0, 4.0),
    "inverse": (PowerLaw(1.0), 0.01, 2e4),
    "inverse_square": (PowerLaw(2.0), 0.01, 2e4),
    "root": (PowerLaw(0.5), 0.0, 2.0),
    "offset": (PowerLaw(1.0, 1e-3), 0.0, 2.0),
    "resonance": (BreitWigner(91.2, 2.5), 0.0, 1e5),
    "above_resonance": (BreitWigner(91.2, 2.5), 1.2e4, 1e5),
}
DENSITIES = {
    "flat": lambda s: torch.ones_like(s),
    "inverse": lambda s: 1 / s,
    "inverse_square": lambda s: 1 / s**2,
    "root": lambda s: s**-0.5,
    "offset": lambda s: 1 / (s + 1e-3),
    "resonance": lambda s: 1 / ((s - 91.2**2) ** 2 + (91.2 * 2.5) ** 2),
    "above_resonance": lambda s: 1 / ((s - 91.2**2) ** 2 + (91.2 * 2.5) ** 2),
}


def bounds(name):
    _, low, high = MAPS[name]
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


@pytest.mark.parametrize("name", MAPS)
def test_laws_of_maps(name):
    one = MAPS[name][0]
    low, high = bounds(name)
    assert isinstance(one, Mapping)
    u = torch.linspace(0.001, 0.999, 300, dtype=torch.float64, requires_grad=True)
    value, slope = one.forward(u, low, high)
    (exact,) = torch.autograd.grad(value.sum(), u)
    assert torch.allclose(slope, exact, rtol=1e-9)
    found, same = one.inverse(value.detach(), low, high)
    assert torch.allclose(found, u.detach(), atol=1e-11)
    assert torch.allclose(same, slope.detach(), rtol=1e-10)
    ratio = slope.detach() * DENSITIES[name](value.detach())
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-9)
    ends, _ = one.forward(torch.tensor([0.0, 1.0], dtype=torch.float64), low, high)
    assert torch.allclose(ends, torch.stack([low, high]), rtol=1e-9)
    assert bool((value >= low).all() & (value <= high).all())


def test_only_maps_that_diverge_at_zero_need_more():
    assert PowerLaw(1.0).needs_positive_low()
    assert PowerLaw(2.0).needs_positive_low()
    assert not any(one.needs_positive_low() for one in (Flat(), PowerLaw(0.9), PowerLaw(2.0, 0.1), BreitWigner(1, 1)))

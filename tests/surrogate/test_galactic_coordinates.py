"""Cylindrical coordinates there and back, and their volume element."""

import math

import pytest
import torch

from sbi_physics.surrogate.galactic_coordinates import GalacticCoordinates


def stars(n, seed=0):
    w = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w * torch.tensor([8.0, 8.0, 0.5, 100.0, 100.0, 30.0], dtype=torch.float64)


def test_there_and_back():
    w = stars(500)
    events, azimuth, _ = GalacticCoordinates(w).encode(w)
    assert (events.shape, azimuth.shape) == ((500, 5), (500, 1))
    assert float(azimuth.abs().max()) <= math.pi
    torch.testing.assert_close(GalacticCoordinates(w).decode(events, azimuth), w, rtol=1e-10, atol=1e-10)


def test_the_volume_element_is_that_of_automatic_differentiation():
    w = stars(20, seed=1)
    coordinates = GalacticCoordinates(w)

    def flat(one):
        events, azimuth, _ = coordinates.encode(one.unsqueeze(0))
        return torch.cat([events, azimuth], 1)[0]

    expected = [torch.linalg.slogdet(torch.autograd.functional.jacobian(flat, one))[1] for one in w]
    torch.testing.assert_close(coordinates.encode(w)[2], torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_rotation_has_one_sign():
    angle = torch.linspace(-3, 3, 50, dtype=torch.float64)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    w = torch.stack([8 * cos, 8 * sin, zero + 0.1, 220 * sin, -220 * cos, zero], 1)
    events, azimuth, _ = GalacticCoordinates(w).encode(w)
    torch.testing.assert_close(azimuth[:, 0], angle)
    torch.testing.assert_close(events[:, 3], zero - 220)
    torch.testing.assert_close(events[:, 2], zero, atol=1e-9, rtol=0)


def test_a_star_on_the_axis_stays_finite():
    w = stars(10)
    w[3, :2] = 0.0
    events, azimuth, ladj = GalacticCoordinates(w).encode(w)
    assert all(bool(torch.isfinite(each).all()) for each in (events, azimuth, ladj))


def test_the_height_scale_is_the_median():
    w = stars(1001)
    assert GalacticCoordinates(w).height == pytest.approx(float(w[:, 2].abs().median()))
    flat = w.clone()
    flat[:, 2] = 0.0
    assert GalacticCoordinates(flat).height > 0

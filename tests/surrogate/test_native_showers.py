"""Showers by native code are those that PyTorch makes."""

import contextlib

import pytest
import torch

from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.models.columns import ColumnKind
from sbi_physics.models.native import compiler
from sbi_physics.models.native.compiler import find_compiler
from sbi_physics.surrogate.native.showers import decode_showers
from sbi_physics.surrogate.showers import Showers

GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10), 4), VoxelLayer(2, (0, 10, 20, 40))))
THRESHOLD = 0.5


@contextlib.contextmanager
def threads_of(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def showers(n, seed=0):
    """One layer is often empty, one voxel always, and many others now and then."""
    generator = torch.Generator().manual_seed(seed)
    energy = 10 * torch.exp(3 * torch.rand(n, 1, generator=generator))
    means = torch.cat([torch.full((2,), 0.05), torch.full((12,), 0.05), torch.full((3,), 0.02)])
    x = energy * means * torch.exp(0.8 * torch.randn(n, GEOMETRY.size, generator=generator))
    x[torch.rand(n, generator=generator) < 0.3, -3:] = 0.0
    x[:, 4] = 0.0
    return energy, torch.where(x < THRESHOLD, 0.0, x)


@pytest.fixture(scope="module")
def fitted():
    if find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    return Showers(GEOMETRY, threshold=THRESHOLD).fit(*showers(3000))


def events_of(fitted, n):
    """Layers of one shower and voxels of another: layers that are to be filled have no voxel, and others are to go."""
    energy, x = showers(n, seed=n)
    layers, voxels = fitted.encode(energy, x, seed=1)[0], fitted.encode(energy, x.roll(1, 0), seed=1)[1]
    return energy, [layers, voxels]


def natively(fitted, energy, events):
    ends = [part.stop for part in GEOMETRY.layer_slices]
    wanted = fitted.energies(energy, events[0])
    return decode_showers(wanted, events[1], fitted.voxels, ends, threshold=THRESHOLD, rounds=3)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_showers_agree(fitted, n):
    energy, events = events_of(fitted, n)
    made, expected = natively(fitted, energy, events), fitted.decode(energy, events)
    assert torch.equal(made == 0, expected == 0)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=0)
    assert torch.equal(fitted.outputs(energy, events), made)


@torch.no_grad()
def test_empty_layers_are_among_them(fitted):
    energy, events = events_of(fitted, 1000)
    before = fitted._layer_energies(fitted.voxels.decode(events[1]))
    wanted = fitted.energies(energy, events[0])
    assert int(((before == 0) & (wanted > 0)).sum()) > 100
    events[1][:5] = -3.0
    torch.testing.assert_close(
        natively(fitted, energy, events)[:5], fitted.decode(energy, events)[:5], rtol=1e-5, atol=0
    )


@torch.no_grad()
def test_showers_do_not_depend_on_others_nor_on_threads(fitted):
    energy, events = events_of(fitted, 1000)
    with threads_of(1):
        whole = natively(fitted, energy, events)
        part = natively(fitted, energy[301:322], [each[301:322] for each in events])
    with threads_of(2):
        assert torch.equal(natively(fitted, energy, events), whole)
    assert torch.equal(part, whole[301:322])


def test_what_native_code_does_not_know_is_left_to_pytorch(fitted):
    energy, events = events_of(fitted, 20)
    assert natively(fitted, energy, events) is None
    with torch.no_grad():
        kinds = fitted.voxels.kinds.clone()
        fitted.voxels.kinds[0] = int(ColumnKind.REAL)
        assert natively(fitted, energy, events) is None
        fitted.voxels.kinds.copy_(kinds)


@torch.no_grad()
def test_without_a_compiler_pytorch_makes_them(fitted, monkeypatch, tmp_path):
    energy, events = events_of(fitted, 20)
    monkeypatch.setenv("SBI_PHYSICS_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
        function.cache_clear()
    try:
        assert natively(fitted, energy, events) is None
        assert torch.equal(fitted.outputs(energy, events), fitted.decode(energy, events))
    finally:
        for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
            function.cache_clear()

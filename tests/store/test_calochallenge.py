"""Files of the Fast Calorimeter Simulation Challenge: there and back, in parts, and what is wrong with bad ones."""

import h5py
import numpy as np
import pytest
import torch

from sbi_physics.core.errors import ShapeError, StoreError, SupportError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.store.calochallenge import iterate_showers, read_showers, read_simulations, write_showers
from sbi_physics.store.simulations import Simulations


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(0)
    energies = 2.0 ** torch.randint(8, 23, (50, 1), generator=generator)
    return energies, torch.rand(50, 12, generator=generator) * energies


@pytest.fixture
def path(arrays, tmp_path):
    write_showers(tmp_path / "showers.hdf5", *arrays)
    return tmp_path / "showers.hdf5"


def test_write_and_read_are_inverse(arrays, path, tmp_path):
    for found, given in zip(read_showers(path, voxels=12), arrays, strict=True):
        assert torch.equal(found, given)
    write_showers(tmp_path / "again.hdf5", arrays[0].squeeze(1).numpy(), arrays[1].numpy())
    assert (tmp_path / "again.hdf5").read_bytes() == path.read_bytes()
    with h5py.File(path) as file:
        assert set(file) == {"incident_energies", "showers"}
        assert file["incident_energies"].shape == (50, 1)


def test_files_of_others_are_read(tmp_path):
    """Double precision, no chunks, and energies without their second axis."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["incident_energies"], file["showers"] = np.full(3, 256.0), np.ones((3, 4))
    energies, showers = read_showers(tmp_path / "a.hdf5")
    assert energies.tolist() == [[256.0]] * 3
    assert showers.dtype == torch.float32
    assert torch.equal(showers, torch.ones(3, 4))


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_streaming_gives_the_same_rows(arrays, path, size):
    batches = list(iterate_showers(path, size))
    assert [len(batch[0]) for batch in batches] == [min(size, 50 - i) for i in range(0, 50, size)]
    for found, given in zip((torch.cat(column) for column in zip(*batches, strict=True)), arrays, strict=True):
        assert torch.equal(found, given)


def test_as_simulations(arrays, path, tmp_path):
    simulations = read_simulations(path)
    assert simulations.parameters.names == ("energy",)
    assert simulations.parameters.units == ("MeV",)
    assert torch.equal(simulations.theta, arrays[0])
    assert torch.equal(simulations.x, arrays[1])
    simulations.save(tmp_path / "simulations.h5")
    again = Simulations.open(tmp_path / "simulations.h5")
    assert again.parameters == simulations.parameters
    own = Parameters.from_prior(torch.distributions.Uniform(torch.zeros(1), torch.full((1,), 300.0)))
    with pytest.raises(SupportError, match="theta_0"):
        read_simulations(path, own)


def test_an_empty_file_of_showers_is_read(tmp_path):
    write_showers(tmp_path / "none.hdf5", torch.zeros(0, 1), torch.zeros(0, 4))
    assert [tuple(a.shape) for a in read_showers(tmp_path / "none.hdf5")] == [(0, 1), (0, 4)]
    assert list(iterate_showers(tmp_path / "none.hdf5")) == []


def test_a_failed_write_leaves_the_old_file(path, arrays, monkeypatch):
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(h5py.File, "create_dataset", full)
    with pytest.raises(StoreError, match="no space left"):
        write_showers(path, arrays[0] + 1, arrays[1])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def spoilt(key, row, column, value):
    def spoil(file):
        file[key][row, column] = value

    return spoil


def without(key):
    def spoil(file):
        del file[key]

    return spoil


def replaced(key, values):
    def spoil(file):
        del file[key]
        file[key] = values

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("showers"), "/showers is missing"),
        (without("incident_energies"), "/incident_energies is missing"),
        (spoilt("incident_energies", 41, 0, -3.0), "/incident_energies: .* got -3 in row 41"),
        (spoilt("incident_energies", 5, 0, 0.0), "/incident_energies: .* positive .* got 0 in row 5"),
        (spoilt("showers", 44, 7, np.nan), "/showers: .* got nan in row 44, voxel 7"),
        (spoilt("showers", 3, 2, -0.5), "/showers: .* got -0.5 in row 3, voxel 2"),
        (spoilt("showers", 3, 2, np.inf), "/showers: .* got inf in row 3, voxel 2"),
        (replaced("showers", np.full((50, 12), 1e300)), "/showers: .* got inf in row 0"),
        (replaced("showers", np.ones((49, 12))), "equally many rows, got 50 .* and 49 .* row 49"),
        (replaced("showers", np.ones((50, 11))), r"/showers: expected shape \(N, 12\), got \(50, 11\)"),
        (replaced("showers", np.ones(50)), r"/showers: expected shape \(N, 12\), got \(50,\)"),
        (replaced("showers", np.full((50, 12), b"x")), "/showers: expected numbers"),
        (replaced("incident_energies", np.ones((50, 2))), r"/incident_energies: expected shape \(N, 1\)"),
    ],
    ids=range(13),
)
def test_bad_files_are_one_clear_line(path, spoil, message):
    with h5py.File(path, "r+") as file:
        spoil(file)
    for read in (read_showers, lambda p, **k: list(iterate_showers(p, 10, **k)), read_simulations):
        with pytest.raises(StoreError, match=message) as caught:
            read(path, voxels=12)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_not_an_hdf5_file(tmp_path, path):
    (tmp_path / "text.hdf5").write_text("energies")
    (tmp_path / "nothing.hdf5").touch()
    (tmp_path / "cut.hdf5").write_bytes(path.read_bytes()[:2000])
    for name, message in {
        "text": "not an HDF5 file; expected showers",
        "nothing": "the file is empty",
        "absent": "no such file",
        "cut": "damaged",
    }.items():
        with pytest.raises(StoreError, match=message):
            read_showers(tmp_path / f"{name}.hdf5")


def test_bad_arrays_are_not_written(arrays, tmp_path):
    energies, showers = arrays
    path = tmp_path / "bad.hdf5"
    with pytest.raises(ShapeError, match="equally many rows"):
        write_showers(path, energies[:-1], showers)
    with pytest.raises(ShapeError, match=r"showers: expected shape \(N, voxels\)"):
        write_showers(path, energies, showers[0])
    with pytest.raises(ShapeError, match="incident_energies: expected shape"):
        write_showers(path, energies.expand(-1, 2), showers)
    with pytest.raises(SupportError, match=r"showers: .* row 0, voxel 0"):
        write_showers(path, energies, -showers)
    with pytest.raises(SupportError, match=r"incident_energies: .* row 0"):
        write_showers(path, 0 * energies, showers)
    with pytest.raises(UsageError, match="size"):
        next(iterate_showers(path, 0))
    assert not path.exists()

"""Files of all versions that there have been are read, and give the same; those of versions to come are refused."""

from pathlib import Path

import pytest
import torch

import sbi_physics as sp
from sbi_physics.store import layout, models, samples

FILES = Path(__file__).parent / "versions"
THETA = torch.arange(12.0).reshape(6, 2) / 12


@pytest.mark.parametrize("version", range(1, layout.SCHEMA + 1))
def test_simulations(version, tmp_path):
    found = sp.Simulations.open(FILES / f"simulations-{version}.h5")
    assert torch.equal(found.theta, THETA)
    assert torch.equal(found.x["v"], torch.arange(24.0).reshape(6, 2, 2))
    assert found.counts()["nonfinite"] == 1
    assert found.errors == {2: "not bound é"}
    assert (found.parameters.names, found.parameters.units) == (("a", "b"), ("m / s", ""))
    assert found.parameters.prior.log_prob(THETA[:1]).isfinite().all()
    assert found.header.simulator == "regression"
    found.save(tmp_path / "again.h5")
    newest = FILES / f"simulations-{layout.SCHEMA}.h5"
    assert (tmp_path / "again.h5").read_bytes() == newest.read_bytes()


@pytest.mark.parametrize("version", range(1, samples.SCHEMA + 1))
def test_samples(version):
    found = samples.read_samples(FILES / f"samples-{version}.h5")["npe"]
    assert torch.equal(torch.as_tensor(found.to_numpy()), THETA)
    assert (found.names, found.units, found.labels) == (("a", "b"), ("m / s", ""), ("$a$", "b"))


@pytest.mark.parametrize("version", range(1, models.SCHEMA + 1))
def test_models(version):
    header, tensors = models.read_model(FILES / f"model-{version}.safetensors")
    assert header == {"format": models.FORMAT, "schema": version, "kind": "regression", "names": ["a", "b"]}
    assert torch.equal(tensors["w"], THETA)


def test_a_flipped_bit_in_a_model_is_an_error(tmp_path):
    whole = (FILES / f"model-{models.SCHEMA}.safetensors").read_bytes()
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    with pytest.raises(sp.StoreError, match="does not match its checksum"):
        models.read_model(path)

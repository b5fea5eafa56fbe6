"""An exported surrogate gives in onnxruntime what the surrogate gives of the same noise."""

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.surrogate.export import compare_onnx
from sbi_physics.surrogate.showers import Showers

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "export.md"
GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10), 4), VoxelLayer(2, (0, 10, 20, 40))))
THRESHOLD = 0.5
SMALL = {"hidden_features": 16, "blocks": 1}
# Each: the model, its options, and how many normal numbers make an event of three.
MODELS = {
    "nsf": ("nsf", {**SMALL, "transforms": 2, "bins": 4}, 3),
    "ensemble": ("nsf", {**SMALL, "transforms": 1, "bins": 4, "ensemble": 2}, 4),
    "maf": ("maf", {**SMALL, "transforms": 2}, 3),
    "vae": ("vae", {**SMALL, "latent": (3, 2)}, 8),
    "vae, flow prior": ("vae", {**SMALL, "latent": 2, "latent_prior": "flow", "prior_transforms": 1}, 5),
    "gan": ("gan", {**SMALL, "noise_features": 5}, 5),
    "flow-matching": ("flow-matching", {**SMALL, "steps": 8}, 3),
    "made": ("made", {**SMALL, "components": 3}, 6),
    "mixture": ("mixture", {**SMALL, "components": 3}, 4),
}
QUICK = ("nsf", "vae")
# An export takes seconds.
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def readings(n, seed=0):
    """Two parameters, one over decades; a count, a signal above a threshold, one that never changes, and a number."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(n, 2, generator=generator)
    theta[:, 1] = torch.exp(5 * theta[:, 1])
    noise = torch.randn(n, 2, generator=generator)
    energy = 1 + theta[:, 0] + 0.5 * noise[:, 0]
    hits = torch.poisson(3 * theta[:, 0], generator=generator)
    columns = [torch.where(energy > 1, energy, 0.0), hits, torch.full((n,), 7.0), noise[:, 1] - energy]
    return theta, torch.stack(columns, -1).reshape(n, 2, 2)


def showers(n, seed=0):
    """Energies that are shared among voxels at random; one layer is often empty, and so are many voxels."""
    generator = torch.Generator().manual_seed(seed)
    energy = 10 * torch.exp(3 * torch.rand(n, 1, generator=generator))
    means = torch.cat([torch.full((2,), 0.05), torch.full((12,), 0.6 / 12), torch.full((3,), 0.02)])
    x = energy * means * torch.exp(0.8 * torch.randn(n, GEOMETRY.size, generator=generator))
    x[torch.rand(n, generator=generator) < 0.3, -3:] = 0.0
    return energy, torch.where(x < THRESHOLD, 0.0, x)


def fitted(model, data, **options):
    """Trained for a moment, and then moved so that no layer is where it started."""
    surrogate = sp.Surrogate(model, config={"epochs": 1}, device="cpu", **options).fit(*data, seed=1, progress=False)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for weight in surrogate.chain.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return surrogate


@pytest.fixture(scope="module", params=EACH)
def exported(request, tmp_path_factory):
    model, options, features = MODELS[request.param]
    surrogate = fitted(model, readings(600), **options)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    surrogate.export(path)
    assert surrogate.noise_features == features
    return surrogate, path


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A surrogate whose parameter has a unit."""
    theta, x = readings(600)
    prior = sp.Parameters(
        [sp.Parameter("angle", td.Uniform(0.0, 1.0), "rad"), sp.Parameter("energy", td.Uniform(0.5, 200.0), "GeV")]
    )
    surrogate = fitted("gan", (theta, x), prior=prior, **SMALL)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    surrogate.export(path)
    return surrogate, path


def run(path, theta, noise):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["x"], {"theta": theta.numpy(), "noise": noise.numpy()})[0])


def noise_for(surrogate, n, seed=0):
    return torch.randn(n, surrogate.noise_features, generator=torch.Generator().manual_seed(seed))


def differing(x, expected):
    """Which numbers differ by more than 1e-4 of the larger of themselves and the mean of their row."""
    x, expected = x.flatten(1), expected.flatten(1)
    scale = torch.maximum(expected.abs(), expected.abs().mean(1, keepdim=True))
    return (x - expected).abs() > 1e-4 * scale


def test_onnxruntime_gives_the_same_numbers(exported):
    """Of one file at any size of the batch, row by row; other noise gives other numbers."""
    surrogate, path = exported
    for n in (1, 7, 1000):
        theta, noise = surrogate.parameters.sample(n, seed=n), noise_for(surrogate, n, seed=n)
        expected, found = surrogate.from_noise(theta, noise), run(path, theta, noise)
        assert found.shape == expected.shape == (n, 2, 2)
        assert found.dtype == torch.float32
        # Rounding could take one count in a million across one half.
        assert int(differing(found, expected).sum()) == 0
        assert torch.equal(found[:, 0, 0] == 0, expected[:, 0, 0] == 0)
    assert bool((found[:, 1, 0] == 7).all())
    other = differing(run(path, theta, noise.roll(1, 0)), expected)
    assert float(other[:, [0, 3]].float().mean()) > 0.8


@pytest.mark.parametrize("model", ["vae", pytest.param("nsf", marks=pytest.mark.slow)])
def test_showers_keep_their_thresholds_and_the_energies_of_their_layers(model, tmp_path):
    options = {"vae": {**SMALL, "latent": 3}, "nsf": {**SMALL, "transforms": 2}}[model]
    preprocessing = Showers(GEOMETRY, threshold=THRESHOLD)
    surrogate = fitted(model, showers(2000), preprocessing=preprocessing, **options)
    surrogate.export(tmp_path / "showers.onnx")
    theta, noise = (
        showers(1000, seed=3)[0].clamp(*map(float, surrogate.parameters.bounds[0])),
        noise_for(surrogate, 1000),
    )
    found, expected = run(tmp_path / "showers.onnx", theta, noise), surrogate.from_noise(theta, noise)
    # A voxel at the threshold may fall on the other side, and its layer shares its energy among the others.
    flipped = (found == 0) != (expected == 0)
    assert int(flipped.any(1).sum()) <= 2
    assert int(differing(found, expected)[~flipped.any(1)].sum()) == 0
    assert bool(((found == 0) | (found >= THRESHOLD)).all())
    assert 0.05 < float((found == 0).float().mean()) < 0.95
    assert bool((found[:, -3:] == 0).all(1).any())


def test_the_file_says_what_it_is(quick):
    import onnxruntime

    _, path = quick
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {"theta": ["n", 2], "noise": ["n", 3], "x": ["n", 2, 2]}
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["parameters"]) == ["angle", "energy"]
    assert json.loads(about["units"]) == ["rad", "GeV"]
    assert json.loads(about["bounds"]) == [[0.0, 1.0], [0.5, 200.0]]
    assert json.loads(about["x_shape"]) == [2, 2]
    assert (about["noise"], about["noise_features"]) == ("standard normal", "3")
    assert (about["model"], about["sbi_physics_version"]) == ("gan", sp.__version__)
    # Nothing in it tells whose machine it was made on.
    assert str(Path(sp.__file__).parent).encode() not in path.read_bytes()


def test_the_comparison_finds_another_model(quick):
    surrogate, path = quick
    same = compare_onnx(surrogate.chain, surrogate.parameters, path, n=50, seed=1)
    assert (same.rows, same.numbers, same.differing) == (50, 200, 0)
    assert 0 < same.largest < 1e-5
    chain = copy.deepcopy(surrogate.chain)
    chain.stages[0].event_scaling.scale.mul_(1.01)
    other = sp.Surrogate.of(surrogate.parameters, surrogate.architecture, chain, surrogate.provenance)
    assert compare_onnx(other.chain, other.parameters, path, n=50, seed=1).differing > 50


def test_the_snippet_of_the_documentation_runs(quick, tmp_path, monkeypatch):
    surrogate, path = quick
    monkeypatch.chdir(tmp_path)
    (tmp_path / "showers.onnx").write_bytes(path.read_bytes())
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    names = {}
    exec(compile(snippet, str(DOCUMENTATION), "exec"), names)
    assert names["x"].shape == (1000, 2, 2)
    expected = surrogate.from_noise(names["theta"], names["noise"])
    assert int(differing(torch.from_numpy(names["x"]), expected).sum()) == 0


def test_noise_stands_for_what_is_sampled(quick):
    """The marks are there: normal noise gives what `sample` gives, in distribution."""
    surrogate, _ = quick
    theta = torch.tensor([[0.5, 20.0]]).expand(20_000, 2)
    one, other = surrogate.from_noise(theta, noise_for(surrogate, 20_000)), surrogate.sample(theta, seed=4)
    one, other = one[:, 1, 1], other[:, 1, 1]
    assert abs(float(one.mean() - other.mean())) < 5 * float(one.std()) * (2 / 20_000) ** 0.5
    assert abs(float(one.std() / other.std()) - 1) < 0.05


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("energy", SMALL, "EnergyModel does not draw from a fixed number of normal numbers"),
        ("kernel", {}, "KernelDensity does not draw from a fixed number of normal numbers"),
        ("recurrent", SMALL, "no recurrent network"),
    ],
)
def test_what_cannot_be_exported_is_refused(model, options, message, tmp_path):
    config = {} if model == "kernel" else {"epochs": 1}
    surrogate = sp.Surrogate(model, device="cpu", config=config, **options).fit(*readings(200), seed=1, progress=False)
    with pytest.raises(sp.UsageError, match=message):
        surrogate.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_said(quick, tmp_path, monkeypatch):
    surrogate, path = quick
    theta, noise = surrogate.parameters.sample(4, seed=1), noise_for(surrogate, 4)
    for bad in (noise[:, 1:], noise[0]):
        with pytest.raises(sp.ShapeError, match=r"noise: expected shape \(n, 3\)"):
            surrogate.from_noise(theta, bad)
    with pytest.raises(sp.ShapeError, match="expected equally many rows, got theta: 4, noise: 3"):
        surrogate.from_noise(theta, noise[1:])
    with pytest.raises(sp.NonFiniteError, match="noise"):
        surrogate.from_noise(theta, noise * np.nan)
    with pytest.raises(sp.UsageError, match="not trained"):
        sp.Surrogate("vae").export(tmp_path / "model.onnx")
    with pytest.raises(sp.StoreError, match="does not exist"):
        surrogate.export(tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(sp.StoreError, match="expected the exported file of this surrogate"):
        compare_onnx(surrogate.chain, surrogate.parameters, tmp_path / "none.onnx")
    for missing in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(sp.UsageError, match=rf"needs the package {missing}: pip install 'sbi-physics\[export\]'"):
            compare_onnx(surrogate.chain, surrogate.parameters, path) if missing == "onnxruntime" else surrogate.export(
                tmp_path / "model.onnx"
            )
        monkeypatch.undo()
    assert not list(tmp_path.iterdir())

import json

import pytest
import torch
import torch.distributions as td
from safetensors.torch import save_file
from torch import nn

import sbi_physics as sp
from sbi_physics.models.flows.build import build_flow
from sbi_physics.store.models import SCHEMA, read_model, write_model

X_OBS = torch.tensor([0.3, -0.2])


def same(first, second):
    samples = first.sample(50, X_OBS, seed=1)
    assert torch.equal(samples.values, second.sample(50, X_OBS, seed=1).values)
    assert torch.equal(first.log_prob(samples.values, X_OBS), second.log_prob(samples.values, X_OBS))


@pytest.fixture
def path(crude, tmp_path):
    crude.save(tmp_path / "p.st")
    return tmp_path / "p.st"


def test_save_and_load_are_inverse(crude, path, tmp_path):
    loaded = sp.load(path)
    same(crude, loaded)
    assert loaded.parameters == crude.parameters
    assert loaded.provenance == crude.provenance
    assert loaded.x_shape == crude.x_shape
    assert not loaded.density.training
    sp.save(loaded, tmp_path / "again.st")
    assert (tmp_path / "again.st").read_bytes() == path.read_bytes()


def test_names_units_and_labels_survive(uniform_pairs, quick, tmp_path):
    prior = sp.Parameters(
        [sp.Parameter("K", td.Uniform(-1.0, 1.0), unit="m / s", label="$K_b$"), sp.Parameter("g", td.Normal(0.0, 1.0))]
    )
    sp.NPE(prior, **quick).fit(*uniform_pairs, progress=False).save(tmp_path / "p.st")
    samples = sp.load(tmp_path / "p.st").sample(3, X_OBS)
    assert (samples.names, samples.units, samples.labels) == (("K", "g"), ("m / s", ""), ("$K_b$", "g"))


class Ring(td.Distribution):
    """A prior that is no family of torch."""

    arg_constraints = {}  # noqa: RUF012
    support = td.constraints.independent(td.constraints.interval(-1.0, 1.0), 1)

    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, sample_shape=()):
        return 2 * torch.rand(*sample_shape, 2) - 1

    def log_prob(self, value):
        return torch.full(value.shape[:-1], -1.386)


def test_a_prior_of_another_library_is_not_needed_to_sample(uniform, uniform_pairs, quick, tmp_path):
    posterior = sp.NPE(Ring(), **quick).fit(*uniform_pairs, progress=False)
    posterior.save(tmp_path / "p.st")
    loaded = sp.load(tmp_path / "p.st")
    same(posterior, loaded)
    with pytest.raises(sp.UsageError, match=r"the prior .*Ring is not stored in the file"):
        loaded.correct(uniform.log_likelihood, X_OBS, 100)


class Summary(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, x):
        return torch.tanh(self.layer(x))


def flow(context=2, hidden=8):
    return build_flow("maf", 2, context, transforms=1, hidden_features=hidden)


@pytest.mark.parametrize(
    "networks", [{"flow": flow}, {"embedding": Summary}, {"flow": lambda: flow(3), "embedding": Summary}]
)
def test_networks_of_the_user_are_handed_in_again(networks, uniform, uniform_pairs, quick, tmp_path):
    made = {"model" if name == "flow" else name: make() for name, make in networks.items()}
    options = {"config": quick["config"]} if "model" in made else quick
    posterior = sp.NPE(uniform.parameters, **made, **options).fit(*uniform_pairs, progress=False)
    posterior.save(tmp_path / "p.st")
    fresh = {name: make() for name, make in networks.items()}
    same(posterior, sp.load(tmp_path / "p.st", **fresh))
    for name in networks:
        rest = {k: v for k, v in fresh.items() if k != name}
        with pytest.raises(sp.UsageError, match=rf"p.st: {name}: .*one of your own; .*load\(path, {name}=\.\.\.\)"):
            sp.load(tmp_path / "p.st", **rest)
    wrong = {"flow": flow(3, hidden=9), "embedding": Summary(4)}
    with pytest.raises(sp.UsageError, match="has another structure than the one trained"):
        sp.load(tmp_path / "p.st", **{name: wrong[name] for name in networks})


def test_one_network_can_serve_two_files(uniform, uniform_pairs, quick, tmp_path):
    posteriors = []
    for seed in (0, 1):
        posterior = sp.NPE(uniform.parameters, flow(), config=quick["config"]).fit(
            *uniform_pairs, seed=seed, progress=False
        )
        posterior.save(tmp_path / f"{seed}.st")
        posteriors.append(posterior)
    shell = flow()
    loaded = [sp.load(tmp_path / f"{seed}.st", flow=shell) for seed in (0, 1)]
    for first, second in zip(posteriors, loaded, strict=True):
        same(first, second)


def test_networks_that_are_not_needed(path):
    with pytest.raises(sp.UsageError, match="flow: this posterior was trained without one of your own"):
        sp.load(path, flow=flow())
    with pytest.raises(sp.UsageError, match="embedding: this posterior was trained without one"):
        sp.load(path, embedding=Summary())


def changed(**changes):
    def change(path):
        header, tensors = read_model(path)
        for name, value in changes.items():
            if value is None:
                del header[name]
            else:
                header[name] = value(header[name]) if callable(value) else value
        schema = header.pop("schema")
        if schema == SCHEMA:
            write_model(path, tensors, header)
        else:
            save_file(tensors, path, metadata={"header": json.dumps({**header, "schema": schema})})

    return change


def without_weights(path):
    header, tensors = read_model(path)
    write_model(path, dict(list(tensors.items())[:-1]), header)


def inside(key, **changes):
    return {key: lambda old: {**old, **changes}}


DAMAGES = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged, or not a safetensors file"),
    "other kind": (
        changed(kind="map"),
        "expected a file of kind 'posterior' or 'likelihood' or 'surrogate' or 'confidence' or 'models' or 'outliers', "
        "got 'map'",
    ),
    "other version": (changed(schema=99), "has schema 99, this version reads up to 2; upgrade sbi-physics"),
    "no parameters": (changed(parameters=None), "the header is damaged"),
    "no provenance": (changed(provenance=None), "the header is damaged"),
    "odd provenance": (changed(provenance=3), "the header is damaged"),
    "odd parameters": (changed(parameters=[1]), "the header is damaged"),
    "odd names": (changed(**inside("parameters", names=["a b", "c"])), "the header is damaged.*parameter name"),
    "odd prior": (changed(**inside("parameters", prior={"family": "os"})), "the header is damaged.*prior"),
    "odd shape": (changed(**inside("architecture", event_shape="ab")), "the header is damaged"),
    "unknown model": (changed(**inside("architecture", model="nsf-2")), "do not fit together"),
    "unknown option": (changed(**inside("architecture", options={"knots": 3})), "do not fit together"),
    "not an ensemble": (changed(**inside("architecture", model="score", members=3)), "only flows come in ensembles"),
    "other model": (changed(**inside("architecture", model="score", options={})), "do not fit together"),
    "other size": (changed(**inside("architecture", options={"transforms": 7})), "do not fit together"),
    "weights missing": (without_weights, "do not fit together"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_give_one_clear_line(damage, path):
    spoil, message = DAMAGES[damage]
    spoil(path)
    with pytest.raises(sp.StoreError, match=message) as caught:
        sp.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_cannot_be_saved(crude, tmp_path):
    with pytest.raises(
        sp.UsageError, match="save: expected a trained posterior, a surrogate, simulations or samples, got int"
    ):
        sp.save(3, tmp_path / "p.st")
    with pytest.raises(sp.StoreError, match="does not exist"):
        crude.save(tmp_path / "nowhere" / "p.st")

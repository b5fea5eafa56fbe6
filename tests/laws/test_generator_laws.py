"""What holds for every generator: a new one joins by a line in `MODELS`."""

import copy
import math

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.protocols import Generator
from sbi_physics.models.build_generators import GENERATORS, build_generator
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

SMALL = {"hidden_features": 12, "blocks": 1}
# Each: the name of the generator and its options.
MODELS = {
    "vae": ("vae", {**SMALL, "latent": 3}),
    "vae, one noise": ("vae", {**SMALL, "latent": 3, "decoder": "gaussian"}),
    "vae, noise given": ("vae", {**SMALL, "latent": 3, "decoder": "gaussian", "noise": 0.2}),
    "vae, flow prior": ("vae", {**SMALL, "latent": 2, "latent_prior": "flow", "prior_transforms": 2}),
    "vae, ladder": ("vae", {**SMALL, "latent": [4, 2, 1], "beta": 0.5, "warmup_steps": 10}),
    "gan": ("gan", SMALL),
    "gan, minimax": ("gan", {**SMALL, "loss": "minimax", "spectral": True, "noise_features": 3}),
    "energy": ("energy", {**SMALL, "steps": 40}),
}
# Those that minimise a loss of single events; the others are trained in ways of their own (tests/train, tests/models).
WITH_LOSS = [name for name, (generator, _) in MODELS.items() if generator == "vae"]
PRIORS = {"free": td.Normal(0.5, 2.0), "interval": td.Uniform(-1.5, 2.0), "half-open": td.HalfNormal(2.0)}
CONTEXT_SHAPE = (2, 2)


def parameters_of(dims, support):
    return Parameters([Parameter(f"theta_{i}", PRIORS[support]) for i in range(dims)])


def training_set(dims, context, support, n=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    contexts = 3 * torch.randn(n, *CONTEXT_SHAPE, generator=generator) + 1 if context else None
    return parameters_of(dims, support).sample(n, seed=seed), contexts


def untrained(model, dims, context, support="free", seed=0):
    name, options = MODELS[model]
    bounds = parameters_of(dims, support).bounds
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_generator(name, (dims,), CONTEXT_SHAPE if context else None, bounds=bounds, **options)


def build(model, dims, context, support="free", dtype=torch.float32):
    """A generator whose weights are moved away from where they start."""
    generator = untrained(model, dims, context, support).fit_scaling(*training_set(dims, context, support))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(dims)
        for weight in generator.parameters():
            # An energy is a sum to which the network adds little as long as its weights are small.
            weight.add_((0.5 if model == "energy" else 0.12) * torch.randn_like(weight))
    return generator.to(dtype).eval()


def some_contexts(context, *batch, dtype=torch.float32):
    if not context:
        return None
    return torch.randn(*batch, *CONTEXT_SHAPE, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture(params=[1, 5])
def dims(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["unconditional", "conditional"])
def context(request):
    return request.param


def test_every_generator_is_here():
    assert {name for name, _ in MODELS.values()} == set(GENERATORS)


def test_satisfies_the_protocol(model, dims, context):
    generator = build(model, dims, context)
    assert isinstance(generator, Generator)
    assert generator.event_shape == (dims,)
    assert generator.context_shape == (CONTEXT_SHAPE if context else ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types(model, dims, context, dtype):
    generator = build(model, dims, context, dtype=dtype)
    for batch in ((), (3,), (2, 3)) if context else ((),):
        draws = generator.sample(7, some_contexts(context, *batch, dtype=dtype), seed=0)
        assert draws.shape == (7, *batch, dims)
        assert draws.dtype == dtype
        assert bool(torch.isfinite(draws).all())
        assert not draws.requires_grad


def test_same_seed_same_bytes_and_the_global_stream_is_untouched(model, dims, context):
    generator, contexts = build(model, dims, context), some_contexts(context, 2)
    state = torch.random.get_rng_state()
    first, second, other = (generator.sample(20, contexts, seed=seed) for seed in (7, 7, 8))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_a_seed_draws_differ(model):
    generator = build(model, 2, False)
    with torch.random.fork_rng():
        assert not torch.equal(generator.sample(5), generator.sample(5))


def test_draws_follow_their_context(model, dims):
    """One draw for each of a batch of contexts is the same whether the context is repeated or broadcast."""
    generator = build(model, dims, True)
    one = some_contexts(True)
    assert torch.equal(generator.sample(6, one, seed=1), generator.sample(6, one.unsqueeze(0), seed=1)[:, 0])
    many = generator.sample(20_000, torch.stack([one, one + 4.0]), seed=1)
    spread = many.std(0).amax(0)
    assert bool(((many.mean(0)[0] - many.mean(0)[1]).abs() > 5 * spread * (2 / 20_000) ** 0.5).any())


@pytest.mark.parametrize("support", ["interval", "half-open"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_draw_is_outside_the_support(model, dims, context, support, dtype):
    generator = build(model, dims, context, support, dtype)
    # Far too wide on purpose: most of the draws are pressed against the bounds, where rounding would put them outside.
    generator.event_scaling.scale.fill_(8.0)
    draws = generator.sample(2000, some_contexts(context, dtype=dtype), seed=1).double()
    low, high = parameters_of(dims, support).bounds.unbind(-1)
    assert bool(torch.isfinite(draws).all())
    assert bool(((draws > low) & (draws < high)).all())


def test_a_state_taken_over_gives_the_same_draws(model, dims, context):
    generator, contexts = build(model, dims, context, "interval"), some_contexts(context, 2)
    again = untrained(model, dims, context, "interval", seed=9).eval()
    assert not torch.equal(again.sample(9, contexts, seed=1), generator.sample(9, contexts, seed=1))
    again.load_state_dict(generator.state_dict())
    assert torch.equal(again.sample(9, contexts, seed=1), generator.sample(9, contexts, seed=1))


def test_a_copy_is_independent(model):
    generator = build(model, 2, False)
    before = generator.sample(4, seed=1)
    twin = copy.deepcopy(generator)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(0.1)
    assert torch.equal(generator.sample(4, seed=1), before)
    assert not torch.equal(twin.sample(4, seed=1), before)


def test_lives_where_it_is_put(model, context):
    """All of it: on the meta device nothing that was left behind can take part."""
    generator = build(model, 2, context)
    assert generator.device == torch.device("cpu")
    assert {tensor.device.type for tensor in generator.to("meta").state_dict().values()} == {"meta"}
    assert generator.device == torch.device("meta")


@pytest.mark.parametrize("model", WITH_LOSS)
def test_the_loss_is_one_finite_number_for_each_event(model, dims, context):
    generator = build(model, dims, context, "interval")
    events, contexts = training_set(dims, context, "interval", 30, seed=3)
    low, high = parameters_of(dims, "interval").bounds.unbind(-1)
    events[0], events[1] = low, high
    data = [generator.encode(events)[0], *([] if contexts is None else [generator.context_scaling(contexts)])]
    for mode in (True, False):
        loss = generator.train(mode).loss(*data)
        assert loss.shape == (30,)
        assert bool(torch.isfinite(loss).all())
        gradients = torch.autograd.grad(loss.sum(), list(generator.parameters()), allow_unused=True)
        assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


@pytest.mark.parametrize("model", WITH_LOSS)
def test_evaluation_repeats_itself(model, context):
    generator = build(model, 2, context)
    events, contexts = training_set(2, context, "free", 30)
    data = [generator.encode(events)[0], *([] if contexts is None else [generator.context_scaling(contexts)])]
    state = torch.random.get_rng_state()
    assert torch.equal(generator.loss(*data), generator.loss(*data))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("model", WITH_LOSS)
def test_training_improves_and_repeats_itself(model):
    """On correlated events whose mean is the context: weights, seed and all."""
    source = torch.Generator().manual_seed(1)
    contexts = torch.randn(600, *CONTEXT_SHAPE, generator=source)
    shared = torch.randn(600, 1, generator=source)
    events = contexts.flatten(1)[:, :3] + shared + 0.1 * torch.randn(600, 3, generator=source)
    config = TrainConfig(**{**GENERATORS[MODELS[model][0]].training, "epochs": 4})
    states = []
    for _ in range(2):
        generator = untrained(model, 3, True).fit_scaling(events, contexts)
        data = [generator.encode(events)[0], generator.context_scaling(contexts)]
        record = train(generator, generator.loss, data, config=config, seed=3, progress=False)
        states.append(generator.state_dict())
        assert not generator.training
    assert record.validation_loss[-1] < record.validation_loss[0]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_input_is_named(model, bad):
    generator, contexts = build(model, 2, True), some_contexts(True, 4)
    contexts[3, 0, 1] = bad
    with pytest.raises(NonFiniteError, match="context: expected finite numbers"):
        generator.sample(5, contexts, seed=0)


def test_wrong_shapes_are_named(model):
    free, conditional = build(model, 2, False), build(model, 2, True)
    for wrong in (None, torch.zeros(3, 2, 1), torch.zeros(4), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match=r"context: expected shape \(\*, 2, 2\)"):
            conditional.sample(4, wrong)
    with pytest.raises(ShapeError, match="unconditional"):
        free.sample(3, torch.zeros(3, 2, 2))
    for n in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match="n: expected an integer of at least 1"):
            free.sample(n)


def test_unknown_names_are_named(model):
    with pytest.raises(UsageError, match="generator: expected one of"):
        build_generator("oracle", (2,))
    with pytest.raises(UsageError, match="option of the generator"):
        build_generator(MODELS[model][0], (2,), wings=2)

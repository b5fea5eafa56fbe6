"""Draws from given noise are those of `sample`: the same where the noise is, else in distribution."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.build_generators import GENERATORS, build_generator
from sbi_physics.models.pushforward import PushforwardGenerator, uniform

DIMS = 3
SMALL = {"hidden_features": 12, "blocks": 1}
# Each: the model, its options, the members of an ensemble, and whether `sample` draws nothing but such noise.
MODELS = {
    "nsf": ("nsf", {**SMALL, "transforms": 2}, 1, True),
    "nsf, ensemble": ("nsf", {**SMALL, "transforms": 2}, 3, False),
    "nsf-box": ("nsf-box", {**SMALL, "transforms": 4, "circular": [1]}, 1, False),
    "maf": ("maf", {**SMALL, "transforms": 2}, 1, True),
    "maf-spline": ("maf-spline", {**SMALL, "transforms": 2}, 1, True),
    "flow-matching": ("flow-matching", {**SMALL, "steps": 6}, 1, True),
    "mixture": ("mixture", {**SMALL, "components": 3}, 1, False),
    "made": ("made", {**SMALL, "components": 3}, 1, False),
    "made, logistic": ("made", {**SMALL, "components": 3, "kernel": "logistic"}, 1, False),
    "recurrent": ("recurrent", {**SMALL, "components": 3}, 1, False),
    "vae": ("vae", {**SMALL, "latent": [3, 2]}, 1, False),
    "vae, flow prior": ("vae", {**SMALL, "latent": 2, "latent_prior": "flow", "prior_transforms": 2}, 1, False),
    "gan": ("gan", {**SMALL, "noise_features": 5}, 1, True),
}
BOUNDS = torch.tensor([[-2.0, 2.0]] * DIMS)
N = 20_000


def build(name, conditional, bounds=None):
    """A model whose weights are moved away from where they start."""
    model, options, members, _ = MODELS[name]
    shape = (2,) if conditional else None
    bounds = BOUNDS if model == "nsf-box" else bounds
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        if model in GENERATORS:
            made = build_generator(model, (DIMS,), shape, bounds=bounds, **options)
        else:
            described = Architecture(model, (DIMS,), shape, options, members=members)
            made = build_density(described, bounds=bounds, engine="eager")
        for weight in made.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
        made.fit_scaling(torch.rand(500, DIMS) * 3 - 1.5, torch.randn(500, 2) if conditional else None)
    return made.eval()


def noise_for(model, n, seed=0):
    return torch.randn(n, model.noise_features, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["unconditional", "conditional"])
def conditional(request):
    return request.param


@pytest.mark.parametrize("name", [name for name, (_, _, _, same) in MODELS.items() if same])
def test_the_same_noise_gives_the_draws_of_sample(name, conditional):
    model = build(name, conditional)
    context = torch.randn(200, 2, generator=torch.Generator().manual_seed(2)) if conditional else None
    with seeded(5):
        noise = torch.randn(200, model.noise_features)
    drawn = model.sample(1, context, seed=5)[0] if conditional else model.sample(200, seed=5)
    torch.testing.assert_close(model.from_noise(noise, context), drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nsf", "maf", "maf-spline"])
def test_to_noise_undoes_from_noise(name, conditional):
    model = build(name, conditional)
    noise = noise_for(model, 200)
    context = torch.randn(200, 2, generator=torch.Generator().manual_seed(3)) if conditional else None
    with torch.no_grad():
        back = model.to_noise(model.from_noise(noise, context), context)
    torch.testing.assert_close(back, noise, rtol=1e-3, atol=1e-3)


def test_an_ensemble_has_no_noise_of_its_own():
    with pytest.raises(UsageError, match="single flow"):
        build("nsf, ensemble", conditional=False).to_noise(torch.zeros(5, DIMS))


def test_normal_noise_gives_the_distribution_of_sample(name, conditional):
    """Kolmogorov-Smirnov for each number and for sums of them, which see the correlations."""
    model = build(name, conditional)
    context = torch.tensor([0.5, -1.0]) if conditional else None
    contexts = None if context is None else context.expand(N, 2)
    given, drawn = model.from_noise(noise_for(model, N, seed=3), contexts), model.sample(N, context, seed=4)
    assert isinstance(model, PushforwardGenerator)
    assert given.shape == drawn.shape == (N, DIMS)
    distances = kolmogorov_smirnov(views(given), views(drawn))
    # Passed by each of six by chance but once in some 10,000 times: 2 exp(-2 t^2) with t^2 n / 2.
    assert float(distances.max()) < 2.5 * (2 / N) ** 0.5
    shifted = given + 0.1 * given.std(0)
    assert float(kolmogorov_smirnov(views(shifted), views(drawn)).max()) > 2.5 * (2 / N) ** 0.5


def views(x):
    first, second, third = x.T
    return torch.stack([first, second, third, first + second, second - third, first + third])


def kolmogorov_smirnov(one, other):
    """Largest distance of the cumulative distributions of rows ``(k, n)``."""
    points = torch.cat([one, other], 1).sort(1).values.contiguous()
    shares = [torch.searchsorted(x.sort(1).values.contiguous(), points, right=True) / x.shape[1] for x in (one, other)]
    return (shares[0] - shares[1]).abs().amax(1)


def test_each_row_has_its_own_noise_and_context(name):
    model = build(name, True)
    noise, context = noise_for(model, 9), torch.randn(9, 2, generator=torch.Generator().manual_seed(2))
    together = model.from_noise(noise, context)
    alone = torch.cat([model.from_noise(noise[i : i + 1], context[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not together.requires_grad
    changed = noise.clone()
    changed[4] += 1.0
    assert torch.equal((model.from_noise(changed, context) != together).any(1).nonzero()[:, 0], torch.tensor([4]))


def test_draws_are_inside_the_support(name):
    model = build(name, False, bounds=BOUNDS)
    events = model.from_noise(3 * noise_for(model, 500))
    assert bool(((events > -2) & (events < 2)).all())


def test_wrong_shapes_are_named(name, conditional):
    model = build(name, conditional)
    features, context = model.noise_features, torch.zeros(4, 2) if conditional else None
    for shape in ((4, features + 1), (features,), (2, 4, features)):
        with pytest.raises(ShapeError, match=rf"noise: expected shape \(n, {features}\)"):
            model.from_noise(torch.zeros(shape), context)
    with pytest.raises(ShapeError, match="context: expected"):
        model.from_noise(torch.zeros(4, features), None if conditional else torch.zeros(4, 2))
    if conditional:
        with pytest.raises(ShapeError, match=r"context: expected shape \(4, 2\), got shape \(3, 2\)"):
            model.from_noise(torch.zeros(4, features), context[:3])


def test_uniform_numbers():
    """Quantiles of the normal distribution, and no number outside [0, 1]."""
    noise = torch.tensor([-1.6448536, -0.6744898, 0.0, 1.2815516, 20.0, -20.0])
    torch.testing.assert_close(uniform(noise), torch.tensor([0.05, 0.25, 0.5, 0.9, 1.0, 0.0]))

"""Generator and critic, each against what is known of it before any training."""

import pytest
import torch
from torch import nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.protocols import Density, Generator
from sbi_physics.models.critic import Critic, critic_loss, generator_loss, gradient_penalty
from sbi_physics.models.gan import GenerativeAdversarialNetwork


def build(seed=0, dims=2, context=(3,), **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GenerativeAdversarialNetwork((dims,), context, **{"hidden_features": 16, "blocks": 1, **options})


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(model, by=0.3):
    """The model with all weights moved, so that it depends on everything."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for weight in model.parameters():
            weight.add_(by * torch.randn_like(weight))
    return model.eval()


def test_it_generates_and_does_not_evaluate():
    model = build()
    assert isinstance(model, Generator)
    assert not isinstance(model, Density)
    draws = model.sample(5, normal(4, 3), seed=1)
    assert draws.shape == (5, 4, 2)
    assert model.sample(5, normal(4, 3), seed=1).numpy().tobytes() == draws.numpy().tobytes()
    assert not torch.equal(model.sample(5, normal(4, 3), seed=2), draws)


@pytest.mark.parametrize("noise_features", [1, 2, 6])
def test_an_untrained_generator_draws_normal_numbers(noise_features):
    """In as many features as there is noise; the others are constant."""
    n = 20_000
    draws = build(noise_features=noise_features, context=None).sample(n, seed=0)
    expected = torch.tensor([1.0, min(noise_features - 1.0, 1.0)])
    assert float((draws.var(0) - expected).abs().max()) < 5 * (2 / n) ** 0.5


def test_draws_are_made_of_the_noise_that_is_handed_in():
    model, context = moved(build()), normal(7, 3)
    with torch.no_grad():
        summary = model._summary(context)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            noise = torch.randn(7, 2)
        expected = model.event_scaling.inverse(model.generate(noise, summary))
        torch.testing.assert_close(model.sample(1, context, seed=3)[0], expected)
        torch.testing.assert_close(model.generate(noise, summary[:1])[0], model.generate(noise, summary)[0])
    with pytest.raises(ShapeError, match=r"noise: expected shape \(n, 2\), got \(7, 3\)"):
        model.generate(normal(7, 3), summary)


def test_draws_stay_inside_the_support():
    bounds = torch.tensor([[0.0, 1.0], [2.0, torch.inf]])
    model = moved(build(bounds=bounds))
    draws = model.sample(500, normal(3, 3), seed=0)
    assert bool(model.bijection.within(draws.reshape(-1, 2)).all())


def test_each_side_learns_from_its_own_loss_alone():
    model = build(embedding=nn.Linear(3, 4), context_features=4)
    generator, critic = (set(map(id, part.parameters())) for part in (model.generator_part, model.critic_part))
    assert not generator & critic
    assert generator | critic == {id(weight) for weight in model.parameters()}
    model.critic_loss(torch.ones(8), normal(8, 2), normal(8, 3)).backward()
    assert all(weight.grad is None for weight in model.generator_part.parameters())
    assert all(weight.grad is not None for weight in model.critic_part.parameters() if weight is not None)


def test_the_penalty_is_zero_for_a_critic_of_slope_one():
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    real, generated = normal(50, 2).double(), normal(50, 2, seed=1).double()
    assert float(gradient_penalty(lambda x: x @ direction, real, generated)) < 1e-30
    assert float(gradient_penalty(lambda x: x[:, 0] + 0 * x[:, 1], real, generated)) == 0
    assert float(gradient_penalty(lambda x: 3 * x @ direction, real, generated)) == pytest.approx(4)
    # A constant has no slope and still a gradient of the penalty that is a number.
    scale = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    gradient_penalty(lambda x: scale * (x @ direction), real, generated).backward()
    assert bool(torch.isfinite(scale.grad).all())


def test_the_penalty_looks_between_the_events():
    """|gradient| = |2x|: at a point that is uniform between 1 and 2 the mean of (2x - 1)^2 is 13/3."""
    real, generated = torch.full((40_000, 1), 2.0), torch.full((40_000, 1), 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = float(gradient_penalty(lambda x: x.square().sum(-1), real, generated))
    assert found == pytest.approx(13 / 3, abs=5 * 2.4 / 40_000**0.5)


def test_a_spectral_critic_has_layers_of_norm_one_and_slope_one_at_most():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic, plain = Critic(3, 2, hidden_features=32, spectral=True), Critic(3, 2, hidden_features=32)
        with torch.no_grad():
            for network in (critic, plain):
                for weight in network.parameters():
                    weight.mul_(3.0)
        for _ in range(50):
            critic(normal(4, 3), normal(4, 2))
    norms = [float(torch.linalg.matrix_norm(layer.weight, 2)) for layer in critic.eval().layers]
    assert norms == pytest.approx([1.0] * len(norms), abs=0.02)

    def slope(network):
        events = normal(500, 3).requires_grad_()
        (gradient,) = torch.autograd.grad(network(events, normal(500, 2, seed=1)).sum(), events)
        return float(gradient.norm(dim=-1).max())

    assert slope(critic) < 1.02
    assert slope(plain) > 1.5


def test_losses_are_weighted_expectations():
    """An event of weight two is as two events, and a pair of opposite weights as none."""
    scores, other = normal(4), normal(4, seed=1)
    equal, doubled = torch.full((4,), 0.25), torch.tensor([0.5, 0.25, 0.25]).div(1.0)
    for game in ("wasserstein", "minimax"):
        repeated = critic_loss(game, scores[[0, 0, 1, 2]], other, equal, equal)
        torch.testing.assert_close(critic_loss(game, scores[:3], other, doubled, equal), repeated)
        signed = torch.cat([doubled, torch.tensor([3.0, -3.0])])
        torch.testing.assert_close(critic_loss(game, scores[[0, 1, 2, 3, 3]], other, signed, equal), repeated)
        assert float(generator_loss(game, other + 1, equal)) < float(generator_loss(game, other, equal))
    torch.testing.assert_close(critic_loss("wasserstein", scores, other, equal, equal), other.mean() - scores.mean())
    # At the optimum of the minimax game the critic knows nothing: two times ln 2.
    zero = torch.zeros(4)
    torch.testing.assert_close(critic_loss("minimax", zero, zero, equal, equal), 2 * torch.tensor(2.0).log())


def test_wrong_options_are_named():
    for options, message in (
        ({"loss": "hinge"}, "loss: expected one of minimax, wasserstein"),
        ({"penalty": -1.0}, "penalty: expected a finite number of at least 0"),
        ({"penalty": 0}, "penalty: expected a number above 0 where spectral is False"),
        ({"noise_features": 0}, "noise_features: expected an integer of at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            build(**options)
    assert build(spectral=True).penalty == 0
    assert build(loss="minimax").penalty == 0

"""A consistency model: noise in one step to where a diffusion model carries it, which one step of that does not."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.protocols import Density, Generator
from sbi_physics.models.consistency import ConsistencyModel
from sbi_physics.models.diffusion.density import DiffusionDensity
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.consistency import distill_consistency, train_consistency

SMALL = {"hidden_features": 64, "blocks": 2}
QUICK = TrainConfig(epochs=20, batch_size=256, learning_rate=5e-3)
N = 2000
# Of the distance of two empirical distributions of N events: the probability to exceed it by chance is below 1e-3.
LIMIT = 1.95 * (2 / N) ** 0.5


class TwoModes(torch.nn.Module):
    """The exact velocity for events of two normal modes at +-1 in all dimensions, moved by the first context."""

    def __init__(self, width=0.25):
        super().__init__()
        self.width = width
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def describe(self, summary):
        return summary

    def condition(self, angles, description):
        centre = torch.zeros(1, 1) if description is None else description[:, :1]
        return angles.unsqueeze(-1), centre

    def velocity(self, points, condition):
        angles, centre = condition
        cos, sin = angles.cos(), angles.sin()
        variance = (cos * self.width) ** 2 + sin**2
        expected, logits = [], []
        for sign in (-1.0, 1.0):
            mean = centre + sign
            away = points - cos * mean
            expected.append(mean + cos * self.width**2 / variance * away)
            logits.append(-0.5 * (away**2 / variance).sum(-1))
        share = torch.stack(logits).softmax(0).unsqueeze(-1)
        event = (share * torch.stack(expected)).sum(0)
        # Without noise there is nothing to move.
        return torch.where(sin > 1e-6, (cos * points - event) / sin.clamp(min=1e-6), 0.0)

    def forward(self, points, angles, description):
        return self.velocity(points, self.condition(angles, description))


def teacher_of(context=True, **options):
    teacher = DiffusionDensity((2,), (1,) if context else None, **options)
    teacher.network = TwoModes()
    return teacher.eval()


def build(seed=0, context=(1,), **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConsistencyModel((2,), context, **{**SMALL, **options})


def distance(one, other):
    """The largest distance of the empirical distributions along three directions."""
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]).T
    a, b = (one @ directions).T.contiguous().sort().values, (other @ directions).T.contiguous().sort().values
    both = torch.cat([a, b], 1)
    shares = [torch.searchsorted(x, both, right=True) / x.shape[1] for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def truth(centre, seed):
    generator = torch.Generator().manual_seed(seed)
    sign = 2.0 * torch.randint(2, (N, 1), generator=generator) - 1
    return centre + sign + 0.25 * torch.randn(N, 2, generator=generator)


@pytest.fixture(scope="module", params=[1, 2])
def student(request):
    contexts = 2 * torch.rand(8000, 1, generator=torch.Generator().manual_seed(1)) - 1
    model = build(steps=request.param)
    record = distill_consistency(model, teacher_of(), 8000, contexts, config=QUICK, seed=2, progress=False)
    assert record.validation_loss[-1] < 0.1 * record.validation_loss[0]
    return model


@pytest.mark.parametrize("centre", [-0.7, 0.0, 0.7])
def test_few_steps_of_the_student_are_the_events_and_those_of_its_teacher_are_not(student, centre):
    context = torch.tensor([centre])
    real = truth(centre, seed=3)
    assert distance(student.sample(N, context, seed=4), real) < LIMIT
    assert distance(teacher_of().sample(N, context, seed=4), real) < LIMIT
    assert distance(teacher_of(sampling_steps=student.steps).sample(N, context, seed=4), real) > 2 * LIMIT


def test_one_step_ends_where_the_teacher_ends(student):
    if student.steps > 1:
        pytest.skip("later steps take other noise")
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(5))
    context = torch.full((1, 1), 0.3)
    with torch.no_grad():
        ends = teacher_of()._carry(noise, context, to_noise=False, divergences=False)[0]
        found = student.generate(noise, context)
    # Noise that is shared between the modes is a small part of it.
    assert float((found - ends).abs().median()) < 0.06


def test_it_generates_and_does_not_evaluate():
    model = build()
    assert isinstance(model, Generator)
    assert not isinstance(model, Density)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_evaluation_for_each_step(steps):
    model, calls = build(steps=steps), []
    model.network.events.register_forward_hook(lambda *_: calls.append(1))
    model.sample(5, torch.zeros(3, 1), seed=0)
    assert len(calls) == steps
    assert len(model.angles) == steps
    assert model.noise_features == 2 * steps


def test_without_noise_an_event_is_what_it_is():
    model = build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        events = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
        assert torch.equal(model._end(events, torch.zeros(1), model.network.describe(torch.zeros(1, 1))), events)


def test_it_begins_as_a_teacher_of_its_size():
    teacher = build().new_teacher()
    teacher.event_scaling.mean.fill_(3.0)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    same, smaller = build(), build(hidden_features=16)
    same.begin_as(teacher)
    smaller.begin_as(teacher)
    noise, context = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 1)
    with torch.no_grad():
        first = teacher.follow(noise, context, [torch.pi / 2, 0.0])[-1]
        torch.testing.assert_close(same.generate(noise, context), first, rtol=1e-4, atol=1e-5)
    assert torch.equal(smaller.event_scaling.mean, teacher.event_scaling.mean)


def test_it_learns_from_events_alone():
    """With a teacher of its own, on two modes that a normal distribution is far from."""
    events = truth(0.0, seed=1)
    model = build(context=None).fit_scaling(events)
    own = TrainConfig(epochs=40, batch_size=256, learning_rate=5e-3)
    quick = TrainConfig(epochs=4, batch_size=512, learning_rate=5e-3)
    parts = train_consistency(
        model, [model.encode(events)[0]], config=quick, teacher_config=own, seed=1, progress=False
    )
    assert [len(part.train_loss) for part in parts] == [40, 4]
    draws = model.sample(N, seed=2)
    assert distance(draws, truth(0.0, seed=5)) < 2 * LIMIT
    normal = events.mean(0) + torch.randn(N, 2, generator=torch.Generator().manual_seed(3)) * events.std(0)
    assert distance(normal, truth(0.0, seed=5)) > 2 * LIMIT


def test_same_seed_same_weights_and_a_run_goes_on_from_its_checkpoint(tmp_path):
    states = []
    config = TrainConfig(epochs=2, batch_size=128, checkpoint_seconds=0.0)
    for checkpoint in (None, tmp_path / "c"):
        model = build(context=None)
        distill_consistency(model, teacher_of(False), 600, config=config, seed=3, checkpoint=checkpoint, progress=False)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_named():
    with pytest.raises(UsageError, match="steps: expected an integer of at least 1, got 0"):
        build(steps=0)
    with pytest.raises(ShapeError, match=r"noise: expected shape \(n, 4\), got \(3, 2\)"):
        build(steps=2).generate(torch.zeros(3, 2), torch.zeros(1, 1))
    with pytest.raises(UsageError, match="contexts: this model takes scaled contexts, got none"):
        distill_consistency(build(), teacher_of(), 100, progress=False)
    with pytest.raises(UsageError, match="data: expected encoded events and scaled contexts, got 1"):
        train_consistency(build(), [torch.zeros(20, 2)], progress=False)

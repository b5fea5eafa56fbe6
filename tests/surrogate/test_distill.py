"""A student stands in for its teacher: in its draws, in its file and on the command line."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.diagnostics.classifier import classifier_auc
from sbi_physics.surrogate.showers import Showers

N = 3000
SIZE = {"hidden_features": 48, "blocks": 2}


class Crescents:
    """Two crescents, moved by the parameter; and a count, which has a step where it is rounded."""

    name = "crescents"
    x_shape = (3,)

    def __init__(self):
        self.parameters = sp.Parameters([sp.Parameter("shift", td.Uniform(-1.0, 1.0))])

    def __call__(self, theta, *, seed):
        generator = torch.Generator().manual_seed(seed)
        angle = torch.pi * torch.rand(len(theta), generator=generator)
        side = 2.0 * torch.randint(2, (len(theta),), generator=generator) - 1
        radius = 1 + 0.1 * torch.randn(len(theta), generator=generator)
        x, y = side * (radius * angle.cos() - 0.5), side * radius * angle.sin()
        hits = torch.poisson(4 + 2 * side, generator=generator)
        return torch.stack([x + theta[:, 0], y, hits], -1)


@pytest.fixture(scope="module")
def data():
    theta = Crescents().parameters.sample(N, seed=1)
    return theta, Crescents()(theta, seed=11)


@pytest.fixture(scope="module")
def teacher(data):
    return sp.Surrogate("diffusion", **SIZE, config={"epochs": 25, "batch_size": 256}).fit(
        *data, seed=2, progress=False
    )


@pytest.fixture(scope="module")
def student(teacher):
    return teacher.distill(events=8000, config={"epochs": 12, "batch_size": 256}, seed=3, progress=False)


def told_apart(real, generated, theta):
    """Whether trees tell them apart; what is in a bin of a count has its place there by chance."""
    return not classifier_auc(real, generated, contexts=theta, kind="trees", level=1e-3, seed=1).passed


def test_the_student_draws_as_its_teacher_and_one_step_of_the_teacher_does_not(teacher, student):
    theta = teacher.parameters.sample(2500, seed=4)
    real = teacher.sample(theta, seed=5)
    assert not told_apart(real, student.sample(theta, seed=6), theta)
    assert told_apart(real, teacher.with_sampling_steps(1).sample(theta, seed=6), theta)


def test_twelve_evaluations_draw_as_all_and_two_do_not(teacher):
    theta = teacher.parameters.sample(2500, seed=4)
    real = teacher.sample(theta, seed=5)
    twelve = teacher.with_sampling_steps(12)
    assert twelve.architecture.options["sampling_steps"] == 12
    assert not told_apart(real, twelve.sample(theta, seed=6), theta)
    assert told_apart(real, teacher.with_sampling_steps(2).sample(theta, seed=6), theta)
    assert torch.equal(twelve.with_sampling_steps(None).sample(theta[:9], seed=1), teacher.sample(theta[:9], seed=1))


def test_what_the_student_keeps_of_its_teacher(teacher, student, tmp_path):
    assert student.parameters == teacher.parameters
    assert student.x_shape == teacher.x_shape
    assert student.architecture.options == SIZE
    assert student.chain.preprocessing.describe() == teacher.chain.preprocessing.describe()
    assert student.provenance["teacher"]["model"] == "flow-matching"
    assert student.provenance["simulations"] == N
    draws = student.sample(torch.zeros(50, 1), seed=1)
    assert torch.equal(draws[:, 2], draws[:, 2].round())
    sp.save(student, tmp_path / "s.st")
    again = sp.load(tmp_path / "s.st", device="cpu")
    assert torch.equal(again.sample(torch.zeros(50, 1), seed=1), draws)
    assert again.provenance == student.provenance
    few = teacher.with_sampling_steps(3)
    sp.save(few, tmp_path / "f.st")
    assert torch.equal(
        sp.load(tmp_path / "f.st", device="cpu").sample(draws[:, :1] * 0, seed=2), few.sample(draws[:, :1] * 0, seed=2)
    )


def test_the_teacher_stays_as_it_is_and_the_student_repeats_itself(teacher):
    before = {name: value.clone() for name, value in teacher.chain.state_dict().items()}
    theta = torch.zeros(20, 1)
    draws = teacher.sample(theta, seed=1)
    quick = {"events": 300, "config": {"epochs": 1}, "seed": 7, "progress": False}
    states = [teacher.distill(steps=2, **quick).chain.state_dict() for _ in range(2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.chain.state_dict().items())
    assert torch.equal(teacher.sample(theta, seed=1), draws)


def test_a_coupling_flow_learns_the_density_of_an_autoregressive_one(data):
    teacher = sp.Surrogate("maf", transforms=2, hidden_features=24, config={"epochs": 8}).fit(*data, progress=False)
    settings = {
        "events": 6000,
        "theta": data[0],
        "seed": 1,
        "progress": False,
        "transforms": 3,
        "hidden_features": 32,
    }
    student = teacher.distill("flow", config={"epochs": 12}, **settings)
    untaught = teacher.distill("flow", config={"epochs": 1, "learning_rate": 1e-5}, **settings)
    theta = data[0][:2000]
    events = [teacher.chain.stages[0].sample(1, theta, seed=5)[0]]
    divergence = [
        float((teacher.chain.log_prob(theta, events) - made.chain.log_prob(theta, events)).mean())
        for made in (student, untaught)
    ]
    assert student.chain.has_density
    assert divergence[0] < 0.1
    assert divergence[1] > 0.5


@pytest.mark.parametrize("model", ["gan", "vae", "consistency", "mixture"])
def test_any_model_may_be_the_student_of_any(model, data):
    teacher = sp.Surrogate("mixture", components=2, hidden_features=8, blocks=1, config={"epochs": 1})
    student = teacher.fit(*data, progress=False).distill(
        model, events=400, config={"epochs": 1}, hidden_features=8, blocks=1, progress=False
    )
    assert student.sample(torch.zeros(5, 1), seed=0).shape == (5, 3)


def test_of_several_stages_the_last_is_taught():
    geometry = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10))))
    generator = torch.Generator().manual_seed(0)
    energy = 100 * torch.exp(torch.rand(300, 1, generator=generator))
    showers = energy * 0.2 * torch.exp(0.5 * torch.randn(300, geometry.size, generator=generator))
    small = {"hidden_features": 8, "blocks": 1, "config": {"epochs": 1}}
    teacher = sp.Surrogate("diffusion", preprocessing=Showers(geometry), **small).fit(energy, showers, progress=False)
    student = teacher.distill(events=200, config={"epochs": 1}, progress=False)
    first, again = (made.chain.stages[0].state_dict() for made in (teacher, student))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert student.sample(energy[:7], seed=1).shape == (7, geometry.size)
    assert len(student.provenance["training"]) == 1


def test_wrong_use_is_named(teacher, student):
    with pytest.raises(sp.UsageError, match="not trained"):
        sp.Surrogate("diffusion").distill()
    with pytest.raises(sp.UsageError, match=r"model: .*'nonsense'"):
        teacher.distill("nonsense")
    with pytest.raises(sp.UsageError, match="events: expected an integer of at least 1, got 0"):
        teacher.distill(events=0)
    with pytest.raises(sp.UsageError, match="option of the generator 'gan'"):
        teacher.distill("gan", steps=1, events=50, progress=False)
    with pytest.raises(sp.UsageError, match="setting of the training"):
        teacher.distill(config={"epoch": 1}, events=50, progress=False)
    with pytest.raises(sp.SupportError, match="theta"):
        teacher.distill(theta=torch.tensor([[7.0]]))
    with pytest.raises(sp.UsageError, match="sampling_steps: only diffusion models"):
        student.with_sampling_steps(4)
    with pytest.raises(sp.UsageError, match="sampling_steps: expected an integer"):
        teacher.with_sampling_steps(0)

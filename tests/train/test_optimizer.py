"""Muon: it steps along the nearest orthogonal matrix, treats all directions alike, and leaves the rest to AdamW."""

import pytest
import torch
from torch import nn

from sbi_physics.train.flat import FlatParameters
from sbi_physics.train.optimizer import Muon, make_optimizers, nearest_orthogonal


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16), (3, 20, 40)])
def test_the_update_points_along_the_nearest_orthogonal_matrix(shape):
    matrix = random(*shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = nearest_orthogonal(matrix)
    singular_values = torch.linalg.svdvals(found)
    # The smallest of a random square matrix may be below the 1 % from which on they come to one.
    assert singular_values.max() < 1.3
    assert (singular_values > 0.7).double().mean() > 0.9
    # The singular vectors stay; only the values move.
    torch.testing.assert_close(
        u.mT @ found @ vh.mT, torch.diag_embed((u.mT @ found @ vh.mT).diagonal(dim1=-2, dim2=-1))
    )
    assert ((u @ vh) * found).sum() / ((u @ vh).norm() * found.norm()) > 0.98


def test_a_gradient_of_zero_moves_nothing():
    weight = nn.Parameter(random(16, 16))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], 0.1).step()
    assert torch.equal(weight, before)


def test_the_scale_of_the_loss_does_not_matter():
    updates = []
    for scale in (1e-3, 1.0, 1e3):
        weight = nn.Parameter(torch.zeros(16, 32, dtype=torch.float64))
        weight.grad = scale * random(16, 32)
        Muon([weight], 0.1).step()
        updates.append(weight.detach())
    torch.testing.assert_close(updates[0], updates[1])
    torch.testing.assert_close(updates[2], updates[1])


def test_equal_matrices_are_updated_in_a_batch_as_they_are_alone():
    gradients = random(3, 16, 20)
    together = nn.Parameter(torch.zeros_like(gradients))
    alone = [nn.Parameter(torch.zeros(16, 20, dtype=torch.float64)) for _ in range(3)]
    batched, single = Muon([together], 0.1), Muon(alone, 0.1)
    for step in range(3):
        together.grad = gradients * (step + 1)
        for weight, gradient in zip(alone, gradients, strict=True):
            weight.grad = gradient * (step + 1)
        batched.step()
        single.step()
    torch.testing.assert_close(together.detach(), torch.stack([w.detach() for w in alone]))


def test_a_linear_map_is_learned():
    inputs, target = random(500, 20, seed=1), random(20, 30, seed=2)
    weight = nn.Parameter(torch.zeros(20, 30, dtype=torch.float64))
    optimizer = Muon([weight], 1.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1 - step / 300
        weight.grad = torch.autograd.grad((inputs @ (weight - target)).square().mean(), weight)[0]
        optimizer.step()
    torch.testing.assert_close(weight.detach(), target, rtol=0, atol=0.02)


class Parameters(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = [(16, 16), (64,), (64, 15), (8, 8, 3, 3), (16, 16), (20, 30)]
        self.all = nn.ParameterList(torch.randn(shape) for shape in shapes)


def test_vectors_thin_matrices_and_images_go_to_adamw():
    (flat,) = FlatParameters.of(Parameters())
    adamw, muon = make_optimizers("muon", flat, 0.1, 0.0)
    assert isinstance(muon, Muon)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(2, 16, 16), (1, 20, 30)]
    assert isinstance(adamw, torch.optim.AdamW)
    assert [p.numel() for p in adamw.param_groups[0]["params"]] == [64 + 64 * 15 + 8 * 8 * 9]
    (only,) = make_optimizers("adamw", flat, 0.1, 0.0)
    assert isinstance(only, torch.optim.AdamW)
    assert only.param_groups[0]["params"][0].shape == flat.values.shape


def test_flat_parameters_are_those_of_the_model():
    model, mixed = Parameters(), Parameters()
    mixed.all[1].data = mixed.all[1].data.double()
    mixed.all[2].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    (flat,) = FlatParameters.of(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    sum((i + 1) * p.sum() for i, p in enumerate(model.parameters())).backward()
    assert flat.gradients.sum() == sum((i + 1) * p.numel() for i, p in enumerate(before))
    flat.values.mul_(2)
    assert all(torch.equal(p, 2 * q) for p, q in zip(model.parameters(), before, strict=True))
    flat.release()
    flat.values.zero_()
    assert all(torch.equal(p, 2 * q) for p, q in zip(model.parameters(), before, strict=True))
    assert sorted(len(f.values) for f in FlatParameters.of(mixed)) == [
        64,
        sum(p.numel() for p in before) - 64 - 64 * 15,
    ]


def test_weight_decay_shrinks():
    weight = nn.Parameter(torch.ones(16, 16))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((16, 16), 0.95))

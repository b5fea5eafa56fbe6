"""Muon: it steps along the nearest orthogonal matrix, treats all directions alike, and leaves the rest to AdamW."""

import pytest
import torch
from torch import nn

from sbi_physics.train.optimizer import Muon, make_optimizers, nearest_orthogonal


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16), (3, 20, 40)])
def test_the_update_points_along_the_nearest_orthogonal_matrix(shape):
    matrix = random(*shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = nearest_orthogonal(matrix)
    singular_values = torch.linalg.svdvals(found)
    assert singular_values.min() > 0.5
    assert singular_values.max() < 1.3
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
    gradients = [random(16, 16, seed=i) for i in range(3)] + [random(16, 20, seed=9)]
    together = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    optimizer, alone = Muon(together, 0.1), []
    for _ in range(3):
        for weight, gradient in zip(together, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    for gradient in gradients:
        weight = nn.Parameter(torch.zeros_like(gradient))
        optimizer = Muon([weight], 0.1)
        for _ in range(3):
            weight.grad = gradient.clone()
            optimizer.step()
        alone.append(weight)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_a_linear_map_is_learned():
    inputs, target = random(500, 20, seed=1), random(20, 30, seed=2)
    weight = nn.Parameter(torch.zeros(20, 30, dtype=torch.float64))
    optimizer = Muon([weight], 1.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1 - step / 300
        weight.grad = torch.autograd.grad((inputs @ (weight - target)).square().mean(), weight)[0]
        optimizer.step()
    torch.testing.assert_close(weight.detach(), target, rtol=0, atol=0.02)


def test_vectors_thin_matrices_and_images_go_to_adamw():
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((16, 16), (64,), (64, 15), (8, 8, 3, 3))]
    muon, adamw = make_optimizers("muon", parameters, 0.1, 0.0)
    assert isinstance(muon, Muon)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(16, 16)]
    assert isinstance(adamw, torch.optim.AdamW)
    assert len(adamw.param_groups[0]["params"]) == 3
    assert [type(o) for o in make_optimizers("adamw", parameters, 0.1, 0.0)] == [torch.optim.AdamW]


def test_weight_decay_shrinks():
    weight = nn.Parameter(torch.ones(16, 16))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((16, 16), 0.95))

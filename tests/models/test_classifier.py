"""The classifier of models, on two models of one number whose evidences are known."""

import math

import pytest
import torch
from torch import nn

from sbi_physics.models.classifier import ModelClassifier
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train


def test_it_starts_without_a_preference_and_keeps_shapes():
    classifier = ModelClassifier((3, 2), 4)
    x = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0))
    classifier.scaling.fit(x)
    assert torch.equal(classifier(x), torch.zeros(50, 4))
    loss = classifier.loss(classifier.scaling(x), torch.zeros(50, dtype=torch.long))
    torch.testing.assert_close(loss, torch.full((50,), math.log(4)))


def test_logits_are_log_evidences():
    """N(0, 1) with 6,000 events against N(0, 4) with 2,000: the log of the ratio is 3 x**2 / 8 - ln 2, less ln 3."""
    generator = torch.Generator().manual_seed(1)
    label = (torch.arange(8000) >= 6000).long()
    x = torch.randn(8000, 1, generator=generator) * (1 + label.unsqueeze(1))
    torch.manual_seed(2)
    classifier = ModelClassifier((1,), 2, hidden_features=32)
    classifier.scaling.fit(x)
    data = [classifier.scaling(x), label]
    train(classifier, classifier.loss, data, config=TrainConfig(epochs=15), progress=False)
    at = torch.linspace(-3, 3, 25).unsqueeze(1)
    with torch.no_grad():
        logits = classifier(at)
    found = logits[:, 1] - logits[:, 0] + math.log(3)
    exact = 3 * at[:, 0] ** 2 / 8 - math.log(2)
    assert (found - exact).abs().max() < 0.5
    assert (found - exact).abs().mean() < 0.15
    # The numbers of simulations belong to what is learned: without them the answer is off by ln 3.
    assert (found - math.log(3) - exact).abs().mean() > 0.9


def test_an_embedding_sees_standardised_data_and_is_trained():
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    classifier = ModelClassifier((2, 2), 2, embedding, 3)
    x = 100 + torch.randn(64, 2, 2, generator=torch.Generator().manual_seed(0))
    classifier.scaling.fit(x)
    scaled = classifier.scaling(x)
    assert scaled.mean(0).abs().max() < 1e-3
    # Zero weights at the end let no gradient through: after one step there is one.
    nn.init.ones_(classifier.network.last.weight.data[:1])
    classifier.loss(scaled, torch.arange(64) % 2).sum().backward()
    assert embedding[1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3)])
def test_without_an_embedding_data_are_whitened(shape):
    classifier = ModelClassifier(shape, 2)
    x = torch.randn(4000, *shape, generator=torch.Generator().manual_seed(0)).cumsum(1)
    classifier.scaling.fit(x)
    flat = classifier.scaling(x).flatten(1)
    torch.testing.assert_close(flat.T @ flat / 4000, torch.eye(flat.shape[1]), rtol=0, atol=1e-3)

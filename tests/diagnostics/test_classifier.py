"""The two-sample classifier against an area under the curve that is known, chance, and budgets."""

import math
import time

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.diagnostics import classifier_auc

SMALL = {"hidden_features": 64, "epochs": 20, "device": "cpu"}


def normal(n, seed, dims=2):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


def phi(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


@pytest.mark.parametrize("kind", ["network", "trees"])
@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_shifted_gaussians(kind, shift):
    """The best classifier of N(0, 1) and N(d, 1) has AUC Phi(d / sqrt 2) and accuracy Phi(d / 2)."""
    real, generated = normal(5000, 0), normal(5000, 1)
    generated[:, 0] += shift
    found = classifier_auc(real, generated, kind=kind, **SMALL)
    # Trees of the training sample are a little worse than the best classifier.
    lost = 0.0 if kind == "network" else 0.02
    assert -4 * found.error - lost < found.auc - phi(shift / math.sqrt(2)) < 4 * found.error
    assert -4 * found.accuracy_error - lost < found.accuracy - phi(shift / 2) < 4 * found.accuracy_error
    assert not found.passed
    assert "tells generated events from real ones: AUC" in found.verdict
    assert len(found.real_scores) == len(found.generated_scores) == 1000
    assert found.training_events == 6000


def test_the_divergence_is_bounded_from_below():
    """By quadrature the Jensen-Shannon divergence of N(0, 1) and N(1.5, 1)."""
    grid = torch.linspace(-8, 10, 4001, dtype=torch.float64)
    p, q = (torch.exp(-0.5 * (grid - m) ** 2) / math.sqrt(2 * math.pi) for m in (0.0, 1.5))
    exact = float(0.5 * (p * (2 * p / (p + q)).log2() + q * (2 * q / (p + q)).log2()).sum() * (grid[1] - grid[0]))
    found = classifier_auc(normal(5000, 0, 1), normal(5000, 1, 1) + 1.5, **SMALL)
    assert abs(found.jensen_shannon - exact) < 4 * found.jensen_shannon_error
    assert found.jensen_shannon_error < 0.1 * exact


@pytest.mark.parametrize("kind", ["network", "trees"])
def test_equal_distributions_pass_but_for_chance(kind):
    settings = {**SMALL, "epochs": 3}
    found = [
        classifier_auc(normal(500, 2 * s), normal(700, 2 * s + 1), kind=kind, seed=s, **settings) for s in range(20)
    ]
    assert sum(f.passed for f in found) >= 18
    pull = torch.tensor([(f.auc - 0.5) / f.expected_error for f in found])
    assert float(pull.mean().abs()) < 4 / 20**0.5
    assert float(pull.std()) == pytest.approx(1.0, abs=4 / 40**0.5)
    assert sum(f.error for f in found) / sum(f.expected_error for f in found) == pytest.approx(1.0, abs=0.1)


def test_contexts_show_what_events_alone_hide():
    """Generated events of the right distribution that do not belong to their contexts."""
    context = normal(4000, 0, 1)
    real = context + 0.5 * normal(4000, 1, 1)
    wrong = real[torch.randperm(4000, generator=torch.Generator().manual_seed(2))]
    right = context + 0.5 * normal(4000, 3, 1)
    assert classifier_auc(real, wrong, **SMALL).passed
    assert not classifier_auc(real, wrong, contexts=context, kind="trees", epochs=10).passed
    assert classifier_auc(real, right, contexts=context, **SMALL).passed


def test_events_with_one_context_are_in_one_part():
    """Trees that learn contexts by heart must not be asked for the other event of a context, which has the other label.

    The events themselves are all equal; contexts given twice are split as if they were different ones, and mislead.
    """
    context, events = normal(1000, 0, 1), torch.ones(1000, 1)
    paired = classifier_auc(events, events, contexts=context, kind="trees", epochs=20)
    assert paired.auc == pytest.approx(0.5)
    misled = classifier_auc(events, events, contexts=context, generated_contexts=context, kind="trees", epochs=20)
    assert misled.auc < 0.5 - 3 * misled.expected_error


def test_logarithms():
    """Energies over ten decades, exact zeros among them, of which one set is 30 % higher."""
    random = torch.Generator().manual_seed(0)

    def energies(factor):
        values = factor * torch.exp(0.3 * torch.randn(4000, 1, generator=random))
        return torch.where(torch.rand(4000, 1, generator=random) < 0.2, 0.0, values * 1e-9)

    found = classifier_auc(energies(1.0), energies(1.3), scaling="logarithm", **SMALL)
    assert not found.passed
    assert classifier_auc(energies(1.0), energies(1.0), scaling="logarithm", **SMALL).passed


def test_shapes_and_constants():
    """Images are flattened, and a pixel that never varies does no harm."""
    real, generated = normal(300, 0, 12).reshape(300, 3, 4), normal(300, 1, 12).double().reshape(300, 3, 4)
    real[:, 0, 0], generated[:, 0, 0] = 2.0, 2.0
    found = classifier_auc(real, generated, contexts=torch.ones(300), **SMALL)
    assert found.features == 13
    assert math.isfinite(found.auc)
    # One event of a broken generator does not make the answer for the others infinite.
    generated[7, 1, 1] = 1e300
    assert 0 <= classifier_auc(real, generated, **SMALL).auc <= 1
    generated[:, 0, 0] = 3.0
    assert classifier_auc(real, generated, kind="trees", device="cpu").auc == 1.0


def test_the_best_epoch_is_kept_and_the_budget_of_seconds_too():
    real, generated = normal(1000, 0), normal(1000, 1) + 0.5
    began = time.monotonic()
    found = classifier_auc(real, generated, epochs=10**6, max_seconds=0.5, device="cpu", hidden_features=64)
    assert time.monotonic() - began < 30
    assert found.out_of_time
    assert "ran out of time" in found.verdict
    assert 1 <= found.best_epoch <= found.epochs < 10**6
    found = classifier_auc(real, generated, max_seconds=1e-9, device="cpu", kind="trees")
    assert found.epochs == found.best_epoch == 1


def test_same_seed_same_numbers_and_the_global_generator_as_it_was():
    real, generated = normal(300, 0), normal(300, 1)
    before = torch.get_rng_state()
    for kind in ("network", "trees"):
        settings = {**SMALL, "epochs": 2, "dropout": 0.2, "kind": kind}
        first, second, other = (classifier_auc(real, generated, seed=s, **settings) for s in (5, 5, 6))
        assert torch.equal(first.real_scores, second.real_scores)
        assert not torch.equal(first.real_scores, other.real_scores)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_refused():
    real = normal(100, 0)
    with pytest.raises(ShapeError, match="at least 50"):
        classifier_auc(real[:20], real)
    with pytest.raises(ShapeError, match="contexts"):
        classifier_auc(real, real[:60], contexts=torch.ones(100))
    with pytest.raises(ShapeError, match="equal shape"):
        classifier_auc(real, real, contexts=torch.ones(100, 1), generated_contexts=torch.ones(100, 2))
    with pytest.raises(UsageError, match="generated_contexts"):
        classifier_auc(real, real, generated_contexts=torch.ones(100, 1))
    with pytest.raises(NonFiniteError, match="generated"):
        classifier_auc(real, real / 0)
    for wrong in ({"kind": "forest"}, {"scaling": "none"}, {"epochs": 0}, {"max_seconds": 0.0}, {"dropout": 1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            classifier_auc(real, real, **wrong)


def test_trees_refuse_negative_weights_and_few_are_too_few():
    real, weights = normal(300, 0), torch.ones(300)
    weights[0] = -1
    with pytest.raises(UsageError, match="trees take no negative"):
        classifier_auc(real, real, weights=weights, kind="trees")
    weights[1:] = 1e-6
    with pytest.raises(SupportError, match="sum above zero"):
        classifier_auc(real, real, weights=weights)
    weights[0] = 1
    with pytest.raises(SupportError, match="worth fewer than 10"):
        classifier_auc(real, real, weights=weights)

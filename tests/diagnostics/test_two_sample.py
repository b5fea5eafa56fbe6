"""The classifier two-sample test against theory, and against sbibm's recipe written out."""

import math

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics import c2st


def draws(n, dims=2, seed=0, shift=0.0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)) + shift


def sbibm_c2st(reference, samples, seed=1):
    """The recipe of Lueckmann et al. 2021, as their package computes it."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, std = torch.mean(reference, dim=0), torch.std(reference, dim=0)
    first, second = ((reference - mean) / std).numpy(), ((samples - mean) / std).numpy()
    hidden = (10 * first.shape[1],) * 2
    classifier = MLPClassifier(
        activation="relu", hidden_layer_sizes=hidden, max_iter=10000, solver="adam", random_state=seed
    )
    target = np.concatenate((np.zeros((first.shape[0],)), np.ones((second.shape[0],))))
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(classifier, np.concatenate((first, second)), target, cv=folds)))


def test_equals_the_recipe_of_sbibm():
    reference, samples = draws(120, 2, seed=1), 1.3 * draws(120, 2, seed=2) + 0.2
    assert c2st(reference, samples) == sbibm_c2st(reference, samples)
    assert c2st(reference, samples, seed=7) == sbibm_c2st(reference, samples, seed=7)


def test_equal_distributions_give_one_half():
    n = 1000
    assert abs(c2st(draws(n, seed=1), draws(n, seed=2)) - 0.5) < 5 * 0.5 / math.sqrt(2 * n)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_shifted_gaussians_give_the_total_variation_distance(shift):
    """Two unit Gaussians at distance d: 1/2 + TV/2 = Phi(d / 2)."""
    n = 1000
    expected = 0.5 * (1 + math.erf(shift / 2 / math.sqrt(2)))
    offset = torch.tensor([shift, 0.0])
    result = c2st(draws(n, seed=1), draws(n, seed=2) + offset)
    assert abs(result - expected) < 5 * math.sqrt(expected * (1 - expected) / (2 * n)) + 0.01


@pytest.mark.slow
def test_ten_thousand_draws_find_a_width_that_is_wrong_by_a_fifth():
    reference, samples = draws(5000, seed=1), draws(5000, seed=2)
    assert c2st(reference, samples) < 0.52
    assert c2st(reference, 1.25 * samples) > 0.53


def test_takes_samples_and_arrays_and_does_not_depend_on_workers():
    reference, samples = draws(200, seed=1), draws(200, seed=2, shift=0.5)
    expected = c2st(reference, samples)
    assert c2st(Samples(reference, ("a", "b")), samples.numpy()) == expected
    assert c2st(reference, samples, workers=2) == expected
    assert c2st(reference * torch.tensor([1.0, 1e6]), samples * torch.tensor([1.0, 1e6])) == pytest.approx(
        expected, abs=0.01
    )


def test_a_constant_column_carries_no_information():
    reference, samples = draws(200, seed=1), draws(200, seed=2)
    reference[:, 1] = samples[:, 1] = 3.0
    assert abs(c2st(reference, samples) - 0.5) < 5 * 0.5 / math.sqrt(400)


def test_wrong_input_is_named():
    good = draws(50)
    with pytest.raises(ShapeError, match=r"equally many draws of equal dimension, got \(50, 2\) and \(40, 2\)"):
        c2st(good, good[:40])
    with pytest.raises(ShapeError, match=r"samples: expected shape \(n, D\)"):
        c2st(good, good[0])
    bad = good.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"samples: expected finite numbers.*\(3, 1\)"):
        c2st(good, bad)
    weighted = Samples(good, ("a", "b"), log_weights=torch.zeros(50))
    with pytest.raises(UsageError, match="equally weighted"):
        c2st(good, weighted)
    with pytest.raises(UsageError, match="folds: expected from 2 to 50"):
        c2st(good, good, folds=60)
    with pytest.raises(UsageError, match="seed"):
        c2st(good, good, seed=-1)

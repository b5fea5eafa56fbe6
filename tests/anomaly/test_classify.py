"""Ratios from classifiers are the ratios of densities, and counts after a cut are Poisson numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import sbi_physics as sp
from sbi_physics.anomaly.classify import RatioClassifier, background_rank

SMALL = {"max_iter": 30, "max_leaf_nodes": 8}


def normal(n, mean=0.0, seed=0, dims=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dims, generator=generator, dtype=torch.float64) + mean


def exact(x, mean):
    """ln N(x; mean, 1) / N(x; 0, 1)."""
    return (x * mean - mean**2 / 2).sum(1)


@pytest.mark.parametrize("kind", ["trees", "networks"])
def test_the_ratio_of_two_normal_distributions(kind):
    data, template = normal(6000, 0.5, seed=1), normal(9000, seed=2)
    found = RatioClassifier(kind, folds=2, members=2).fit(data, template, progress=False)
    fresh = normal(3000, 0.25, seed=3)
    error = (found(fresh) - exact(fresh, 0.5)).abs().median()
    assert float(error) < 0.3 * float(exact(fresh, 0.5).abs().median())
    assert abs(float((found.data_scores - exact(data, 0.5)).mean())) < 0.06
    assert abs(float((found.template_scores - exact(template, 0.5)).mean())) < 0.06
    assert kendalltau(found.as_data(fresh).numpy(), exact(fresh, 0.5).numpy()).statistic > 0.75


def test_no_event_is_scored_by_a_model_that_saw_it():
    data, template = normal(1500, seed=1), normal(1500, seed=2)
    honest = RatioClassifier(folds=3, members=1, options={"n_iter_no_change": 200, "max_iter": 60})
    honest.fit(data, template, progress=False)
    remembered = honest(data) - honest.offset
    difference = float(honest.data_scores.mean() - honest.template_scores.mean())
    spread = float(honest.data_scores.std()) * (2 / 1500) ** 0.5
    assert abs(difference) < 4 * spread
    # All models together have seen each event: the twin, which knows data when it sees them.
    assert float(remembered.mean() - (honest(template) - honest.offset).mean()) > 10 * spread


def test_negative_weights_are_those_of_the_density():
    template = normal(12_000, seed=2)
    generator = torch.Generator().manual_seed(3)
    # Twice the events on the right, half of them taken back by negative weights.
    again = template[(template[:, 0] > 0) & (torch.rand(12_000, generator=generator) < 0.4)]
    mixed, negative = torch.cat([template, again, again]), -torch.ones(len(again), dtype=torch.float64)
    weights = torch.cat([torch.ones(len(template) + len(again), dtype=torch.float64), negative])
    data = normal(6000, 0.5, seed=1)
    fresh = normal(3000, 0.25, seed=4)
    settings = {"folds": 2, "members": 2}
    weighted = RatioClassifier(**settings).fit(data, mixed, template_weights=weights, progress=False)
    unweighted = RatioClassifier(**settings).fit(data, mixed, progress=False)
    errors = [float((one(fresh) - exact(fresh, 0.5)).abs().mean()) for one in (weighted, unweighted)]
    assert errors[1] > errors[0] + 0.05


def test_selection_scores_keep_the_share_of_background_that_they_say():
    data, template = normal(900, seed=1), normal(3000, seed=2)
    found = RatioClassifier(folds=3, members=1, options=SMALL).fit(data, template, selection=True, progress=False)
    scored = torch.isfinite(found.data_selection)
    assert 0.6 < float(scored.double().mean()) < 0.73
    fresh = found.select(normal(30_000, seed=3), seed=4)
    for share in (0.3, 0.1):
        kept = float((fresh >= -np.log(share)).double().mean())
        assert abs(kept / (share * 2 / 3) - 1) < 0.15


@pytest.mark.slow
def test_counts_after_the_selection_are_poisson_numbers_and_of_cross_fitted_scores_are_not():
    expected, selected, crossed = 0.2, [], []
    template = normal(4000, seed=10_000)
    for seed in range(100):
        found = RatioClassifier(folds=2, members=1, options={**SMALL, "validation_fraction": 0.1})
        found.fit(normal(400, seed=seed), template, selection=True, seed=seed, progress=False)
        cut = float(found.template_scores.quantile(1 - expected))
        crossed.append(int((found.data_scores >= cut).sum()) / 400 / expected)
        chosen = found.data_selection[torch.isfinite(found.data_selection)]
        selected.append(int((chosen >= -np.log(expected)).sum()) / len(chosen) / expected)
    # The variance of a share of n events, in units of that of a binomial number, within four standard deviations.
    unit = (1 - expected) / expected
    ratios = np.var(selected) * 200 / unit, np.var(crossed) * 400 / unit
    error = 4 * (2 / 100) ** 0.5
    assert abs(ratios[0] - 1) < error
    assert ratios[1] > 1 + error


def test_ranks_in_a_background():
    reference, ones = torch.arange(999, dtype=torch.float64), torch.ones(999, dtype=torch.float64)
    rank = background_rank(torch.tensor([998.0, 500.0, -1.0, 2000.0], dtype=torch.float64), reference, ones)
    assert torch.allclose(rank.exp().reciprocal(), torch.tensor([2e-3, 0.5, 1.0, 1e-3], dtype=torch.float64))


def test_same_seed_same_scores():
    data, template = normal(200, 1.0, seed=1), normal(300, seed=2)
    first, again, other = (
        RatioClassifier(folds=2, members=1, options=SMALL).fit(data, template, seed=seed, progress=False)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.data_scores, again.data_scores)
    assert not torch.equal(first.data_scores, other.data_scores)


def test_what_does_not_fit():
    data = normal(20)
    with pytest.raises(sp.UsageError, match="classifier: expected one of"):
        RatioClassifier("forest")
    with pytest.raises(sp.UsageError, match="folds: expected at least 2"):
        RatioClassifier(folds=1)
    with pytest.raises(sp.ShapeError, match="template: expected 2 features, got 3"):
        RatioClassifier().fit(data, normal(20, dims=3))
    with pytest.raises(sp.ShapeError, match="at least one for each of 5 folds"):
        RatioClassifier().fit(data[:3], data)
    with pytest.raises(sp.UsageError, match="data weights: expected a positive sum"):
        RatioClassifier().fit(data, data, data_weights=-torch.ones(20))
    with pytest.raises(sp.UsageError, match="not trained"):
        RatioClassifier()(data)

"""Pictures of profiles, confidence sets, coverage maps and probabilities of models."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.diagnostics.coverage_fit import local_coverage
from sbi_physics.diagnostics.probabilities import reliability
from sbi_physics.posterior.confidence import ConfidenceRegion
from sbi_physics.report.figures import save_figure
from sbi_physics.report.inference_figures import (
    confidence_region,
    coverage_map,
    model_probabilities,
    profile,
    reliability_curve,
)

PARAMETERS = sp.Parameters(
    [
        sp.Parameter("mass", td.Uniform(0.0, 4.0), unit="GeV", label="$m$"),
        sp.Parameter("width", td.Uniform(0.0, 2.0)),
        sp.Parameter("rate", td.Normal(0.0, 1.0)),
    ]
)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(figure, path, verdict):
    save_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle().replace("\n", " ") == verdict
    assert plt.get_fignums() == []
    return [axis for axis in figure.axes if axis.axison]


def bent(theta):
    """The two maxima of the mass differ by one nat; the width leans on the mass."""
    mass, width, rate = theta.unbind(-1)
    modes = torch.stack([-8 * (mass - 1) ** 2, -8 * (mass - 2.6) ** 2 - 1.0], -1)
    return torch.logsumexp(4 * modes, -1) / 4 - 8 * (width - 0.3 * mass) ** 2 - rate**2


@pytest.mark.parametrize("interest", ["mass", ["mass", "width"]])
def test_profile(interest, tmp_path):
    result = sp.profile_likelihood(bent, PARAMETERS, interest, points=25 if interest == "mass" else 15, starts=4)
    axes = check(profile(result), tmp_path / "p.png", result.verdict)
    assert axes[0].get_xlabel() == "$m$ [GeV]"
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert "maximum" in texts
    if interest == "mass":
        assert {"68% set", "90% set"} <= set(texts)
    else:
        assert axes[0].get_ylabel() == "width"
        points = sp.profile_likelihood(bent, PARAMETERS, interest, points=[[1.0, 0.3]], starts=2)
        with pytest.raises(sp.UsageError, match="expected a grid"):
            profile(points)


def banana(n=6000):
    """Points of a set of level 0.9 with p-values that fall away from a bent line."""
    theta = torch.stack([1 + 2 * random(n, seed=1), 2 * random(n, seed=2), 2 * random(n, seed=3) - 1], 1)
    p = torch.exp(-6 * (theta[:, 1] - (theta[:, 0] - 2) ** 2 - 0.5) ** 2 - theta[:, 2] ** 2)
    theta, p = theta[p > 0.1], p[p > 0.1]
    intervals = torch.stack([theta.amin(0), theta.amax(0)], 1)
    return ConfidenceRegion(sp.Samples.of(theta, PARAMETERS), p, 0.9, n, intervals)


@pytest.mark.parametrize("names", [["mass"], ["mass", "width"], ["mass", "width", "rate"]])
def test_confidence_region(names, tmp_path):
    region = banana().select(names)
    axes = check(confidence_region(region, truth=[2.0, 0.5, 0.0][: len(names)]), tmp_path / "r.png", region.verdict)
    panels = len(names) * (len(names) + 1) // 2
    assert len(axes) == panels + (len(names) > 1)
    assert axes[panels - 1].get_xlabel() == (names[-1] if len(names) > 1 else "$m$ [GeV]")
    with pytest.raises(sp.UsageError, match="truth: expected"):
        confidence_region(region, truth=[1.0] * 7)


def test_an_empty_region():
    region = banana()
    none = torch.zeros(0, 3)
    empty = ConfidenceRegion(sp.Samples.of(none, PARAMETERS), torch.zeros(0), 0.9, 10, torch.full((3, 2), math.nan))
    with pytest.raises(sp.UsageError, match="expected a set that is not empty"):
        confidence_region(empty)
    many = replace(region, points=sp.Samples(torch.zeros(3, 6), tuple("abcdef")), p_values=torch.ones(3))
    with pytest.raises(sp.UsageError, match="select some"):
        confidence_region(many)


@pytest.mark.parametrize("dims", [1, 2, 6])
def test_coverage_map(dims, tmp_path):
    theta = random(4000, dims)
    covered = random(4000, seed=1) < 0.68 + 0.25 * (theta[:, 0] - 0.5)
    result = local_coverage(torch.where(covered, 0.1, 0.95), theta)
    axes = check(coverage_map(result), tmp_path / "c.png", result.verdict)
    drawn = min(dims, 4)
    assert len(axes) == 2 * (drawn + 2 * (dims > 1))
    with pytest.raises(sp.UsageError, match=r"expected one of theta_0.*; got 'mass'"):
        coverage_map(result, ["mass"])


def test_model_probabilities(tmp_path):
    evidences = {"one planet": (-10.0, 0.3), "two planets": (-8.5, 0.4), "no planet": (-17.0, 0.1)}
    result = sp.compare_evidences(evidences, prior=[2, 1, 1])
    left, right = check(model_probabilities(result), tmp_path / "m.png", result.verdict)
    assert [text.get_text() for text in left.get_yticklabels()] == list(evidences)
    assert [bar.get_width() for bar in right.patches] == pytest.approx(result.probability.tolist())


@pytest.mark.parametrize("classes", [2, 4])
def test_reliability(classes, tmp_path):
    logits = 2 * torch.randn(600, classes, generator=torch.Generator().manual_seed(0))
    label = torch.multinomial(torch.softmax(0.5 * logits, 1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    result = reliability(torch.softmax(logits, 1), label)
    (axis,) = check(reliability_curve(result), tmp_path / "r.png", result.verdict)
    assert len(axis.get_legend().get_texts()) == classes + 1

"""The resonance search: draws follow the densities, the likelihood ratio is one, and the shift is a shift."""

import math

import pytest
import torch
from scipy.stats import kstest, norm

from sbi_physics.core.errors import ShapeError, UsageError
from simulators.dijet import FEATURES, DijetResonance

REGION = (3.4, 3.6)
SEARCHES = {"plain": DijetResonance(), "shifted": DijetResonance(shift=0.1)}


@pytest.fixture(params=SEARCHES)
def search(request):
    return SEARCHES[request.param]


def improvement(background, signal, least):
    """The largest significance improvement of a cut that at least so many events of background pass."""
    background, signal = background.sort(descending=True).values, signal.sort().values
    passing = torch.arange(least, len(background), least)
    kept = 1 - torch.searchsorted(signal, background[passing - 1]) / len(signal)
    return float((kept / (passing / len(background)).sqrt()).max())


def test_rosenblatt_transform_of_the_background_is_normal(search):
    x, mass = search.sample_background(20_000, seed=1)
    z = search.background_latent(x, mass)
    for column in z.T:
        assert kstest(column, "norm").pvalue > 1e-3
    off_diagonal = torch.corrcoef(torch.cat([z.T, mass.unsqueeze(0)])) - torch.eye(5)
    assert float(off_diagonal.abs().max()) < 5 / math.sqrt(20_000)


def test_rosenblatt_transform_at_the_wrong_mass_is_not_normal():
    """The twin: the features do depend on the mass."""
    for search in SEARCHES.values():
        x, mass = search.sample_background(20_000, seed=1)
        z = search.background_latent(x, mass - 0.4)
        assert kstest(z[:, 0].nan_to_num(), "norm").pvalue < 1e-6


def test_masses_follow_their_densities():
    search = SEARCHES["plain"]
    _, mass = search.sample_background(20_000, seed=2)
    assert kstest(search._spectrum.cdf(mass), "uniform").pvalue > 1e-3
    _, mass = search.sample_signal(20_000, seed=3)
    assert kstest(mass, norm(3.5, 0.12).cdf).pvalue > 1e-3
    assert kstest(mass, norm(3.505, 0.12).cdf).pvalue < 1e-3


def test_signal_follows_its_density(search):
    """E_B[s f] = E_S[(1 - s) f] with s = p_S / (p_S + p_B), for any f of the features: both sides are of bounded terms.

    With f = 1 this says that both densities are normalised; the twin has a wrong ratio.
    """
    draws = [draw(200_000, window=REGION, seed=5) for draw in (search.sample_background, search.sample_signal)]
    ratios = [search.log_likelihood_ratio(*draw) for draw in draws]
    everywhere = [torch.zeros_like(ratio) for ratio in ratios]
    coordinates = [everywhere, ratios] + [[x[:, i].contiguous() for x, _ in draws] for i in range(4)]
    worst = {}
    for factor in (1.0, 1.2):
        of_background, of_signal = torch.sigmoid(factor * ratios[0]), torch.sigmoid(-factor * ratios[1])
        pulls = []
        for background, signal in coordinates:
            edges = torch.quantile(signal, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))
            for cell in torch.bucketize(signal, edges).unique():
                left = of_background * (torch.bucketize(background, edges) == cell)
                right = of_signal * (torch.bucketize(signal, edges) == cell)
                error = math.sqrt((float(left.var()) + float(right.var())) / len(left))
                pulls.append(abs(float(left.mean() - right.mean())) / error)
        worst[factor] = max(pulls)
    assert worst[1.0] < 4.5
    assert worst[1.2] > 10


def test_difficulty_is_that_of_the_olympics(search):
    background = search.log_likelihood_ratio(*search.sample_background(100_000, window=REGION, seed=6))
    signal = search.log_likelihood_ratio(*search.sample_signal(50_000, window=REGION, seed=7))
    assert 15 < improvement(background, signal, least=25) < 25
    assert improvement(-background, -signal, least=25) < 1.1


def test_shift_moves_both_masses_and_nothing_else():
    (plain, mass), (shifted, same) = (search.sample_background(1_000, seed=8) for search in SEARCHES.values())
    assert torch.equal(mass, same)
    moved = torch.stack([0.1 * mass, 0.1 * mass, 0 * mass, 0 * mass], -1)
    torch.testing.assert_close(shifted, plain + moved)
    ratios = [
        search.log_likelihood_ratio(x, mass) for search, x in zip(SEARCHES.values(), (plain, shifted), strict=True)
    ]
    torch.testing.assert_close(*ratios, rtol=1e-6, atol=1e-6)


def test_events_are_what_was_asked_for():
    search = DijetResonance()
    events = search.events(2_000, 300, window=(3.3, 3.7), seed=9)
    assert len(events) == 2_300
    assert events.features.shape == (2_300, len(FEATURES))
    assert (events.features.dtype, events.mass.dtype) == (torch.float64, torch.float64)
    assert int(events.labels.sum()) == 300
    assert not bool(events.labels[:300].all() or events.labels[-300:].all())
    assert bool((events.weights == 1).all())
    assert bool(((events.mass >= 3.3) & (events.mass <= 3.7)).all())
    inside = events.within(3.4, 3.6)
    assert bool(((inside.mass >= 3.4) & (inside.mass < 3.6)).all())
    assert 0 < len(inside) < len(events)
    signal = events.select(events.labels == 1)
    assert float(signal.features[:, 1].median()) == pytest.approx(0.385, abs=0.03)


def test_shares_are_those_of_the_events():
    search = DijetResonance()
    events = search.events(50_000, 50_000, seed=10).within(3.4, 3.6)
    for label, share in ((0, search.background_share(3.4, 3.6)), (1, search.signal_share(3.4, 3.6))):
        counted = int((events.labels == label).sum())
        assert abs(counted - 50_000 * share) < 5 * math.sqrt(50_000 * share)


def test_negative_weights_leave_the_density_and_ignoring_them_does_not():
    search, n = DijetResonance(), 50_000
    weighted = search.events(n, negative_weights=0.6, seed=11)
    rank = torch.special.ndtr(search.background_latent(weighted.features, weighted.mass)[:, 0])
    w = weighted.weights
    assert 0.1 < float((w < 0).double().mean()) < 0.3
    assert abs(float(w.sum()) - n) < 5 * math.sqrt(float((w**2).sum()))
    for power in (1, 2):
        moment = float((w * rank**power).mean())
        error = float((w * rank**power).std()) / math.sqrt(n)
        assert abs(moment - 1 / (power + 1)) < 5 * error
        assert abs(float((rank**power).mean()) - 1 / (power + 1)) > 10 * error


def test_same_seed_same_bytes_and_the_global_stream_untouched():
    search = DijetResonance()
    state = torch.random.get_rng_state()
    first, second, other = (search.events(500, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.mass, other.mass)
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_seed_gives_other_events_in_other_windows_and_for_templates():
    """Else a template drawn with the seed of the data would be the data."""
    search = DijetResonance()
    events = search.events(1_000, window=REGION, seed=1)
    left, right, template = (
        search.sample_background(1_000, window=w, seed=1) for w in ((3.3, 3.4), (3.6, 3.7), REGION)
    )
    draws = [left, right, template, (events.features, events.mass)]
    ranks = [search.background_latent(*draw)[:, 2].sort().values for draw in draws]
    for i, first in enumerate(ranks):
        for second in ranks[:i]:
            assert not bool(torch.isclose(first, second, rtol=0, atol=1e-9).any())


def test_features_at_given_masses_are_those_of_the_density():
    search = DijetResonance()
    mass = torch.full((20_000,), 4.4, dtype=torch.float64)
    z = search.background_latent(search.background_features(mass, seed=12), mass)
    assert all(kstest(column, "norm").pvalue > 1e-3 for column in z.T)


def test_outside_the_support_there_is_no_density():
    search = SEARCHES["shifted"]
    x = torch.tensor([[0.3, 0.6, 0.5, 0.5], [0.5, 0.6, 1.2, 0.5], [0.5, torch.nan, 0.5, 0.5]], dtype=torch.float64)
    for log_prob in (search.log_background(x, torch.tensor(3.5)), search.log_signal(x, torch.tensor(3.5))):
        assert bool(torch.isneginf(log_prob).all())
    assert bool(torch.isnan(search.log_likelihood_ratio(x, torch.tensor(3.5))).all())
    theta = torch.tensor([0.05, 3.5])
    for mass in (2.4, 5.1, -1.0):
        assert float(search.log_likelihood(theta, torch.tensor([mass, 0.7, 0.8, 0.5, 0.5]))) == -torch.inf


def test_likelihood_knows_no_signal_and_only_signal():
    search = DijetResonance()
    x, mass = search.sample_signal(100, seed=13)
    row = torch.cat([mass.unsqueeze(-1), x], -1)
    for fraction, of_mass, of_features in (
        (0.0, search.log_mass_background, search.log_background),
        (1.0, search.log_mass_signal, search.log_signal),
    ):
        theta = torch.tensor([fraction, 3.5], dtype=torch.float64, requires_grad=True)
        log_likelihood = search.log_likelihood(theta, row)
        torch.testing.assert_close(log_likelihood, of_mass(mass) + of_features(x, mass), rtol=1e-9, atol=1e-9)
        (gradient,) = torch.autograd.grad(log_likelihood.sum(), theta)
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("mass_range", [(3.3, 3.7), (3.1, 4.9)])
def test_events_in_single_precision_stay_in_the_support(mass_range):
    search = DijetResonance(mass_range=mass_range, shift=0.1)
    theta = torch.tensor([[0.05, 3.5]]).expand(200_000, 2)
    assert bool(torch.isfinite(search.log_likelihood(theta, search(theta, seed=14))).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mass_range": (5.0, 2.5)}, "mass_range: expected 0 < low < high"),
        ({"mass_range": (2.5, 14.0)}, "mass_range: expected 0 < low < high < 13"),
        ({"signal_mass": 6.0}, "signal_mass: expected a mass in"),
        ({"signal_width": 0.0}, "signal_width: expected a positive width"),
        ({"shift": -0.1}, "shift: expected a finite number of at least 0"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        DijetResonance(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"background": 0}, "expected at least one of background or signal"),
        ({"background": -1}, "background: expected an integer of at least 0"),
        ({"signal": 1.5}, "signal: expected an integer of at least 0"),
        ({"window": (3.6, 3.4)}, "window: expected low < high in"),
        ({"window": (3.6, 5.4)}, "window: expected low < high in"),
        ({"signal": 5, "window": (4.8, 5.0)}, "window: there is no signal of 3.5 TeV"),
        ({"negative_weights": 1.0}, "negative_weights: expected a number in"),
    ],
)
def test_wrong_events_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        DijetResonance().events(**arguments)


def test_wrong_features_are_named():
    with pytest.raises(ShapeError, match=r"x: expected shape \(\*, 4\)"):
        DijetResonance().log_background(torch.ones(3, 5), torch.ones(3))

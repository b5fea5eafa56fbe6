"""Learning curves whose law is known, and a real fit."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics import learning_curve


class Curve:
    """A posterior whose log-density lies c n**-a below the best, with scatter between pairs and between fits."""

    def __init__(self, n, seed, c, a, scatter=0.01):
        noise = torch.randn(1, generator=torch.Generator().manual_seed(seed % 2**31))
        self.offset = -c * n**-a + float(noise) * scatter

    def log_prob(self, theta, x):
        return -(theta[:, 0] ** 2) + self.offset + 0.05 * torch.sin(1e3 * theta[:, 0] * (1 + self.offset))


def fits(c, a, scatter=0.01):
    return lambda theta, x, seed: Curve(len(theta), seed, c, a, scatter)


def pairs(n=10_000, seed=0):
    theta = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))
    return theta, theta + 1


SIZES = [500, 1000, 2000, 4000, 8000]


@pytest.mark.parametrize("a", [0.5, 1.0])
def test_a_power_law_is_found_and_the_gain_is_right(a):
    c = 0.5 * 500**a
    result = learning_curve(fits(c, a), *pairs(), sizes=SIZES, seed=1)
    gain = c * (8000**-a - 16000**-a)
    assert abs(result.gain - gain) < 4 * result.gain_error
    assert result.gain_error < 0.02
    assert abs(result.exponent - a) < 4 * result.exponent_error + 0.05  # the grid of exponents
    expected = torch.tensor([c * (n**-a - 8000**-a) for n in SIZES])
    assert bool(((result.rise - expected).abs() < 4 * result.rise_error + 1e-9).all())
    torch.testing.assert_close(result.power_law(16_000) - result.power_law(8000), torch.tensor(result.gain).double())


def test_errors_of_the_gain_are_honest():
    """Pulls over 20 curves: a mean square of one, within four of its standard deviations."""
    c, a = 0.5 * 500, 1.0
    gain = c * (8000**-a - 16000**-a)
    options = {"sizes": SIZES, "held_out": 500, "repeats": 6}
    results = [learning_curve(fits(c, a, 0.02), *pairs(9000, s), seed=s, **options) for s in range(20)]
    pulls = torch.tensor([(result.gain - gain) / result.gain_error for result in results])
    assert 0.1 < float((pulls**2).mean()) < 1 + 4 * math.sqrt(2 / 20)


def test_three_sizes_make_no_law_of_three_parameters():
    result = learning_curve(fits(200.0, 1.0), *pairs(), sizes=SIZES[:3], held_out=500)
    assert result.exponent is None
    assert result.gain == pytest.approx(float(result.rise[1]))


def test_verdicts():
    steep = learning_curve(fits(400.0, 0.9), *pairs(), sizes=SIZES)
    assert not steep.passed
    assert steep.verdict.startswith("more simulations help: doubling the 8000 simulations gains 0.")
    flat = learning_curve(fits(0.0, 1.0, 0.001), *pairs(), sizes=SIZES)
    assert flat.passed
    assert flat.verdict.startswith("enough simulations: ")
    assert flat.exponent is None
    assert flat.power_law(100) is None
    noisy = learning_curve(fits(0.0, 1.0, 0.3), *pairs(), sizes=SIZES)
    assert noisy.passed
    assert noisy.verdict.startswith("undecided")


def test_a_real_fit_gains_what_theory_says():
    """Least squares with D coefficients and a width for each of P = 5 parameters: a gap of about P (D + 2) / (2 n)."""
    dims = 5

    def fit(theta, x, seed):
        design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        solution = torch.linalg.lstsq(design, theta.double()).solution
        deviation = (theta - design @ solution).std(0)

        class Fitted:
            def log_prob(self, theta, x):
                mean = torch.cat([x, torch.ones(len(x), 1)], 1).double() @ solution
                return torch.distributions.Normal(mean, deviation).log_prob(theta).sum(-1)

        return Fitted()

    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(8000, dims, generator=generator)
    x = theta + torch.randn(8000, dims, generator=generator)
    result = learning_curve(fit, theta, x, sizes=[50, 100, 200, 400], held_out=4000, repeats=5, seed=1)
    expected = dims * (dims + 2) / 2 * (1 / 400 - 1 / 800)
    assert abs(result.gain - expected) < 4 * result.gain_error
    assert 0.6 < result.exponent < 1.6


def test_parts_are_nested_and_held_out_pairs_are_never_trained_on():
    seen, tested = {}, []

    def fit(theta, x, seed):
        seen.setdefault(seed, theta[:, 0])

        class Fitted:
            def log_prob(self, theta, x):
                tested.append(theta[:, 0])
                return torch.zeros(len(theta))

        return Fitted()

    theta, x = torch.arange(200.0).unsqueeze(1), torch.zeros(200, 1)
    learning_curve(fit, theta, x, held_out=40, repeats=2)
    assert len(seen) == 8  # another seed for each of four sizes and two repeats
    assert sorted(len(rows) for rows in seen.values()) == [20, 20, 40, 40, 80, 80, 160, 160]
    assert all(torch.equal(tested[0], rows) for rows in tested)
    assert not any(bool(torch.isin(rows, tested[0]).any()) for rows in seen.values())


def test_failed_simulations_and_dictionaries():
    theta, x = pairs(300)
    x[5] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 300 rows failed"):
        learning_curve(fits(1.0, 1.0), theta, x)
    result = learning_curve(fits(1.0, 1.0), theta, {"x": x}, failed="drop")
    assert result.failed == 1
    assert result.verdict.endswith("(1 failed simulation left out)")


def test_wrong_input_is_named():
    theta, x = pairs(300)
    with pytest.raises(UsageError, match="sizes: expected two or more increasing numbers, 270"):
        learning_curve(fits(1.0, 1.0), theta, x, sizes=[100, 280])
    with pytest.raises(UsageError, match="sizes: expected two or more"):
        learning_curve(fits(1.0, 1.0), theta, x, sizes=[100])
    with pytest.raises(UsageError, match="held_out: expected at least 10"):
        learning_curve(fits(1.0, 1.0), theta, x, held_out=5)
    with pytest.raises(UsageError, match="tolerance"):
        learning_curve(fits(1.0, 1.0), theta, x, tolerance=0.0)
    with pytest.raises(UsageError, match="repeats"):
        learning_curve(fits(1.0, 1.0), theta, x, repeats=0)

    class Broken:
        def __init__(self, value):
            self.value = value

        def log_prob(self, theta, x):
            return self.value

    with pytest.raises(ShapeError, match=r"posterior log_prob: expected shape \(30,\), got \(1,\)"):
        learning_curve(lambda t, x, s: Broken(torch.zeros(1)), theta, x)
    with pytest.raises(NonFiniteError, match="not finite for 30 of 30 held-out pairs, after training on 33"):
        learning_curve(lambda t, x, s: Broken(torch.full((30,), -torch.inf)), theta, x)

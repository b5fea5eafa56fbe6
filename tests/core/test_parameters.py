"""Parameters made of any prior of torch, and those that must be refused."""

import json
import math

import pytest
import torch
import torch.distributions as td
from torch.distributions import constraints

from sbi_physics.core.errors import ShapeError, StoreError, SupportError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters

INF = math.inf


def mixture():
    return td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])),
        td.Independent(td.Normal(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), torch.ones(2, 2)), 1),
    )


COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 1.0]])
ZERO, ONE = torch.zeros(2), torch.ones(2)
# Each: the prior and the bounds of each of its parameters.
PRIORS = {
    "normals": (td.Normal(ZERO, ONE), [(-INF, INF)] * 2),
    "scalar": (td.Uniform(-1.0, 3.0), [(-1.0, 3.0)]),
    "independent uniform": (td.Independent(td.Uniform(ZERO, torch.tensor([1.0, 15.0])), 1), [(0, 1), (0, 15)]),
    "batch of uniforms": (td.Uniform(-ONE, torch.tensor([1.0, 2.0])), [(-1, 1), (-1, 2)]),
    "double": (td.Independent(td.Uniform(ZERO.double(), 0.1 * ONE.double()), 1), [(0, 0.1), (0, 0.1)]),
    "covariance": (td.MultivariateNormal(ZERO, COVARIANCE), [(-INF, INF)] * 2),
    "precision": (td.MultivariateNormal(ONE, precision_matrix=COVARIANCE), [(-INF, INF)] * 2),
    "low rank": (td.LowRankMultivariateNormal(ZERO, torch.ones(2, 1), ONE), [(-INF, INF)] * 2),
    "log-normal": (td.LogNormal(ZERO, ONE), [(0, INF)] * 2),
    "beta": (td.Beta(2 * ONE, 3 * ONE), [(0, 1)] * 2),
    "half-normal": (td.HalfNormal(2 * ONE), [(0, INF)] * 2),
    "half-cauchy": (td.HalfCauchy(2 * ONE), [(0, INF)] * 2),
    "gamma": (td.Gamma(2 * ONE, ONE), [(0, INF)] * 2),
    "exponential": (td.Exponential(ONE), [(0, INF)] * 2),
    "Pareto": (td.Pareto(ONE, torch.tensor([2.0, 3.0])), [(1, INF)] * 2),
    "student": (td.StudentT(5 * ONE), [(-INF, INF)] * 2),
    "cauchy": (td.Cauchy(ZERO, ONE), [(-INF, INF)] * 2),
    "laplace": (td.Laplace(ZERO, ONE), [(-INF, INF)] * 2),
    "mixture": (mixture(), [(-INF, INF)] * 2),
    "scalar mixture": (
        td.MixtureSameFamily(td.Categorical(ONE), td.Normal(torch.tensor([-2.0, 2.0]), ONE)),
        [(-INF, INF)],
    ),
    "bounded mixture": (
        td.MixtureSameFamily(td.Categorical(ONE), td.Beta(torch.tensor([2.0, 5.0]), torch.tensor([5.0, 2.0]))),
        [(0, 1)],
    ),
    "mixture of uniforms": (
        td.MixtureSameFamily(
            td.Categorical(ONE), td.Independent(td.Uniform(torch.zeros(2, 2), torch.tensor([[1.0, 3.0]] * 2)), 1)
        ),
        [(0, 1), (0, 3)],
    ),
}


@pytest.fixture(params=PRIORS)
def named(request):
    return request.param


@pytest.fixture
def parameters(named):
    return Parameters.from_prior(PRIORS[named][0])


def test_bounds_are_those_of_the_support(named, parameters):
    expected = torch.tensor(PRIORS[named][1], dtype=torch.float64)
    torch.testing.assert_close(parameters.bounds, expected)
    assert parameters.bounds.dtype == torch.float64


def test_draws_are_inside_and_have_a_density(parameters):
    theta = parameters.sample(500, seed=1)
    assert theta.shape == (500, len(parameters))
    assert theta.dtype == torch.float32
    assert bool(parameters.within(theta).all())
    log_prob = parameters.log_prob(theta)
    assert log_prob.shape == (500,)
    assert bool(torch.isfinite(log_prob).all())
    assert parameters.log_prob(theta.reshape(50, 10, -1)).shape == (50, 10)
    assert parameters.log_prob(theta[0]).shape == ()


def test_density_is_that_of_the_prior(named, parameters):
    prior = PRIORS[named][0]
    theta = parameters.sample(20, seed=2)
    expected = prior.log_prob(theta if prior.batch_shape or prior.event_shape else theta[:, 0])
    expected = expected.sum(-1) if prior.batch_shape else expected
    torch.testing.assert_close(parameters.log_prob(theta), expected)


def test_density_outside_is_minus_infinity_not_an_error(parameters):
    theta = parameters.sample(3, seed=3).double()
    for i, (low, high) in enumerate(parameters.bounds.tolist()):
        for outside in (low - 0.5, high + 0.5, math.nan):
            if math.isinf(outside):
                continue
            moved = theta.clone()
            moved[1, i] = outside
            assert torch.isneginf(parameters.log_prob(moved)).tolist() == [False, True, False]
            assert parameters.within(moved).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_count_as_the_next_number_inside(parameters, dtype):
    """Rounding may put a draw on a bound, or a double bound beyond a single-precision one."""
    interior = parameters.sample(1, seed=0).to(dtype)
    for edge in parameters.bounds.T.to(dtype):
        theta = torch.where(edge.isfinite(), edge, interior)
        assert bool(parameters.within(theta).all())
        assert not bool(torch.isnan(parameters.log_prob(theta)).any())


def test_same_seed_same_bytes(parameters):
    state = torch.random.get_rng_state()
    first, second, other = (parameters.sample(10, seed=seed) for seed in (4, 4, 5))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, other)
    parameters.log_prob(first)
    assert torch.equal(state, torch.random.get_rng_state())


def test_written_and_read_have_equal_density(parameters):
    text = json.dumps(parameters.to_dict(), allow_nan=False)
    again = Parameters.from_dict(json.loads(text))
    assert again == parameters
    assert hash(again) == hash(parameters)
    assert repr(again) == repr(parameters)
    assert torch.equal(again.bounds, parameters.bounds)
    theta = parameters.sample(50, seed=6)
    assert torch.equal(again.log_prob(theta), parameters.log_prob(theta))
    assert torch.equal(again.sample(10, seed=1), parameters.sample(10, seed=1))


REFUSED = {
    "simplex": td.Dirichlet(torch.ones(3)),
    "counts": td.Poisson(torch.tensor(3.0)),
    "vector of counts": td.Independent(td.Poisson(torch.ones(2)), 1),
    "integers": td.Categorical(torch.ones(3)),
    "booleans": td.Bernoulli(torch.tensor([0.5, 0.5])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_supports_that_are_no_intervals_are_refused(name):
    with pytest.raises(SupportError, match="support must be a product of intervals"):
        Parameters.from_prior(REFUSED[name])


def test_a_mixture_over_different_intervals_is_refused():
    uniforms = td.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]))
    with pytest.raises(SupportError, match="components of a mixture must all have the same bounds"):
        Parameters.from_prior(td.MixtureSameFamily(td.Categorical(ONE), uniforms))


class Silent(td.Distribution):
    """A distribution that does not say where it lives."""

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)


class Triangular(td.Distribution):
    """A one-dimensional distribution with the bare minimum of methods."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.unit_interval

    def __init__(self):
        super().__init__(validate_args=False)

    def sample(self, sample_shape=()):
        return torch.rand(sample_shape).sqrt()

    def log_prob(self, value):
        return (2 * value).log()


class Home(td.Normal):
    """A distribution of one's own: a torch family by inheritance only."""

    support = constraints.real


def test_a_prior_that_does_not_state_its_support_is_refused():
    with pytest.raises(SupportError, match="Silent does not state its support"):
        Parameters.from_prior(Silent())


@pytest.mark.parametrize(
    "prior",
    [
        Home(ZERO, ONE),
        td.TransformedDistribution(td.Normal(ZERO, ONE), [td.transforms.ExpTransform()]),
    ],
)
def test_a_prior_of_ones_own_works_but_is_not_stored(prior):
    parameters = Parameters.from_prior(prior, names=["a", "b"])
    assert parameters.sample(4, seed=0).shape == (4, 2)
    again = Parameters.from_dict(json.loads(json.dumps(parameters.to_dict())))
    assert again.names == ("a", "b")
    assert torch.equal(again.bounds, parameters.bounds)
    assert bool(again.within(torch.ones(1, 2)).all())
    for use in (lambda: again.sample(3), lambda: again.log_prob(torch.zeros(2)), lambda: again.prior):
        with pytest.raises(UsageError, match=r"the prior .* is not stored in the file"):
            use()


def test_components_of_ones_own():
    parameters = Parameters(
        [
            Parameter("a", Triangular()),
            Parameter("b", td.Normal(0.0, 1.0)),
            Parameter("c", Triangular()),
            Parameter("d", td.Normal(1.0, 2.0)),
        ]
    )
    theta = parameters.sample(20, seed=0)
    expected = (2 * theta[:, [0, 2]]).log().sum(-1)
    expected += td.Normal(0.0, 1.0).log_prob(theta[:, 1]) + td.Normal(1.0, 2.0).log_prob(theta[:, 3])
    torch.testing.assert_close(parameters.log_prob(theta), expected)
    assert parameters.log_prob(theta.reshape(4, 5, 4)).shape == (4, 5)


def test_an_opaque_component_makes_the_product_opaque():
    parameters = Parameters([Parameter("a", td.Normal(0.0, 1.0)), Parameter("b", Home(0.0, 1.0))])
    again = Parameters.from_dict(parameters.to_dict())
    assert torch.equal(again.bounds, parameters.bounds)
    with pytest.raises(UsageError, match="is not stored in the file"):
        again.sample(3)


def velocities():
    return Parameters(
        [
            Parameter("K_b", td.Uniform(0.0, 15.0), unit="m / s", label=r"$K_b$"),
            Parameter("trend", td.Normal(0.0, 0.1), unit="m / (s d)"),
            Parameter("jitter", td.LogNormal(0.0, 1.0)),
        ]
    )


def test_names_units_labels_and_columns():
    parameters = velocities()
    assert parameters.names == ("K_b", "trend", "jitter")
    assert parameters.units == ("m / s", "m / (d s)", "")
    assert parameters.labels == ("$K_b$", "trend", "jitter")
    assert len(parameters) == 3
    assert parameters.index("trend") == 1
    assert Parameters.from_prior(parameters) is parameters
    assert repr(parameters).startswith("Parameters(K_b [m / s] in (0, 15); trend [m / (d s)] in (-inf, inf)")
    theta = parameters.sample(30, seed=0)
    expected = sum(c.log_prob(theta[:, i]) for i, c in enumerate(parameters.prior.components))
    torch.testing.assert_close(parameters.log_prob(theta), expected)
    assert Parameters.from_dict(parameters.to_dict()) == parameters
    assert parameters != Parameters.from_prior(td.Normal(torch.zeros(3), torch.ones(3)))


def test_unnamed_parameters_are_numbered():
    parameters = Parameters.from_prior(td.Normal(ZERO, ONE), units=["", "km"])
    assert parameters.names == ("theta_0", "theta_1")
    assert parameters.units == ("", "km")


ONE_NORMAL = td.Normal(0.0, 1.0)
MISTAKES = {
    "none": (lambda: Parameters([]), UsageError, "at least one parameter"),
    "twice": (lambda: Parameters([Parameter("a", ONE_NORMAL)] * 2), UsageError, "distinct names"),
    "no identifier": (lambda: Parameters([Parameter("K b", ONE_NORMAL)]), UsageError, "parameter name"),
    "no text": (lambda: Parameters([Parameter(3, ONE_NORMAL)]), UsageError, "parameter name"),
    "unit": (lambda: Parameters([Parameter("a", ONE_NORMAL, unit="furlong/x")]), UsageError, "unit: expected"),
    "vector": (lambda: Parameters([Parameter("a", td.Normal(ZERO, ONE))]), UsageError, "must be one-dimensional"),
    "count": (lambda: Parameters([Parameter("a", td.Poisson(2.0))]), SupportError, "support must be"),
    "no prior": (lambda: Parameters.from_prior(3.0), UsageError, "expected Parameters or a torch"),
    "matrix": (lambda: Parameters.from_prior(td.Normal(torch.zeros(2, 2), 1.0)), UsageError, "over a vector"),
    "too few names": (lambda: Parameters.from_prior(td.Normal(ZERO, ONE), names=["a"]), UsageError, "names: expected"),
    "too few units": (lambda: Parameters.from_prior(td.Normal(ZERO, ONE), units=["m"]), UsageError, "units: expected"),
    "unknown column": (lambda: velocities().index("K_c"), UsageError, "expected one of K_b, trend, jitter; got 'K_c'"),
    "width": (lambda: velocities().log_prob(torch.zeros(4, 2)), ShapeError, r"theta: expected shape \(\*, 3\)"),
    "number": (lambda: velocities().within(torch.tensor(1.0)), ShapeError, r"theta: expected shape \(\*, 3\)"),
    "draws": (lambda: velocities().sample(0), UsageError, "n: expected an integer of at least 1"),
    "seed": (lambda: velocities().sample(1, seed=-1), UsageError, "seed: expected an integer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()


def test_check_within_names_row_and_parameter():
    parameters = velocities()
    theta = parameters.sample(5, seed=0)
    assert parameters.check_within(theta) is theta
    theta[3, 0] = 16.0
    with pytest.raises(SupportError, match=r"theta: expected K_b in \[0, 15\], got 16 in row 3 \(1 of 5 rows"):
        parameters.check_within(theta)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"family": "Nonsense", "arguments": {}},
        {"family": "kl_divergence", "arguments": {}},
        {"family": "Normal", "arguments": {"loc": ["float32", 0.0]}},
        {"family": "Normal", "arguments": {"loc": ["float32", 0.0], "scale": ["float32", -1.0]}},
        {"family": "Normal", "arguments": {"loc": ["nonsense", 0.0], "scale": ["float32", 1.0]}},
        {"family": "Product"},
        None,
    ],
)
def test_damaged_descriptions_are_refused(spec):
    description = velocities().to_dict() | {"prior": spec}
    with pytest.raises(StoreError, match="the stored prior cannot be read"):
        Parameters.from_dict(description)


class TestPeriodic:
    ANGLE = Parameter("angle", td.Uniform(-math.pi, math.pi), periodic=True)
    SIZE = Parameter("size", td.HalfNormal(1.0))

    def test_is_written_and_read(self):
        parameters = Parameters([self.SIZE, self.ANGLE])
        assert parameters.periodic == (False, True)
        again = Parameters.from_dict(json.loads(json.dumps(parameters.to_dict())))
        assert again == parameters
        assert again.periodic == (False, True)
        assert "angle in (-3.14159, 3.14159), periodic" in repr(parameters)
        assert parameters != Parameters([self.SIZE, Parameter("angle", self.ANGLE.prior)])

    def test_a_file_that_does_not_know_of_it_is_read(self):
        parameters = Parameters([self.SIZE])
        assert "periodic" not in parameters.to_dict()
        assert Parameters.from_dict(parameters.to_dict()).periodic == (False,)

    def test_needs_finite_bounds(self):
        with pytest.raises(SupportError, match=r"parameter size: a periodic one needs finite bounds, got \[0.0, inf\]"):
            Parameters([Parameter("size", self.SIZE.prior, periodic=True)])

    def test_of_a_joint_prior(self):
        prior = td.Uniform(ZERO, ONE)
        assert Parameters.from_prior(prior).periodic == (False, False)
        assert Parameters.from_prior(prior, periodic=[True, False]).periodic == (True, False)
        with pytest.raises(UsageError, match="periodic: expected 2, one for each parameter, got 1"):
            Parameters.from_prior(prior, periodic=[True])


@pytest.mark.parametrize("given", [{"a": td.Uniform(0.0, 1.0)}, td.Normal(torch.zeros(2), 1.0), ["a"]])
def test_what_are_no_parameters(given):
    with pytest.raises(UsageError, match=r"expected a list of Parameter\(name, prior\).*from_prior"):
        Parameters(given)


def test_a_list_of_parameters_is_a_prior():
    wrapped = Parameters.from_prior([Parameter("a", td.Uniform(0.0, 1.0)), Parameter("b", td.Normal(0.0, 1.0))])
    assert wrapped.names == ("a", "b")


def test_priors_narrower_than_single_precision_are_told(caplog):
    """A time in Julian days within half a day: a quarter of a day apart."""
    Parameters([Parameter("t", td.Uniform(0.0, 0.5)), Parameter("far", td.Uniform(2459000.0, 2459900.0))])
    assert not caplog.records
    Parameters([Parameter("t", td.Uniform(2459000.0, 2459000.5))])
    (told,) = caplog.messages
    assert told.startswith("parameter t: numbers are kept in single precision, in steps of 0.25")


def test_directions_stay_on_their_circle():
    parameters = Parameters([Parameter("phi", td.VonMises(3.0, 2.0), periodic=True)])
    draws = parameters.sample(5000, seed=0)
    parameters.check_within(draws)
    assert draws.abs().max() <= math.pi + 1e-6
    assert parameters.bounds[0].tolist() == pytest.approx([-math.pi, math.pi], abs=1e-6)
    assert float(parameters.log_prob(torch.tensor([[4.0]]))) == -math.inf
    around = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1]
    assert float(parameters.log_prob(around[:, None]).exp().mean() * 2 * math.pi) == pytest.approx(1, abs=1e-5)

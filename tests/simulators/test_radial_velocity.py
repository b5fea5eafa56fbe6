"""Radial velocities: geometry of orbits, masses, instruments, tables, and the star K2-24."""

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from astropy import units
from astropy.table import MaskedColumn, QTable, Table

from sbi_physics.core.errors import NonFiniteError, ShapeError, StoreError, UsageError
from simulators.planet import Planet, minimum_mass
from simulators.radial_velocity import RadialVelocity, k2_24

TIMES = np.linspace(0.0, 30.0, 7)


def one_planet(**elements):
    planet = Planet("b", **({"period": 10.0, "semi_amplitude": td.Uniform(0.0, 20.0), "transit_time": 2.0} | elements))
    return RadialVelocity(TIMES, np.ones(7), planets=[planet], gamma=td.Uniform(-50.0, 50.0))


class TestOrbit:
    def test_circular_orbit_is_minus_sine_of_the_phase_since_transit(self):
        simulator = one_planet()
        times = torch.linspace(-20, 20, 101, dtype=torch.float64)
        velocity = simulator.model(torch.tensor([5.0, 3.0]), times)
        torch.testing.assert_close(velocity, 3 - 5 * torch.sin(2 * math.pi * (times - 2.0) / 10.0))

    def test_at_transit_the_star_has_gamma_and_turns_to_approach(self):
        simulator = one_planet()
        before, at, after = simulator.model(torch.tensor([5.0, 3.0]), [1.9, 2.0, 2.1]).tolist()
        assert at == pytest.approx(3.0, abs=1e-12)
        assert before > at > after

    @pytest.mark.parametrize("eccentricity", [0.0, 0.4, 0.95])
    def test_velocity_repeats_after_a_period_and_not_before(self, eccentricity):
        simulator = one_planet(eccentricity=eccentricity, omega=0.7)
        theta = torch.tensor([5.0, 0.0])
        at = torch.linspace(0, 9, 10, dtype=torch.float64)
        torch.testing.assert_close(simulator.model(theta, at), simulator.model(theta, at + 30.0), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(simulator.model(theta, at), simulator.model(theta, at + 5.0))

    @pytest.mark.parametrize("omega", [0.0, 0.7, -2.0])
    def test_extremes_are_semi_amplitude_about_e_cos_omega(self, omega):
        simulator = one_planet(eccentricity=0.4, omega=omega)
        velocity = simulator.model(torch.tensor([5.0, 0.0]), torch.linspace(0, 10, 20_001, dtype=torch.float64))
        assert float(velocity.max() - velocity.min()) / 2 == pytest.approx(5.0, abs=1e-5)
        assert float(velocity.max() + velocity.min()) / 2 == pytest.approx(5 * 0.4 * math.cos(omega), abs=1e-5)

    def test_mean_velocity_of_an_orbit_is_gamma(self):
        """The velocity is the derivative of a periodic position, so its mean over a period is that of the system."""
        simulator = one_planet(eccentricity=0.6, omega=1.1)
        at = torch.arange(4000, dtype=torch.float64) / 400
        assert float(simulator.model(torch.tensor([5.0, 3.0]), at).mean()) == pytest.approx(3.0, abs=1e-9)

    def test_transit_and_periastron_describe_one_orbit(self):
        from simulators.kepler import periastron_time

        elements = {"eccentricity": 0.5, "omega": 0.9}
        by_transit = one_planet(**elements)
        start = float(periastron_time(2.0, 10.0, 0.5, 0.9))
        by_periastron = one_planet(transit_time=None, periastron_time=start, **elements)
        theta = torch.tensor([5.0, 1.0])
        torch.testing.assert_close(by_transit.model(theta), by_periastron.model(theta))

    def test_planets_and_trends_add(self, planets_all_free):
        simulator = planets_all_free
        theta = simulator.parameters.sample(4, seed=1).double()
        still = theta.clone()
        for name in ("trend", "curvature"):
            still[:, simulator.parameters.index(name)] = 0.0
        since = simulator.times - simulator.reference_time
        trend, curvature = (theta[:, simulator.parameters.index(n), None] for n in ("trend", "curvature"))
        drift = trend * since + curvature * since**2
        torch.testing.assert_close(simulator.model(theta), simulator.model(still) + drift)

    def test_leading_axes_of_theta_are_kept(self, planets_all_free):
        theta = planets_all_free.parameters.sample(6, seed=1)
        nested = planets_all_free.model(theta.reshape(2, 3, -1))
        assert nested.shape == (2, 3, 12)
        assert torch.equal(nested.reshape(6, 12), planets_all_free.model(theta))


class TestParameters:
    def test_names_units_and_order(self, planets_all_free):
        assert planets_all_free.parameters.names == (
            "P_b", "T_b", "K_b", "e_b", "omega_b", "gamma_HIRES", "gamma_HARPS_N", "trend", "curvature",
            "log_jitter_HIRES",
        )  # fmt: skip
        as_units = [units.Unit(u) for u in planets_all_free.parameters.units]
        wanted = ["d", "d", "m/s", "", "rad", "m/s", "m/s", "m/(s d)", "m/(s d2)", ""]
        assert as_units == [units.Unit(u) for u in wanted]

    def test_fixed_elements_may_be_quantities(self):
        simulator = one_planet(period=(1 / 36.525) * units.yr, omega=90 * units.deg, eccentricity=0.1)
        planet = simulator.planets[0]
        assert planet.period == pytest.approx(10.0)
        assert planet.omega == pytest.approx(math.pi / 2)

    def test_times_and_errors_may_be_quantities(self):
        planet = Planet("b", 10.0, td.Uniform(0.0, 1.0), 0.0)
        simulator = RadialVelocity(
            TIMES * 24 * units.h, np.full(7, 0.001) * units.km / units.s, planets=[planet], gamma=0
        )
        torch.testing.assert_close(simulator.times, torch.as_tensor(TIMES))
        torch.testing.assert_close(simulator.errors, torch.ones(7, dtype=torch.float64))

    @pytest.mark.parametrize(
        ("elements", "message"),
        [
            ({"transit_time": None}, "a transit_time or a periastron_time"),
            ({"periastron_time": 1.0}, "a transit_time or a periastron_time"),
            ({"eccentricity": 1.0}, r"eccentricity: expected within \[0, 1\)"),
            ({"eccentricity": td.Uniform(0.0, 1.0)}, r"eccentricity: expected within \[0, 1\)"),
            ({"period": -1.0}, "period: expected positive"),
            ({"period": float("nan")}, "period: expected a finite number or a prior"),
            ({"semi_amplitude": "big"}, "semi_amplitude: expected a finite number or a prior"),
            ({"period": 3 * units.m}, "period: expected a quantity in d, got one in m"),
        ],
    )
    def test_wrong_elements_are_named(self, elements, message):
        with pytest.raises(UsageError, match=message):
            one_planet(**elements)

    def test_wrong_arguments_are_named(self):
        free = td.Uniform(0.0, 1.0)
        with pytest.raises(ShapeError, match="errors: expected 7 numbers, one for each time, got 6"):
            RadialVelocity(TIMES, np.ones(6), gamma=free)
        with pytest.raises(UsageError, match="errors: expected positive numbers, got 0"):
            RadialVelocity(TIMES, np.zeros(7), gamma=free)
        with pytest.raises(NonFiniteError, match="times: expected finite numbers"):
            RadialVelocity([0.0, np.nan], np.ones(2), gamma=free)
        with pytest.raises(UsageError, match="at least one free parameter"):
            RadialVelocity(TIMES, np.ones(7), gamma=0.0)
        with pytest.raises(ShapeError, match="instruments: expected 7 names"):
            RadialVelocity(TIMES, np.ones(7), gamma=free, instruments=["a"])
        with pytest.raises(UsageError, match="gamma: expected one for each of a, b"):
            RadialVelocity(TIMES, np.ones(7), gamma={"a": free}, instruments=list("abababa"))
        twice = [Planet("b", 10.0, free, 0.0), Planet("b", 20.0, free, 0.0)]
        with pytest.raises(UsageError, match="expected distinct names"):
            RadialVelocity(TIMES, np.ones(7), planets=twice, gamma=free)
        with pytest.raises(UsageError, match="expected distinct names"):
            RadialVelocity(TIMES, np.ones(7), gamma=free, instruments=["a-b", "a b"] + ["a b"] * 5)


class TestInstruments:
    def test_offsets_and_jitters_belong_to_their_rows(self, planets_all_free):
        simulator = planets_all_free
        theta = simulator.parameters.sample(1, seed=3)[0].double()
        shifted = theta.clone()
        shifted[simulator.parameters.index("gamma_HARPS_N")] += 7.0
        difference = simulator.model(shifted) - simulator.model(theta)
        torch.testing.assert_close(difference, torch.tensor([0.0, 7.0], dtype=torch.float64).repeat(6))
        theta[simulator.parameters.index("log_jitter_HIRES")] = 0.9
        residual = simulator(theta.expand(20_000, -1), seed=1).double() - simulator.model(theta)
        expected = torch.tensor([math.hypot(1.5, math.exp(s)) for s in (0.9, 0.5)]).repeat(6).double()
        error = expected / math.sqrt(2 * 20_000)
        assert bool(((residual.std(0) - expected).abs() < 5 * error).all())

    def test_curves_at_other_times_need_the_instrument(self, planets_all_free):
        theta = planets_all_free.parameters.sample(1, seed=3)[0]
        curve = planets_all_free.model(theta, planets_all_free.times, instrument="HIRES")
        torch.testing.assert_close(curve[::2], planets_all_free.model(theta)[::2])
        with pytest.raises(UsageError, match=r"instrument: expected one of HIRES, HARPS-N; got None"):
            planets_all_free.model(theta, [1.0])


class TestMinimumMass:
    def test_jupiter(self):
        """Jupiter moves the Sun by 12.5 m/s in 11.86 yr."""
        jupiter = minimum_mass(12.5, 11.86 * 365.25, 0.0489, 1.0)
        assert jupiter.to_value(units.M_jup) == pytest.approx(1.0, abs=0.01)

    def test_coefficient_of_lovis_and_fischer(self):
        """K = 28.4329 m/s for m sin i of one Jupiter mass, M + m of one solar mass and a year (their eq. 14)."""
        companion = (1 * units.M_jup).to_value(units.M_sun)
        mass = minimum_mass(28.4329, 365.25, 0.0, 1.0 - companion)
        assert mass.to_value(units.M_jup) == pytest.approx(1.0, abs=2e-3)

    def test_51_pegasi_b(self):
        """K = 55.9 m/s, P = 4.2308 d, e = 0.01, M = 1.09: m sin i = 0.47 Jupiter masses (Butler et al. 2006)."""
        mass = minimum_mass(55.94, 4.230785, 0.013, 1.09)
        assert mass.to_value(units.M_jup) == pytest.approx(0.472, abs=0.01)

    @pytest.mark.parametrize("ratio", [1e-6, 0.1, 1.0, 30.0])
    def test_exact_for_companions_of_any_mass(self, ratio):
        """K of a companion of known mass, from the radial velocity equation, gives that mass back."""
        from astropy import constants

        star = 0.8 * units.M_sun
        speed = (2 * np.pi * constants.G / (50 * units.d)) ** (1 / 3) * ratio * star / ((1 + ratio) * star) ** (2 / 3)
        speed = speed / np.sqrt(1 - 0.3**2)
        mass = minimum_mass(speed.to_value("m/s"), 50.0, 0.3, star)
        assert (mass / star).to_value("") == pytest.approx(ratio, rel=1e-12)

    def test_draws_of_the_stellar_mass(self):
        simulator = k2_24()
        theta = simulator.parameters.sample(100, seed=1)
        mass = simulator.minimum_mass(theta, "b", np.random.default_rng(1).normal(1.12, 0.05, 100))
        assert mass.shape == (100,)
        assert mass.unit == units.M_earth
        with pytest.raises(UsageError, match="planet: expected one of b, c; got 'd'"):
            simulator.minimum_mass(theta, "d", 1.12)
        with pytest.raises(UsageError, match="stellar_mass: expected a quantity in M_sun"):
            simulator.minimum_mass(theta, "b", 1.12 * units.m)


class TestLikelihood:
    def test_equals_independent_gaussians(self):
        simulator = k2_24()
        theta = simulator.parameters.sample(5, seed=2)
        sigma = torch.sqrt(simulator.errors**2 + torch.exp(2 * theta[:, 4:].double()))
        expected = td.Normal(simulator.model(theta), sigma).log_prob(simulator.observed.double()).sum(-1)
        torch.testing.assert_close(simulator.log_likelihood(theta, simulator.observed), expected)

    def test_without_jitter_the_errors_alone_count(self):
        simulator = one_planet()
        theta = torch.tensor([5.0, 3.0])
        expected = td.Normal(simulator.model(theta), 1.0).log_prob(torch.zeros(7, dtype=torch.float64)).sum()
        torch.testing.assert_close(simulator.log_likelihood(theta, torch.zeros(7)), expected)

    def test_hessian_is_finite_for_eccentric_orbits(self, planets_all_free):
        theta = planets_all_free.parameters.sample(1, seed=1)[0].double()
        x = planets_all_free(theta[None], seed=1)[0]
        hessian = torch.autograd.functional.hessian(lambda t: planets_all_free.log_likelihood(t, x), theta)
        torch.testing.assert_close(hessian, hessian.T, rtol=1e-6, atol=1e-6)


class TestK224:
    def test_the_demo_problem(self):
        simulator = k2_24()
        assert simulator.parameters.names == ("K_b", "K_c", "gamma", "trend", "log_jitter")
        assert simulator.x_shape == (32,)
        assert simulator.observed.shape == (32,)
        assert simulator.observed.dtype == torch.float32
        assert simulator.reference_time == 2420.0
        bounds = [[0, 15], [0, 15], [-20, 20], [-0.2, 0.2], [math.log(0.1), math.log(20)]]
        torch.testing.assert_close(simulator.parameters.bounds, torch.tensor(bounds).double(), atol=1e-6, rtol=1e-6)

    def test_model_written_out(self):
        simulator = k2_24()
        theta = torch.tensor([4.0, 5.0, -1.0, 0.02, 0.5], dtype=torch.float64)
        t = simulator.times
        expected = -1 + 0.02 * (t - 2420)
        for k, period, transit in ((4.0, 20.885258, 2072.79438), (5.0, 42.363011, 2082.62516)):
            expected = expected - k * torch.sin(2 * math.pi * (t - transit) / period)
        torch.testing.assert_close(simulator.model(theta), expected)

    def test_mass_of_the_published_solution(self):
        """K of 4.5 and 4.8 m/s about 1.12 solar masses: 21 and 27 Earth masses (Petigura et al. 2016)."""
        theta = torch.tensor([4.5, 4.8, 0.0, 0.0, 0.0])
        assert k2_24().minimum_mass(theta, "b", 1.12).to_value("M_earth") == pytest.approx(21.0, abs=0.7)
        assert k2_24().minimum_mass(theta, "c", 1.12).to_value("M_earth") == pytest.approx(27.0, abs=2.0)


class TestFromTable:
    MODEL = {"planets": [Planet("b", 10.0, td.Uniform(0.0, 20.0), 2.0)], "gamma": td.Normal(0.0, 10.0)}  # noqa: RUF012

    def table(self, **columns):
        rows = {"time": [1.0, 2.0, 3.0], "velocity": [5.0, 6.0, 7.0], "error": [0.5, 0.6, 0.7]}
        return Table(rows | columns)

    @pytest.mark.parametrize("suffix", ["csv", "ecsv", "fits"])
    def test_files_of_any_kind(self, tmp_path, suffix):
        path = tmp_path / f"star.{suffix}"
        self.table().write(path)
        simulator = RadialVelocity.from_table(path, **self.MODEL)
        assert simulator.observed.tolist() == [5.0, 6.0, 7.0]
        assert simulator.times.tolist() == [1.0, 2.0, 3.0]

    def test_own_names_units_and_instruments(self, tmp_path):
        path = tmp_path / "star.ecsv"
        table = QTable({"jd": [24.0, 48.0] * units.h, "rv": [0.005, 0.006] * units.km / units.s, "tel": ["a", "b"]})
        table["sigma"] = [0.5, 0.6]
        table.write(path)
        simulator = RadialVelocity.from_table(
            path, time="jd", velocity="rv", error="sigma", instrument="tel", **self.MODEL
        )
        assert simulator.times.tolist() == [1.0, 2.0]
        assert simulator.observed.tolist() == pytest.approx([5.0, 6.0])
        assert simulator.errors.tolist() == [0.5, 0.6]
        assert simulator.parameters.names == ("K_b", "gamma_a", "gamma_b")
        in_km = RadialVelocity.from_table(self.table(), velocity_unit="km / s", **self.MODEL)
        assert in_km.observed.tolist() == [5000.0, 6000.0, 7000.0]

    @pytest.mark.parametrize(
        ("columns", "options", "error", "message"),
        [
            (
                {"velocity": [5.0, np.nan, 7.0]},
                {},
                NonFiniteError,
                r"column velocity: expected finite .* \(first at index 1",
            ),
            ({"error": MaskedColumn([1.0, 1.0, 1.0], mask=[0, 0, 1])}, {}, NonFiniteError, "column error: .* row 2"),
            ({"velocity": ["a", "b", "c"]}, {}, UsageError, "column velocity: expected numbers"),
            ({}, {"time": "bjd"}, UsageError, "bjd not among those there: time, velocity, error"),
            ({}, {"instrument": "tel"}, UsageError, "tel not among those there"),
            ({}, {"velocity_unit": "kg"}, UsageError, "expected a unit that converts to m / s, got kg"),
            ({"error": [1.0, -1.0, 1.0]}, {}, UsageError, "errors: expected positive numbers, got -1"),
        ],
    )
    def test_wrong_tables_are_named(self, columns, options, error, message):
        with pytest.raises(error, match=message):
            RadialVelocity.from_table(self.table(**columns), **options, **self.MODEL)

    def test_wrong_files_are_named(self, tmp_path):
        with pytest.raises(StoreError, match="there is no such file"):
            RadialVelocity.from_table(tmp_path / "none.csv", **self.MODEL)
        uneven = tmp_path / "uneven.csv"
        uneven.write_text("time,velocity,error\n1,2,3\n4,5\n6,7,8,9,10\n")
        with pytest.raises(StoreError, match="not a table that astropy reads"):
            RadialVelocity.from_table(uneven, **self.MODEL)
        short = tmp_path / "short.csv"
        short.write_text("time,velocity,error\n1,2,3\n4,5\n")
        with pytest.raises(NonFiniteError, match="column error: expected a number in each row, got none in row 1"):
            RadialVelocity.from_table(short, **self.MODEL)
        empty = tmp_path / "empty.csv"
        empty.write_text("time,velocity,error\n")
        with pytest.raises(UsageError, match="at least one row"):
            RadialVelocity.from_table(empty, **self.MODEL)
        (tmp_path / "void.csv").write_text("")
        with pytest.raises((StoreError, UsageError), match=r"void\.csv"):
            RadialVelocity.from_table(tmp_path / "void.csv", **self.MODEL)
        (tmp_path / "bytes.dat").write_bytes(bytes(range(256)))
        with pytest.raises((StoreError, UsageError), match=r"bytes\.dat"):
            RadialVelocity.from_table(tmp_path / "bytes.dat", **self.MODEL)

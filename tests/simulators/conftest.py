"""Fixtures shared by the tests of the simulators: every simulator, once."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.distributions as td

from simulators.bernoulli_glm import BernoulliGLM
from simulators.dijet import DijetResonance
from simulators.gaussian_linear import GaussianLinear, GaussianLinearUniform
from simulators.gaussian_mixture import GaussianMixture
from simulators.ising import IsingModel
from simulators.lotka_volterra import LotkaVolterra
from simulators.oscillator import DampedOscillator
from simulators.pulsar_timing import PulsarTimingArray, pulsar_timing_small
from simulators.radial_velocity import Planet, RadialVelocity, k2_24
from simulators.sir import SIR
from simulators.slcp import SLCP
from simulators.supernovae import supernovae
from simulators.synthetic_array import synthetic_array
from simulators.two_moons import TwoMoons


def everything_free():
    """Two instruments, an eccentric planet with each element free, and one from its periastron."""
    times = torch.linspace(0.0, 40.0, 12, dtype=torch.float64)
    return RadialVelocity(
        times,
        torch.full((12,), 1.5),
        planets=[
            Planet(
                "b",
                period=td.Uniform(5.0, 6.0),
                semi_amplitude=td.Uniform(1.0, 10.0),
                transit_time=td.Uniform(1.0, 2.0),
                eccentricity=td.Uniform(0.05, 0.6),
                omega=td.Uniform(-math.pi, math.pi),
            ),
            Planet("c", period=17.0, semi_amplitude=4.0, periastron_time=3.0, eccentricity=0.3, omega=1.0),
        ],
        gamma=td.Normal(0.0, 10.0),
        trend=td.Normal(0.0, 0.1),
        curvature=td.Normal(0.0, 0.01),
        log_jitter={"HIRES": td.Uniform(-1.0, 1.0), "HARPS-N": 0.5},
        instruments=["HIRES", "HARPS-N"] * 6,
    )


SIMULATORS = {
    "gaussian_linear": GaussianLinear,
    "gaussian_linear_3": lambda: GaussianLinear(3, prior_variance=1.0, noise_variance=0.2),
    "gaussian_linear_uniform": GaussianLinearUniform,
    "two_moons": TwoMoons,
    "slcp": SLCP,
    "sir": SIR,
    "lotka_volterra": LotkaVolterra,
    "gaussian_mixture": GaussianMixture,
    "bernoulli_glm": BernoulliGLM,
    "oscillator": DampedOscillator,
    "ising": lambda: IsingModel(4, sweeps=60),
    "dijet": DijetResonance,
    "dijet_shifted": lambda: DijetResonance(shift=0.1),
    "k2_24": k2_24,
    "radial_velocity": everything_free,
    "pulsar_timing_small": pulsar_timing_small,
    "pulsar_timing_uncorrelated": lambda: PulsarTimingArray(
        synthetic_array(2, seed=2, epochs=20), red_modes=6, gw_modes=3, correlated=False
    ),
    "one_pulsar": lambda: PulsarTimingArray(synthetic_array(1, seed=3, epochs=20, bands=2), red_modes=8, gwb=False),
    "supernovae": supernovae,
    "supernovae_w0wa": lambda: supernovae("w0waCDM"),
    "supernovae_marginal": lambda: supernovae("wCDM", marginalise_offset=True),
}


@pytest.fixture(params=SIMULATORS)
def simulator(request):
    return SIMULATORS[request.param]()


@pytest.fixture
def planets_all_free():
    return everything_free()


@pytest.fixture(scope="session")
def dense_timing():
    """The dense reference of the likelihood of pulsar timing, in dense_timing.py."""
    spec = importlib.util.spec_from_file_location("dense_timing", Path(__file__).with_name("dense_timing.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

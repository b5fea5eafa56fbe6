r"""A search for a resonance that decays into two jets, with the exact likelihood ratio that a real search lacks.

The events have the form of the LHC Olympics R&D data (Kasieczka et al. 2021, arXiv:2101.08320): the dijet mass m_JJ,
the mass of the lighter jet, the difference of both masses (all in TeV) and tau21 of each jet.  The mass of the
background falls smoothly (`dijet_spectrum`); its features have a density p_B(x | m_JJ) that moves slowly with the mass
(`dijet_jets`).  The signal, W' -> X Y with masses of 0.5 and 0.1 TeV, is a peak in m_JJ; its features are a mixture of
well and of badly reconstructed pairs.  Both densities are in closed form, so that the classifier which no other beats,

$$ \ln p_S(x \mid m_{JJ}) - \ln p_B(x \mid m_{JJ}), $$

is known.  With `shift` the jet masses of all events grow with the dijet mass, m_J1 += shift m_JJ and
Delta m += shift m_JJ (Hallin et al. 2021, arXiv:2109.00546, with shift = 0.1): the likelihood ratio stays what it was,
but events beside the signal region no longer look like those inside.

As a simulator, theta is the fraction of signal and its mass, and x is one event.
"""

import math
from dataclasses import dataclass, replace
from numbers import Integral

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import as_tensor, not_negative
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import derive, seeded
from simulators.dijet_jets import FEATURES, JetPopulation
from simulators.dijet_spectrum import FallingSpectrum, Peak

__all__ = ["FEATURES", "DijetEvents", "DijetResonance"]

_ENERGY = 13.0
_EXPONENTS = (5.0, 3.6, 0.1)
_BACKGROUND = JetPopulation(
    mass=0.108,
    mass_spread=0.65,
    difference=0.177,
    difference_shape=1.08,
    tau=(0.55, 0.53),
    tau_spread=(0.79, 0.74),
    tau_fall=(1.3, 1.1),
    growth=(0.2, 0.25, -0.15),
)
_WELL_RECONSTRUCTED = JetPopulation(
    mass=0.108,
    mass_spread=0.09,
    difference=0.405,
    difference_shape=12.0,
    tau=(-0.55, -1.30),
    tau_spread=(0.38, 0.38),
)
_BADLY_RECONSTRUCTED = JetPopulation(
    mass=0.16,
    mass_spread=0.50,
    difference=0.31,
    difference_shape=1.7,
    tau=(-0.16, -1.12),
    tau_spread=(0.65, 0.68),
)
_WELL = 0.88


@dataclass(frozen=True)
class DijetEvents:
    """Events of a search.

    Attributes:
        features: ``(n, 4)``, float64: the columns of `FEATURES`, masses in TeV.
        mass: the dijet mass ``(n,)`` [TeV], float64.
        labels: 1 for signal, 0 for background, ``(n,)``; no search may look at them.
        weights: ``(n,)``, float64; some are negative where that was asked for.
    """

    features: Tensor
    mass: Tensor
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.mass)

    def select(self, rows: Tensor) -> "DijetEvents":
        """The events of a boolean mask ``(n,)`` or of row numbers ``(k,)``."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items()})

    def within(self, low: float, high: float) -> "DijetEvents":
        """The events with a dijet mass in [low, high) TeV."""
        return self.select((self.mass >= low) & (self.mass < high))


class DijetResonance:
    """A falling background, and a peak with other jets in it.

    Args:
        mass_range: lowest and highest dijet mass [TeV].
        signal_mass: where the peak is [TeV].
        signal_width: its standard deviation [TeV].
        shift: how much of the dijet mass is added to m_J1 and to Delta m.

    Raises:
        UsageError: the range is empty or beyond the energy of 13 TeV, the peak is outside it, or its width is not
            positive.
    """

    name = "dijet"
    features = FEATURES
    units = ("TeV", "TeV", "", "")

    def __init__(
        self,
        *,
        mass_range: tuple[float, float] = (2.5, 5.0),
        signal_mass: float = 3.5,
        signal_width: float = 0.12,
        shift: float = 0.0,
    ) -> None:
        low, high = (float(end) for end in mass_range)
        if not 0 < low < high < _ENERGY:
            raise UsageError(f"mass_range: expected 0 < low < high < {_ENERGY:g} TeV, got {tuple(mass_range)}")
        if not low <= signal_mass <= high:
            raise UsageError(f"signal_mass: expected a mass in [{low:g}, {high:g}] TeV, got {signal_mass!r}")
        if not not_negative(signal_width, "signal_width") > 0:
            raise UsageError(f"signal_width: expected a positive width [TeV], got {signal_width!r}")
        self.mass_range, self.signal_mass, self.signal_width = (low, high), float(signal_mass), float(signal_width)
        self.shift = not_negative(shift, "shift")
        self._spectrum = FallingSpectrum(low, high, _ENERGY, _EXPONENTS)
        self._peak = Peak(low, high, self.signal_width)
        margin = 0.2 * (high - low)
        self.parameters = Parameters(
            [
                Parameter("signal_fraction", td.Uniform(0.0, 0.1), label="$f_S$"),
                Parameter("signal_mass", td.Uniform(low + margin, high - margin), unit="TeV", label="$m_S$"),
            ]
        )
        self.x_shape = torch.Size([1 + len(FEATURES)])

    def events(
        self,
        background: int = 100_000,
        signal: int = 0,
        *,
        window: tuple[float, float] | None = None,
        negative_weights: float = 0.0,
        seed: int = 0,
    ) -> DijetEvents:
        """Events of background and signal in random order.

        Args:
            background: how many of background.
            signal: how many of signal.
            window: lowest and highest dijet mass [TeV] of all of them; the whole range where None.
            negative_weights: how strongly the background is weighted, in [0, 1), as next-to-leading-order samples are:
                an event is of negative weight with a probability from 0, where m_J1 is high, up to half of this, where
                it is low.  Weighted, the events are those of the density; unweighted they are not.
            seed: of all random numbers.

        Raises:
            UsageError: there are no events to draw, or the window is not in the range.
        """
        counts = [_count(background, "background"), _count(signal, "signal")]
        if sum(counts) == 0:
            raise UsageError("events: expected at least one of background or signal, got none")
        if not 0 <= negative_weights < 1:
            raise UsageError(f"negative_weights: expected a number in [0, 1), got {negative_weights!r}")
        background_seed, signal_seed, order_seed = (
            self._stream(seed, window, f"events {what}") for what in ("background", "signal", "order")
        )
        mass = self._background_masses(counts[0], window, background_seed)
        x, weights = self._background(mass, negative_weights, derive(background_seed, "features"))
        signal_mass = self._signal_masses(counts[1], window, signal_seed)
        signal_x = self.signal_features(signal_mass, seed=derive(signal_seed, "features"))
        with seeded(order_seed):
            order = torch.randperm(sum(counts))
        labels = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor(counts))
        ones = torch.ones(counts[1], dtype=torch.float64)
        whole = DijetEvents(
            torch.cat([x, signal_x]), torch.cat([mass, signal_mass]), labels, torch.cat([weights, ones])
        )
        return whole.select(order)

    def sample_background(
        self, n: int, *, window: tuple[float, float] | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Features ``(n, 4)`` and dijet masses ``(n,)`` [TeV] of n events of background, in a window of the mass."""
        stream = self._stream(seed, window, "background")
        mass = self._background_masses(_count(n, "n"), window, stream)
        return self.background_features(mass, seed=derive(stream, "features")), mass

    def sample_signal(
        self, n: int, *, window: tuple[float, float] | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Features ``(n, 4)`` and dijet masses ``(n,)`` [TeV] of n events of signal, in a window of the mass."""
        stream = self._stream(seed, window, "signal")
        mass = self._signal_masses(_count(n, "n"), window, stream)
        return self.signal_features(mass, seed=derive(stream, "features")), mass

    def background_features(self, mass: Tensor, *, seed: int = 0) -> Tensor:
        """Features ``(n, 4)`` of one event of background at each dijet mass ``(n,)`` [TeV]."""
        return self._background(as_tensor(mass, "mass", dtype=torch.float64), 0.0, seed)[0]

    def signal_features(self, mass: Tensor, *, seed: int = 0) -> Tensor:
        """Features ``(n, 4)`` of one event of signal at each dijet mass ``(n,)`` [TeV]."""
        mass = as_tensor(mass, "mass", dtype=torch.float64)
        with seeded(seed, mass.device):
            well = torch.rand(mass.shape, dtype=torch.float64, device=mass.device) < _WELL
            z = _normals(mass)
        features = (_WELL_RECONSTRUCTED.features(z, mass), _BADLY_RECONSTRUCTED.features(z, mass))
        return self._shifted(torch.where(well.unsqueeze(-1), *features), mass)

    def background_share(self, low: float, high: float) -> float:
        """The fraction of the background that has a dijet mass in ``(low, high)`` [TeV]."""
        ends = self._spectrum.cdf(torch.tensor(self._window((low, high)), dtype=torch.float64))
        return float(ends[1] - ends[0])

    def signal_share(self, low: float, high: float) -> float:
        """The fraction of the signal that has a dijet mass in ``(low, high)`` [TeV]."""
        return self._peak.share(*self._window((low, high)), self.signal_mass)

    def log_mass_background(self, mass: Tensor) -> Tensor:
        """Log-density of the background per TeV at dijet masses ``(*,)``, float64; minus infinity outside the range."""
        return self._spectrum.log_prob(as_tensor(mass, "mass", dtype=torch.float64))

    def log_mass_signal(self, mass: Tensor) -> Tensor:
        """Log-density of the signal per TeV at dijet masses ``(*,)``, float64; minus infinity outside the range."""
        return self._peak.log_prob(as_tensor(mass, "mass", dtype=torch.float64), self.signal_mass)

    def log_background(self, x: Tensor, mass: Tensor) -> Tensor:
        """Log-density p_B(x | m_JJ) of features x ``(*, 4)`` at dijet masses ``(*,)`` [TeV], float64: ``(*,)``."""
        x, mass, inside = self._features(x, mass)
        return torch.where(inside, _BACKGROUND.log_prob(x, mass), -torch.inf)

    def log_signal(self, x: Tensor, mass: Tensor) -> Tensor:
        """Log-density p_S(x | m_JJ) of features x ``(*, 4)`` at dijet masses ``(*,)`` [TeV], float64: ``(*,)``."""
        x, mass, inside = self._features(x, mass)
        return torch.where(inside, _log_signal(x, mass), -torch.inf)

    def log_likelihood_ratio(self, x: Tensor, mass: Tensor) -> Tensor:
        """The best classifier: ln p_S(x | m_JJ) - ln p_B(x | m_JJ), float64 ``(*,)``; NaN outside the support.

        Args:
            x: features ``(*, 4)``, masses in TeV.
            mass: dijet masses ``(*,)`` [TeV].
        """
        x, mass, inside = self._features(x, mass)
        return torch.where(inside, _log_signal(x, mass) - _BACKGROUND.log_prob(x, mass), torch.nan)

    def background_latent(self, x: Tensor, mass: Tensor) -> Tensor:
        """The Rosenblatt transform of the background: standard normal numbers ``(*, 4)``; NaN outside the support."""
        x, mass, inside = self._features(x, mass)
        return torch.where(inside.unsqueeze(-1), _BACKGROUND.latent(x, mass), torch.nan)

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 2)`` gives one event each, float32 x ``(n, 5)``: the dijet mass and four features."""
        self.parameters.check_width(theta)
        fraction, centre = theta.detach().to(torch.float64).unbind(-1)
        with seeded(derive(seed, "mass"), theta.device):
            is_signal, uniform = torch.rand((2, len(theta)), dtype=torch.float64, device=theta.device)
        chosen = is_signal < fraction
        mass = torch.where(chosen, self._peak.inverse_cdf(uniform, centre), self._spectrum.inverse_cdf(uniform))
        mass = _float32_within(mass, *self.mass_range)
        background = self.background_features(mass, seed=derive(seed, "background"))
        x = torch.where(chosen.unsqueeze(-1), self.signal_features(mass, seed=derive(seed, "signal")), background)
        # Rounded, a feature may not fall out of the support.
        floor = torch.nextafter((self.shift * mass.double()).float(), torch.full_like(mass, torch.inf))
        x = torch.cat([x[:, :2].float().maximum(floor.unsqueeze(-1)), x[:, 2:].float()], -1)
        return torch.cat([mass.unsqueeze(-1), x], -1)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, 2)`` broadcast with x ``(*, 5)`` gives ``(*,)``."""
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != self.x_shape[0]:
            raise ShapeError(f"x: expected shape (*, {self.x_shape[0]}), got {tuple(x.shape)}")
        fraction, centre = theta.to(torch.float64).unbind(-1)
        mass, features = x.to(theta.device, torch.float64).split([1, len(FEATURES)], -1)
        mass = mass.squeeze(-1)
        features, mass, inside = self._features(features, mass)
        inside = inside & (mass >= self.mass_range[0]) & (mass <= self.mass_range[1])
        mass = torch.where(inside, mass, sum(self.mass_range) / 2)
        background = self._spectrum.log_prob(mass) + _BACKGROUND.log_prob(features, mass)
        signal = self._peak.log_prob(mass, centre) + _log_signal(features, mass)
        mixture = background + torch.log1p(fraction * torch.expm1(signal - background))
        return torch.where(inside, mixture, -torch.inf)

    def _features(self, x: Tensor, mass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features without their shift, dijet masses, and where they are in the support; what is not, is replaced."""
        mass = as_tensor(mass, "mass", dtype=torch.float64)
        x = as_tensor(x, "x", dtype=torch.float64)
        if x.ndim == 0 or x.shape[-1] != len(FEATURES):
            raise ShapeError(f"x: expected shape (*, {len(FEATURES)}), got {tuple(x.shape)}")
        good = (mass > 0) & torch.isfinite(mass)
        mass = torch.where(good, mass, self.signal_mass)
        x = self._shifted(x, -mass)
        good = good & torch.isfinite(x).all(-1) & (x > 0).all(-1) & (x[..., 2:] < 1).all(-1)
        return torch.where(good.unsqueeze(-1), x, 0.5), mass.expand(good.shape), good

    def _shifted(self, x: Tensor, mass: Tensor) -> Tensor:
        """Features with the shift that belongs to a dijet mass."""
        move = (self.shift * mass).unsqueeze(-1)
        return torch.cat([x[..., :2] + move, (x[..., 2:] + 0 * move)], -1)

    def _background(self, mass: Tensor, strength: float, seed: int) -> tuple[Tensor, Tensor]:
        """Features and weights of background at given dijet masses."""
        with seeded(seed, mass.device):
            z = _normals(mass)
            sign = torch.rand(mass.shape, dtype=torch.float64, device=mass.device)
        weights = torch.ones_like(mass)
        if strength > 0:
            # Of rank u, an event is negative with probability strength (1 - u) / 2, and the more often drawn.
            rank = _crowded_rank(torch.special.ndtr(z[..., 0]), strength)
            z = torch.cat([torch.special.ndtri(rank).unsqueeze(-1), z[..., 1:]], -1)
            weights = torch.where(sign < strength * (1 - rank) / 2, -1.0, 1.0) * (-math.log1p(-strength) / strength)
        return self._shifted(_BACKGROUND.features(z, mass), mass), weights

    def _background_masses(self, n: int, window: tuple[float, float] | None, seed: int) -> Tensor:
        low, high = self._window(window)
        first, last = self._spectrum.cdf(torch.tensor([low, high], dtype=torch.float64))
        with seeded(seed):
            uniform = torch.rand(n, dtype=torch.float64)
        return self._spectrum.inverse_cdf(first + uniform * (last - first)).clamp(low, high)

    def _signal_masses(self, n: int, window: tuple[float, float] | None, seed: int) -> Tensor:
        low, high = self._window(window)
        if n and self._peak.share(low, high, self.signal_mass) < 1e-9:
            raise UsageError(f"window: there is no signal of {self.signal_mass:g} TeV in ({low:g}, {high:g}) TeV")
        with seeded(seed):
            uniform = torch.rand(n, dtype=torch.float64)
        return self._peak.inverse_cdf(uniform, self.signal_mass, (low, high))

    def _stream(self, seed: int, window: tuple[float, float] | None, what: str) -> int:
        """A seed for one use alone: the same seed in another window or for a template gives other events."""
        return derive(seed, what, "{} {}".format(*self._window(window)))

    def _window(self, window: tuple[float, float] | None) -> tuple[float, float]:
        low, high = (float(end) for end in (window or self.mass_range))
        if not self.mass_range[0] <= low < high <= self.mass_range[1]:
            raise UsageError(f"window: expected low < high in {self.mass_range} TeV, got ({low:g}, {high:g})")
        return low, high


def _log_signal(x: Tensor, mass: Tensor) -> Tensor:
    well, badly = _WELL_RECONSTRUCTED.log_prob(x, mass), _BADLY_RECONSTRUCTED.log_prob(x, mass)
    return torch.logaddexp(well + math.log(_WELL), badly + math.log(1 - _WELL))


def _normals(mass: Tensor) -> Tensor:
    return torch.randn((*mass.shape, len(FEATURES)), dtype=torch.float64, device=mass.device)


def _crowded_rank(uniform: Tensor, strength: float) -> Tensor:
    """Ranks u of density proportional to 1 / (1 - strength (1 - u)), from uniform numbers."""
    ends = math.log1p(-strength)
    return 1 + torch.expm1(ends * (1 - uniform)) / strength


def _float32_within(value: Tensor, low: float, high: float) -> Tensor:
    """In single precision, without leaving the range."""
    ends = torch.tensor([low, high], dtype=torch.float64)
    narrow = ends.float()
    outward = torch.stack([narrow[0] < ends[0], narrow[1] > ends[1]])
    narrow = torch.where(outward, torch.nextafter(narrow, narrow.flip(0)), narrow)
    return value.float().clamp(*narrow.tolist())


def _count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise UsageError(f"{name}: expected an integer of at least 0, got {value!r}")
    return int(value)

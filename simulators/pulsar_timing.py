r"""A pulsar timing array: red noise of each pulsar and a background of gravitational waves in the times of pulses.

$$ r_p(t) = M_p \varepsilon_p + \sum_k \left[\sin(2\pi f_k t),\, \cos(2\pi f_k t)\right] (a_{pk} + b_{pk}) + n_p(t),
   \quad a_{pk} \sim N(0, \varphi_k(A_p, \gamma_p)), \quad
   \langle b_{pk} b_{qk} \rangle = \Gamma_{pq}\, \varphi_k(A_{\rm GW}, \gamma_{\rm GW}), $$

with f_k = k / T_span, power laws phi (`simulators.red_noise`), Hellings-Downs correlations Gamma (one on the diagonal,
`simulators.hellings_downs`) and white noise n (`simulators.white_noise`).  The timing model is projected out of what is
simulated, by least squares weighted with the white noise, as residuals are made; the likelihood is exact
(`simulators.timing_likelihood`).  Residuals are in **microseconds**, so that float32 holds them.
Priors and parameters as Shih et al. 2023 (arXiv:2310.12209); a single pulsar as the NANOGrav 15-year noise runs
(arXiv:2306.16214).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from simulators.hellings_downs import earth_term
from simulators.pulsar import Pulsar
from simulators.red_noise import DAYS_PER_YEAR, fourier_basis, power_law_variance
from simulators.synthetic_array import small_array, synthetic_array
from simulators.timing_likelihood import TimingLikelihood
from simulators.timing_model import orthonormal_span
from simulators.white_noise import WhiteCovariance

__all__ = ["PulsarTimingArray", "pulsar_timing", "pulsar_timing_small"]

_ROWS_AT_ONCE = 4096

Range = td.Distribution | tuple[float, float]


class PulsarTimingArray:
    """A simulator of the timing residuals of n_p pulsars, with an exact likelihood.

    The parameters are ``log10_A_gw`` and ``gamma_gw`` where there is a background, then ``log10_A_rn_<pulsar>`` and
    ``gamma_rn_<pulsar>`` for each pulsar (without the name for a single pulsar).

    Args:
        pulsars: n_p pulsars with distinct names.
        red_modes: Fourier modes of the red noise of each pulsar.
        gw_modes: the lowest of these modes, in which there is a background.
        gwb: whether there is a background.
        correlated: whether the background has Hellings-Downs correlations; else it is one spectrum that is drawn anew
            for each pulsar.
        log10_A_gw: prior of the amplitude of the background, or the bounds of a uniform one.
        gamma_gw: prior of its spectral index.
        log10_A_rn: prior of the amplitude of each red noise; by default (-19, -13) with a background, else (-20, -11).
        gamma_rn: prior of its spectral index; by default (1, 7) with a background, else (0, 7).
        span: T_span in years; that of all arrival times where None.
        name: name of the simulator.

    Attributes:
        parameters: names, labels and prior.
        x_shape: ``(n_p, T_max)``; pulsars with fewer times have NaN after their last.
        observed: measured residuals ``(n_p, T_max)`` in microseconds, float32, with the timing model projected out, NaN
            after the last; None where a pulsar has none.
        likelihood: the `TimingLikelihood`.

    Raises:
        UsageError: there are no pulsars, names are repeated, or the background has more modes than the red noise.
    """

    def __init__(
        self,
        pulsars: Sequence[Pulsar],
        *,
        red_modes: int = 30,
        gw_modes: int = 5,
        gwb: bool = True,
        correlated: bool = True,
        log10_A_gw: Range = (-18.0, -13.0),
        gamma_gw: Range = (1.0, 7.0),
        log10_A_rn: Range | None = None,
        gamma_rn: Range | None = None,
        span: float | None = None,
        name: str = "pulsar_timing",
    ) -> None:
        self.name, self.pulsars = name, tuple(pulsars)
        self._settings: dict[str, Any] = {
            "red_modes": positive_integer(red_modes, "red_modes"),
            "gw_modes": positive_integer(gw_modes, "gw_modes"),
            "gwb": gwb,
            "correlated": correlated,
            "log10_A_gw": log10_A_gw,
            "gamma_gw": gamma_gw,
            "log10_A_rn": log10_A_rn or ((-19.0, -13.0) if gwb else (-20.0, -11.0)),
            "gamma_rn": gamma_rn or ((1.0, 7.0) if gwb else (0.0, 7.0)),
            "span": span,
            "name": name,
        }
        self.red_modes, self.gw_modes, self.gwb, self.correlated = red_modes, gw_modes, gwb, correlated
        self._check()
        self.parameters = Parameters(self._parameters())
        first = min(float(p.toas.min()) for p in self.pulsars)
        last = max(float(p.toas.max()) for p in self.pulsars)
        self.span = (last - first) / DAYS_PER_YEAR if span is None else float(span)
        self._days, self._start = self.span * DAYS_PER_YEAR, first
        self._earth = earth_term(torch.stack([p.position for p in self.pulsars])) if gwb and correlated else None
        self.likelihood = TimingLikelihood(
            self.pulsars,
            modes=self.red_modes,
            span=self._days,
            start=first,
            earth=self._earth,
            background_modes=self.gw_modes,
        )
        self.x_shape = self.likelihood.x_shape
        self._white = [pulsar.white_covariance for pulsar in self.pulsars]
        self._fits = [_least_squares(p.matrix, white) for p, white in zip(self.pulsars, self._white, strict=True)]
        self._bases = [
            _subtract(fourier_basis(pulsar.toas, self.red_modes, self._days, first).T, *fit)
            for pulsar, fit in zip(self.pulsars, self._fits, strict=True)
        ]
        self.observed = self._observed()

    def with_pulsars(self, pulsars: Sequence[Pulsar]) -> "PulsarTimingArray":
        """The same model, priors and T_span for other pulsars."""
        return PulsarTimingArray(pulsars, **(self._settings | {"span": self.span}))

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, P)`` gives float32 residuals ``(n, n_p, T_max)`` in microseconds, padded with NaN."""
        self.parameters.check_width(theta)
        x = torch.full((len(theta), *self.x_shape), torch.nan, dtype=torch.float32, device=theta.device)
        with seeded(seed, theta.device), torch.no_grad():
            for first in range(0, len(theta), _ROWS_AT_ONCE):
                rows = theta[first : first + _ROWS_AT_ONCE]
                coefficients = self.coefficients_of_signal(rows)
                for p, pulsar in enumerate(self.pulsars):
                    signal = coefficients[p] @ self._bases[p].to(rows.device)
                    noise = self._white[p].to(rows.device).draw(len(rows))
                    residuals = signal + _subtract(noise, *self._fits[p])
                    x[first : first + len(rows), p, : len(pulsar)] = residuals.to(torch.float32)
        return x

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, P)`` broadcast with x ``(*, n_p, T_max)`` gives ``(*,)``.

        NaN in x stands for arrival times that are not there, single ones or whole pulsars; values after the last time
        of a pulsar are ignored.  See `simulators.timing_likelihood` for what it is a density of.
        """
        return self.given(x)(theta)

    def given(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The log-likelihood as a function of theta, for data ``(*, n_p, T_max)`` that are reduced once."""
        if x.ndim < 2 or x.shape[-2:] != self.x_shape:
            raise ShapeError(f"x: expected shape (*, {self.x_shape[0]}, {self.x_shape[1]}), got {tuple(x.shape)}")
        data = x.shape[:-2]
        rows = x.reshape(-1, *self.x_shape)
        reduced: dict[torch.device, Any] = {}

        def log_likelihood(theta: Tensor) -> Tensor:
            self.parameters.check_width(theta)
            if theta.device not in reduced:
                reduced[theta.device] = self.likelihood.statistics(rows, theta.device)
            flat = theta.reshape(-1, theta.shape[-1]).to(torch.float64)
            return self.likelihood(self._variances, flat, theta.shape[:-1], reduced[theta.device], data)

        return log_likelihood

    def coefficients(self, x: Tensor) -> Tensor:
        """Sufficient statistics: whitened Fourier coefficients of each pulsar.

        The white noise is fixed, so the likelihood depends on the residuals through these alone
        (`simulators.timing_projection`).  They are independent and standard normal where there is no signal, in the
        order of frequency, sine before cosine.

        Args:
            x: residuals ``(*, n_p, T_max)`` in microseconds; NaN where missing.

        Returns:
            float64 ``(*, n_p, 2 red_modes)``; zero for an absent pulsar, and for modes that neither the cadence nor the
            timing model leave.
        """
        if x.ndim < 2 or x.shape[-2:] != self.x_shape:
            raise ShapeError(f"x: expected shape (*, {self.x_shape[0]}, {self.x_shape[1]}), got {tuple(x.shape)}")
        statistics = self.likelihood.statistics(x.reshape(-1, *self.x_shape))
        return statistics.coefficients.reshape(*x.shape[:-2], len(self.pulsars), -1)

    def _variances(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """What each pulsar has for itself ``(n_p, B, K)`` and what all share ``(B, K_gw)``, microseconds squared."""
        red = theta[:, 2 if self.gwb else 0 :].unflatten(1, (len(self.pulsars), 2)).transpose(0, 1)
        own = power_law_variance(red[..., 0], red[..., 1], self.red_modes, self._days)
        if not self.gwb:
            return own, None
        background = power_law_variance(theta[:, 0], theta[:, 1], self.gw_modes, self._days)
        share = 0.5 if self.correlated else 1.0
        padded = torch.nn.functional.pad(background, (0, self.red_modes - self.gw_modes))
        return own + share * padded, background if self.correlated else None

    def coefficients_of_signal(self, theta: Tensor) -> Tensor:
        """Draw the Fourier coefficients of the signal of each pulsar ``(n_p, B, 2 K)``, in microseconds."""
        own, shared = self._variances(theta.to(torch.float64))
        n_p, rows = len(self.pulsars), len(theta)
        options: dict[str, Any] = {"dtype": torch.float64, "device": theta.device}
        draws = torch.randn(n_p, rows, 2 * self.red_modes, **options)
        signal = draws * torch.sqrt(own).repeat_interleave(2, dim=-1)
        if shared is not None and self._earth is not None:
            values, vectors = torch.linalg.eigh(self._earth)
            root = (vectors * torch.sqrt(values.clamp(min=0.0))).to(theta.device)
            waves = torch.randn(n_p, rows, 2 * self.gw_modes, **options)
            waves = torch.einsum("pq,qbk->pbk", root, waves) * torch.sqrt(shared).repeat_interleave(2, dim=-1)
            signal[..., : 2 * self.gw_modes] += waves
        return signal

    def _observed(self) -> Tensor | None:
        if any(pulsar.residuals is None for pulsar in self.pulsars):
            return None
        x = torch.full(tuple(self.x_shape), torch.nan)
        for p, (pulsar, fit) in enumerate(zip(self.pulsars, self._fits, strict=True)):
            x[p, : len(pulsar)] = _subtract(pulsar.residuals.unsqueeze(0) * 1e6, *fit)[0]
        return x

    def _check(self) -> None:
        if not self.pulsars:
            raise UsageError("pulsars: expected at least one, got none")
        names = [pulsar.name for pulsar in self.pulsars]
        if len(set(names)) < len(names):
            raise UsageError(f"pulsars: expected distinct names, got {', '.join(names)}")
        if self.gw_modes > self.red_modes:
            raise UsageError(f"gw_modes: expected at most red_modes ({self.red_modes}), got {self.gw_modes}")

    def _parameters(self) -> list[Parameter]:
        prior = {key: _prior(self._settings[key], key) for key in ("log10_A_gw", "gamma_gw", "log10_A_rn", "gamma_rn")}
        found = []
        if self.gwb:
            found += [
                Parameter("log10_A_gw", prior["log10_A_gw"], label=r"$\log_{10} A_{\rm GW}$"),
                Parameter("gamma_gw", prior["gamma_gw"], label=r"$\gamma_{\rm GW}$"),
            ]
        alone = len(self.pulsars) == 1
        for pulsar in self.pulsars:
            tag = "" if alone else "_" + "".join(c if c.isalnum() and c.isascii() else "_" for c in pulsar.name)
            label = r"\rm RN" if alone else rf"\rm {pulsar.name}"
            found += [
                Parameter(f"log10_A_rn{tag}", prior["log10_A_rn"], label=rf"$\log_{{10}} A_{{{label}}}$"),
                Parameter(f"gamma_rn{tag}", prior["gamma_rn"], label=rf"$\gamma_{{{label}}}$"),
            ]
        return found


def pulsar_timing() -> PulsarTimingArray:
    """Build ten pulsars like those of the NANOGrav 12.5-year data: 2,940 arrival times, 22 parameters."""
    return PulsarTimingArray(synthetic_array(seed=1))


def pulsar_timing_small() -> PulsarTimingArray:
    """Build three pulsars with 100 arrival times each: 10 modes of red noise, 5 of background, 8 parameters."""
    return PulsarTimingArray(small_array(), red_modes=10, name="pulsar_timing_small")


def _prior(given: Range, name: str) -> td.Distribution:
    if isinstance(given, td.Distribution):
        return given
    try:
        low, high = map(float, given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: expected a distribution or two bounds, got {given!r}") from error
    if not low < high:
        raise UsageError(f"{name}: expected a lower and an upper bound, got {given!r}")
    return td.Uniform(low, high)


def _least_squares(matrix: Tensor, white: WhiteCovariance) -> tuple[Tensor, Tensor]:
    """Two factors ``(T, r)`` of the matrix that maps residuals to the timing model fitted to them."""
    span = orthonormal_span(matrix)
    q, r = torch.linalg.qr(white.whiten(span))
    return torch.linalg.solve_triangular(r, span, upper=True, left=False), white.whiten_transposed(q)


def _subtract(residuals: Tensor, model: Tensor, fit: Tensor) -> Tensor:
    """Subtract the fitted timing model from residuals ``(B, T)``."""
    return residuals - (residuals @ fit.to(residuals.device)) @ model.to(residuals.device).T

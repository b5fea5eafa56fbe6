"""Irregular observations of real pulsars: an array like that of the NANOGrav 12.5-year data, without its data.

Each pulsar is observed every few weeks from its first year to 2017.5, not while the Sun is near it, and each receiver
is away for some months once; every observation of a receiver gives one arrival time, or one for each of several bands,
whose uncertainty scatters log-normally about that of the table in `simulators.pulsar_positions`.
"""

import math
from collections.abc import Sequence

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.time import Time
from numpy.typing import NDArray

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, numpy_generator
from simulators.pulsar import Pulsar
from simulators.pulsar_positions import TEN_PULSARS, CataloguePulsar
from simulators.red_noise import DAYS_PER_YEAR
from simulators.white_noise import WhiteNoise

__all__ = ["small_array", "synthetic_array"]

_LAST_YEAR = 2017.5
_MJD_2000 = 51544.5
_WINTER = 25.0
_AWAY = (120.0, 240.0)
_SCATTER = 0.35
# EQUAD of the table holds for one of about 30 channels; an average over the band has so much less.
_CHANNELS = 30


def synthetic_array(n_pulsars: int = 10, *, seed: int, epochs: int = 147, bands: int = 1) -> list[Pulsar]:
    """Make an array of pulsars of the table.

    Args:
        n_pulsars: how many, at most ten.
        seed: of the epochs and uncertainties.
        epochs: of each of the two receivers of a pulsar.
        bands: arrival times that an observation gives.

    Returns:
        Pulsars with ``2 * epochs * bands`` arrival times each and no residuals; 2,940 in all by default.

    Raises:
        UsageError: there are not so many pulsars in the table.
    """
    if positive_integer(n_pulsars, "n_pulsars") > len(TEN_PULSARS):
        raise UsageError(f"n_pulsars: expected at most {len(TEN_PULSARS)}, got {n_pulsars}")
    return _array(TEN_PULSARS[:n_pulsars], seed, positive_integer(epochs, "epochs"), positive_integer(bands, "bands"))


def small_array(*, seed: int = 1) -> list[Pulsar]:
    """Three pulsars far apart on the sky with 100 arrival times each: 25 epochs of two receivers in two bands."""
    chosen = [p for name in ("J1909-3744", "J0613-0200", "J0030+0451") for p in TEN_PULSARS if p.name == name]
    return _array(chosen, seed, 25, 2)


def _array(table: Sequence[CataloguePulsar], seed: int, epochs: int, bands: int) -> list[Pulsar]:
    return [_observe(pulsar, derive(seed, pulsar.name), epochs, bands) for pulsar in table]


def _observe(pulsar: CataloguePulsar, seed: int, epochs: int, bands: int) -> Pulsar:
    generator = numpy_generator(seed)
    start, end = (_MJD_2000 + (year - 2000) * DAYS_PER_YEAR for year in (pulsar.first_year, _LAST_YEAR))
    toas, sigmas, names = [], [], []
    for number, (receiver, sigma, *_) in enumerate(pulsar.receivers):
        # The second receiver of a pulsar was installed up to two years later.
        begin = start + number * generator.uniform(0, 2 * DAYS_PER_YEAR)
        times = _session_times(generator, pulsar.sky, begin, end, epochs)
        toas += [np.repeat(times, bands)]
        sigmas += [sigma * 1e-6 * math.sqrt(bands) * np.exp(_SCATTER * generator.standard_normal(epochs * bands))]
        names += [receiver] * (epochs * bands)
    order = np.argsort(np.concatenate(toas), kind="stable")
    less = 0.5 * math.log10(_CHANNELS / bands)
    return Pulsar(
        name=pulsar.name,
        position=pulsar.sky,
        toas=np.concatenate(toas)[order],
        uncertainties=np.concatenate(sigmas)[order],
        receivers=[names[i] for i in order],
        noise={r: WhiteNoise(efac, equad - less, ecorr) for r, _, efac, equad, ecorr in pulsar.receivers},
        smallest_epoch=1,
    )


def _session_times(
    generator: np.random.Generator, sky: SkyCoord, start: float, end: float, count: int
) -> NDArray[np.float64]:
    """Times of `count` observations between two dates in days, in order."""
    slots = np.linspace(start, end, 2 * count + 1)
    candidates = slots[:-1] + generator.uniform(0, 1, 2 * count) * (slots[1] - slots[0])
    away = generator.uniform(*_AWAY)
    gone = generator.uniform(start, end - away)
    observable = (candidates < gone) | (candidates > gone + away)
    observable &= np.abs(_days_from_conjunction(candidates, sky)) > _WINTER
    free = candidates[observable]
    chosen = np.sort(generator.choice(len(free), count, replace=False))
    return np.asarray(free[chosen], dtype=np.float64)


def _days_from_conjunction(times: NDArray[np.float64], sky: SkyCoord) -> NDArray[np.float64]:
    """Days from the closest date at which the Sun has the ecliptic longitude of the pulsar."""
    longitude = sky.barycentrictrueecliptic.lon.deg
    equinox = Time("2000-03-20T07:35:00").mjd  # the Sun is at longitude zero
    since = (times - equinox) - longitude / 360.0 * DAYS_PER_YEAR
    return np.asarray((since + DAYS_PER_YEAR / 2) % DAYS_PER_YEAR - DAYS_PER_YEAR / 2)

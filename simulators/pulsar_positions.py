"""Ten millisecond pulsars of the NANOGrav 12.5-year data: where they are, and how well they are timed.

Positions are ICRS (J2000), from the ATNF catalogue (Manchester et al. 2005, arXiv:astro-ph/0412641) to a hundredth of
a second of right ascension.  EFAC, EQUAD (t2) and ECORR are rounded from the white-noise dictionary of the NANOGrav
15-year analysis (arXiv:2306.16213), for the two receivers that dominate.  Two columns are assumptions, made to resemble
the 12.5-year data (Alam et al. 2021, arXiv:2005.06490), not read from them: the first year of observation, rounded, and
the typical uncertainty of an arrival time averaged over the band.
"""

from dataclasses import dataclass

from astropy import units
from astropy.coordinates import SkyCoord

__all__ = ["TEN_PULSARS", "CataloguePulsar"]


@dataclass(frozen=True)
class CataloguePulsar:
    """One pulsar of the table.

    Attributes:
        name: of the pulsar.
        position: right ascension and declination (ICRS).
        first_year: when observations began.
        receivers: name, typical uncertainty in microseconds, EFAC, log10 EQUAD [s] and log10 ECORR [s] of each of two.
    """

    name: str
    position: str
    first_year: float
    receivers: tuple[tuple[str, float, float, float, float], ...]

    @property
    def sky(self) -> SkyCoord:
        """The position on the sky."""
        return SkyCoord(self.position, unit=(units.hourangle, units.deg), frame="icrs")


_LOW, _HIGH = "Rcvr_800_GUPPI", "Rcvr1_2_GUPPI"  # Green Bank
_430, _L, _S = "430_PUPPI", "L-wide_PUPPI", "S-wide_PUPPI"  # Arecibo

TEN_PULSARS = (
    CataloguePulsar(
        "J1909-3744",
        "19:09:47.43 -37:44:14.5",
        2004.9,
        ((_LOW, 0.12, 1.02, -7.41, -7.28), (_HIGH, 0.07, 1.03, -8.04, -7.16)),
    ),
    CataloguePulsar(
        "J2317+1439",
        "23:17:09.24 +14:39:31.2",
        2005.0,
        ((_430, 0.25, 1.05, -6.62, -6.45), (_L, 0.40, 1.04, -7.38, -6.24)),
    ),
    CataloguePulsar(
        "J2043+1711",
        "20:43:20.88 +17:11:28.9",
        2011.6,
        ((_430, 0.20, 0.99, -6.72, -7.12), (_L, 0.15, 1.02, -8.16, -7.70)),
    ),
    CataloguePulsar(
        "J1600-3053",
        "16:00:51.90 -30:53:49.3",
        2007.9,
        ((_LOW, 0.35, 1.06, -6.32, -6.10), (_HIGH, 0.18, 1.04, -8.05, -6.89)),
    ),
    CataloguePulsar(
        "J1918-0642",
        "19:18:48.03 -06:42:34.9",
        2004.9,
        ((_LOW, 0.40, 1.01, -6.48, -6.75), (_HIGH, 0.30, 1.00, -6.86, -6.70)),
    ),
    CataloguePulsar(
        "J0613-0200",
        "06:13:43.98 -02:00:47.2",
        2005.2,
        ((_LOW, 0.18, 1.10, -6.67, -6.87), (_HIGH, 0.35, 1.03, -6.96, -6.80)),
    ),
    CataloguePulsar(
        "J1944+0907",
        "19:44:09.33 +09:07:23.0",
        2008.2,
        ((_430, 0.60, 1.04, -6.61, -8.25), (_L, 0.45, 1.06, -7.27, -6.52)),
    ),
    CataloguePulsar(
        "J1744-1134",
        "17:44:29.41 -11:34:54.7",
        2004.9,
        ((_LOW, 0.25, 1.05, -6.68, -6.43), (_HIGH, 0.20, 1.06, -7.25, -6.62)),
    ),
    CataloguePulsar(
        "J1910+1256",
        "19:10:09.70 +12:56:25.5",
        2009.2,
        ((_L, 0.30, 1.04, -8.24, -6.34), (_S, 0.50, 1.03, -7.46, -6.51)),
    ),
    CataloguePulsar(
        "J0030+0451",
        "00:30:27.43 +04:51:39.7",
        2005.1,
        ((_430, 0.30, 1.05, -6.93, -6.85), (_L, 0.40, 1.05, -7.83, -6.88)),
    ),
)
"""Ten pulsars that count much for a background; J1909-3744 is the best timed, J2043+1711 has half the span."""

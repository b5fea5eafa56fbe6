"""Gaia's view of stars at known places, and the way back, through FITS."""

import math

import numpy as np
import pytest
import torch
from astropy import units
from astropy.coordinates import SkyCoord, galactocentric_frame_defaults
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table

from sbi_physics.core.errors import NonFiniteError, ShapeError, StoreError, UsageError
from simulators.galaxy_gaia import GAIA_UNITS, from_gaia, to_gaia

SUN = np.array([-math.sqrt(8.122**2 - 0.0208**2), 0.0, 0.0208])
SUN_VELOCITY = np.array([12.9, 245.6, 7.78])


@pytest.fixture
def stars():
    generator = torch.Generator().manual_seed(1)
    return (
        10 * torch.randn(200, 3, dtype=torch.float64, generator=generator),
        150 * torch.randn(200, 3, dtype=torch.float64, generator=generator),
    )


def test_columns_and_units(stars):
    table = to_gaia(*stars, columns={"age": torch.ones(200) * 5, "component": ["disc"] * 200})
    assert table.colnames == [*GAIA_UNITS, "age", "component"]
    assert {name: str(table[name].unit) for name in GAIA_UNITS} == {
        n: u.replace(" ", "") if u == "deg" else u for n, u in GAIA_UNITS.items()
    }
    assert table.meta == {"GALCEN": "v4.0"}


def test_the_galactic_centre():
    (row,) = to_gaia(np.zeros((1, 3)), np.zeros((1, 3)))
    assert row["ra"].value == pytest.approx(266.4051, abs=1e-6)
    assert row["dec"].value == pytest.approx(-28.936175, abs=1e-6)
    assert row["distance"].value == pytest.approx(8.122, rel=1e-10)
    assert row["parallax"].value == pytest.approx(1 / 8.122, rel=1e-10)
    assert row["radial_velocity"].value == pytest.approx(-12.9, abs=0.05)
    # The reflex of the Sun's motion, against the 6.379 mas/yr measured for Sgr A* (Reid & Brunthaler 2004).
    assert math.hypot(row["pmra"].value, row["pmdec"].value) == pytest.approx(6.379, abs=0.02)


@pytest.mark.parametrize(
    ("offset", "longitude", "latitude"),
    [((1, 0, 0), 0, 0), ((0, 1, 0), 90, 0), ((-1, 0, 0), 180, 0), ((0, -1, 0), 270, 0), ((0, 0, 1), None, 90)],
)
def test_directions_from_the_sun(offset, longitude, latitude):
    """To 0.2 deg: the centre of the frame is 0.07 deg from l = b = 0, and its plane is tilted by 0.15 deg."""
    (row,) = to_gaia(SUN[None] + 0.5 * np.array([offset]), SUN_VELOCITY[None])
    assert row["b"].value == pytest.approx(latitude, abs=0.2)
    if longitude is not None:
        assert (row["l"].value - longitude + 180) % 360 - 180 == pytest.approx(0, abs=0.2)
    assert row["parallax"].value == pytest.approx(2.0, rel=1e-8)
    for name in ("pmra", "pmdec", "radial_velocity"):
        assert row[name].value == pytest.approx(0.0, abs=1e-9)


def test_velocities_are_what_the_sky_shows_of_them():
    """Moved for ten years, a star is where its proper motion and radial velocity take it."""
    x, v = np.array([[-7.0, 2.0, 1.0]]), np.array([[-40.0, 300.0, 120.0]])
    years = 10 * units.yr
    step = (units.km / units.s * years).to_value("kpc")
    (now,), (later,) = to_gaia(x, v), to_gaia(x + (v - SUN_VELOCITY) * step, v)
    assert (later["ra"] - now["ra"]).to_value("mas") * math.cos(now["dec"].to_value("rad")) == pytest.approx(
        (now["pmra"] * years).to_value("mas"), rel=1e-3
    )
    assert (later["dec"] - now["dec"]).to_value("mas") == pytest.approx(
        (now["pmdec"] * years).to_value("mas"), rel=1e-3
    )
    assert (later["distance"] - now["distance"]).to_value("kpc") == pytest.approx(
        now["radial_velocity"].value * step, rel=1e-3
    )


def test_columns_agree_with_a_sky_coordinate(stars):
    table = to_gaia(*stars)
    sky = SkyCoord(ra=table["ra"], dec=table["dec"], distance=table["distance"])
    torch.testing.assert_close(
        torch.from_numpy(sky.galactic.b.deg), torch.from_numpy(table["b"].value), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(table["parallax"].value * table["distance"].value, 1.0, rtol=1e-12)


def test_there_and_back(stars):
    for back, there in zip(from_gaia(to_gaia(*stars)), stars, strict=True):
        torch.testing.assert_close(back, there, rtol=0, atol=1e-9)


def test_fits_keeps_units_numbers_and_frame(stars, tmp_path):
    path = tmp_path / "stars.fits"
    table = to_gaia(*stars, columns={"age": np.full(200, 5.0) * units.Gyr})
    table.write(path, format="fits")
    read = QTable.read(path)
    for name in table.colnames:
        assert read[name].unit == table[name].unit
        np.testing.assert_array_equal(read[name].value, table[name].value)
    assert fits.getheader(path, 1)["GALCEN"] == "v4.0"
    for back, there in zip(from_gaia(path), stars, strict=True):
        torch.testing.assert_close(back, there, rtol=0, atol=1e-9)


def test_units_of_columns_are_converted_or_assumed(stars):
    table = to_gaia(*stars)
    other = QTable({name: table[name] for name in ("ra", "dec", "parallax", "pmra", "pmdec", "radial_velocity")})
    other["parallax"] = other["parallax"].to("arcsec")
    other["pmra"] = other["pmra"].value
    torch.testing.assert_close(from_gaia(other)[1], stars[1], rtol=0, atol=1e-9)


def test_plain_tables_do_and_masked_values_are_refused(stars):
    plain = Table(to_gaia(*stars))
    torch.testing.assert_close(from_gaia(plain)[0], stars[0], rtol=0, atol=1e-9)
    plain["radial_velocity"] = MaskedColumn(plain["radial_velocity"], mask=np.arange(200) == 7, unit="km / s")
    with pytest.raises(NonFiniteError, match=r"radial_velocity: .*first at index 7"):
        from_gaia(plain)


def test_the_default_frame_of_the_session_does_not_matter(stars):
    table = to_gaia(*stars)
    with galactocentric_frame_defaults.set("pre-v4.0"):
        np.testing.assert_array_equal(to_gaia(*stars)["ra"].value, table["ra"].value)


def test_a_star_at_the_sun_is_refused(stars):
    positions = torch.cat([stars[0][:2], torch.from_numpy(SUN)[None]])
    with pytest.raises(UsageError, match=r"positions: expected stars away from the Sun, got one at .* in row 2"):
        to_gaia(positions, stars[1][:3])


def test_bad_input_is_named(stars, tmp_path):
    positions, velocities = stars
    with pytest.raises(ShapeError, match=r"velocities: expected shape \(n, 3\)"):
        to_gaia(positions, velocities[:, :2])
    with pytest.raises(ShapeError, match="positions: 200, velocities: 10"):
        to_gaia(positions, velocities[:10])
    with pytest.raises(NonFiniteError, match="positions"):
        to_gaia(positions / 0, velocities)
    with pytest.raises(UsageError, match="columns: 'ra' is one of the columns that are computed"):
        to_gaia(positions, velocities, columns={"ra": positions[:, 0]})
    table = to_gaia(positions, velocities)
    with pytest.raises(UsageError, match="missing: parallax, pmdec"):
        from_gaia(QTable({name: table[name] for name in ("ra", "dec", "pmra", "radial_velocity")}))
    table["parallax"][3] *= -1
    with pytest.raises(UsageError, match=r"parallax: expected positive values, got .* in row 3"):
        from_gaia(table)
    table["parallax"][3] = np.nan * units.mas
    with pytest.raises(NonFiniteError, match="parallax"):
        from_gaia(table)
    table["dec"] = table["distance"]
    with pytest.raises(UsageError, match="dec: expected a column in deg, got one in kpc"):
        from_gaia(table)
    with pytest.raises(StoreError, match="there is no such file"):
        from_gaia(tmp_path / "none.fits")
    (tmp_path / "bad.fits").write_text("not a table")
    with pytest.raises(StoreError, match="expected a FITS file with a table"):
        from_gaia(tmp_path / "bad.fits")

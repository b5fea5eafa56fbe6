"""The site of the documentation is built without a warning, has all pages, and its reference knows the front door."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sbi_physics as sp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-c", "docs/site", "-d", str(out / "doctrees"), "docs", str(out / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_every_page_is_in_the_contents(site):
    first = (site / "index.html").read_text()
    assert first == (site / "README.html").read_text()
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    pages -= {"index.html", "genindex.html", "py-modindex.html", "search.html"}
    linked = set(re.findall(r'href="([^"#]+\.html)"', first)) | {"README.html"}
    assert {page for page in pages if not page.startswith("_modules")} <= linked


@pytest.mark.slow
def test_links_between_files_are_links_of_the_site(site):
    for page in site.rglob("*.html"):
        targets = re.findall(r'(?:href|src)="([^"#?]+)[^"]*"', page.read_text())
        for target in targets:
            if not re.match(r"[a-z]+:|//", target):
                assert (page.parent / html.unescape(target)).exists(), f"{page.name}: {target}"
                assert not target.endswith(".md"), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_reference_has_the_front_door(site):
    reference = (site / "site" / "front_door.html").read_text()
    for name in sp.__all__:
        if name not in ("__version__", "diagnostics"):
            assert f'id="sbi_physics.{name}"' in reference, name
    diagnostics = (site / "site" / "diagnostics.html").read_text()
    for name in sp.diagnostics.__all__:
        assert f'id="sbi_physics.diagnostics.{name}"' in diagnostics, name


@pytest.mark.slow
def test_formulas_are_formulas(site):
    parts = (site / "site" / "parts.html").read_text()
    assert 'class="math notranslate nohighlight"' in parts
    assert not re.search(r"\$[^$<]+\$", re.sub(r"<[^>]+>", "", parts))

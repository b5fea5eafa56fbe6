import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import sbi_physics as sp
from sbi_physics.report.cells import column_texts, number_text, value_with_error
from sbi_physics.report.embedding import figure_bytes
from sbi_physics.report.html import HTMLReport

VOID = {"meta", "link", "img", "br"}
NASTY = "<script>alert('x')</script> & \"quotes\" 'n all"


class Page(HTMLParser):
    """The tree of a page: every element with its attributes, the words in it, and the elements around it."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        element = {"tag": tag, "text": "", **dict(attributes), "around": [one["tag"] for one in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]


def plot(points=10):
    figure = Figure(figsize=(4, 3))
    x = np.linspace(0, 1, points)
    figure.subplots().plot(x, np.random.default_rng(0).normal(size=points), ".", markersize=1)
    return figure


def a_page(points=10):
    page = HTMLReport("Two planets", "32 velocities")
    page.verdict("good", "NPE and MCMC agree at 68 % and 95 %.")
    page.verdict("bad", NASTY)
    page.verdict("warning", "Ranks are uneven.")
    first = page.section("Posterior")
    first.text("One paragraph.\n\nAnother < paragraph.")
    first.table(["name", "median", "draws"], [["period", 20.885, 8000], [NASTY, None, 12]], units=["", "d", ""])
    first.figure(plot(), alt="Points & lines", caption="A plot <of> points.")
    first.figure(plot(), alt="The same again")
    second = page.section("Posterior")
    second.table([f"column {i}" for i in range(14)], [[1234567.0 * i for i in range(14)]] * 3, caption="Wide.")
    page.section("Cost").figure(plot(points), alt="A cloud of points")
    page.provenance({"seed": 12345678901234567890, "loss": 0.1234567890123, "empty": {}, "tags": ["a", "b"]})
    page.provenance({"versions": {"torch": "2.13", "deep": {"er": {"still": NASTY}}}, "stages": [{"name": "fit"}, 3]})
    page.provenance({"analysis": "[prior]\n  a = 1  # two  spaces\n", "none": None, "hash": "0f" * 32})
    return page


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    a_page(points=8_000).write(path)
    return path


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text(encoding="utf-8"))


def test_everything_is_escaped(page):
    assert page.all("script") == []
    assert NASTY in page.all("ul")[0]["text"]
    assert NASTY in page.all("table")[0]["text"]
    assert any(NASTY in one["text"] for one in page.all("dl"))
    alone = HTMLReport(NASTY, NASTY)
    alone.section(NASTY).table([NASTY, "b"], [[NASTY, 1]], caption=NASTY, units=[NASTY, ""])
    alone.section(NASTY).figure(plot(), alt=NASTY, caption=NASTY)
    alone.provenance({NASTY: {NASTY: f"{NASTY}\n{NASTY}"}})
    tree = Page(alone.html())
    assert tree.all("script") == []
    assert tree.all("img")[0]["alt"] == NASTY
    assert {one["text"] for one in tree.all("title", "h1", "h2", "h3", "caption", "figcaption")} == {
        NASTY,
        "Provenance",
    }


def test_order_of_the_page_and_of_headings(page):
    headings = page.all("h1", "h2", "h3")
    assert [one["text"] for one in headings] == [
        *("Two planets", "Verdicts", "Posterior", "Posterior", "Cost", "Provenance", "versions", "analysis"),
    ]
    levels = [int(one["tag"][1]) for one in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    kinds = [one["class"] for one in page.all("li") if "class" in one]
    assert kinds == ["good", "bad", "warning"]
    assert [one["text"] for one in page.all("span") if one.get("class") == "kind"] == ["Good", "Bad", "Warning"]
    assert "at 68\u00a0% and 95\u00a0%." in page.all("li")[0]["text"]


def test_identifiers_are_unique_and_links_lead_to_them(page):
    names = [one["id"] for one in page.elements if "id" in one]
    assert len(set(names)) == len(names)
    links = [one["href"] for one in page.all("a")]
    assert len(links) == 4
    assert {link.removeprefix("#") for link in links} <= set(names)
    assert {one["aria-labelledby"] for one in page.all("section")} <= set(names)


def test_what_readers_and_their_aids_need(page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == len(page.all("title")) == 1
    assert [one["alt"] for one in page.all("img")] == ["Points & lines", "The same again", "A cloud of points"]
    assert {one["scope"] for one in page.all("th")} == {"row", "col"}
    heads = [one["text"] for one in page.all("th") if one["scope"] == "row"]
    assert heads == ["period", NASTY]
    for box in (one for one in page.elements if "scroll" in one.get("class", "")):
        assert box["tabindex"] == "0"
        assert box["aria-label"]
    viewport = next(one for one in page.all("meta") if one.get("name") == "viewport")
    assert "maximum-scale" not in viewport["content"]
    assert all("figure" in one["around"] for one in page.all("img"))


def test_nothing_is_fetched(page):
    for element in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert name not in element or element[name].startswith(("data:", "#")), element
    style = page.all("style")[0]["text"]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(one for one in page.all("meta") if one.get("http-equiv"))
    assert "default-src 'none'" in policy["content"]
    assert not [name for one in page.elements for name in one if name.startswith("on")]


def test_figures_are_svg_where_small_and_png_else(page):
    kinds = [one["src"].split(";")[0] for one in page.all("img")]
    assert kinds == ["data:image/svg+xml", "data:image/svg+xml", "data:image/png"]
    assert [(one["width"], one["height"]) for one in page.all("img")] == [("384", "288")] * 3


def test_provenance_is_exact(page):
    text = " ".join(one["text"] for one in page.all("dl"))
    assert "12345678901234567890" in text
    assert "0.1234567890123" in text
    assert "deep.er.still" in text
    assert "a, b" in text
    assert page.all("pre")[0]["text"] == "[prior]\n  a = 1  # two  spaces"
    assert [one["text"] for one in page.all("dt")].count("stages.0.name") == 1


def test_the_same_page_twice_is_the_same_file(tmp_path):
    a_page().write(tmp_path / "a.html")
    a_page().write(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]
    with pytest.raises(sp.SBIPhysicsError, match="does not exist"):
        a_page().write(tmp_path / "nowhere" / "a.html")


def test_wrong_use_is_named(tmp_path):
    page = HTMLReport("t")
    section = page.section("s")
    with pytest.raises(sp.UsageError, match="expected one of good, warning, bad; got 'fine'"):
        page.verdict("fine", "x")
    with pytest.raises(sp.UsageError, match="expected 2 cells in each, got 1 in row 1"):
        section.table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(sp.UsageError, match="units: expected 2"):
        section.table(["a", "b"], [[1, 2]], units=["d"])
    with pytest.raises(sp.UsageError, match="columns"):
        section.table([], [])
    with pytest.raises(sp.UsageError, match="alt"):
        section.figure(plot(), alt=" ")
    with pytest.raises(sp.UsageError, match="title"):
        HTMLReport("")
    for content in (b"not a picture", b"<html/>", b"\x89PNG\r\n\x1a\nshort"):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(sp.SBIPhysicsError, match=r"x\.png: expected a PNG"):
            section.figure(tmp_path / "x.png", alt="x")
    with pytest.raises(sp.SBIPhysicsError, match="cannot be read"):
        section.figure(tmp_path / "absent.svg", alt="x")


def test_size_of_files(tmp_path):
    plot().savefig(tmp_path / "p.png", dpi=150)
    (tmp_path / "s.svg").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 80"/>')
    page = HTMLReport("t")
    page.section("s").figure(tmp_path / "p.png", alt="p")
    page.section("s").figure(tmp_path / "s.svg", alt="s")
    sizes = [(one["width"], one["height"]) for one in Page(page.html()).all("img")]
    assert sizes == [("384", "288"), ("120", "80")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.5, "0.5"), (0, "0"), (0.0, "0"), (-12.25, "−12.25"), (1234.5678, "1235"), (9999.9, "10\u202f000")),
        *((8000, "8000"), (200000, "200\u202f000"), (-1234567, "−1\u202f234\u202f567"), (0.00123456, "0.001235")),
        *((3.2e-9, "3.2 × 10<sup>−9</sup>"), (-1.23456e8, "−1.235 × 10<sup>8</sup>"), (2e6, "2 × 10<sup>6</sup>")),
        *((float("nan"), "–"), (float("inf"), "∞"), (-float("inf"), "−∞"), (np.float32(0.25), "0.25")),
    ],
)
def test_numbers(value, text):
    assert number_text(value) == text


def test_a_column_is_written_alike():
    assert column_texts([1.5, 12.25, 0.0]) == ["1.50", "12.25", "0.00"]
    assert column_texts([0.5, 0.012, 3e-5]) == ["0.500", "0.012", "3 × 10<sup>−5</sup>"]
    assert column_texts([12000.75, 0.03125, 7]) == ["12\u202f001", "0.03125", "7"]
    assert column_texts([True, None, "a<b", torch.tensor(0.5), np.int64(3)]) == ["yes", "–", "a&lt;b", "0.5", "3"]
    assert column_texts([]) == []


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        *((20.885, 0.001, "20.8850 ± 0.0010"), (4.7, 0.0996, "4.70 ± 0.10"), (-1234.5, 56.0, "−1234 ± 56")),
        *((1.2e-7, 1.5e-8, "(1.20 ± 0.15)e−7"), (3.0, 0.0, "3 ± 0"), (1523.0, 240.0, "1520 ± 240")),
    ],
)
def test_value_with_error(value, error, text):
    assert value_with_error(value, error) == text


def test_the_bytes_of_a_figure_do_not_depend_on_the_hour():
    assert figure_bytes(plot()) == figure_bytes(plot())


CONTRAST = """
(() => {
  const light = c => { c = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; };
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
                          if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const worst = [21, ""];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) { worst[0] = ratio; worst[1] = e.outerHTML.slice(0, 80); }
  }
  return worst;
})()
"""


@pytest.fixture
def shown(browser, file):
    browser.shape(1200)
    browser.open(file)
    return browser


def test_a_browser_shows_the_page_without_complaint_or_request(shown):
    assert shown.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    asked = [event["request"]["url"].split(":")[0] for event in shown.named("Network.requestWillBeSent")]
    assert asked[0] == "file"
    assert set(asked[1:]) == {"data"}
    sizes = shown.value("[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.width])")
    assert len(sizes) == 3
    assert all(complete and min(size) > 200 for complete, *size in sizes)


def test_a_browser_refuses_what_the_policy_forbids(shown):
    """The twin that must fail: the same listeners do hear of a script and of a request."""
    shown.events.clear()
    shown.value(
        "(async () => { const i = new Image(); i.src = 'http://localhost:9/x.png'; document.body.append(i);"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
        "await new Promise(done => setTimeout(done, 200)); })()"
    )
    assert shown.value("window.ran === undefined")
    assert any("Content Security Policy" in str(event) for event in shown.named("Log.entryAdded"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_contrast_and_width(shown, scheme, width):
    shown.shape(width, scheme)
    ratio, where = shown.value(CONTRAST)
    assert ratio >= 4.5, where
    background = shown.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    assert shown.value("document.documentElement.scrollWidth") <= width
    scrolls = shown.value("[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth)")
    assert scrolls == [False, True]
    # The caption of a table that is wider than the page is read without scrolling.
    wide = shown.value("[...document.querySelectorAll('caption > span')].map(e => e.getBoundingClientRect().right)")
    assert max(wide) <= width


def test_motion_only_for_those_who_like_it(shown):
    assert shown.value("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
    shown.shape(1200, motion="reduce")
    assert shown.value("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_it_prints(shown):
    shown.shape(1200, "dark")
    pdf = shown.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 1
    # Printed from the dark, the paper is white all the same.
    shown.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert shown.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.value(CONTRAST)[0] >= 4.5
    shown.call("Emulation.setEmulatedMedia", media="")

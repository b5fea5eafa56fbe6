"""One page that holds a whole run: verdicts first, then sections of words, tables and figures, provenance last.

The page is one file that asks nobody for anything: the style is in it, figures are in it as data, there is no script,
and a content security policy in its head forbids browsers to fetch anything even so.  All text is escaped.  It
follows the reader's choice of light or dark, fits a phone (wide tables and figures scroll by themselves) and prints
with white background.

Example::

    page = HTMLReport("K2-24", "two planets, 32 velocities")
    page.verdict("good", "NPE agrees with MCMC: C2ST 0.51 +- 0.01.")
    section = page.section("Posterior")
    section.table(["parameter", "median", "sigma"], [["period", 20.885, 0.001]], units=["", "day", "day"])
    section.figure(corner(samples), alt="Corner plot of two periods and two amplitudes", caption="68 % and 95 %.")
    page.provenance({"seed": 0, "versions": {"torch": "2.13.0"}, "analysis": toml_text})
    page.write("report.html")
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from matplotlib.figure import Figure

from sbi_physics.core.errors import UsageError
from sbi_physics.report.cells import column_texts, is_number
from sbi_physics.report.embedding import picture_of
from sbi_physics.store.atomic import atomic_path

__all__ = ["HTMLReport", "Kind", "Section"]

Kind = Literal["good", "warning", "bad"]

_MARKS = {"good": "✓", "warning": "!", "bad": "✗"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_FEWEST_CONTENTS = 3
_LONG = 28
"""Letters of a cell that is text to be read, and is not broken into a column of words."""


class Section:
    """Words, tables and figures under one heading, in the order given."""

    def __init__(self, title: str, anchor: str) -> None:
        self.title = title
        self.anchor = anchor
        self._items: list[str] = []

    def text(self, text: str) -> None:
        """Add paragraphs; a blank line parts them."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._items.append(f"<p>{_words(paragraph)}</p>")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        caption: str = "",
        units: Sequence[str] | None = None,
    ) -> None:
        """Add a table.

        Numbers of a column are written alike, with four digits for the largest; None and NaN become a dash.  Text is
        left as it is.  A first column of text heads its rows.

        Args:
            columns: C names.
            rows: each of C cells: text, numbers, truth values or None.
            caption: a sentence above.
            units: C units, ``""`` where there is none.

        Raises:
            UsageError: there is no column, or a row or `units` has another length than `columns`.
        """
        if not columns:
            raise UsageError("columns: expected at least one, got none")
        if units is not None and len(units) != len(columns):
            raise UsageError(f"units: expected {len(columns)}, one for each column, got {len(units)}")
        for i, row in enumerate(rows):
            if len(row) != len(columns):
                raise UsageError(f"rows: expected {len(columns)} cells in each, got {len(row)} in row {i}")
        self._items.append(_table(columns, rows, caption, units or [""] * len(columns)))

    def figure(self, figure: Figure | str | Path, *, alt: str, caption: str = "") -> None:
        """Add a figure: as SVG where that is small, else as PNG.

        Args:
            figure: a matplotlib figure, or the path of a PNG or SVG file.
            alt: what the figure shows, for those who cannot see it.
            caption: a sentence below.

        Raises:
            UsageError: there is no `alt`.
            StoreError: the file cannot be read, or is neither PNG nor SVG.
        """
        if not alt.strip():
            raise UsageError("alt: expected words that say what the figure shows, got none")
        picture = picture_of(figure)
        image = (
            f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" '
            f'alt="{escape(" ".join(alt.split()))}">'
        )
        if picture.wide:
            image = _scrolling(image, f"Figure: {caption or alt}", "wide")
        words = f"<figcaption>{_words(caption)}</figcaption>" if caption else ""
        self._items.append(f"<figure>{image}{words}</figure>")

    def html(self) -> str:
        """The section as HTML."""
        body = "\n".join(self._items)
        return (
            f'<section aria-labelledby="{self.anchor}">\n<h2 id="{self.anchor}">{escape(self.title)}</h2>\n'
            f"{body}\n</section>"
        )


class HTMLReport:
    """A page of results that is one file.

    Args:
        title: what was analysed.
        subtitle: one line below the title.

    Raises:
        UsageError: there is no title.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        if not title.strip():
            raise UsageError("title: expected words, got none")
        self.title = title
        self.subtitle = subtitle
        self._verdicts: list[tuple[Kind, str]] = []
        self._sections: list[Section] = []
        self._provenance: dict[str, Any] = {}

    def verdict(self, kind: Kind, text: str) -> None:
        """Add a verdict; they stand at the top, in the order given.

        Raises:
            UsageError: `kind` is not one of good, warning, bad.
        """
        if kind not in get_args(Kind):
            raise UsageError(f"kind: expected one of {', '.join(get_args(Kind))}; got {kind!r}")
        self._verdicts.append((kind, text))

    def section(self, title: str) -> Section:
        """Begin a section, after those there are."""
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        section = Section(title, f"s{len(self._sections) + 1}-{name}".rstrip("-"))
        self._sections.append(section)
        return section

    def provenance(self, mapping: Mapping[str, Any]) -> None:
        """Add what it takes to repeat the run: shown last, numbers in full, text of several lines as it is.

        Args:
            mapping: from names to values or to mappings; each inner mapping has a heading of its own.
        """
        self._provenance.update(mapping)

    def html(self) -> str:
        """The page as HTML."""
        style = files("sbi_physics.report").joinpath("page.css").read_text(encoding="utf-8")
        subtitle = f'\n<p class="subtitle">{_words(self.subtitle)}</p>' if self.subtitle else ""
        parts = [_verdict_list(self._verdicts), self._contents(), *(section.html() for section in self._sections)]
        if self._provenance:
            parts.append(_provenance(self._provenance))
        body = "\n".join(part for part in parts if part)
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(self.title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(self.title)}</h1>{subtitle}
</header>
<main>
{body}
</main>
</body>
</html>
"""

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            StoreError: it cannot be written there.
        """
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def _contents(self) -> str:
        if len(self._sections) < _FEWEST_CONTENTS:
            return ""
        entries = [(section.anchor, section.title) for section in self._sections]
        entries += [("provenance", "Provenance")] if self._provenance else []
        items = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in entries)
        return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _words(text: str) -> str:
    """Escaped words in which no line breaks between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\u00a0%", escape(" ".join(text.split())))


def _verdict_list(verdicts: Sequence[tuple[Kind, str]]) -> str:
    if not verdicts:
        return ""
    items = "\n".join(
        f'<li class="{kind}"><span class="mark" aria-hidden="true">{_MARKS[kind]}</span>'
        f'<span class="kind">{kind.capitalize()}</span> <span>{_words(text)}</span></li>'
        for kind, text in verdicts
    )
    return (
        f'<section aria-labelledby="verdicts">\n<h2 id="verdicts">Verdicts</h2>\n<ul class="verdicts">\n{items}\n'
        "</ul>\n</section>"
    )


def _scrolling(content: str, label: str, kind: str) -> str:
    """A box that scrolls sideways where it is too narrow, by keyboard as well."""
    words = escape(" ".join(label.split()))
    return f'<div class="scroll {kind}" tabindex="0" role="group" aria-label="{words}">{content}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, units: Sequence[str]) -> str:
    cells = [column_texts([row[i] for row in rows]) for i in range(len(columns))]
    numeric = [any(is_number(row[i]) for row in rows) for i in range(len(columns))]
    long = [max((len(text) for text in column), default=0) > _LONG for column in cells]
    classes = [
        ' class="number"' if one else ' class="words"' if wide else "" for one, wide in zip(numeric, long, strict=True)
    ]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}{_unit(unit)}</th>'
        for name, unit, kind in zip(columns, units, classes, strict=True)
    )
    heads_rows = not numeric[0] and len(columns) > 1
    lines = []
    for i in range(len(rows)):
        line = ""
        for j, kind in enumerate(classes):
            tag, scope = ("th", ' scope="row"') if heads_rows and j == 0 else ("td", "")
            line += f"<{tag}{scope}{kind}>{cells[j][i]}</{tag}>"
        lines.append(f"<tr>{line}</tr>")
    title = f"<caption><span>{_words(caption)}</span></caption>" if caption else ""
    body = "\n".join(lines)
    table = f"<table>{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return _scrolling(table, f"Table: {caption or ', '.join(columns)}", "tabular")


def _unit(unit: str) -> str:
    return f' <span class="unit">[{escape(unit)}]</span>' if unit else ""


def _provenance(mapping: Mapping[str, Any]) -> str:
    """Values, then mappings under headings of their own, then whole texts, which are long."""
    inner = {key: value for key, value in mapping.items() if isinstance(value, Mapping)}
    texts = {key: value for key, value in mapping.items() if isinstance(value, str) and "\n" in value.strip("\n")}
    values = {key: value for key, value in mapping.items() if key not in inner and key not in texts}
    parts = [_definitions(values)]
    parts += [f"<h3>{escape(str(key))}</h3>\n{_definitions(value)}" for key, value in inner.items() if value]
    parts += [f"<h3>{escape(str(key))}</h3>\n{_exact(text)}" for key, text in texts.items()]
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="provenance">\n<h2 id="provenance">Provenance</h2>\n{body}\n</section>'


def _definitions(mapping: Mapping[str, Any]) -> str:
    entries = "\n".join(f"<div><dt>{escape(key)}</dt><dd>{_exact(value)}</dd></div>" for key, value in _flat(mapping))
    return f"<dl>\n{entries}\n</dl>" if entries else ""


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings, and of lists of mappings, under dotted names."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
            yield from _flat({str(i): inner for i, inner in enumerate(value)}, f"{name}.")
        else:
            yield name, value


def _exact(value: Any) -> str:
    """A value in full: no digit is rounded away."""
    if value is None or value == "":
        return "–"
    if isinstance(value, list | tuple):
        return f"<code>{escape(', '.join(map(str, value)))}</code>"
    text = str(value)
    return f"<pre>{escape(text.strip(chr(10)))}</pre>" if "\n" in text.strip("\n") else f"<code>{escape(text)}</code>"

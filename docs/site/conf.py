"""The site of the documentation: the pages of docs/, those at the top of the project, and the reference of the API.

The pages are written for whoever reads them in the repository, too, so nothing of the site is in them: links between
files, the table of contents and formulas in docstrings are put into its terms here, as the pages are read.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import sbi_physics

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

project = "sbi_physics"
author = "the authors of sbi_physics"
version = release = sbi_physics.__version__
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"sbi_physics {version}"
exclude_patterns = ["pictures"]
default_role = "code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_show_copyright = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Attributes", "params_style")]

# Pages of the site that lie elsewhere in the project.
ELSEWHERE = {
    "site/readme": ROOT / "README.md",
    "site/results": ROOT / "benchmarks" / "RESULTS.md",
    "site/changelog": ROOT / "CHANGELOG.md",
}
REFERENCE = ("/site/front_door", "/site/diagnostics", "/site/parts", "/site/simulators")
LINK = re.compile(r"\[([^]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
CONTENTS = """

```{toctree}
:hidden:
:caption: %s

%s
```
"""


def setup(app: Any) -> None:
    """Take part in the reading of pages and docstrings."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("build-finished", name_first_page)


def read_page(app: Any, name: str, source: list[str]) -> None:
    """Put links of a page into the terms of the site; give the first one its contents."""
    path = ELSEWHERE.get(name, DOCS / f"{name}.md")
    if path.suffix != ".md" or not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    source[0] = LINK.sub(lambda found: _link(path, *found.groups()), text)
    if name == root_doc:
        source[0] += _contents(text)


def _link(page: Path, words: str, target: str, anchor: str | None) -> str:
    """A link of the site in place of one between files; the words alone where it leads to what is not on the site."""
    if "://" in target or target.startswith("mailto:"):
        return f"[{words}]({target}{anchor or ''})"
    path = (page.parent / target).resolve()
    for name, elsewhere in ELSEWHERE.items():
        if path == elsewhere:
            return f"[{words}](/{name}.md{anchor or ''})"
    if path.is_relative_to(DOCS) and path.is_file():
        return f"[{words}](/{path.relative_to(DOCS)}{anchor or ''})"
    return words


def _contents(text: str) -> str:
    """Tables of contents as the tables of the page have them."""
    parts = []
    for table in re.split(r"\n(?=\| [^\n]* \| \|\n\|---)", text)[1:]:
        caption = table.split("|")[1].strip()
        paths = [(DOCS / target).resolve() for _, target, _ in LINK.findall(table)]
        names = [next((n for n, e in ELSEWHERE.items() if e == path), None) for path in paths]
        pages = [
            f"/{name}" if name else f"/{path.relative_to(DOCS).with_suffix('')}"
            for name, path in zip(names, paths, strict=True)
        ]
        parts.append(CONTENTS % (caption, "\n".join(pages)))
    return "".join([*parts, CONTENTS % ("reference", "\n".join(REFERENCE))])


def read_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Formulas between dollars as directives and roles of the site; bars elsewhere are bars."""
    text = re.sub(r"\$\$(.+?)\$\$", _displayed, "\n".join(lines), flags=re.DOTALL)
    text = re.sub(r"(?<![\w$`])\$([^$\n]+(?:\n[^$\n]+)?)\$(?!\w)", _inline, text)
    parts = re.split(r"(``.+?``|`[^`]+`|\.\. math:: [^\n]*)", text)
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def _inline(found: re.Match[str]) -> str:
    line = found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()]
    # The columns of a table have their widths.
    return found[0] if re.search(r"\S {2,}", line) else f":math:`{found[1]}`"


def _displayed(found: re.Match[str]) -> str:
    formula = " ".join(found[1].split())
    return f"\n\n.. math:: {formula}\n\n"


def name_first_page(app: Any, error: Exception | None) -> None:
    """Let the first page be what a server shows."""
    first = Path(app.outdir) / f"{root_doc}.html"
    if error is None and first.exists():
        shutil.copyfile(first, Path(app.outdir) / "index.html")

"""Figures as data that a page carries in itself.

A figure becomes an image with a ``data:`` address, not part of the page's own tree: the identifiers of two SVG figures
cannot clash, and a browser neither runs what a figure holds nor follows links in it.
"""

import base64
import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from sbi_physics.core.errors import StoreError

__all__ = ["Picture", "figure_bytes", "picture_of"]

_LARGEST_SVG = 400_000
_PNG_DPI = 192
_CSS_DPI = 96
_WIDE = 640
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PIXELS = {"": 1.0, "px": 1.0, "pt": 96 / 72, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4}


@dataclass(frozen=True)
class Picture:
    """An image as data.

    Attributes:
        uri: its ``data:`` address.
        width: in pixels of the page.
        height: in pixels of the page.
    """

    uri: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Whether the words in it would be too small on a phone."""
        return self.width > _WIDE


def figure_bytes(figure: Figure) -> tuple[str, bytes]:
    """The ending (``"svg"`` or ``"png"``) and the bytes of a figure: SVG where that is small.

    The same figure gives the same bytes.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sbi_physics", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    if len(buffer.getvalue()) <= _LARGEST_SVG:
        return "svg", buffer.getvalue()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return "png", buffer.getvalue()


def picture_of(figure: Figure | str | Path) -> Picture:
    """A figure, or a PNG or SVG file, as data.

    Raises:
        StoreError: the file cannot be read, or is neither PNG nor SVG.
    """
    if isinstance(figure, Figure):
        ending, content = figure_bytes(figure)
        name = "figure"
    else:
        name = str(figure)
        try:
            content = Path(figure).read_bytes()
        except OSError as error:
            raise StoreError(f"{name}: cannot be read: {error.strerror or error}") from error
        ending = "png" if content.startswith(_PNG_START) else "svg"
    width, height = _png_size(content, name) if ending == "png" else _svg_size(content, name)
    kind = {"png": "image/png", "svg": "image/svg+xml"}[ending]
    return Picture(f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}", width, height)


def _png_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height at the resolution that the file states, 192 dots per inch where it states none."""
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise StoreError(f"{name}: expected a PNG file, got one that is damaged")
    width, height = struct.unpack(">II", content[16:24])
    at = content[: content.find(b"IDAT")].find(b"pHYs")
    per_metre = struct.unpack(">I", content[at + 4 : at + 8])[0] if at > 0 and content[at + 12] == 1 else 0
    scale = _CSS_DPI / (per_metre * 0.0254 if per_metre else _PNG_DPI)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _svg_size(content: bytes, name: str) -> tuple[int, int]:
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise StoreError(f"{name}: expected a PNG or SVG file, got something else ({error})") from error
    if root.tag.rpartition("}")[2] != "svg":
        raise StoreError(f"{name}: expected a PNG or SVG file, got XML of <{root.tag.rpartition('}')[2]}>")
    sizes = [_length(root.get(key, "")) for key in ("width", "height")]
    box = [float(number) for number in re.findall(r"[-+.\deE]+", root.get("viewBox", ""))]
    width, height = sizes if all(sizes) else (box[2:] if len(box) == 4 else (640.0, 480.0))
    return max(1, round(width)), max(1, round(height))


def _length(text: str) -> float:
    found = re.fullmatch(r"\s*([.\d]+)\s*([a-z]*)\s*", text)
    return float(found[1]) * _PIXELS.get(found[2], 0.0) if found else 0.0

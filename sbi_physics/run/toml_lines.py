"""On which line of a TOML file each key stands.

`tomllib` reads values and forgets where they stood.  `key_lines` walks through the text of a file that `tomllib` has
accepted, and gives the line of each key path: names for tables, numbers for the elements of arrays, so that
``("planets", 1, "period")`` is the key `period` of the second element of `planets`.  It knows tables, arrays of tables,
dotted and quoted keys, inline tables, arrays over several lines, comments, and all four kinds of strings.
"""

import tomllib
from collections.abc import Mapping, Sequence

__all__ = ["KeyPath", "key_lines", "line_of"]

KeyPath = tuple[str | int, ...]

_QUOTES = ('"""', "'''", '"', "'")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of each key path of a TOML text; a table has the line on which it is first named.

    Args:
        text: TOML that `tomllib` reads without an error.
    """
    return _Walk(text.replace("\r\n", "\n")).lines


def line_of(lines: Mapping[KeyPath, int], path: Sequence[str | int]) -> int | None:
    """The line of a key path, or of the innermost table around it that stands in the file; None where none does."""
    for length in range(len(path), 0, -1):
        found = lines.get(tuple(path[:length]))
        if found is not None:
            return found
    return None


class _Walk:
    """One pass through the text."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line = text, 0, 1
        self.lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}
        table: KeyPath = ()
        self._skip(" \t\n")
        while self.at < len(text):
            if text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(" \t\n")

    def _header(self) -> KeyPath:
        """``[a.b]`` or ``[[a.b]]``: the path of the table that begins."""
        double = self.text.startswith("[[", self.at)
        self._advance(2 if double else 1)
        names = self._key()
        self._advance(2 if double else 1)
        path: KeyPath = ()
        for name in names[:-1]:
            path = self._last((*path, name))
        path = (*path, names[-1])
        if double:
            self._note(path)
            self._elements[path] = self._elements.get(path, -1) + 1
        path = self._last(path)
        self._note(path)
        return path

    def _last(self, path: KeyPath) -> KeyPath:
        """The path of a table, or of the last element of an array of tables."""
        self._note(path)
        return (*path, self._elements[path]) if path in self._elements else path

    def _pair(self, table: KeyPath) -> None:
        """``key = value``."""
        path = table
        for name in self._key():
            path = (*path, name)
            self._note(path)
        self._advance(1)
        self._skip(" \t")
        self._value(path)

    def _key(self) -> list[str]:
        """The names of a dotted key, up to what ends it."""
        names = []
        while True:
            self._skip(" \t")
            start = self.at
            if self.text[self.at] in "\"'":
                self._string()
            else:
                while self.text[self.at] not in " \t.=]":
                    self._advance(1)
            names.append(next(iter(tomllib.loads(f"{self.text[start : self.at]} = 0"))))
            self._skip(" \t")
            if self.text[self.at] != ".":
                return names
            self._advance(1)

    def _value(self, path: KeyPath) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self._advance(1)

    def _array(self, path: KeyPath) -> None:
        self._advance(1)
        index = 0
        while True:
            self._skip(" \t\n,")
            if self.text[self.at] == "]":
                break
            self._note((*path, index))
            self._value((*path, index))
            index += 1
        self._advance(1)

    def _inline_table(self, path: KeyPath) -> None:
        self._advance(1)
        while True:
            self._skip(" \t\n,")
            if self.text[self.at] == "}":
                break
            self._pair(path)
        self._advance(1)

    def _string(self) -> None:
        quote = next(quote for quote in _QUOTES if self.text.startswith(quote, self.at))
        self._advance(len(quote))
        while not self.text.startswith(quote, self.at):
            self._advance(2 if quote[0] == '"' and self.text[self.at] == "\\" else 1)
        self._advance(len(quote))
        # Up to two quotes may stand before the three that end a string.
        while len(quote) == 3 and self.text.startswith(quote[0], self.at):
            self._advance(1)

    def _note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.line)

    def _skip(self, characters: str) -> None:
        """Pass over characters and comments."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                while self.at < len(self.text) and self.text[self.at] != "\n":
                    self._advance(1)
            elif self.text[self.at] in characters:
                self._advance(1)
            else:
                return

    def _advance(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

"""The line of every key of a TOML file."""

import tomllib

import pytest

from sbi_physics.run.toml_lines import key_lines, line_of

TRICKY = r'''# a comment with [brackets] = and "quotes"
job = "posterior" # not # the end
title = "a # no comment, [no table], \"quoted\""
path = 'C:\no\escapes # still'

[prior.period]   # implicit prior
low = 1.0
"quoted.key" = 2
dotted.key.deep = { a = 1, b = "}, #", c = [1, { d = 2 }] }
text = """
[not.a.table]
key = "in a string"
\""" five quotes """""
literal = QQQ"""QQQ
other = QQQ
# no comment
"""
QQQ

[[planets]]
name = "b"
windows = [
  [3.0, 3.4], # first
  [3.4,
   3.8],
]
[planets.orbit]
period = 20.9
[[planets]]
name = "c"
[[planets.moons]]
radius = 1
[[planets.moons]]
radius = 2

[ after . 'all' ]
when = 1979-05-27T07:32:00Z
'''.replace("QQQ", "'" * 3)


def paths(value, prefix=()):
    """All key paths of what tomllib reads."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*prefix, key)
        yield from paths(inner, (*prefix, key))


@pytest.mark.parametrize("text", [TRICKY, TRICKY.replace("\n", "\r\n"), TRICKY.rstrip()])
def test_all_keys_are_found_and_no_others(text):
    assert set(key_lines(text)) == set(paths(tomllib.loads(text)))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("job",), "job ="),
        (("title",), "title ="),
        (("prior",), "[prior.period]"),
        (("prior", "period", "quoted.key"), '"quoted.key"'),
        (("prior", "period", "dotted", "key", "deep", "c", 1, "d"), "dotted.key.deep"),
        (("prior", "period", "literal"), "literal ="),
        (("planets", 0, "name"), 'name = "b"'),
        (("planets", 0, "windows", 1), "[3.4,"),
        (("planets", 0, "windows", 1, 1), "3.8]"),
        (("planets", 0, "orbit", "period"), "period = 20.9"),
        (("planets", 1, "name"), 'name = "c"'),
        (("planets", 1, "moons", 1, "radius"), "radius = 2"),
        (("after", "all", "when"), "when ="),
    ],
)
def test_lines(path, words):
    line = key_lines(TRICKY)[path]
    assert words in TRICKY.splitlines()[line - 1]


def test_a_missing_key_has_the_line_of_its_table():
    lines = key_lines(TRICKY)
    assert line_of(lines, ("planets", 1, "radius")) == lines["planets", 1]
    assert line_of(lines, ("nothing",)) is None
    assert key_lines("") == {}

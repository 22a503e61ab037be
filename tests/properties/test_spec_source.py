"""The locator of TOML keys against a writer that notes where it puts each key."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.features.spec_source import Place, locate

BARE = "abcXYZ019_-"
TRAPS = [
    "",
    "# no comment",
    "[[feature]]",
    'a = "b"',
    "'",
    '"',
    '""',
    "]",
    "}",
    ",",
    ".",
    "\\",
    "é = 1",
    "\n[x]\n",
]
texts = st.one_of(st.sampled_from(TRAPS), st.text(st.sampled_from(list("ab\"'#[]{}=,.\\\n é")), max_size=8))


class Writer:
    """Text so far, and the place of every path written."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.places: dict[tuple[str | int, ...], Place] = {}

    def note(self, path: tuple[str | int, ...]) -> None:
        line = self.text.count("\n") + 1
        self.places.setdefault(path, Place(line, len(self.text) - (self.text.rfind("\n") + 1) + 1))

    def blank(self, *, lines: bool) -> None:
        choices = ["", " ", "\t "]
        if lines:
            choices += ["\n", "\r\n", "# [[x]] 'a\" = {\n", "  #\n\n"]
        self.text += self.draw(st.sampled_from(choices))

    def key(self, name: str) -> None:
        bare = name and all(letter in BARE for letter in name)
        if bare and self.draw(st.booleans()):
            self.text += name
        elif "'" not in name and "\n" not in name and self.draw(st.booleans()):
            self.text += f"'{name}'"
        else:
            self.text += json.dumps(name, ensure_ascii=self.draw(st.booleans()))

    def string(self, value: str) -> None:
        forms = [json.dumps(value), '"""' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""']
        if "'" not in value and "\n" not in value:
            forms.append(f"'{value}'")
        if "'''" not in value and not value.startswith("\n"):
            forms.append(f"'''{value}'''" if not value.endswith("''") else json.dumps(value))
        if (
            '"""' not in value
            and "\\" not in value
            and not value.startswith("\n")
            and not value.endswith('"""')
        ):
            forms.append(f'"""{value}"""')
        if "\n" in value:
            forms.append('"""\n' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""')
        self.text += self.draw(st.sampled_from(forms))

    def value(self, path: tuple[str | int, ...], value: Any) -> None:
        if isinstance(value, str):
            self.string(value)
        elif isinstance(value, list):
            self.text += "["
            for place, element in enumerate(value):
                self.blank(lines=True)
                self.note((*path, place))
                self.value((*path, place), element)
                self.blank(lines=True)
                if place + 1 < len(value) or self.draw(st.booleans()):
                    self.text += ","
            self.blank(lines=True)
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{"
            for place, (name, element) in enumerate(value.items()):
                self.blank(lines=False)
                self.pair(path, name, element)
                self.blank(lines=False)
                if place + 1 < len(value):
                    self.text += ","
            self.blank(lines=False)
            self.text += "}"
        else:
            self.text += value.isoformat(" ") if hasattr(value, "isoformat") else json.dumps(value)

    def pair(self, table: tuple[str | int, ...], name: str, value: Any) -> None:
        """One pair, as a dotted key where the value is a table of one entry."""
        path = (*table, name)
        self.note(path)
        start = self.places[path]
        self.key(name)
        while isinstance(value, dict) and len(value) == 1 and self.draw(st.booleans()):
            ((name, value),) = value.items()
            path = (*path, name)
            self.places[path] = start
            self.text += self.draw(st.sampled_from([".", " . "]))
            self.key(name)
        self.text += self.draw(st.sampled_from(["=", " = ", "\t=  "]))
        self.value(path, value)

    def table(self, path: tuple[str | int, ...], content: dict[str, Any]) -> None:
        for name, value in content.items():
            self.blank(lines=False)
            self.pair(path, name, value)
            self.text += self.draw(st.sampled_from(["\n", "\r\n", "  # 'x' = [\n", "\n\n"]))


names = st.one_of(st.text(st.sampled_from(list(BARE)), min_size=1, max_size=4), texts)
scalars = st.one_of(
    st.integers(-99, 99), st.booleans(), texts, st.floats(-1, 1).map(lambda x: round(x, 3)), st.datetimes()
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)
tables = st.dictionaries(names, values, max_size=4)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[tuple[str | int, ...], Place]]:
    writer = Writer(draw)
    head = draw(tables)
    arrays = draw(st.dictionaries(names, st.lists(tables, min_size=1, max_size=3), max_size=2))
    head = {name: value for name, value in head.items() if name not in arrays}
    writer.blank(lines=True)
    writer.table((), head)
    for name, elements in arrays.items():
        for place, element in enumerate(elements):
            writer.blank(lines=True)
            writer.note((name,))
            writer.note((name, place))
            writer.text += draw(st.sampled_from(["[[", "[[ "]))
            writer.key(name)
            writer.text += draw(st.sampled_from(["]]\n", " ]]  # ]\n"]))
            writer.table((name, place), element)
    return writer.text, head | arrays, writer.places


@settings(max_examples=120, deadline=None)
@given(documents())
def test_every_key_is_where_the_writer_put_it(
    document: tuple[str, dict[str, Any], dict[tuple[str | int, ...], Place]],
) -> None:
    text, content, places = document
    if "\r" not in text:  # which tomllib reads as part of a line's end
        assert tomllib.loads(text) == content
    assert locate(text) == places


def test_headers_below_headers() -> None:
    text = "[[a]]\n[a.b]\nx = 1\n[[a.c]]\n[[a]]\n[a.b]\nx = 2\n[[a.c]]\n[[a.c]]\ny = 3\n[d.e]\nz = 1\n"
    tomllib.loads(text)
    places = locate(text)
    assert places["a", 0, "b", "x"] == Place(3, 1)
    assert places["a", 1, "b", "x"] == Place(7, 1)
    assert places["a", 1, "c", 1, "y"] == Place(10, 1)
    assert places["d", "e", "z"] == Place(12, 1)
    assert places["d", "e"] == Place(11, 1)


def test_quotes_at_the_end_of_a_text_of_many_lines() -> None:
    for text in (
        'a = """x"""""\nb = 1\n',
        "a = '''x'''''\nb = 1\n",
        'a = """\\""""\nb = 1\n',
        'a = ""\nb = 1\n',
    ):
        tomllib.loads(text)
        assert locate(text)["b",] == Place(2, 1)

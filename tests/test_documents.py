"""What the documents about scoring state is what the code does: tables, examples, codes, settings, metrics, links."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from governance.messages.problems import PROBLEMS
from member_node.metrics import NodeMetrics
from member_node.scoring_settings import ScoringSettings
from member_node.streams.mapping import parse_mapping
from scoring.devices.consistency import SIGNS
from scoring.devices.linker import NUMBERS
from scoring.features.admission import Disposition
from scoring.features.spec import Aggregation, Calendar, Derivation, parse_spec
from scoring.lists import ListKind
from scoring.models import lifecycle
from scoring.row_codes import RowCode
from scoring.rules import versions
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.language import FUNCTIONS
from scoring.rules.limits import DEFAULT_LIMITS
from scoring.rules.ruleset import load_ruleset

DOCS = Path(__file__).parents[1] / "docs"
SCORING = DOCS / "scoring"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def page(name: str) -> str:
    return (SCORING / name).read_text(encoding="utf-8")


def blocks(name: str, kind: str) -> list[str]:
    return [text for found, text in FENCE.findall(page(name)) if found == kind]


def shown_transitions(text: str) -> dict[tuple[str, str], str]:
    """The first table of states, as (from, act) -> to."""
    lines = iter(text.splitlines())
    head = next(line for line in lines if line.startswith("| from "))
    acts = re.findall(r"`(\w+)`", head)
    next(lines)
    found: dict[tuple[str, str], str] = {}
    for line in lines:
        if not line.startswith("| **"):
            break
        state, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert len(cells) == len(acts), line
        found |= {(state.strip("*"), act): to for act, to in zip(acts, cells, strict=True) if to}
    return found


def table_of(following: Mapping[Any, Any]) -> dict[tuple[str, str], str]:
    return {(str(state), str(act)): str(to) for (state, act), to in following.items()}


def test_the_tables_of_states_are_those_of_the_code() -> None:
    assert shown_transitions(page("rules.md")) == table_of(versions.NEXT)
    assert shown_transitions(page("models.md")) == table_of(lifecycle.NEXT)


def test_the_catalogue_has_every_feature_there_is() -> None:
    text = page("features.md")
    missing = [each for kind in (Aggregation, Calendar, Derivation) for each in kind if f"{each}" not in text]
    assert not missing
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for each in Aggregation:
        assert any(f"`{each}`" in row.split("|")[1] for row in rows), each


def test_the_spec_and_its_errors_are_as_shown() -> None:
    (spec,) = blocks("features.md", "toml")
    assert len(parse_spec(spec).features) == 4


def test_the_rule_set_loads_and_its_brake_shows_the_defaults() -> None:
    number, boolean, text = ColumnType.NUMBER, ColumnType.BOOLEAN, ColumnType.TEXT
    schema = ColumnSchema(
        [
            *(
                Column(name, number)
                for name in ("amount", "customer_sum_1d", "customer_mean_90d", "model_score")
            ),
            *(Column(name, boolean) for name in ("model_degraded", "listed_trusted_devices")),
            Column("channel", text),
            Column("iban_victims_all", number, evidence="iban"),
            Column("iban_tier", text, evidence="iban"),
        ]
    )
    (rules,) = blocks("rules.md", "toml")
    loaded = load_ruleset(rules, schema, version=1)
    assert loaded.brake == DEFAULT_LIMITS
    assert all(f"`{name}(" in page("rules.md") for name in FUNCTIONS)


def test_codes_dispositions_and_kinds_are_all_there() -> None:
    sources = page("sources.md")
    for code in RowCode:
        assert code is RowCode.ACCEPTABLE or f"`{code.text}`" in sources, code
    for disposition in Disposition:
        assert disposition is Disposition.REFUSED_INVALID or f"`{disposition.text}`" in sources, disposition
    for name in re.findall(
        r"^\| `([a-z-]+)`(?:, `([a-z-]+)`)?(?: \([^|]*\))? \| \d{3}", sources, re.MULTILINE
    ):
        assert all(each in PROBLEMS for each in name if each), name
    assert all(f"| `{kind}` |" in page("lists.md") for kind in ListKind)


def test_devices_tell_every_number_and_sign_with_its_weight() -> None:
    text = page("devices.md")
    assert all(f"`{name}`" in text for name in NUMBERS)
    weights = dict(re.findall(r"([a-z-]+) (\.\d)[,.]", text.partition("Signs of tampering")[2]))
    assert weights == {sign: f"{weight:g}".removeprefix("0") for sign, weight in SIGNS.items()}


def test_json_examples_are_json_and_the_mapping_can_be_read() -> None:
    for name in ("sources.md", "devices.md"):
        for text in blocks(name, "json"):
            json.loads(text)
    mapping, _nats = blocks("sources.md", "toml")
    assert parse_mapping(mapping, name="live").numbers == {"latitude": "lat", "longitude": "lon"}


def test_every_setting_is_told_with_its_default() -> None:
    text = page("operating.md")
    for each in dataclasses.fields(ScoringSettings):
        assert f"`{each.name}`" in text, each.name
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{each.name}`" in line)
        assert str(each.default) in row or each.default == "", row


def test_every_counter_and_histogram_is_told() -> None:
    text = page("operating.md")
    for family in NodeMetrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target

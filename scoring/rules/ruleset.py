"""Rule sets as files: read from TOML and type-checked as a whole; every error names its place in the file.

A rule set file::

    name = "cards"
    version = 3                        # optional in a rulebook, which numbers its versions itself

    [brake]                            # optional: what one rule may decline before it is stopped
    window_minutes = 60
    min_events = 1000                  # a share of fewer events is not judged
    min_customers = 5                  # fewer customers do not stop a rule, however often they are declined
    challenge = 0.2                    # shares of the window's events
    review = 0.1
    block = 0.05

    [[rule]]
    id = "terminal-flagged"            # unique
    when = "terminal_victims_all >= 1"
    verdict = "block"                  # allow (only counted), challenge, review or block
    evidence = "terminal"              # optional: the policy's tier of this kind bounds the verdict on each row
    max_share = 0.01                   # optional: this rule's own share for the brake
    reason = "{terminal_victims_all} victims of this terminal are known"   # {column} is filled in

A rule that reads what other parties say of an indicator must declare ``evidence``.

What a second person approves is what they see: characters that are invisible or turn the direction of writing
("Trojan Source", Boucher and Anderson 2021) are refused, in comments too; TOML's ``\\u`` escapes write them visibly.
"""

from __future__ import annotations

import math
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from typing import Any

from scoring.rules.columns import ColumnSchema
from scoring.rules.evaluation import PLACEHOLDER, Judgement, RowJudgement, Rule, RuleSet
from scoring.rules.language import RuleSyntaxError, parse_condition
from scoring.rules.limits import BrakeLimits, check_share
from scoring.rules.places import Place, TablePlaces, table_places
from scoring.rules.versions import MAX_VERSIONS
from scoring.verdicts import verdict_named

__all__ = ["Judgement", "RowJudgement", "Rule", "RuleSet", "RuleSetError", "load_ruleset"]

MAX_RULES = 1000
MAX_BYTES = 2**20
MAX_NAME = 100
MAX_REASON = 500
_ID = re.compile(r"[a-z][a-z0-9-]{0,63}")
_TOML_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")
# Control, format and surrogate characters, and separators of lines that editors show and TOML does not know.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_TEXT_KEYS = ("id", "when", "verdict", "reason", "evidence")
_BRAKE_NUMBERS = ("challenge", "review", "block")


class RuleSetError(ValueError):
    """A rule set file is wrong; the message begins with the place in the file where that is known.

    ``line`` and ``column`` count from 1 in the file (0: not known); ``rule`` is the rule's id, "" outside rules;
    ``expression_line`` and ``expression_column`` count from 1 in the condition (0: not about a condition).
    """

    def __init__(
        self, reason: str, *, place: Place | None = None, rule: str = "", expression: Place | None = None
    ) -> None:
        where = f"line {place.line}, column {place.column} of the file: " if place else ""
        super().__init__(where + reason)
        self.line, self.column = (place.line, place.column) if place else (0, 0)
        self.rule = rule
        self.expression_line = expression.line if expression else 0
        self.expression_column = expression.column if expression else 0


class _RuleError(Exception):
    """One table is wrong at ``key``; ``at`` is the place inside that key's text."""

    def __init__(self, reason: str, key: str = "", at: Place | None = None) -> None:
        super().__init__(reason)
        self.key = key
        self.at = at


def load_ruleset(text: str, schema: ColumnSchema, version: int = 0) -> RuleSet:
    """Read and check a rule set file's text; raises :class:`RuleSetError` naming the first wrong rule and its place.

    ``version``: the rulebook's number of it; 0 takes the file's own, which it must then have.
    """
    document = _read_toml(text)
    unknown = set(document) - {"name", "version", "rule", "brake"}
    if unknown:
        raise RuleSetError(f"unknown keys in the rule set: {', '.join(sorted(unknown))}")
    name, number = document.get("name"), document.get("version", version)
    # A boolean is an int to Python, and no version.
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise RuleSetError(f"a rule set needs a name (text of at most {MAX_NAME} characters)")
    if type(number) is not int or not 1 <= number <= MAX_VERSIONS:
        raise RuleSetError(f"a rule set needs a version (1, 2, ... {MAX_VERSIONS})")
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RuleSetError("rules are written as [[rule]] tables")
    if len(tables) > MAX_RULES:
        raise RuleSetError(f"{len(tables)} rules, at most {MAX_RULES} are permitted")
    rules: dict[str, Rule] = {}
    for position, table in enumerate(tables):
        try:
            rule = _load_rule(table, schema)
            if rule.id in rules:
                raise _RuleError("is defined twice", "id")
        except _RuleError as error:
            raise _placed(text, table, position, error) from error
        rules[rule.id] = rule
    return RuleSet(name, version or number, list(rules.values()), _load_brake(document.get("brake", {})))


def _read_toml(text: str) -> dict[str, Any]:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RuleSetError(f"the rule set has more than {MAX_BYTES} bytes")
    _check_visible(text)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_PLACE.search(str(error))
        place = Place(int(found[1]), int(found[2])) if found else None
        raise RuleSetError(f"the rule set is not TOML: {error}", place=place) from error
    except RecursionError as error:
        raise RuleSetError("the rule set is nested too deeply") from error
    except ValueError as error:
        # Python refuses to read integers of thousands of digits.
        raise RuleSetError("the rule set holds a number of too many digits") from error


def _check_visible(text: str) -> None:
    if text.isascii() and text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return
    line, column = 1, 1
    for character in text:
        if character not in "\n\r\t" and unicodedata.category(character) in _UNSEEN:
            raise RuleSetError(
                f"the character U+{ord(character):04X} cannot be seen: take it out, or write it as an escape",
                place=Place(line, column),
            )
        line, column = (line + 1, 1) if character == "\n" else (line, column + 1)


def _placed(text: str, table: Mapping[str, Any], position: int, error: _RuleError) -> RuleSetError:
    given = table.get("id", f"number {position + 1}")
    places = table_places(text, "rule")
    place: Place | None = None
    # Tables written inline have no place of their own.
    if position < len(places):
        place = _place_of(places[position], table, error)
    return RuleSetError(f"rule {given!r}: {error}", place=place, rule=str(given), expression=error.at)


def _place_of(places: TablePlaces, table: Mapping[str, Any], error: _RuleError) -> Place:
    if error.at is None:
        return places.key(error.key)
    return places.inside(error.key, table[error.key], error.at.line, error.at.column)


def _load_brake(table: object) -> BrakeLimits:
    if not isinstance(table, dict):
        raise RuleSetError("the brake is written as a [brake] table")
    unknown = set(table) - {"window_minutes", "min_events", "min_customers", *_BRAKE_NUMBERS}
    if unknown:
        raise RuleSetError(f"unknown keys in [brake]: {', '.join(sorted(unknown))}")
    given: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RuleSetError(f"[brake] needs {key} = a number")
        if key in _BRAKE_NUMBERS:
            given[key] = _share(value)
        elif isinstance(value, int):
            given |= {"window_us": value * 60_000_000} if key == "window_minutes" else {key: value}
        else:
            raise RuleSetError(f"[brake] needs {key} = a whole number")
    try:
        return BrakeLimits(**given)
    except ValueError as error:
        raise RuleSetError(f"[brake]: {error}") from error


def _load_rule(table: Mapping[str, Any], schema: ColumnSchema) -> Rule:
    fields: dict[str, str] = {}
    for key in _TEXT_KEYS:
        value = table.get(key)
        if value is None and key == "evidence":
            continue
        if not isinstance(value, str) or not value:
            raise _RuleError(f'needs {key} = "text"', key)
        fields[key] = value
    unknown = sorted(set(table) - {*_TEXT_KEYS, "max_share"})
    if unknown:
        raise _RuleError(f"unknown keys {', '.join(unknown)}", unknown[0])
    if not _ID.fullmatch(fields["id"]):
        raise _RuleError("an id is lower-case letters, digits and dashes, at most 64", "id")
    try:
        verdict = verdict_named(fields["verdict"])
    except ValueError as error:
        raise _RuleError(str(error), "verdict") from error
    try:
        expression = parse_condition(fields["when"], schema)
    except RuleSyntaxError as error:
        raise _RuleError(str(error), "when", Place(error.line, error.column)) from error
    rule = Rule(
        fields["id"], expression, verdict, fields["reason"], fields.get("evidence"), _max_share(table)
    )
    _check_reason(rule, schema)
    _check_evidence(rule, schema)
    return rule


def _max_share(table: Mapping[str, Any]) -> float | None:
    value = table.get("max_share")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _RuleError("needs max_share = a number", "max_share")
    try:
        return check_share(_share(value), "max_share")
    except ValueError as error:
        raise _RuleError(str(error), "max_share") from error


def _share(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _check_reason(rule: Rule, schema: ColumnSchema) -> None:
    # It is filled in and kept for every event the rule decides.
    if len(rule.reason) > MAX_REASON:
        raise _RuleError(f"the reason has more than {MAX_REASON} characters", "reason")
    around = PLACEHOLDER.sub("", rule.reason)
    if "{" in around or "}" in around:
        raise _RuleError("the reason has an unmatched brace", "reason")
    for named in PLACEHOLDER.finditer(rule.reason):
        if named[1] not in schema:
            line = rule.reason.count("\n", 0, named.start(1)) + 1
            column = named.start(1) - (rule.reason.rfind("\n", 0, named.start(1)) + 1) + 1
            raise _RuleError(
                f"the reason names {{{named[1]}}}, which is no column", "reason", Place(line, column)
            )


def _check_evidence(rule: Rule, schema: ColumnSchema) -> None:
    kinds = {schema[name].evidence for name in rule.expression.columns} - {None}
    if kinds - {rule.evidence}:
        named = ", ".join(sorted(kind for kind in kinds if kind is not None))
        raise _RuleError(
            f'reads evidence of other parties about {named}; declare evidence = "KIND" (one kind a rule), '
            "so that the policy's tier bounds its verdict",
            "evidence",
        )
    if rule.evidence is not None and rule.evidence not in {column.evidence for column in schema.values()}:
        raise _RuleError(f"there is no evidence about {rule.evidence!r} here", "evidence")

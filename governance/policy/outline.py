"""A bundle for people to read: its parameters as tables, its Cedar rules by id with what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cedarpy

from governance.messages.policy import PolicyBundle
from governance.policy.decision import PolicyError


@dataclass(frozen=True)
class RuleOutline:
    """One Cedar policy: ``effect`` is permit or forbid, ``actions`` and ``who`` are empty where any is meant."""

    rule: str
    effect: str
    who: str
    actions: tuple[str, ...]
    reason: str


def outline_rules(cedar: str) -> list[RuleOutline]:
    """The policies of ``cedar`` in their order; raises :class:`PolicyError` if the text does not parse."""
    try:
        policies = json.loads(cedarpy.policies_to_json_str(cedar))["staticPolicies"]
    except ValueError as error:
        raise PolicyError(f"the policy does not parse: {error}") from error
    rules = []
    for _, policy in sorted(policies.items(), key=lambda item: int(item[0].removeprefix("policy"))):
        annotations = policy.get("annotations", {})
        rules.append(
            RuleOutline(
                rule=annotations.get("id") or "",
                effect=policy["effect"],
                who=", ".join(_named(policy["principal"])),
                actions=tuple(_named(policy["action"])),
                reason=annotations.get("reason") or "",
            )
        )
    return rules


def outline_bundle(bundle: PolicyBundle) -> str:
    """The whole bundle as text, without the conditions of its rules; raises :class:`PolicyError`."""
    sections = [
        f"policy epoch {bundle.policy_epoch}: checkpoints are at most {bundle.max_checkpoint_age_seconds} s old, "
        f"labels are merged within {bundle.merge_delay_seconds} s, "
        f"a contributor adds at most {bundle.labels_per_day} labels a day\n",
        _section(
            "KINDS of indicators",
            ("kind", "group", "label lives", "victims within", "public directory"),
            (
                (
                    each.kind,
                    each.kind_group,
                    f"{each.expiry_days} days",
                    f"{each.victim_window_days} days",
                    "yes" if each.public_directory else "no",
                )
                for each in bundle.kinds
            ),
        ),
        _section(
            "TIERS of evidence: what a hit may do at most",
            ("tier", "distinct victims", "verdict"),
            ((each.name, f">= {each.min_victims}", each.verdict) for each in bundle.tiers),
        ),
        _section(
            "BUDGETS of one caller at one key holder, in evaluated elements",
            ("kind group", "lookups a day", "enrolment an epoch", "a second"),
            (
                (
                    each.kind_group,
                    str(each.lookups_per_day),
                    str(each.enrolment_per_epoch),
                    str(each.elements_per_second),
                )
                for each in bundle.budgets
            ),
        ),
        _section(
            "INQUIRIES that may be asked",
            ("template", "data set", "colluders", "cells", "days", "a day each", "cell value", "lifetime"),
            (
                (
                    each.template,
                    each.dataset,
                    f"{each.colluders}, cohort >= {each.colluders + 2}",
                    f"<= {each.max_cells}",
                    f"<= {each.max_days}",
                    f"<= {each.max_per_requester_per_day}",
                    f"<= {each.max_cell_value}",
                    f"{each.lifetime_seconds} s",
                )
                for each in bundle.inquiries
            ),
        ),
        _section(
            "RULES: a forbid outweighs every permit, and what no rule permits is refused",
            ("rule", "effect", "who", "action", "reason"),
            (
                (each.rule, each.effect, each.who or "anyone", ", ".join(each.actions) or "any", each.reason)
                for each in outline_rules(bundle.cedar)
            ),
        ),
    ]
    return "\n".join(sections)


def _named(scope: dict[str, object]) -> Iterable[str]:
    """The ids a scope names: ``==`` or ``in`` one entity, or ``in`` several; nothing for any entity."""
    entities = scope.get("entities") or ([scope["entity"]] if "entity" in scope else [])
    return [str(each["id"]) for each in entities if isinstance(each, dict)]  # type: ignore[attr-defined]


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([title, *text]) + "\n"

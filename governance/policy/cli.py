"""``subrosa policy show|test``: reads a policy bundle to people, and tries one decision against it, offline.

A bundle's file is JSON as ``show --json`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from governance.inquiries import CONFIRMED_FRAUDS
from governance.log.export import TrustAnchors
from governance.members import MembershipError, Role, check_roll
from governance.messages.policy import PolicyBundle
from governance.messages.roll import Directory, MembershipRoll, RollEntry
from governance.policy import requests
from governance.policy.decider import Decider
from governance.policy.decision import AccessRequest, Decision, PolicyError
from governance.policy.default import TERMINALS, default_bundle
from governance.policy.outline import outline_bundle
from governance.purposes import Purpose, Quota

MAX_FILE_BYTES = 4 * 2**20
EXAMPLE_MEMBERS = ("bank-a", "bank-b", "bank-c", "bank-d")
PERMITTED, REFUSED, UNUSABLE = 0, 1, 2

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Show a policy bundle and try decisions against it."
)

BundleFile = Annotated[
    Path | None,
    typer.Option("--bundle", help="Bundle (JSON of `show --json`); the default policy without it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Action(StrEnum):
    """The actions a policy decides on."""

    LOOKUP = "lookup"
    CONTRIBUTE = "contribute"
    MIRROR = "mirror"
    INQUIRE = "inquire"
    TAKE_PART = "take-part"
    READ_LOG = "read-log"


# Which options describe which action; any other is a mistake of the caller, not something to ignore.
_DEFAULTS: dict[Action, dict[str, Any]] = {
    Action.LOOKUP: {
        "kind_group": TERMINALS,
        "purpose": Purpose.FRAUD_PREVENTION,
        "quota": Quota.LOOKUP,
        "elements": 1,
    },
    Action.CONTRIBUTE: {"kind_group": TERMINALS, "purpose": Purpose.INDICATOR_SHARING, "labels": 1},
    Action.MIRROR: {"purpose": Purpose.INDICATOR_SHARING},
    Action.INQUIRE: {
        "template": CONFIRMED_FRAUDS,
        "dataset": TERMINALS,
        "purpose": Purpose.JOINT_STATISTICS,
        "cells": 1,
        "days": 1,
        "cohort": None,
        "privacy": "none",
        "mode": "strict",
    },
    Action.TAKE_PART: {
        "requester": None,
        "template": CONFIRMED_FRAUDS,
        "dataset": TERMINALS,
        "purpose": Purpose.JOINT_STATISTICS,
        "cells": 1,
        "cohort": None,
    },
    Action.READ_LOG: {"own": True},
}


class UnusableFileError(Exception):
    """A bundle or roll cannot be read; the text names the file and what is wrong with it."""


@app.command()
def show(bundle: BundleFile = None, as_json: AsJson = False) -> None:
    """Print kinds, tiers, budgets, inquiry rules and Cedar rules of a bundle, after checking that it can decide."""
    try:
        chosen = read_bundle(bundle)
        Decider(chosen, example_roll(chosen))
        text = outline_bundle(chosen)
    except (UnusableFileError, PolicyError) as error:
        raise _unusable(error, bundle) from error
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(chosen)).decode())
    else:
        typer.echo(text, nl=False)


@app.command("test")
def try_decision(
    action: Annotated[Action, typer.Option(help="What is asked.")],
    party: Annotated[str, typer.Option(help="Who asks: a party id.")],
    purpose: Annotated[str | None, typer.Option(help="Why; by default the action's usual purpose.")] = None,
    kind_group: Annotated[
        str | None, typer.Option(help="lookup, contribute: terminals if not given.")
    ] = None,
    quota: Annotated[str | None, typer.Option(help="lookup: lookup or enrolment.")] = None,
    elements: Annotated[int | None, typer.Option(help="lookup: elements in one request.")] = None,
    labels: Annotated[int | None, typer.Option(help="contribute: labels in one request.")] = None,
    template: Annotated[
        str | None, typer.Option(help="inquire, take-part: template of the statistic.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="inquire, take-part: its data set.")] = None,
    cells: Annotated[int | None, typer.Option(help="inquire, take-part: cells asked.")] = None,
    days: Annotated[int | None, typer.Option(help="inquire: days asked.")] = None,
    cohort: Annotated[
        str | None, typer.Option(help="inquire, take-part: party ids with commas; all members if not given.")
    ] = None,
    privacy: Annotated[str | None, typer.Option(help="inquire: privacy mechanism.")] = None,
    mode: Annotated[str | None, typer.Option(help="inquire: recovery mode.")] = None,
    requester: Annotated[str | None, typer.Option(help="take-part: whose inquiry it is.")] = None,
    own: Annotated[
        bool | None, typer.Option("--own/--all", help="read-log: its own entries, or everybody's.")
    ] = None,
    roll: Annotated[
        Path | None,
        typer.Option(help="Membership: JSON of a roll, or parties.json of an exported log; else four banks."),
    ] = None,
    bundle: BundleFile = None,
    as_json: AsJson = False,
) -> None:
    """Try one decision: exit 0 if it is permitted, 1 if it is refused, 2 if it cannot be tried."""
    given = {
        "purpose": purpose,
        "kind_group": kind_group,
        "quota": quota,
        "elements": elements,
        "labels": labels,
        "template": template,
        "dataset": dataset,
        "cells": cells,
        "days": days,
        "cohort": None if cohort is None else [each.strip() for each in cohort.split(",")],
        "privacy": privacy,
        "mode": mode,
        "requester": requester,
        "own": own,
    }
    try:
        policy = read_bundle(bundle)
        membership = example_roll(policy) if roll is None else read_roll(roll, policy)
        decider = Decider(policy, membership)
    except (UnusableFileError, PolicyError) as error:
        raise _unusable(error, bundle) from error
    members = [entry.party for entry in membership.parties if entry.role == Role.MEMBER]
    request = make_request(
        action, party, {name: value for name, value in given.items() if value is not None}, members
    )
    decision = decider.decide(request)
    typer.echo(_as_json(decision) if as_json else _as_text(decision, membership))
    raise typer.Exit(PERMITTED if decision.permitted else REFUSED)


def make_request(
    action: Action, party: str, given: dict[str, Any], members: Collection[str]
) -> AccessRequest:
    """The question to the policy; raises :class:`typer.BadParameter` for options that are not of ``action``."""
    fields = _DEFAULTS[action]
    for name in given:
        if name not in fields:
            hint = ", ".join(f"--{each.replace('_', '-')}" for each in fields)
            raise typer.BadParameter(
                f"--{name.replace('_', '-')} does not belong to {action}, which takes {hint}"
            )
    chosen = fields | given
    if "cohort" in chosen and chosen["cohort"] is None:
        chosen["cohort"] = members
    if action is Action.LOOKUP:
        return requests.lookup(party, **chosen)
    if action is Action.CONTRIBUTE:
        return requests.contribute(party, **chosen)
    if action is Action.MIRROR:
        return requests.mirror(party, **chosen)
    if action is Action.INQUIRE:
        return requests.inquire(party, **chosen)
    if action is Action.READ_LOG:
        return requests.read_log(party, **chosen)
    if chosen["requester"] is None:
        raise typer.BadParameter("take-part needs --requester: whose inquiry is it?")
    return requests.take_part(party, **chosen)


def example_roll(bundle: PolicyBundle) -> MembershipRoll:
    """Four banks, a coordinator and a regulator, with a public directory for every data set of the bundle."""
    parties = [(bank, Role.MEMBER) for bank in EXAMPLE_MEMBERS]
    return _make_roll([*parties, ("coordinator", Role.COORDINATOR), ("regulator", Role.REGULATOR)], bundle)


def read_bundle(path: Path | None) -> PolicyBundle:
    """The bundle in ``path`` (the default one for None), or :class:`UnusableFileError`."""
    if path is None:
        return default_bundle()
    bundle: PolicyBundle = _decode(path, PolicyBundle)
    return bundle


def read_roll(path: Path, bundle: PolicyBundle) -> MembershipRoll:
    """A roll as JSON, or the parties of an exported log, whose data sets are then taken to have public directories."""
    try:
        if "group_keys" in _decode(path, dict[str, msgspec.Raw]):
            roll: MembershipRoll = _decode(path, MembershipRoll)
        else:
            anchors = _decode(path, TrustAnchors)
            roll = _make_roll([(each.party, each.role) for each in anchors.parties], bundle)
        check_roll(roll)
    except MembershipError as error:
        raise UnusableFileError(f"{path}: {error}") from error
    return roll


def _make_roll(parties: Collection[tuple[str, str]], bundle: PolicyBundle) -> MembershipRoll:
    """A roll that is good for decisions and nothing else: its keys are placeholders that verify nothing."""
    return MembershipRoll(
        version=1,
        epoch=1,
        issued_at=0,
        normal_forms=1,
        parties=[
            RollEntry(
                party=party,
                name=party,
                role=role,
                verify_key=number.to_bytes(32, "big"),
                url="",
                share_index=number if role == Role.MEMBER else 0,
                joined_epoch=1,
            )
            for number, (party, role) in enumerate(parties, start=1)
        ],
        group_keys=[],
        directories=[
            Directory(dataset=dataset, cells=1, digest=bytes(32))
            for dataset in sorted({rule.dataset for rule in bundle.inquiries})
        ],
    )


def _decode(path: Path, kind: Any) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnusableFileError(f"{path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UnusableFileError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableFileError(f"{path}: {error}") from error


def _unusable(error: Exception, bundle: Path | None) -> typer.Exit:
    where = "" if isinstance(error, UnusableFileError) else f"{bundle or 'the default bundle'}: "
    typer.echo(
        f"policy: {where}{error}. Nothing is permitted by what cannot be read: correct the file.", err=True
    )
    return typer.Exit(UNUSABLE)


def _as_json(decision: Decision) -> str:
    asked = decision.request
    return json.dumps(
        {
            "permitted": decision.permitted,
            "rule": decision.rule,
            "reason": decision.reason,
            "policy_epoch": decision.policy_epoch,
            "party": asked.principal,
            "action": asked.action,
            "resource": list(asked.resource),
            "context": dict(asked.context),
        }
    )


def _as_text(decision: Decision, roll: MembershipRoll) -> str:
    asked = decision.request
    role = next((each.role for each in roll.parties if each.party == asked.principal), "not on the roll")
    context = ", ".join(f"{name} {json.dumps(value)}" for name, value in asked.context.items())
    return "\n".join(
        [
            f"{'PERMITTED' if decision.permitted else 'REFUSED'}  by rule {decision.rule}: {decision.reason}",
            f"  {asked.principal} ({role}) asks to {asked.action} {asked.resource[0]} {asked.resource[1]}",
            f"  with {context}",
            f"  under policy epoch {decision.policy_epoch}",
        ]
    )

"""``subrosa case``: the fraud desk's queue (list, show, assign, note, decide) and the exemptions that wait for an
approver (exemptions, approve, reject), through the bank's own running member node."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from member_node.command_line import (
    AsJson,
    Directory,
    TokenFile,
    open_desk,
    parse_time_ms,
    time_option,
    time_text,
)
from scoring.verdicts import Verdict

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Work the alerts that scoring raised: list, show, assign, note, decide, approve exemptions.",
)

CaseId = Annotated[int, typer.Argument(help="Number of the case.", min=1)]


@app.command("list")
def list_cases(
    directory: Directory,
    status: Annotated[str, typer.Option(help="open, closed or all.")] = "open",
    assignee: Annotated[str | None, typer.Option(help="Whose; an empty text: nobody's yet.")] = None,
    severity: Annotated[
        str, typer.Option(help="Least severe verdict: challenge, review or block.")
    ] = "allow",
    customer: Annotated[str, typer.Option(help="Of one customer.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="Cases to show.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Cases to leave out.")] = 0,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """The queue: the gravest cases first, of these the oldest."""
    asked: dict[str, Any] = {"status": status, "severity": severity, "limit": limit, "offset": offset}
    if customer:
        asked["customer"] = customer
    if assignee is not None:
        asked["assignee"] = assignee
    with open_desk(directory, token_file) as desk:
        answer = desk.get(f"cases?{urlencode(asked)}")
        counts = desk.get("cases/counts")
    if as_json:
        typer.echo(json.dumps({**answer, "counts": counts}))
        return
    for case in answer["cases"]:
        typer.echo(_line(case))
    typer.echo(f"{counts['open']} open, {counts['alerts']} alerts in all; older than a day: {_older(counts)}")


@app.command()
def show(
    case_id: CaseId, directory: Directory, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """One case with its alerts and everything that was done to it."""
    with open_desk(directory, token_file) as desk:
        _print(desk.get(f"cases/{case_id}"), as_json)


@app.command()
def assign(
    case_id: CaseId,
    directory: Directory,
    to: Annotated[str, typer.Option("--to", help="Name of the analyst; empty: back to the queue.")],
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a case to somebody."""
    with open_desk(directory, token_file) as desk:
        _print(desk.post(f"cases/{case_id}/assign", assignee=to), as_json)


@app.command()
def note(
    case_id: CaseId,
    text: Annotated[str, typer.Argument(help="What was noticed.")],
    directory: Directory,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Add a note to a case."""
    with open_desk(directory, token_file) as desk:
        _print(desk.post(f"cases/{case_id}/note", text=text), as_json)


@app.command()
def decide(
    case_id: CaseId,
    decision: Annotated[str, typer.Argument(help="fraud, genuine or unclear.")],
    directory: Directory,
    text: Annotated[str, typer.Option(help="Why.")] = "",
    known_at: Annotated[
        str | None, typer.Option(help="Business time it became known (ISO 8601), for replays. Default: now.")
    ] = None,
    exempt_until: Annotated[
        str | None,
        typer.Option(
            help="With genuine: exempt the customer until then (ISO 8601). What lasts longer than an analyst may "
            "decide alone waits for an approver."
        ),
    ] = None,
    exempt_rule: Annotated[str, typer.Option(help="Only from this rule. Default: from every rule.")] = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Close a case; fraud and genuine become the outcome of its events (features, training, indicators)."""
    body: dict[str, Any] = {"decision": decision, "text": text}
    if known_at is not None:
        body["known_at_ms"] = time_option(known_at, "known-at", 0)
    if exempt_until is not None:
        try:
            body["exempt_until_us"] = parse_time_ms(exempt_until) * 1000
        except ValueError as error:
            raise typer.BadParameter(f"--exempt-until: {error}") from error
        body["exempt_rule"] = exempt_rule
    with open_desk(directory, token_file) as desk:
        _print(desk.post(f"cases/{case_id}/decide", **body), as_json)


Why = Annotated[str, typer.Option(help="Why; it is kept with the case.")]


@app.command()
def exemptions(directory: Directory, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Exemptions that wait for an approver."""
    with open_desk(directory, token_file) as desk:
        answer = desk.get("cases/exemptions?limit=500")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for each in answer["exemptions"]:
        typer.echo(_exemption(each))
    typer.echo(f"{len(answer['exemptions'])} wait")


@app.command()
def approve(
    case_id: CaseId, directory: Directory, why: Why, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Let the exemption that a case's decision proposed take effect; not one's own."""
    with open_desk(directory, token_file) as desk:
        _print(desk.post(f"cases/{case_id}/exemption", action="approve", why=why), as_json)


@app.command()
def reject(
    case_id: CaseId, directory: Directory, why: Why, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Refuse the exemption that a case's decision proposed, or withdraw one's own."""
    with open_desk(directory, token_file) as desk:
        _print(desk.post(f"cases/{case_id}/exemption", action="reject", why=why), as_json)


def _exemption(each: dict[str, Any]) -> str:
    settled = f" by {each['decided_by']}: {each['why']}" if each["decided_by"] else ""
    return (
        f"exemption of case {each['case_id']}: customer {each['customer']} from {each['rule'] or 'every rule'} until "
        f"{time_text(each['until_us'] // 1000)}, proposed by {each['author']}, {each['state']}{settled}"
    )


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(_line(answer))
    if answer["exemption"] is not None:
        typer.echo(f"  {_exemption(answer['exemption'])}")
    for alert in answer["alert_rows"]:
        when = time_text(alert["time_us"] // 1000)
        score = "" if alert["score"] is None else f" score {alert['score']:.3f}"
        typer.echo(
            f"  {when} event {alert['event_id']} {Verdict(alert['verdict']).label} by {alert['rule']}{score}"
        )
        typer.echo(f"    {_reasons(alert['reasons'])}")
    for each in answer["notes"]:
        typer.echo(f"  {time_text(each['at'] * 1000)} {each['author']} {each['action']}: {each['text']}")


def _reasons(text: str) -> str:
    if not text.startswith("["):
        return text
    return "; ".join(f"{each['rule']}: {each['text']}" for each in json.loads(text))


def _line(case: dict[str, Any]) -> str:
    hours = case["age_seconds"] / 3600
    who = case["assignee"] or "nobody"
    state = (
        f"{case['status']}, {case['decision']} by {case['decided_by']}"
        if case["decision"]
        else case["status"]
    )
    return (
        f"case {case['case_id']}: {Verdict(case['severity']).label}, {case['kind']}, "
        f"customer {case['customer'] or '-'}, {case['alerts']} alerts, {case['amount']:.2f} in all, "
        f"{hours:.1f} h old, with {who}, {state}"
    )


def _older(counts: dict[str, Any]) -> int:
    return int(counts["older_than"].get("86400", 0))

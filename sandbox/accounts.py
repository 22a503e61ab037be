"""What became of the consortium in a run, bank by bank, and whether the run may call itself a success.

A bank goes on scoring when the consortium fails it (D3: degraded mode), so a run can reach its end although nothing
was shared. Here every answer of the banks is read, and what must not stay unseen becomes a failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.evaluation import Evaluation
from sandbox.probe import Probe
from sandbox.scenario import Played

Json = Mapping[str, Any]
TAKEN_PART = "taken-part"
INQUIRE = "inquire"


@dataclass(frozen=True)
class BankAccount:
    """One bank's run. Mappings count by reason.

    ``days_not_shared``: days on which mirroring or asking failed. ``distrust``: evidence of a lying coordinator.
    ``inquiries``: permitted by the log; ``inquiries_refused``: of its own, by the log; ``inquiries_declined``: others'
    that it did not take part in. ``degraded``: rows scored without up-to-date tags or counts. ``indicators``: labels
    in the log; ``indicators_waiting``: not accepted yet at the end. ``lookups``: blinded points that key holders
    evaluated for it, in the log.
    """

    bank: str
    days_shared: int
    days_not_shared: Mapping[str, int]
    distrust: tuple[str, ...]
    inquiries: int
    inquiries_refused: Mapping[str, int]
    inquiries_declined: Mapping[str, int]
    scored: int
    degraded: int
    degraded_reasons: Mapping[str, int]
    rejected: int
    rule_errors: int
    indicators: int
    indicators_waiting: int
    lookups: int


def bank_accounts(
    played: Played,
    *,
    opened: Mapping[str, Json],
    statuses: Mapping[str, Json],
    audit: Json,
    evaluation: Evaluation,
    probe: Probe | None,
) -> tuple[BankAccount, ...]:
    """One account a bank. ``opened``: what each node answered when its stream was opened."""
    facts = {fact.bank: fact for fact in evaluation.banks}
    accounts = []
    for bank in opened:
        confirmed, shared, scored = (played.answers[bank][part] for part in ("confirm", "share", "score"))
        asked = [row for row in audit.get("requests", ()) if row["party"] == bank]
        refused = Counter[str]()
        for row in asked:
            if row["action"] == INQUIRE and row["decision"] == "refused":
                refused[row["reason"]] += row["requests"]
        if probe is not None and probe.party == bank and probe.refused:
            refused.subtract([_probed(refused, probe)])
        accounts.append(
            BankAccount(
                bank=bank,
                days_shared=sum(1 for answer in shared if not answer.get("reason")),
                days_not_shared=_reasons(shared),
                distrust=tuple(dict.fromkeys(str(a["distrust"]) for a in shared if a.get("distrust"))),
                inquiries=_total(asked, INQUIRE, "requests"),
                inquiries_refused=dict(+refused),
                inquiries_declined={
                    reason: int(count)
                    for reason, count in statuses.get(bank, {}).get("inquiries", {}).items()
                    if reason != TAKEN_PART
                },
                scored=facts[bank].events,
                degraded=facts[bank].degraded,
                degraded_reasons=_reasons(a for a in scored if a.get("degraded")),
                rejected=int(opened[bank].get("rejected", 0)),
                rule_errors=sum(int(answer.get("rule_errors", 0)) for answer in scored),
                indicators=_total(asked, "contribute", "amount"),
                indicators_waiting=int(confirmed[-1].get("waiting", 0)) if confirmed else 0,
                lookups=_total(asked, "evaluate", "amount"),
            )
        )
    return tuple(accounts)


def _reasons(answers: Iterable[Json]) -> dict[str, int]:
    return dict(Counter(str(answer["reason"]) for answer in answers if answer.get("reason")).most_common())


def _total(rows: Iterable[Json], action: str, field: str) -> int:
    return sum(int(row[field]) for row in rows if row["action"] == action and row["decision"] == "permitted")


def _probed(refused: Mapping[str, int], probe: Probe) -> str:
    """The logged reason of the probe's refusal: the one its answer quotes, else any."""
    return next((reason for reason in refused if reason in probe.answer), next(iter(refused), ""))


def failures(
    accounts: Sequence[BankAccount],
    *,
    evaluation: Evaluation,
    audit: Json,
    least_cohort: int,
    matured_frauds: int,
    probe: Probe | None,
) -> list[str]:
    """Why this run must not end green, one sentence each; empty when it may."""
    found = [
        f"{check.what}: {check.different:,} of {check.rows:,} rows differ, so a bank was given a wrong number."
        for check in evaluation.exactness
        if check.different
    ]
    found += [
        f"{account.bank} holds evidence that the coordinator lied: {text}"
        for account in accounts
        for text in account.distrust
    ]
    closed = int(audit.get("inquiries", {}).get("closed", 0))
    if len(accounts) >= least_cohort and matured_frauds and not closed:
        reasons = Counter[str]()
        for account in accounts:
            reasons.update(account.days_not_shared)
        why = f" The banks say: {reasons.most_common(1)[0][0]}" if reasons else ""
        found.append(
            f"No encrypted sum came about, although {matured_frauds:,} frauds had matured to be summed.{why}"
        )
    if probe is not None and not probe.refused:
        found.append(f"The coordinator permitted {probe.asked}, which policy forbids.")
    return found

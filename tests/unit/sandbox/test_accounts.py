"""A run that ends must not look like a success when nothing was shared, a sum was wrong or somebody lied."""

from __future__ import annotations

import dataclasses

import pytest

from sandbox.accounts import BankAccount, bank_accounts, failures
from sandbox.evaluation import Evaluation, Weeks, evaluate
from sandbox.evaluation.results import ExactnessCheck
from sandbox.probe import Probe
from sandbox.run import matured_frauds
from sandbox.scenario import Played

DELAY_DAYS = 2
PROBE = Probe(
    "bank-a", "the confirmed frauds of 32 days at once", True, "refused: too many days (rule window)"
)
AUDIT = {
    "inquiries": {"closed": 4},
    "requests": [
        {
            "party": "bank-a",
            "action": "inquire",
            "decision": "permitted",
            "reason": "",
            "requests": 4,
            "amount": 48,
        },
        {
            "party": "bank-a",
            "action": "inquire",
            "decision": "refused",
            "reason": "too many days",
            "requests": 1,
        }
        | {"amount": 0},
        {
            "party": "bank-b",
            "action": "inquire",
            "decision": "refused",
            "reason": "budget spent",
            "requests": 2,
        }
        | {"amount": 0},
        {
            "party": "bank-a",
            "action": "evaluate",
            "decision": "permitted",
            "reason": "",
            "requests": 3,
            "amount": 90,
        },
        {
            "party": "bank-a",
            "action": "evaluate",
            "decision": "refused",
            "reason": "busy",
            "requests": 1,
            "amount": 7,
        },
        {
            "party": "bank-b",
            "action": "contribute",
            "decision": "permitted",
            "reason": "",
            "requests": 2,
            "amount": 5,
        },
    ],
}
STATUSES = {
    "bank-a": {"inquiries": {"taken-part": 8, "not matured": 1}},
    "bank-b": {"inquiries": {"taken-part": 9}},
    "bank-c": {},
}


@pytest.fixture
def evaluation(made) -> Evaluation:
    weeks = Weeks.from_table({"train_first": "2024-10-10", "train_days": 7, "delay_days": 2, "test_days": 7})
    return evaluate(made.stream, weeks=weeks, spec=made.spec, models=(), count_delay_days=DELAY_DAYS)


def played() -> Played:
    run = Played()
    for bank in ("bank-a", "bank-b", "bank-c"):
        run.answers[bank]["confirm"] = [{"waiting": 4}, {"waiting": 1 if bank == "bank-b" else 0}]
        run.answers[bank]["share"] = [{"reason": ""}, {"reason": ""}]
        run.answers[bank]["score"] = [{"degraded": 0, "reason": "", "rule_errors": 1}, {"rule_errors": 2}]
    run.answers["bank-b"]["share"] = [
        {"reason": "bank-c did not answer"},
        {"reason": "bank-c did not answer"},
        {"reason": "", "distrust": ""},
    ]
    run.answers["bank-b"]["score"] += [{"degraded": 17, "reason": "counts are behind", "rule_errors": 0}]
    return run


def accounts_of(run: Played, evaluation: Evaluation, probe: Probe | None = PROBE) -> dict[str, BankAccount]:
    opened = {"bank-a": {"rejected": 0}, "bank-b": {"rejected": 3}, "bank-c": {}}
    found = bank_accounts(
        run, opened=opened, statuses=STATUSES, audit=AUDIT, evaluation=evaluation, probe=probe
    )
    return {account.bank: account for account in found}


def failures_of(
    run: Played, evaluation: Evaluation, *, audit=AUDIT, matured=10, least=3, probe=PROBE
) -> list[str]:
    accounts = tuple(accounts_of(run, evaluation).values())
    return failures(
        accounts, evaluation=evaluation, audit=audit, least_cohort=least, matured_frauds=matured, probe=probe
    )


def test_every_answer_counts(evaluation) -> None:
    accounts = accounts_of(played(), evaluation)
    a, b = accounts["bank-a"], accounts["bank-b"]
    assert (a.days_shared, a.days_not_shared) == (2, {})
    assert (b.days_shared, b.days_not_shared) == (1, {"bank-c did not answer": 2})
    assert (a.inquiries, a.lookups, a.indicators) == (4, 90, 0)
    assert (b.inquiries, b.lookups, b.indicators, b.indicators_waiting) == (0, 0, 5, 1)
    assert a.inquiries_declined == {"not matured": 1}
    assert b.inquiries_refused == {"budget spent": 2}
    assert (b.rejected, b.rule_errors, b.degraded_reasons) == (3, 3, {"counts are behind": 1})
    assert a.scored + b.scored + accounts["bank-c"].scored == sum(bank.events for bank in evaluation.banks)


def test_the_sandboxs_own_probe_is_not_counted_against_the_bank(evaluation) -> None:
    assert accounts_of(played(), evaluation)["bank-a"].inquiries_refused == {}
    without = accounts_of(played(), evaluation, probe=None)
    assert without["bank-a"].inquiries_refused == {"too many days": 1}


def test_degraded_rows_come_from_the_histories(made) -> None:
    degraded = made.stream.bank == 1
    stream = dataclasses.replace(made.stream, degraded=degraded)
    weeks = Weeks.from_table({"train_first": "2024-10-10", "train_days": 7, "delay_days": 2, "test_days": 7})
    found = evaluate(stream, weeks=weeks, spec=made.spec, models=(), count_delay_days=DELAY_DAYS)
    accounts = accounts_of(played(), found)
    assert accounts["bank-b"].degraded == accounts["bank-b"].scored == degraded.sum()
    assert accounts["bank-a"].degraded == 0
    assert found.exactness[0].left_out == degraded.sum()
    assert found.exactness[0].rows == (~degraded).sum()


def test_a_sound_run_has_no_failure(evaluation) -> None:
    assert failures_of(played(), evaluation) == []


def test_a_wrong_sum_is_a_failure(evaluation) -> None:
    wrong = dataclasses.replace(
        evaluation, exactness=(ExactnessCheck("sums", 100, 0), ExactnessCheck("tags", 9, 2))
    )
    (failure,) = failures_of(played(), wrong)
    assert failure.startswith("tags: 2 of 9 rows differ")


def test_evidence_of_a_lying_coordinator_is_a_failure(evaluation) -> None:
    run = played()
    run.answers["bank-c"]["share"] += [{"reason": "", "distrust": "two checkpoints of one size"}] * 2
    (failure,) = failures_of(run, evaluation)
    assert failure == "bank-c holds evidence that the coordinator lied: two checkpoints of one size"


def test_no_sum_at_all_is_a_failure_with_the_banks_reason(evaluation) -> None:
    nothing = AUDIT | {"inquiries": {"expired": 3}}
    (failure,) = failures_of(played(), evaluation, audit=nothing)
    assert "10 frauds had matured" in failure
    assert failure.endswith("The banks say: bank-c did not answer")
    assert failures_of(played(), evaluation, audit=nothing, matured=0) == []
    assert failures_of(played(), evaluation, audit=nothing, least=4) == [], "policy serves no such cohort"


def test_a_permitted_probe_is_a_failure(evaluation) -> None:
    permitted = dataclasses.replace(PROBE, refused=False)
    (failure,) = failures_of(played(), evaluation, probe=permitted)
    assert (
        failure == "The coordinator permitted the confirmed frauds of 32 days at once, which policy forbids."
    )


def test_matured_frauds_are_those_the_last_day_could_ask_for(made) -> None:
    stream = made.stream
    days = stream.day[(stream.fraud == 1) & (stream.cell >= 0)]
    assert matured_frauds(stream, DELAY_DAYS) == (days < stream.day.max() - DELAY_DAYS).sum() > 0
    assert matured_frauds(stream, 100) == 0

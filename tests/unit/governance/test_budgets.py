"""Evaluation budgets: exact limits, no renewal by a clock that goes back, nothing spent by a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.budgets import SECONDS_PER_DAY, BudgetExceededError, BudgetState, bucket_size, spend
from governance.messages.lookup import MAX_ELEMENTS
from governance.messages.policy import EvaluationBudget

NOON = 20_000 * SECONDS_PER_DAY + 43_200


def limits(per_day: int = 100, per_epoch: int = 1000, per_second: int = 10_000) -> EvaluationBudget:
    return EvaluationBudget(
        kind_group="terminals",
        lookups_per_day=per_day,
        enrolment_per_epoch=per_epoch,
        elements_per_second=per_second,
    )


def ask(
    state: BudgetState,
    count: int,
    now: int = NOON,
    *,
    quota: str = "lookup",
    epoch: int = 1,
    budget: EvaluationBudget | None = None,
) -> BudgetState:
    return spend(state, count, budget or limits(), now, quota=quota, epoch=epoch, party="bank-b")


def test_the_daily_limit_is_exact_and_renewed_at_midnight() -> None:
    state = ask(ask(BudgetState(), 60), 40)
    with pytest.raises(BudgetExceededError) as caught:
        ask(state, 1)
    error = caught.value
    assert (error.party, error.limit, error.remaining, error.asked) == ("bank-b", "lookups per day", 0, 1)
    assert error.retry_after == 43_200
    with pytest.raises(BudgetExceededError):
        ask(state, 1, NOON + 43_199)
    assert ask(state, 100, NOON + 43_200).lookups_today == 100


def test_enrolment_is_counted_per_epoch_and_apart() -> None:
    state = ask(ask(BudgetState(), 1000, quota="enrolment"), 100)
    with pytest.raises(BudgetExceededError, match="enrolment per epoch") as caught:
        ask(state, 1, NOON + 10 * SECONDS_PER_DAY, quota="enrolment")
    assert caught.value.retry_after == 0
    assert ask(state, 1000, NOON + 1, quota="enrolment", epoch=2).enrolled == 1000


def test_the_bucket_refills_by_the_second() -> None:
    budget = limits(per_day=10**9, per_second=5000)
    state = ask(BudgetState(), 4096, budget=budget)
    with pytest.raises(BudgetExceededError, match="elements per second") as caught:
        ask(state, 4096, budget=budget)
    assert (caught.value.remaining, caught.value.retry_after) == (904, 1)
    assert ask(state, 4096, NOON + 1, budget=budget).tokens == 904
    # never more than the bucket, however long the pause
    assert ask(state, 1, NOON + 10**6, budget=budget).tokens == 4999


def test_a_slow_rate_still_admits_one_full_request() -> None:
    budget = limits(per_day=10**9, per_second=10)
    assert bucket_size(budget) == MAX_ELEMENTS
    state = ask(BudgetState(), MAX_ELEMENTS, budget=budget)
    with pytest.raises(BudgetExceededError) as caught:
        ask(state, 95, NOON + 9, budget=budget)
    assert caught.value.retry_after == 1
    ask(state, 90, NOON + 9, budget=budget)


def test_a_clock_that_goes_back_renews_nothing() -> None:
    state = ask(BudgetState(), 100)
    with pytest.raises(BudgetExceededError):
        ask(state, 1, NOON - SECONDS_PER_DAY)
    # and takes nothing away: what is left may still be spent
    assert ask(ask(BudgetState(), 1), 99, NOON - 3600).lookups_today == 100
    slow = limits(per_day=10**9, per_second=10)
    empty = ask(BudgetState(), MAX_ELEMENTS, budget=slow)
    with pytest.raises(BudgetExceededError):
        ask(empty, 1, NOON - 10**6, budget=slow)
    assert ask(ask(empty, 10, NOON + 1, budget=slow), 10, NOON + 2, budget=slow).tokens == 0


def test_what_gives_nothing() -> None:
    state = ask(BudgetState(), 1, epoch=3)
    with pytest.raises(BudgetExceededError, match="epoch 2 has ended"):
        ask(state, 1, epoch=2, quota="enrolment")
    with pytest.raises(BudgetExceededError, match="unknown quota"):
        ask(state, 1, epoch=3, quota="free")
    with pytest.raises(BudgetExceededError):
        ask(BudgetState(), 1, budget=limits(0, 0, 0))
    for count in (0, -1):
        with pytest.raises(ValueError, match="at least one"):
            ask(state, count)


steps = st.lists(
    st.tuples(st.integers(0, 200_000), st.integers(1, 60), st.sampled_from(["lookup", "enrolment"])),
    max_size=40,
)


@given(steps)
def test_no_sequence_of_requests_gets_more_than_the_limits(asked: list[tuple[int, int, str]]) -> None:
    state = BudgetState()
    spent: dict[tuple[str, int], int] = {}
    now = NOON
    for pause, count, quota in asked:
        now += pause
        try:
            state = ask(state, count, now, quota=quota)
        except BudgetExceededError as error:
            assert error.remaining < count  # noqa: PT017
            continue
        key = (quota, now // SECONDS_PER_DAY if quota == "lookup" else 1)
        spent[key] = spent.get(key, 0) + count
    for (quota, _), total in spent.items():
        assert total <= (100 if quota == "lookup" else 1000)

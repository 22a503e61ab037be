"""The report: one file, readable without anything else, and never silent about what is missing."""

import dataclasses
import datetime as dt
import json
from html.parser import HTMLParser

import pytest

from sandbox.accounts import BankAccount
from sandbox.coordinator_view import CoordinatorView, KindView
from sandbox.evaluation import Weeks, evaluate
from sandbox.evaluation.results import LOGISTIC
from sandbox.probe import Probe
from sandbox.report import RunRecord, build_report, write_headline_picture
from sandbox.report.build import render, to_json
from sandbox.report.markup import Missing, escape, table
from sandbox.report.plots import growth
from sandbox.report.traffic import Operation, calls_asked, flat, operations_of, over_banks
from sandbox.report.units import milliseconds

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checker(HTMLParser):
    """Collects ids, references and tags; raises when tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._attributes(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self._attributes(attributes)

    def _attributes(self, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href", "src"):
                self.references.add(value)
            elif name == "aria-labelledby":
                self.references |= {f"#{part}" for part in value.split()}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


TRAFFIC = [
    {
        "direction": "asked",
        "peer": "bank-b",
        "call": "evaluate",
        "requests": 3,
        "errors": 1,
        "bytes_in": 2_000,
    }
    | {"bytes_out": 1_500_000, "elements": 90, "p50_ms": 10.0, "p99_ms": 40.0},
    {
        "direction": "answered",
        "peer": "bank-b",
        "call": "evaluate",
        "requests": 2,
        "errors": 0,
        "bytes_in": 10,
    }
    | {"bytes_out": 20, "elements": 7, "p50_ms": 5.0, "p99_ms": 6.0},
]
AUDIT = {
    "size": 42,
    "root": "ab" * 32,
    "key_pinned": False,
    "entries": {"delta": 40, "refusal": 2},
    "inquiries": {"complete": 3},
    "requests": [
        {"party": "bank-a", "action": "evaluate", "subject": "terminals", "purpose": "fraud-prevention"}
        | {"decision": "permitted", "reason": "", "requests": 9, "amount": 700},
        {"party": "bank-b", "action": "inquire", "subject": "terminals", "purpose": "marketing"}
        | {"decision": "refused", "reason": "purpose not allowed", "requests": 2, "amount": 0},
    ],
}


LATENCIES = [
    {"operation": "lookup cold", "count": 3, "items": 90, "p50_ms": 70.0, "p99_ms": 200.0},
    {"operation": "lookup warm", "count": 5, "items": 11, "p50_ms": 0.0421, "p99_ms": 0.2},
    {"operation": "inquiry", "count": 0, "items": 0, "p50_ms": None, "p99_ms": None},
]
ACCOUNT = BankAccount(
    bank="bank-a",
    days_shared=20,
    days_not_shared={"bank-c did <not> answer": 2},
    distrust=(),
    inquiries=12,
    inquiries_refused={"budget spent": 1},
    inquiries_declined={},
    scored=900,
    degraded=17,
    degraded_reasons={"counts are behind": 2},
    rejected=0,
    rule_errors=5,
    indicators=21,
    indicators_waiting=1,
    lookups=3_375,
)


@pytest.fixture(scope="module")
def evaluation(made):
    weeks = Weeks(dt.date(1970, 1, 1) + dt.timedelta(20_006), 7, 2, 7)
    return evaluate(made.stream, weeks=weeks, spec=made.spec, count_delay_days=2, n_jobs=1)


@pytest.fixture(scope="module")
def record(evaluation):
    return RunRecord(
        title="Three banks <test>",
        finished_at="2026-01-01 00:00 UTC",
        configuration={"members": 3, "events": None, "noise": False},
        command="subrosa sandbox --members 3",
        evaluation=evaluation,
        statuses={
            "bank-a": {"traffic": TRAFFIC, "index": {"labels": 5}, "name": "<script>alert(1)</script>"}
            | {"latencies": LATENCIES, "counting_since": 1767225600, "restarts": 1}
        },
        accounts=[ACCOUNT],
        probe=Probe("bank-b", "the confirmed frauds of 32 days at once", True, "no"),
        coordinator=CoordinatorView(7, (KindView("iban", 12, 9, 3, 4_000),), 4, 0, 42),
        rejects=["1 of 9 rows refused", "  row 3, <AT>: is not a time"],
        audit=AUDIT,
        timings={"play": 12.0, "evaluation": 125.0, "kill": None},
        incidents=["bank-c died & came back"],
        unit="EUR",
    )


def test_the_page_is_whole_and_needs_nothing_else(record, tmp_path):
    page, data = build_report(record, tmp_path / "new")
    checker = parsed(page.read_text())
    assert len(checker.ids) == len(set(checker.ids))
    assert all(ref.startswith("#") for ref in checker.references)
    assert {ref[1:] for ref in checker.references} <= set(checker.ids)
    assert "script" not in checker.tags
    assert json.loads(data.read_text())["audit"]["size"] == 42


def test_the_page_shows_each_part(record):
    page = render(record)
    for identity in (
        "headline",
        "money",
        "growth",
        "tiers",
        "streams",
        "banks",
        "requests",
        "seen",
        "audit",
        "run",
    ):
        assert f'<section id="{identity}"' in page
    assert page.count("<svg") == 4
    assert page.count("<desc id=") == 4
    text = " ".join(parsed(page).text)
    for expected in (
        "with the consortium",
        "purpose not allowed",
        "1.5 MB",
        "2 min 5 s",
        "42",
        "did not run",
        "bank-c did <not> answer",
        "not accepted yet when the run ended",
        "row 3, <AT>: is not a time",
        "tags of more than one bank",
        "It took in 7 batches of labels and 4 inquiries",
        "the sandbox's own probe",
        "bank-a since 2026-01-01 00:00:00+00:00, over 1 restart",
        "0.042 ms",
    ):
        assert expected in text
    assert "This run is not sound" not in text


def test_an_unsound_run_says_so_before_anything_else(record):
    page = render(dataclasses.replace(record, failures=["sums: 2 of 9 rows <differ>."]))
    parsed(page)
    assert page.index("This run is not sound") < page.index('<section id="headline"')
    assert "sums: 2 of 9 rows &lt;differ&gt;." in page


def test_steps_that_never_ran_are_hatched(evaluation):
    bars = [patch for patch in growth(evaluation.growth).figure.axes[0].patches if patch.get_height() > 0]
    assert [bar.get_hatch() for bar in bars] == [None, "///", None]
    assert "2 members" in growth(evaluation.growth).description
    assert growth(evaluation.growth).description.count("(counterfactual)") == 1


def test_the_least_cohort_is_the_policys(made):
    weeks = Weeks(dt.date(1970, 1, 1) + dt.timedelta(20_006), 7, 2, 7)
    found = evaluate(made.stream, weeks=weeks, spec=made.spec, models=(), count_delay_days=2, least_cohort=2)
    assert [step.refused_by_policy for step in found.growth] == [None, None, None]
    found = evaluate(made.stream, weeks=weeks, spec=made.spec, models=(), count_delay_days=2, least_cohort=4)
    assert ["below 4 members" in (step.refused_by_policy or "") for step in found.growth] == [
        False,
        True,
        True,
    ]


def test_waits_are_no_latencies():
    polls = [TRAFFIC[0] | {"call": call} for call in ("tasks", "inquiry-status", "evaluate")]
    found = {call.call: call for call in calls_asked({"bank-a": {"traffic": polls}})}
    assert (found["tasks"].p50_ms, found["inquiry-status"].p99_ms) == (None, None)
    assert found["tasks"].requests == 3
    assert found["evaluate"].p50_ms == 10.0


def test_operations_are_gathered_over_banks():
    other = [LATENCIES[0] | {"count": 1, "items": 10, "p50_ms": 110.0, "p99_ms": 150.0}]
    found = operations_of({"bank-b": {"latencies": LATENCIES}, "bank-a": {"latencies": other}, "bank-c": {}})
    assert [(o.operation, o.party) for o in found] == [
        ("inquiry", "bank-b"),
        ("lookup cold", "bank-a"),
        ("lookup cold", "bank-b"),
        ("lookup warm", "bank-b"),
    ]
    inquiry, cold, _ = over_banks(found)
    assert cold == Operation("", "lookup cold", 4, 100, 80.0, 200.0)
    assert (inquiry.count, inquiry.p50_ms) == (0, None)
    assert [milliseconds(value) for value in (0.04, 12.34, 1234.5)] == ["0.040 ms", "12.3 ms", "1,234.5 ms"]


def test_hostile_texts_stay_texts(record):
    page = render(record)
    assert "<script>" not in page
    assert "Three banks &lt;test&gt;" in page
    assert "bank-c died &amp; came back" in page


def test_drawings_follow_the_pages_colours(record):
    drawings = render(record).split("</style>", 1)[1]
    assert "var(--consortium)" in drawings
    assert "#b3264f" not in drawings


def test_the_same_record_gives_the_same_bytes(record):
    assert render(record) == render(record)
    assert to_json(record) == to_json(record)


def test_what_was_not_measured_is_said_with_the_reason(record):
    bare = dataclasses.replace(
        record,
        evaluation=None,
        statuses=None,
        audit=None,
        timings=None,
        not_measured={"evaluation": "the run was stopped by hand", "audit": "no log was exported"},
    )
    page = render(bare)
    parsed(page)
    assert "not measured: the run was stopped by hand" in page
    assert page.count("not measured: no log was exported") >= 2
    document = json.loads(to_json(bare))
    assert document["evaluation"] is None
    assert document["calls"] is None
    assert document["not_measured"] == {
        "evaluation": "the run was stopped by hand",
        "audit": "no log was exported",
        "statuses": "the run did not deliver it",
        "timings": "the run did not deliver it",
    }


def test_without_a_forest_the_rest_is_still_drawn(made, record):
    weeks = Weeks(dt.date(1970, 1, 1) + dt.timedelta(20_006), 7, 2, 7)
    found = evaluate(made.stream, weeks=weeks, spec=made.spec, models=(LOGISTIC,), count_delay_days=2)
    page = render(dataclasses.replace(record, evaluation=found))
    parsed(page)
    assert "not trained in this run" in page
    with pytest.raises(ValueError, match="no measured random forest"):
        write_headline_picture(found, made.histories["bank-a"] / "picture.png")


def test_a_stream_that_ends_before_the_test_weeks_is_still_reported(made, record):
    weeks = Weeks(dt.date(2030, 1, 1), 7, 2, 7)
    found = evaluate(made.stream, weeks=weeks, spec=made.spec, count_delay_days=2)
    page = render(dataclasses.replace(record, evaluation=found))
    parsed(page)
    assert "not measured: no test rows" in page
    lead = page.partition('<p class="lead">')[2].partition("</p>")[0]
    assert lead == "Ranking quality was not measured in this run: no test rows."
    assert (
        json.loads(to_json(dataclasses.replace(record, evaluation=found)))["evaluation"]["gap_closed"] is None
    )


def test_json_holds_what_people_see(record):
    document = json.loads(to_json(record))
    rows = {(r["model"], r["view"]): r for r in document["evaluation"]["models"]}
    assert 0 < rows["random forest", "consortium"]["joint"]["average_precision"] <= 1
    assert document["evaluation"]["weeks"]["train_first"] == "2024-10-10"
    assert document["evaluation"]["tiers"][0]["precision"] is not None
    assert document["calls"][0]["p99_ms"] == 40.0


def test_calls_are_summed_over_members():
    second = [TRAFFIC[0] | {"requests": 1, "p50_ms": 30.0, "p99_ms": None}]
    (call,) = calls_asked({"bank-a": {"traffic": TRAFFIC}, "bank-b": {"traffic": second}, "bank-c": {}})
    assert (call.requests, call.errors, call.elements) == (4, 2, 180)
    assert call.p50_ms == pytest.approx(15.0)
    assert call.p99_ms == 40.0


def test_status_is_flattened_without_lists():
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": None}) == {"a.b": 1, "d": "x"}


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_headline_alone(evaluation, tmp_path, suffix, start):
    path = tmp_path / f"headline{suffix}"
    write_headline_picture(evaluation, path)
    assert path.read_bytes().startswith(start)
    again = tmp_path / f"again{suffix}"
    write_headline_picture(evaluation, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_picture_of_another_kind_is_refused(evaluation, tmp_path):
    with pytest.raises(ValueError, match="bmp"):
        write_headline_picture(evaluation, tmp_path / "headline.bmp")


def test_cells():
    assert escape(Missing("a < b")) == '<span class="missing">not measured: a &lt; b</span>'
    assert escape(1234567) == "1,234,567"
    assert escape(None) == '<span class="missing">not measured</span>'
    assert escape(True) == "yes"
    assert "none" in table("Nothing", ["a"], []).text

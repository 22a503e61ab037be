"""From a verdict to what is learnt of it: alert, case, decision, outcome; features, training, evidence, exemption."""

import datetime as dt

import pytest

from governance.policy.default import default_bundle
from member_node.service.answers import history_finder
from member_node.service.cases import CaseError, CaseService, Clearance
from member_node.service.index import SyncReport
from member_node.service.lists import ListBook
from member_node.service.replay import StreamService
from member_node.service.stream_parts import StreamParts
from member_node.service.training import ScoredHistory, labelled_rows
from member_node.storage.case_exemptions import ExemptionStore
from member_node.storage.cases import CaseFilter, CaseStore
from member_node.storage.database import Database
from member_node.storage.lists import ListStore
from member_node.storage.outcomes import OutcomeStore, StreamStore
from scoring.features.engine import FeatureEngine
from scoring.models.dataset import NEVER

MAPPING = """
[columns]
event_id = "ID"
time = "AT"
amount = "EUR"
customer = "WHO"
terminal = "WHERE"
correction = "AGAIN"
[constants]
channel = "card"
[indicators]
terminal = "terminal"
"""
FEATURES = """
[[feature]]
name = "risk_3d"
entity = "terminal"
aggregation = "rate"
window = "3d"
"""
RULES = """
name = "test"
version = 1
[[rule]]
id = "large"
when = "amount > 100"
verdict = "review"
reason = "{amount}"
"""
NOW = int(dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC).timestamp())


class Access:
    """What the node would give its stream; findings that were contributed become the bank's own labels."""

    def __init__(self):
        self.contributed = []

    def tags(self, kind, values):
        pass

    def evidence(self, kind, values):
        return {}

    def sync(self, now_ms):
        return SyncReport(0, 0, (), (), 0)

    def contribute(self, findings, now_ms):
        self.contributed += findings
        return len(findings)


class Bank:
    def __init__(self, directory):
        self.directory = directory
        self.paths = {}
        for name, text in (("mapping", MAPPING), ("features", FEATURES), ("rules", RULES)):
            self.paths[name] = directory / f"{name}.toml"
            self.paths[name].write_text(text)
        self.start()

    def start(self):
        self.access = Access()
        self.database = Database.in_directory(self.directory)
        self.outcomes = OutcomeStore(self.database)
        self.store = CaseStore(self.database)
        lists = ListBook(ListStore(self.database), lambda: NOW * 1_000_000)
        self.stream = StreamService(
            StreamParts(
                party="bank-a",
                directory=self.directory,
                public_ids=[],
                outcomes=self.outcomes,
                stream=StreamStore(self.database),
                tags=self.access,
                mirror=self.access,
                contributor=self.access,
                asker=self.access,
                policy=default_bundle,
                engine=FeatureEngine,
                lists=lists,
                cases=self.store,
            )
        )
        self.cases = CaseService(
            self.store,
            learn=self.stream.learn,
            exempter=lists,
            clock=lambda: NOW,
            exemptions=ExemptionStore(self.database),
        )
        self.stream.open(self.paths["mapping"], self.paths["features"], self.paths["rules"])

    def stop(self):
        self.stream.close()
        self.database.close()

    def score(self, *rows):
        """Rows (id, day of March, amount, customer, whether it corrects); their answers."""
        given = [
            {
                "event_id": event_id,
                "time": f"2026-03-{day:02}T10:00:00",
                "amount": amount,
                "customer": customer,
                "terminal": "T1",
                "correction": correct,
            }
            for event_id, day, amount, customer, correct in rows
        ]
        answers, rejects = self.stream.score_rows(given)
        assert rejects == ()
        return answers

    def queue(self):
        assert self.stream.opened().alerts.flush(10)
        self.stream.flush()
        assert self.stream.opened().alerts.flush(10)
        return {case.customer: case.case_id for case in self.store.find(CaseFilter())}


@pytest.fixture
def bank(tmp_path):
    made = Bank(tmp_path)
    yield made
    made.stop()


def test_a_decision_is_learnt_by_features_training_evidence_and_lists(bank):
    answers = bank.score(("e1", 1, 500, "ann", 0), ("e2", 1, 400, "bob", 0), ("e3", 1, 5, "cy", 0))
    assert [answer["verdict"] for answer in answers] == ["review", "review", "allow"]
    queue = bank.queue()
    assert sorted(queue) == ["ann", "bob"]
    assert bank.cases.decide(queue["ann"], "fraud", "eve", text="she has not paid this")["outcomes"] == 1
    until = (NOW + 30 * 86_400) * 1_000_000
    cleared = bank.cases.decide(queue["bob"], "genuine", "eve", clearance=Clearance("large", until))
    assert (cleared["outcomes"], cleared["exemption"]["state"]) == (1, "proposed")
    # Thirty days are more than an analyst may grant alone: until an approver agrees, nobody is on the list.
    assert bank.stream.opened().scoring.in_force().lists.tables == ()
    bank.cases.approve_exemption(queue["bob"], "mia", "asked the branch", may_loosen=True)
    with pytest.raises(CaseError, match="was decided by eve: fraud"):
        bank.cases.decide(queue["ann"], "genuine", "eve")
    # Features: one fraud among four events of the terminal, from when it was known; before, none.
    bank.score(("e4", 2, 5, "dora", 0), ("e5", 3, 5, "dora", 0))
    bank.stream.flush()
    history = ScoredHistory(bank.directory / "history")
    risk = history.read(["risk_3d"], 0, 2**62).to_pylist()
    assert {row["event_id"]: row["risk_3d"] for row in risk} == {
        "e1": 0.0, "e2": 0.0, "e3": 0.0, "e4": 0.0, "e5": 0.2,
    }  # fmt: skip
    # Training: the label and when it was known.
    labels = bank.outcomes.labels()
    assert {row["event_id"]: row["fraud"] for row in labels.to_pylist()} == {"e1": True, "e2": False}
    rows = labelled_rows(history, labels, ["risk_3d"], 0, 2**62)
    known = dict(zip(rows.amount.tolist(), rows.fraud_known_us.tolist(), strict=False))
    assert known[500.0] == NOW * 1_000_000
    assert known[400.0] == NEVER
    # Evidence: one victim at the terminal, found once.
    report = bank.stream.confirm((NOW + 3600) * 1000)
    assert (report.findings, report.contributed) == (1, 1)
    (finding,) = bank.access.contributed
    assert (finding.kind, finding.value, finding.distinct_victims) == ("terminal", "T1", 1)
    assert bank.stream.confirm((NOW + 7200) * 1000).findings == 0
    # Lists: who was cleared is, from this rule; others are not.
    answers = bank.score(("e6", 3, 900, "bob", 0), ("e7", 3, 900, "ann", 0))
    assert [answer["verdict"] for answer in answers] == ["allow", "review"]


def test_what_counts_of_a_corrected_event_is_what_was_said_last(bank):
    """The correction lies on an earlier day, in another file; asked again after a restart, out of the history."""
    bank.score(("e1", 3, 5, "ann", 0), ("e2", 3, 500, "bob", 0))
    bank.stream.flush()
    assert [each["verdict"] for each in bank.score(("e1", 2, 700, "ann", 1), ("e2", 2, 7, "bob", 1))] == [
        "review",
        "allow",
    ]
    bank.stream.flush()
    assert len(bank.stream.opened().history.files()) == 2
    chosen = ScoredHistory(bank.directory / "history").read(["amount"], 0, 2**62).to_pylist()
    assert {row["event_id"]: row["amount"] for row in chosen} == {"e1": 700.0, "e2": 7.0}
    bank.stop()
    bank.start()
    again = bank.score(("e1", 3, 5, "ann", 0), ("e2", 3, 500, "bob", 0))
    assert [(each["disposition"], each["verdict"]) for each in again] == [
        ("duplicate", "review"),
        ("duplicate", "allow"),
    ]
    assert [reason["text"] for reason in again[0]["reasons"]] == ["700"]
    answers = history_finder(bank.stream.opened().find)(["e1", "e2"])
    assert {name: answer.verdict for name, answer in answers.items()} == {"e1": "review", "e2": "allow"}
    # The confirmed fraud is that of the corrected event.
    assert bank.stream.learn([("e1", True, NOW * 1000)]) == 1
    bank.stream.confirm((NOW + 3600) * 1000)
    (finding,) = bank.access.contributed
    assert finding.first_seen_ms == int(dt.datetime(2026, 3, 2, 10, tzinfo=dt.UTC).timestamp() * 1000)

"""The stream's routes: operator mistakes become problems that name the bank and the fix."""

import asyncio
import json
from pathlib import Path

import httpx
import polars as pl
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from governance.messages.problems import RequestError, problem_for
from governance.policy.default import default_bundle
from member_node.api.streams import stream_router
from member_node.service.index import SyncReport
from member_node.service.replay import StreamService
from member_node.service.stream_parts import StreamParts
from member_node.storage.database import Database
from member_node.storage.outcomes import OutcomeStore, StreamStore
from scoring.features.engine import FeatureEngine

MAPPING = Path(__file__).parents[3] / "sandbox" / "mappings" / "handbook.toml"


class Alone:
    """A consortium of one bank that shares nothing yet."""

    def tags(self, kind, values):
        return None

    def sync(self, now_ms):
        return SyncReport(0, 0, (), (), 0)

    def evidence(self, kind, values):
        return {}

    def contribute(self, findings, now_ms):
        return len(findings)

    def ask(self, first_day, last_day):
        raise AssertionError("nothing has matured")


class Client:
    """Calls the application in this process."""

    def __init__(self, app):
        self.app = app

    def call(self, method, path, body=None):
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://bank-a") as http:
                return await http.request(method, path, json=body)

        return asyncio.run(send())

    def get(self, path):
        return self.call("GET", path)

    def post(self, path, json):
        return self.call("POST", path, json)


@pytest.fixture
def client(tmp_path):
    database = Database.in_directory(tmp_path)
    alone = Alone()
    stream = StreamService(
        StreamParts(
            party="bank-a",
            directory=tmp_path,
            public_ids=["1", "2"],
            outcomes=OutcomeStore(database),
            stream=StreamStore(database),
            tags=alone,
            mirror=alone,
            contributor=alone,
            asker=alone,
            policy=default_bundle,
            engine=FeatureEngine,
        )
    )
    app = FastAPI()
    app.include_router(stream_router(stream, "bank-a"))

    @app.exception_handler(RequestError)
    async def problem(_request: Request, error: RequestError) -> Response:
        found = problem_for(error, "bank-a")
        return Response(json.dumps({"detail": found.detail, "party": found.party}), status_code=found.status)

    yield Client(app)
    stream.close()
    database.close()


def transaction(event_id, **more):
    row = {"event_id": event_id, "time": "2018-04-01T10:00:00", "amount": 5, "customer": 1, "terminal": 2}
    return {**row, **more}


def test_a_live_stream(client):
    assert client.get("/stream").json() == {"open": False}
    opened = client.post("/replay/open", json={"mapping": str(MAPPING)})
    assert opened.status_code == 200, opened.text
    answer = client.post(
        "/transactions",
        json={"transactions": [transaction(1), transaction(2, amount=500.0), transaction(3, amount=-1)]},
    ).json()
    assert [each["verdict"] for each in answer["scored"]] == ["allow", "challenge"]
    assert answer["scored"][1]["reasons"][0]["rule"] == "very-large-amount"
    refused = {
        "row": 3,
        "column": "amount",
        "reason": "is negative",
        "last_row": 0,
        "code": "amount-negative",
    }
    assert answer["rejected"] == [refused]
    known = 1_523_000_000_000
    body = {"outcomes": [{"event_id": 1, "fraud": True, "known_at_ms": known}]}
    assert client.post("/outcomes", json=body).json() == {"recorded": 1}
    assert client.post("/replay/confirm", json={"until_ms": known}).json()["contributed"] == 1
    report = client.get("/stream").json()
    assert (report["open"], report["outcomes"], report["confirmed_frauds"]) == (True, 1, 1)


def test_a_replay(client, tmp_path):
    events = tmp_path / "events.parquet"
    pl.DataFrame(
        {
            "TRANSACTION_ID": [1, 2],
            "TX_DATETIME": pl.Series(["2018-04-01T10:00:00", "2018-04-02T10:00:00"]).str.to_datetime(),
            "CUSTOMER_ID": [1, 1],
            "TERMINAL_ID": [1, 2],
            "TX_AMOUNT": [10.0, 300.0],
            "TX_FRAUD": [0, 1],
        }
    ).write_parquet(events)
    opened = client.post("/replay/open", json={"mapping": str(MAPPING), "events": str(events)}).json()
    assert (opened["rows"], opened["first_day"], opened["last_day"]) == (2, 17622, 17623)
    assert client.post("/replay/share", json={"day": 17622}).json()["reason"] == ""
    scored = client.post("/replay/score", json={"until_ms": 17624 * 86_400_000}).json()
    assert scored["verdicts"] == {"allow": 1, "challenge": 1, "review": 0, "block": 0}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/replay/score", {"until_ms": 5}, "call replay/open first"),
        ("/replay/open", {"mapping": "/nowhere/mappings/x.toml"}, "No such file"),
        ("/replay/open", {"mapping": str(MAPPING), "rules": str(MAPPING)}, "unknown keys in the rule set"),
        ("/replay/open", {"mapping": str(MAPPING), "features": str(MAPPING)}, "columns"),
        ("/replay/open", {"mapping": str(MAPPING), "events": str(MAPPING)}, ".parquet or .csv"),
    ],
)
def test_mistakes_are_answered_with_the_fix(client, path, body, words):
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert answer.json()["party"] == "bank-a"
    # Nothing is half open: the right call still works.
    assert client.post("/replay/open", json={"mapping": str(MAPPING)}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["amount", "Verdict", "event_id", "rule", "degraded", "weekday", "customer", "model_score", "journal_frame",
     "listed_mules", "verdict_rules_3", "score_model_12", "device_new", "terminal_limit", "exempt"],
)  # fmt: skip
def test_a_feature_with_the_name_of_another_column_is_refused_with_its_line(client, tmp_path, name):
    features = tmp_path / "features.toml"
    feature = 'name = "{}"\nentity = "customer"\naggregation = "count"\nwindow = "1h"\n'
    features.write_text(f"[[feature]]\n{feature.format('fine')}[[feature]]\n{feature.format(name)}")
    body = {"mapping": str(MAPPING), "features": str(features)}
    answer = client.post("/replay/open", json=body)
    assert answer.status_code == 422
    assert f"line 7: feature '{name}': has the name of a column" in answer.json()["detail"]
    features.write_text(f'[[feature]]\nname = "{name}"\nfield = "amount"\n')
    rules = tmp_path / "rules.toml"
    rules.write_text(
        'name = "x"\nversion = 1\n[[rule]]\nid = "a"\nwhen = "amount > 1"\nverdict = "review"\nreason = "x"\n'
    )
    assert client.post("/replay/open", json={**body, "rules": str(rules)}).status_code == 200

"""From history files and outcomes to a registered model and its drift, by function, API and command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from typer.testing import CliRunner

import member_node.models_cli as models_cli
import member_node.service.training as training
from governance.messages.problems import RequestError, problem_for
from member_node.api.models import models_router
from member_node.client.desk import DeskError
from member_node.command_line import CommandError, refuse
from member_node.service.history import HistoryStore
from member_node.service.models import ModelBook
from member_node.service.staff import Role, Staff
from member_node.service.training import (
    RowChoice,
    ScoredHistory,
    history_drift,
    labelled_rows,
    train_from_history,
)
from member_node.settings import SETTINGS_FILE
from member_node.storage.database import Database
from member_node.storage.outcomes import OutcomeStore
from member_node.storage.registry import ModelRegistry
from scoring.models.dataset import NEVER, DatasetError, DataWindow
from scoring.models.served import ServedModel
from scoring.models.training import TrainingOptions

DAY = 86_400_000_000
START = 1_700_000_000_000_000 // DAY * DAY
DAYS = 40


def write_history(directory: Path, rows: int = 8000, seed: int = 0) -> pa.Table:
    """Forty days in files of a day each; the last ten days have drifted amounts. Returns the outcomes."""
    random = np.random.default_rng(seed)
    times = START + np.sort(random.integers(0, DAYS * DAY, rows))
    late = times >= START + 30 * DAY
    amount = random.lognormal(3, 1, rows) * np.where(late, 3, 1)
    risk = np.where(random.random(rows) < 0.1, np.nan, random.random(rows))
    fraud = np.nan_to_num(risk) + 0.2 * random.random(rows) > 1.05
    table = pa.table(
        {
            "event_id": pa.array(np.arange(rows)),
            "time_us": times,
            "channel": pa.array(["card"] * rows),
            "amount": amount,
            "customer": pa.array([f"c{i % 300}" for i in range(rows)]),
            "terminal": pa.array(random.integers(0, 50, rows)),
            "verdict": pa.array(["allow"] * rows),
            "model_score": random.random(rows),
            "score_model_2": random.random(rows),
            "risk_7d": pa.array(risk, mask=np.isnan(risk)),
            "count_1d": random.integers(0, 9, rows).astype(float),
            "terminal_victims_own": pa.array(np.zeros(rows, np.int32)),
            "degraded": random.random(rows) < 0.1,
        }
    )
    days = (times - START) // DAY
    store = HistoryStore(directory)
    for day in range(DAYS):
        store.write(day + 1, table.filter(pa.array(days == day)))
        if day % 3 == 0:
            store.flush()
    store.flush()
    return pa.table(
        {
            "event_id": pa.array([str(i) for i in range(rows)]),
            "fraud": fraud,
            "known_at_us": times + 2 * DAY,
        }
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    directory = tmp_path_factory.mktemp("bank") / "history"
    return directory, write_history(directory)


WINDOW = DataWindow(START, START + 15 * DAY, 7 * DAY, START + 30 * DAY)
FEATURES = ("amount", "risk_7d", "count_1d")
OPTIONS = TrainingOptions(trees=15, leaves=8)


def test_what_a_model_may_learn_from(recorded: tuple[Path, pa.Table]) -> None:
    history = ScoredHistory(recorded[0])
    assert history.features() == FEATURES
    first, last = history.span_us()
    assert START <= first < START + DAY
    assert START + 39 * DAY <= last < START + 40 * DAY


def test_rows_are_read_as_they_were_scored(recorded: tuple[Path, pa.Table]) -> None:
    directory, outcomes = recorded
    history = ScoredHistory(directory)
    rows = labelled_rows(history, outcomes, FEATURES, START + 3 * DAY, START + 9 * DAY)
    everything = pa.concat_tables(
        [pq.ParquetFile(path).read() for path in sorted(directory.rglob("*.parquet"))]
    )
    times = everything.column("time_us").to_numpy()
    inside = (times >= START + 3 * DAY) & (times < START + 9 * DAY)
    assert np.array_equal(rows.time_us, times[inside])
    for place, name in enumerate(FEATURES):
        assert np.array_equal(
            rows.features[:, place], everything.column(name).to_numpy()[inside], equal_nan=True
        )
    ids = everything.column("event_id").to_numpy()[inside]
    known = np.where(
        outcomes.column("fraud").to_numpy()[ids], outcomes.column("known_at_us").to_numpy()[ids], NEVER
    )
    assert np.array_equal(rows.fraud_known_us, known)
    customers = everything.column("customer").to_numpy(zero_copy_only=False)[inside]
    assert len(set(zip(customers, rows.customer.tolist(), strict=True))) == len(set(customers))


def test_choices_leave_rows_out(recorded: tuple[Path, pa.Table]) -> None:
    directory, outcomes = recorded
    history = ScoredHistory(directory)
    span = (START, START + 5 * DAY)
    all_rows = len(labelled_rows(history, outcomes, FEATURES, *span))
    few = outcomes.slice(0, 200)
    labelled = labelled_rows(history, few, FEATURES, *span, RowChoice(only_labelled=True))
    assert len(labelled) == 200
    assert len(labelled_rows(history, few, FEATURES, *span)) == all_rows
    informed = len(labelled_rows(history, outcomes, FEATURES, *span, RowChoice(only_informed=True)))
    assert 0.85 * all_rows < informed < 0.95 * all_rows
    with pytest.raises(DatasetError, match="no column 'nothing'"):
        labelled_rows(history, outcomes, ["nothing"], *span)
    with pytest.raises(DatasetError, match="score events first"):
        ScoredHistory(directory / "nowhere").features()


def test_of_a_corrected_event_the_newest_row_counts(tmp_path: Path) -> None:
    def rows(ids: list[str], amounts: list[float], extra: dict[str, Any]) -> pa.Table:
        times = [START + int(each[1:]) for each in ids]
        return pa.table({"event_id": ids, "time_us": times, "amount": amounts, **extra})

    store = HistoryStore(tmp_path)
    store.write(1, rows(["e1", "e2", "e1"], [1.0, 2.0, 3.0], {}))
    store.flush()
    # A later file has a feature that the first one lacks.
    store.write(2, rows(["e2", "e3"], [4.0, 5.0], {"new": [7.0, None]}))
    store.flush()
    outcomes = pa.table({"event_id": pa.array(["e3"]), "fraud": [True], "known_at_us": [START + 9]})
    found = labelled_rows(ScoredHistory(tmp_path), outcomes, ["new"], START, START + DAY)
    assert found.amount.tolist() == [3.0, 4.0, 5.0]
    assert np.array_equal(found.features[:, 0], [np.nan, 7.0, np.nan], equal_nan=True)
    assert found.customer.tolist() == [-1, -1, -1]
    assert found.fraud_known_us.tolist() == [NEVER, NEVER, START + 9]


def test_an_event_that_was_corrected_to_another_day_is_of_that_day_only(tmp_path: Path) -> None:
    store = HistoryStore(tmp_path)
    for sequence, (event_id, day, amount, corrected) in enumerate(
        [("e1", 0, 1.0, False), ("e2", 0, 2.0, False), ("e1", 3, 3.0, True)], start=1
    ):
        columns = {"event_id": [event_id], "time_us": [START + day * DAY], "amount": [amount]}
        store.write(sequence, pa.table({**columns, "journal_frame": [sequence], "corrected": [corrected]}))
        store.flush()
    history = ScoredHistory(tmp_path)
    assert history.read([], START, START + DAY).column("amount").to_pylist() == [2.0]
    assert history.read([], START + DAY, START + 9 * DAY).column("amount").to_pylist() == [3.0]
    assert history.read([], START, START + 9 * DAY).column("amount").to_pylist() == [2.0, 3.0]


def test_files_merged_while_they_are_read_are_looked_for_again(
    recorded: tuple[Path, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def connect(**settings: Any) -> Any:
        asked.append(1)
        if len(asked) < 3:
            raise duckdb.IOException("No files found")
        return real(**settings)

    real = duckdb.connect
    monkeypatch.setattr(duckdb, "connect", connect)
    assert ScoredHistory(recorded[0]).features() == FEATURES
    assert len(asked) == 3
    monkeypatch.setattr(training, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(duckdb, "connect", lambda **_: (_ for _ in ()).throw(duckdb.IOException("gone")))
    with pytest.raises(DatasetError, match="cannot be read: gone"):
        ScoredHistory(recorded[0]).features()


def test_a_model_from_history_and_its_drift(recorded: tuple[Path, pa.Table]) -> None:
    directory, outcomes = recorded
    history = ScoredHistory(directory)
    artefact, content = train_from_history("cards", history, outcomes, FEATURES, WINDOW, options=OPTIONS)
    assert artefact.card.metrics.roc_auc > 0.95
    assert artefact.card.metrics.rows > 1000
    model = ServedModel.load(content)
    calm = history_drift(history, model, START + 22 * DAY, START + 30 * DAY)
    assert calm.level == "stable"
    moved = history_drift(history, model, START + 30 * DAY, START + 40 * DAY)
    assert (moved.features[0].name, moved.features[0].level) == ("amount", "major")
    assert {each.name: each.level for each in moved.features}["risk_7d"] == "stable"
    with pytest.raises(DatasetError, match="no event in that time"):
        history_drift(history, model, 0, 5)


def test_outcomes_come_from_the_store(tmp_path: Path) -> None:
    database = Database.in_directory(tmp_path)
    store = OutcomeStore(database)
    assert store.labels().num_rows == 0
    given = [(str(i), i % 3 == 0, 1000 + i) for i in range(700)]
    store.record(given, [])
    found = store.labels().sort_by("known_at_us").to_pydict()
    database.close()
    assert list(zip(found["event_id"], found["fraud"], found["known_at_us"], strict=True)) == given


# ---- through the API and the command line


class Desk:
    """The bank-internal API in this process, called as ``BankDesk`` calls it; ``who`` holds the token."""

    party = "bank-a"

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.who = Staff("operator", frozenset({Role.ADMIN}))

    def get(self, path: str) -> dict[str, Any]:
        return self.call("GET", path, None)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        return self.call("POST", path, body)

    def call(self, method: str, path: str, body: Any) -> dict[str, Any]:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://bank-a"
            ) as http:
                return await http.request(method, f"/{path}", json=body)

        response = asyncio.run(send())
        answer: dict[str, Any] = response.json()
        if response.is_error:
            raise DeskError(answer["detail"])
        return answer


@pytest.fixture
def desk(recorded: tuple[Path, pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    database = Database.in_directory(tmp_path)
    outcomes = recorded[1].to_pydict()
    OutcomeStore(database).record(
        list(zip(outcomes["event_id"], outcomes["fraud"], outcomes["known_at_us"], strict=True)), []
    )
    (tmp_path / "history").symlink_to(recorded[0])
    (tmp_path / SETTINGS_FILE).write_text(
        '[member]\nparty = "bank-a"\nname = "A"\nhost = "127.0.0.1"\nport = 1\ncoordinator_url = ""\n'
    )
    book = ModelBook(ModelRegistry(database), tmp_path / "models", lambda: START)
    book.bind(["amount", "risk_7d", "count_1d", "hour"])
    app = FastAPI()
    app.include_router(models_router(book, ScoredHistory(tmp_path / "history"), "bank-a"))
    desk = Desk(app)

    @app.middleware("http")
    async def door(request: Request, call_next: Any) -> Response:
        request.state.staff = desk.who
        answer: Response = await call_next(request)
        return answer

    @app.exception_handler(RequestError)
    async def problem(_request: Request, error: RequestError) -> Response:
        found = problem_for(error, "bank-a")
        return Response(json.dumps({"detail": found.detail}), status_code=found.status)

    @contextmanager
    def opened(_directory: Path, _token: Path | None) -> Iterator[Desk]:
        try:
            yield desk
        except (DeskError, CommandError) as error:
            raise refuse(str(error)) from error

    monkeypatch.setattr(models_cli, "open_desk", opened)
    yield desk
    book.close()
    database.close()


def test_a_model_by_command_line(desk: Desk, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(models_cli.app, [*arguments, "--directory", str(tmp_path)])
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.stderr

    assert "rules decide alone" in run("list")
    desk.who = Staff("anna", frozenset({Role.ANALYST}))
    train = [
        "train",
        "--train-days",
        "15",
        "--valid-days",
        "8",
        "--until",
        "2023-12-14T00:00:00Z",
        "--trees",
        "15",
    ]
    answer = json.loads(run(*train, "--why", "first", "--json"))
    assert (answer["version"], answer["state"], answer["registered_by"]) == (1, "registered", "anna")
    assert tuple(answer["card"]["features"]) == FEATURES
    assert answer["card"]["metrics"]["roc_auc"] > 0.95
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".model"]
    assert "already, as version 1" in run(*train, code=1)
    out = tmp_path / "other.model"
    assert "written to" in run(*train, "--seed", "1", "--leaves", "4", "--name", "small", "--out", str(out))
    assert ServedModel.load(out.read_bytes()).card.name == "small"
    assert json.loads(run("register", str(out), "--json"))["version"] == 2
    assert "needs the role approver" in run("promote", "1", code=1)
    assert "needs the role approver" in run("shadow", "1", code=1)
    desk.who = Staff("anna", frozenset({Role.ADMIN}))
    assert "another person must approve it" in run("promote", "1", code=1)
    assert json.loads(run("shadow", "1", "--json"))["state"] == "shadow"
    assert json.loads(run("list", "--json"))["serving"]["shadows"] == [1]
    desk.who = Staff("ben", frozenset({Role.APPROVER}))
    assert "active" in run("promote", "1", "--why", "good")
    assert "retired" in run("retire", "2")
    listed = json.loads(run("list", "--json"))
    assert listed["serving"]["active"] == 1
    shown = run("show", "1")
    assert "threshold reaches a precision of 0.9" in shown or "suggested threshold" in shown
    assert "promote by ben: good" in shown
    assert [each["who"] for each in json.loads(run("show", "1", "--json"))["changes"]] == [
        "anna",
        "anna",
        "ben",
    ]
    assert "took over from no other" in run("rollback", code=1)
    drift = json.loads(run("drift", "1", "--json"))
    assert (drift["level"], drift["features"][0]["name"]) == ("major", "amount")
    assert "MAJOR" in run("drift", "1")
    calm = run("drift", "1", "--since", "2023-12-06", "--until", "2023-12-13")
    assert calm.startswith("STABLE")
    assert "there is no model 7" in run("drift", "7", code=1)
    assert "retired" in run("retire", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--feature", "nothing"], "no column 'nothing'"),
        (["--train-days", "0.01", "--until", "2023-11-01"], "no transaction"),
        (["--name", "a/b"], "no name of a model"),
        (["--learning-rate", "7"], "learning_rate"),
    ],
)
def test_mistakes_end_in_one_line(desk: Desk, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(models_cli.app, ["train", "--directory", str(tmp_path), *arguments])
    assert result.exit_code == 1
    assert words in result.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_a_file_that_is_no_model_is_refused_by_the_api(desk: Desk, tmp_path: Path) -> None:
    bad = tmp_path / "models" / "bad.trained"
    content = b"subrosa model 1\n" + b"x" * 100
    bad.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    # Between training and registering somebody else put another file there: nobody registers it unawares.
    with pytest.raises(DeskError, match="not the file you mean"):
        desk.post("models", name="bad", digest="0" * 64)
    assert bad.exists()
    for name, words in (("bad", "damaged"), ("none", "No such file"), ("../history/x", "no name of a model")):
        with pytest.raises(DeskError, match=words):
            desk.post("models", name=name, digest=digest)
    assert not bad.exists()
    with pytest.raises(DeskError, match="no model 3"):
        desk.get("models/3")

"""The registry of models, what is in service, and what a restart, a damaged file or a second person changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from member_node.service.models import ModelBook, card_of, read_artefact
from member_node.storage.database import Database
from member_node.storage.registry import ModelRegistry, UnknownModelError
from scoring.models import served
from scoring.models.artefact import decode_artefact, encode_artefact
from scoring.models.dataset import NEVER, DataWindow, LabelledRows
from scoring.models.lifecycle import MAX_SHADOWS, LifecycleError, ModelState
from scoring.models.onnx_export import onnx_bytes
from scoring.models.served import ModelError, ServedModel, open_session, run_session
from scoring.models.training import TrainingOptions, train

NAMES = ("amount", "risk")


def model_file(seed: int, name: str = "cards") -> bytes:
    random = np.random.default_rng(seed)
    features = random.random((600, 2))
    fraud = features[:, 1] + 0.3 * random.random(600) > 0.9
    times = np.arange(600)
    data = LabelledRows(
        NAMES, features, np.where(fraud, times, NEVER), times, features[:, 0], times % 50, np.ones(600)
    )
    options = TrainingOptions(trees=3, leaves=4, seed=seed)
    return encode_artefact(train(name, data, DataWindow(0, 400, 0, 600), options))


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [model_file(seed) for seed in range(4)]


class Clock:
    now = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.in_directory(tmp_path)
    yield database
    database.close()


def open_book(database: Database, tmp_path: Path, **more: int) -> ModelBook:
    return ModelBook(ModelRegistry(database), tmp_path / "models", Clock(), **more)


def active(book: ModelBook) -> int:
    serving = book.serving()
    return 0 if serving.active is None else serving.active.version


def test_from_registered_to_active_and_back(database: Database, tmp_path: Path, files: list[bytes]) -> None:
    book = open_book(database, tmp_path)
    assert (active(book), book.serving().failure) == (0, "")
    first = book.register(files[0], "anna", "weekly training")
    assert (first.version, first.state, first.name) == (1, ModelState.REGISTERED, "cards")
    assert card_of(first).features == NAMES
    book.shadow(1, "anna")
    assert [each.version for each in book.serving().shadows] == [1]
    assert active(book) == 0
    before = book.serving()
    book.promote(1, "ben", "better than rules")
    assert before.active is None, "a batch under way keeps what it took"
    assert (active(book), book.serving().shadows) == (1, ())
    for content in files[1:3]:
        version = book.register(content, "ben").version
        book.promote(version, "anna")
    assert active(book) == 3
    assert [each.state.value for each in book.models()] == ["active", "retired", "retired"]
    assert book.roll_back("anna", "too many declines").version == 2
    assert active(book) == 2
    assert book.roll_back("anna").version == 1
    assert active(book) == 1
    with pytest.raises(LifecycleError, match="took over from no other"):
        book.roll_back("anna")
    book.retire(1, "ben")
    assert (active(book), book.serving().failure) == (0, "")
    with pytest.raises(LifecycleError, match="no model is active"):
        book.roll_back("anna")
    trail = [(each.verb, each.state.value, each.who, each.why) for each in book.changes(1)]
    assert trail == [
        ("register", "registered", "anna", "weekly training"),
        ("shadow", "shadow", "anna", ""),
        ("promote", "active", "ben", "better than rules"),
        ("retire", "retired", "anna", "model 2 takes over: "),
        ("restore", "active", "anna", ""),
        ("retire", "retired", "ben", ""),
    ]
    times = [each.at_us for each in book.changes(1)]
    assert times == sorted(times)


def test_the_maker_is_not_the_checker(database: Database, tmp_path: Path, files: list[bytes]) -> None:
    book = open_book(database, tmp_path)
    book.register(files[0], "anna")
    book.shadow(1, "anna")
    with pytest.raises(LifecycleError, match="another person"):
        book.promote(1, "anna")
    assert (active(book), book.model(1).state) == (0, ModelState.SHADOW)
    book.promote(1, "ben")
    book.register(files[1], "ben")
    with pytest.raises(LifecycleError, match="another person"):
        book.promote(2, "ben")
    assert active(book) == 1, "the active one was not retired on the way"
    assert book.model(1).state is ModelState.ACTIVE


def test_what_is_not_possible_is_refused(database: Database, tmp_path: Path, files: list[bytes]) -> None:
    book = open_book(database, tmp_path)
    book.register(files[0], "anna")
    with pytest.raises(LifecycleError, match="already, as version 1"):
        book.register(files[0], "ben")
    with pytest.raises(UnknownModelError, match="no model 9"):
        book.promote(9, "ben")
    book.retire(1, "anna")
    for verb in (book.shadow, book.promote, book.retire):
        with pytest.raises(LifecycleError, match="retired"):
            verb(1, "ben")
    with pytest.raises(ModelError, match="damaged"):
        book.register(files[1][:-1] + b"\0", "anna")
    assert len(book.models()) == 1
    with pytest.raises(ModelError, match="No such file"):
        read_artefact(tmp_path / "nowhere")


def test_service_survives_a_restart_and_files_nobody_registered_do_not(
    database: Database, tmp_path: Path, files: list[bytes]
) -> None:
    book = open_book(database, tmp_path)
    for content in files[:3]:
        book.register(content, "anna")
    book.promote(1, "ben")
    book.shadow(2, "anna")
    columns = {"amount": np.array([0.1, 0.9]), "risk": np.array([0.2, 0.99])}
    scores = book.serving().columns(columns, 2)
    book.close()
    stray = tmp_path / "models" / f"{'ab' * 32}.model"
    stray.write_bytes(b"half")
    again = open_book(database, tmp_path)
    assert (active(again), [each.version for each in again.serving().shadows]) == (1, [2])
    found = again.serving().columns(columns, 2)
    assert np.array_equal(found.score, scores.score)
    assert np.array_equal(found.shadows[2], scores.shadows[2])
    assert not stray.exists()
    assert len(list((tmp_path / "models").iterdir())) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "models").iterdir())


def test_a_damaged_file_is_told_and_events_still_get_verdicts(
    database: Database, tmp_path: Path, files: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    book = open_book(database, tmp_path)
    book.register(files[0], "anna")
    book.register(files[1], "anna")
    book.promote(1, "ben")
    book.shadow(2, "anna")
    paths = {each.version: tmp_path / "models" / f"{each.digest.hex()}.model" for each in book.models()}
    # Another valid model in its place is as wrong as a damaged one.
    paths[1].write_bytes(files[3])
    os.unlink(paths[2])
    again = open_book(database, tmp_path)
    serving = again.serving()
    assert serving.active is None
    assert "digest" in serving.failure
    assert set(serving.broken) == {1, 2}
    assert "cannot be read" in serving.broken[2]
    assert "out of service" in caplog.text
    found = serving.columns({"amount": np.ones(3), "risk": np.ones(3)}, 3)
    assert found.degraded.all()
    with pytest.raises(ModelError, match="digest"):
        again.artefact(1)
    # Another model can take over.
    third = again.register(files[2], "anna")
    again.promote(third.version, "ben")
    assert (active(again), again.serving().failure) == (third.version, "")
    with pytest.raises(ModelError, match="digest"):
        again.roll_back("anna")
    assert active(again) == third.version


def test_columns_are_checked_when_they_are_known(
    database: Database, tmp_path: Path, files: list[bytes]
) -> None:
    book = open_book(database, tmp_path)
    book.register(files[0], "anna")
    book.bind(["amount", "hour"])
    with pytest.raises(ModelError, match="does not have: risk"):
        book.promote(1, "ben")
    assert book.model(1).state is ModelState.REGISTERED
    book.bind(["amount", "risk", "hour"])
    book.promote(1, "ben")
    assert active(book) == 1
    book.bind(["amount"])
    assert book.serving().active is None
    assert "risk" in book.serving().failure
    book.bind(["amount", "risk"])
    assert (active(book), book.serving().failure) == (1, "")


def test_files_of_long_retired_models_go_and_their_records_stay(
    database: Database, tmp_path: Path, files: list[bytes]
) -> None:
    book = open_book(database, tmp_path, kept_retired=1)
    for content in files:
        book.promote(book.register(content, "anna").version, "ben")
    kept = {each.version: each.kept for each in book.models()}
    assert kept == {4: True, 3: True, 2: False, 1: False}
    assert len(list((tmp_path / "models").iterdir())) == 2
    assert book.changes(1)[-1].verb == "forget"
    book.roll_back("anna")
    assert active(book) == 3
    with pytest.raises(ModelError, match="model 2"):
        book.roll_back("anna")
    assert active(book) == 3


def test_a_change_and_its_line_in_the_trail_are_one(
    database: Database, tmp_path: Path, files: list[bytes]
) -> None:
    book = open_book(database, tmp_path)
    book.register(files[0], "anna")
    with database.write() as connection:
        connection.execute(text("ALTER TABLE model_changes RENAME TO gone"))
    with pytest.raises(Exception, match="model_changes"):
        book.promote(1, "ben")
    with database.write() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO model_changes"))
    assert book.model(1).state is ModelState.REGISTERED
    assert active(book) == 0


@pytest.mark.parametrize(("maker", "checker"), [("operator", "ben"), ("anna", "operator")])
def test_the_operator_token_is_no_person_where_two_are_asked_for(
    database: Database, tmp_path: Path, files: list[bytes], maker: str, checker: str
) -> None:
    book = open_book(database, tmp_path)
    book.register(files[0], maker)
    with pytest.raises(LifecycleError, match="operator token names nobody"):
        book.promote(1, checker)
    assert (active(book), book.model(1).state) == (0, ModelState.REGISTERED)


def test_a_model_that_serves_something_else_than_its_trees_is_not_registered(
    database: Database, tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One leaf less for large amounts: the card and the explanations are those of the honest model, and so are the
    # scores of the probes, which the file itself brings.
    honest = decode_artefact(files[0])
    value = honest.trees.value.copy()
    value[np.flatnonzero(honest.trees.feature == -1)[0]] = -50.0
    onnx = onnx_bytes(replace(honest.trees, value=value), len(NAMES))
    assert onnx != honest.onnx
    session = open_session(onnx, len(NAMES))
    scores = run_session(session, honest.probes)
    content = encode_artefact(replace(honest, onnx=onnx, probe_scores=scores))
    assert ServedModel.load(content).card == honest.card, "nothing else notices it"
    opened: list[bytes] = []
    monkeypatch.setattr(served, "open_session", lambda graph, _features: opened.append(graph))
    book = open_book(database, tmp_path)
    with pytest.raises(ModelError, match="not made of its trees"):
        book.register(content, "anna")
    assert opened == [], "no runtime has opened a graph of unknown making"
    assert book.models() == []
    assert list((tmp_path / "models").iterdir()) == []


def test_shadows_are_few(database: Database, tmp_path: Path, files: list[bytes]) -> None:
    book = open_book(database, tmp_path)
    for content in (*files, model_file(9)):
        book.register(content, "anna")
    for version in range(1, MAX_SHADOWS + 1):
        book.shadow(version, "anna")
    with pytest.raises(LifecycleError, match="retire one first"):
        book.shadow(MAX_SHADOWS + 1, "anna")
    book.promote(1, "ben")
    book.shadow(MAX_SHADOWS + 1, "anna")
    assert len(book.serving().shadows) == MAX_SHADOWS

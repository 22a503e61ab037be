"""The coordinator's log: what is appended survives, what failed leaves nothing, what was changed is noticed."""

from __future__ import annotations

import secrets
import threading
from contextlib import closing

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

import subrosa
from coordinator.export import export_log
from coordinator.service.log import GovernanceLog, LogCorruptError
from coordinator.storage.database import Database
from crypto.signing import SigningKey
from governance.log.audit import verify_export
from governance.log.entries import ExportEntry, MalformedEntryError, RefusalEntry
from governance.log.follow import TrustedLog
from governance.messages.problems import RequestError

ORIGIN = "test.example/log"
KEY = SigningKey(bytes(32))
NOW = 1_800_000_000


class FailingCommitError(Exception):
    """Stands for a full disk at the moment of the commit."""


@pytest.fixture
def database(tmp_path):
    with closing(Database.in_directory(tmp_path)) as opened:
        yield opened


def open_log(database, clock=lambda: NOW, key=KEY):
    return GovernanceLog(database, origin=ORIGIN, key=key, clock=clock, random=secrets.token_bytes)


def entry(transaction, size=0, reader="bank-a"):
    return ExportEntry(at=transaction.at, parties=[reader], reader=reader, size=size)


def append(log, count=1):
    with log.transaction() as transaction:
        return [transaction.append(entry(transaction, number)) for number in range(count)]


def follow(log, state=None):
    state = state or TrustedLog.start(log.verifier_key)
    return state.advance(log.update(state.size), now=NOW, max_age=10**6)


def test_appends_are_proven_and_survive(database):
    log = open_log(database)
    assert log.head.size == 0
    assert append(log, 3) == [0, 1, 2]
    state = follow(log)
    assert append(log, 4) == [3, 4, 5, 6]
    state = follow(log, state)
    again = open_log(database)
    assert again.head == log.head
    state = follow(again, state)
    sizes = [state.verify_entry(again.logged(index, again.head)).size for index in range(7)]
    assert sizes == [0, 1, 2, 0, 1, 2, 3]


def test_a_block_that_raises_leaves_nothing(database):
    log = open_log(database)
    append(log)
    head = log.head

    def append_and_fail():
        with log.transaction() as transaction:
            transaction.append(entry(transaction))
            raise FailingCommitError

    with pytest.raises(FailingCommitError):
        append_and_fail()
    with pytest.raises(MalformedEntryError), log.transaction() as transaction:
        transaction.append(entry(transaction, reader="Not A Party"))
    assert log.head == head
    assert append(log) == [1]
    assert open_log(database).head == log.head


def test_a_commit_that_fails_leaves_nothing(database, monkeypatch):
    log = open_log(database)
    append(log, 5)
    head = log.head
    state = follow(log)

    def fail(*_: object) -> None:
        raise FailingCommitError

    with monkeypatch.context() as patch:
        patch.setattr("coordinator.storage.log.put_checkpoint", fail)
        with pytest.raises(FailingCommitError):
            append(log, 2)
    assert log.head == head
    assert log.page(0, 100, 5, None).entries[-1].index == 4
    state = follow(log, state)
    assert append(log, 2) == [5, 6]
    follow(log, state)
    assert open_log(database).head == log.head


def test_two_processes_share_one_log(database):
    """An export appends beside the serving process, which catches up with its next step."""
    serving, exporting = open_log(database), open_log(database)
    append(serving, 2)
    assert append(exporting) == [2]
    state = follow(serving)
    assert append(serving) == [3]
    follow(serving, state)


def test_many_threads(database):
    log = open_log(database)
    indexes: list[int] = []
    failures: list[BaseException] = []

    def work():
        try:
            state = TrustedLog.start(log.verifier_key)
            for _ in range(25):
                indexes.extend(append(log, 2))
                state = follow(log, state)
                page = log.page(max(0, state.size - 3), 3, state.size, "bank-a")
                state = state.advance(page.checkpoint, now=NOW, max_age=10**6)
                for logged in page.entries:
                    state.verify_entry(logged)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(indexes) == list(range(300))
    assert open_log(database).head == log.head


def test_readers_see_only_their_entries(database):
    log = open_log(database)
    with log.transaction() as transaction:
        for number in range(6):
            reader = "bank-a" if number % 2 else "bank-b"
            transaction.append(entry(transaction, number, reader))
    assert [item.index for item in log.page(0, 100, 0, "bank-a").entries] == [1, 3, 5]
    assert [item.index for item in log.page(2, 2, 0, None).entries] == [2, 3]
    assert log.page(0, 100, 0, "bank-c").entries == []
    with pytest.raises(RequestError, match="never had 7"):
        log.page(0, 100, 7, None)


def test_a_clock_that_goes_back_does_not_take_the_log_with_it(database):
    now = [NOW]
    log = open_log(database, clock=lambda: now[0])
    append(log)
    now[0] -= 1000
    append(log)
    assert log.head.time == NOW
    follow(log)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE log_entries SET body = CAST('{}' AS BLOB) WHERE entry_index = 1", "database was changed"),
        ("UPDATE log_entries SET salt = zeroblob(32) WHERE entry_index = 1", "database was changed"),
        ("DELETE FROM log_entries WHERE entry_index = 1", "lacks entry 1"),
        ("DELETE FROM log_entries WHERE entry_index = 2", "the 2 stored entries"),
        ("DELETE FROM checkpoints", "no checkpoint"),
        ("UPDATE checkpoints SET note = replace(note, 'time', 'lime')", "not one this log key signed"),
        ("DELETE FROM checkpoints WHERE size = 3", "the 3 stored entries"),
    ],
)
def test_a_changed_store_refuses_to_start(database, statement, message):
    log = open_log(database)
    append(log, 2)
    append(log, 1)
    with database.write() as connection:
        connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        connection.execute(text("DELETE FROM log_readers"))
        connection.execute(text(statement))
    with pytest.raises(LogCorruptError, match=message):
        open_log(database)


def test_another_key_refuses_to_start(database):
    append(open_log(database))
    with pytest.raises(LogCorruptError, match="restore database and key"):
        open_log(database, key=SigningKey(bytes(31) + b"1"))


def test_audit_export_is_a_command(consortium, tmp_path):
    consortium.refused("regulator", "GET", "/v1/index/deltas")
    out = tmp_path / "out"
    options = ["--directory", str(consortium.directory), "--out", str(out), "--reader", "regulator"]
    result = CliRunner().invoke(subrosa.app, ["audit", "export", *options])
    assert result.exit_code == 0, result.output
    assert "exported 4 entries" in result.output
    report = verify_export(out, consortium.anchors.log_verifier_key)
    assert (report.refusals(), report.entries["export"]) == (1, 1)
    again = CliRunner().invoke(subrosa.app, ["audit", "export", *options])
    assert again.exit_code == 1
    assert "new or empty directory" in again.output


def test_exports_name_their_reader_and_verify(consortium, tmp_path):
    consortium.refused("regulator", "GET", "/v1/index/deltas")
    report = export_log(consortium.directory, tmp_path / "one", reader="regulator")
    assert (report.size, report.refusals(), report.key_pinned) == (4, 1, True)
    assert report.entries["export"] == 1
    assert export_log(consortium.directory, tmp_path / "two").size == 5
    with consortium.coordinator.log.transaction() as transaction:
        transaction.append(
            RefusalEntry(
                at=transaction.at,
                parties=["bank-a"],
                party="bank-a",
                action="mirror",
                resource="Index/consortium",
                purpose="test",
                reason="test",
                rule="test",
                policy_epoch=1,
                since=transaction.at,
                requests=1,
            )
        )
    assert export_log(consortium.directory, tmp_path / "three").size == 7

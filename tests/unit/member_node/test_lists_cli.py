"""``subrosa list``: the commands against a desk that is the API itself, and the files they read."""

import asyncio
import datetime as dt
import json
from typing import Any

import httpx
import polars as pl
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from typer.testing import CliRunner

from governance.messages.problems import ProblemError, RequestError, problem_for
from member_node import lists_cli
from member_node.api.lists import list_router
from member_node.client.desk import DeskError
from member_node.command_line import CommandError, refuse
from member_node.list_file import read_list_file
from member_node.service.lists import ListBook
from member_node.service.staff import Role, Staff
from member_node.storage.database import Database
from member_node.storage.lists import ListStore

NOW_US = 1_800_000_000_000_000


class Desk:
    """The bank's desk without a network."""

    party = "bank-a"

    def __init__(self, app):
        self._app = app

    def get(self, path):
        return self._call("GET", path, None)

    def post(self, path, **body):
        return self._call("POST", path, body)

    def _call(self, method, path, body):
        async def send():
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://bank-a") as http:
                return await http.request(method, f"/{path}", json=body)

        answer = asyncio.run(send())
        if answer.is_error:
            raise DeskError(answer.text)
        return answer.json()


@pytest.fixture
def run(tmp_path, monkeypatch):
    database = Database.in_directory(tmp_path)
    app = FastAPI()
    app.include_router(list_router(ListBook(ListStore(database), lambda: NOW_US), "bank-a"))

    @app.exception_handler(RequestError)
    async def problem(_request: Request, error: RequestError) -> Response:
        return Response(str(ProblemError(problem_for(error, ""))), problem_for(error, "").status)

    @app.middleware("http")
    async def door(request: Request, call_next: Any) -> Response:
        request.state.staff = Staff("operator", frozenset({Role.ADMIN}))
        answer: Response = await call_next(request)
        return answer

    class Opened:
        def __init__(self, _directory, _token_file):
            pass

        def __enter__(self):
            return Desk(app)

        def __exit__(self, _kind, error, _trace):
            if isinstance(error, DeskError | CommandError):
                raise refuse(str(error)) from error

    monkeypatch.setattr(lists_cli, "open_desk", Opened)

    def invoke(*arguments, stdin=None):
        return CliRunner().invoke(lists_cli.app, [*arguments, "--directory", str(tmp_path)], input=stdin)

    yield invoke
    database.close()


def test_a_list_from_its_creation_to_a_removal(run):
    assert run("create", "mules", "block", "payee", "--reason", "r").exit_code == 0
    added = run("add", "mules", "-", "--reason", "seen twice", "--until", "2090-01-01", stdin="DE99\n")
    assert "is on mules" in added.output
    assert "was already on" in run("add", "mules", "DE99", "--reason", "x", "--until", "2090-01-01").output
    assert "has a new end on" in run("add", "mules", "DE99", "--reason", "x").output
    found = run("find", "mules", "DE99")
    assert "no end" in found.output
    assert "by operator: x" in found.output
    assert "mules: block list over payee, 1 entries" in run("show").output
    assert "DE99" in run("show", "mules").output
    assert run("remove", "mules", "DE99", "--reason", "wrong").exit_code == 0
    assert "NOT LISTED" in run("find", "mules", "DE99").output
    refused = run("remove", "mules", "DE99", "--reason", "wrong")
    assert refused.exit_code == 1
    assert "not-listed" in refused.output
    assert "DE99" not in refused.output


def test_refusals_are_one_line_with_the_code(run):
    run("create", "mules", "block", "payee", "--reason", "r")
    for arguments, code in (
        (("create", "mules", "block", "payee", "--reason", "r"), "list-exists"),
        (("create", "x", "block", "colour", "--reason", "r"), "wrong-entity"),
        (("add", "none", "DE99", "--reason", "r"), "unknown-list"),
        (("add", "mules", "DE99", "--reason", "r", "--until", "2020-01-01"), "expired"),
        (("add", "mules", "DE99", "--reason", "r", "--rule", "r1"), "rule-not-allowed"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, arguments
        assert code in result.output
        assert "DE99" not in result.output
        assert result.output.count("\n") == 1
    assert run("add", "mules", "a", "--reason", "r", "--until", "tomorrow").exit_code == 2


def test_import_counts_and_names_what_it_rejects(run, tmp_path):
    run("create", "mules", "block", "payee", "--reason", "r")
    file = tmp_path / "m.csv"
    file.write_text(
        "value,expires,reason\n"
        "A,2090-01-01,first\n"
        ",2090-01-01,\n"
        "B,2020-01-01,\n"
        "SECRET\x01,,\n"
        "C,whenever,\n"
        "A,,twice\n"
        "1001,,\n"
    )
    result = run("import", "mules", str(file), "--reason", "list of May", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert {name: report[name] for name in ("added", "renewed", "known", "duplicates", "rejected")} == {
        "added": 2,
        "renewed": 0,
        "known": 0,
        "duplicates": 1,
        "rejected": 4,
    }
    lines = (tmp_path / "m.csv.rejects.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["row", "3", "4", "5", "6"]
    assert "SECRET" not in "".join(lines) + result.output
    assert "list of May" in run("find", "mules", "1001").output
    assert "first" in run("find", "mules", "A").output
    file.write_text("value\nA\n1001\n")
    again = run("import", "mules", str(file), "--reason", "r", "--until", "2091-01-01")
    assert "0 added, 2 with a new end, 0 known, 0 twice in the file, 0 rejected" in again.output
    assert not (tmp_path / "m.csv.rejects.csv").exists()


def test_import_of_parquet_with_integers_and_times(run, tmp_path):
    run("create", "clear", "exemption", "customer", "--reason", "r")
    file = tmp_path / "c.parquet"
    frame = pl.DataFrame({"value": [7, 8, None], "rule": ["night", None, "x"]}).with_columns(
        pl.datetime(2090, 1, 2, 3, 30, time_zone="UTC").alias("expires")
    )
    frame.write_parquet(file)
    result = run("import", "clear", str(file), "--reason", "r", "--json")
    assert json.loads(result.output.splitlines()[-1])["added"] == 2
    entries = json.loads(run("find", "clear", "7", "--json").output)["entries"]
    assert [(each["rule"], each["expires_ms"]) for each in entries] == [
        ("night", int(dt.datetime(2090, 1, 2, 3, 30, tzinfo=dt.UTC).timestamp()) * 1000)
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "name\nx\n", "there is no column value"),
        ("a.csv", "value,colour\nx,y\n", "unknown column 'colour'"),
        ("a.csv", "", "is not CSV"),
        ("a.parquet", "value\nx\n", "is not Parquet"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, reason):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(CommandError, match=reason):
        read_list_file(file)
    with pytest.raises(CommandError, match="No such file"):
        read_list_file(tmp_path / "missing.csv")

"""The HTTP boundary: only signed, fresh, addressed and small requests pass; all else changes nothing."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import threading
import time
from dataclasses import dataclass

import httpx
import pytest

from crypto import group
from crypto.signing import SigningKey
from governance.messages.codec import MEDIA_TYPE, decode, encode
from governance.messages.http_signatures import (
    HttpSignatureError,
    RequestParts,
    request_signature,
    sign_request,
    verify_response,
)
from governance.messages.lookup import EvaluateRequest, EvaluateResponse
from governance.messages.problems import ProblemError, parse_problem
from governance.messages.signed import Signed, open_signed
from member_node import setup
from member_node.app import build_app
from member_node.client.key_holder import HttpKeyHolder
from member_node.client.ports import PartyUnreachableError
from member_node.client.signed_http import Caller, SignedHttp
from member_node.node import MemberNode
from member_node.secret_files import IDENTITY_FILE, TOKEN_FILE, SecretFileError
from member_node.settings import load_settings
from member_node.traffic import TrafficMeter, WireCapture

AUTHORITY = "bank-b.test"


class AppTransport(httpx.BaseTransport):
    """Carries requests into an application in this process; its background threads are not started."""

    def __init__(self, app) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._carry(request, request.read()))

    async def _carry(self, request: httpx.Request, body: bytes) -> httpx.Response:
        asked = httpx.Request(request.method, request.url, headers=request.headers.raw, content=body)
        answered = await self._inner.handle_async_request(asked)
        content = await answered.aread()
        return httpx.Response(
            answered.status_code, headers=answered.headers.raw, stream=httpx.ByteStream(content)
        )


def connect(node: MemberNode) -> httpx.Client:
    return httpx.Client(transport=AppTransport(build_app(node)), base_url=f"http://{AUTHORITY}")


@dataclass
class Door:
    """bank-b's application in front of the simulated consortium, and bank-a's key to knock with."""

    world: object
    node: MemberNode
    client: httpx.Client

    def request(self) -> EvaluateRequest:
        element = group.multiply_base(group.random_scalar(secrets.token_bytes))
        return EvaluateRequest(
            request_id=secrets.token_bytes(16),
            epoch=1,
            kind_group="terminals",
            generation=1,
            purpose="fraud-prevention",
            quota="lookup",
            elements=element,
        )

    def sign(self, body: bytes, *, path: str = "/v1/evaluate", key: SigningKey | None = None, **changes):
        parts = RequestParts("POST", AUTHORITY, path, "", changes.pop("headers", {}), body)
        fields = {
            "signer": "bank-a",
            "key": key or self.world.banks["bank-a"].key,
            "recipient": "bank-b",
            "policy_epoch": 1,
            "now": self.world.clock.now,
            "nonce": secrets.token_bytes(16),
        }
        return sign_request(parts, **(fields | changes))

    def post(self, body: bytes, headers: dict[str, str]):
        return self.client.post("/v1/evaluate", content=body, headers=headers)


@pytest.fixture
def door(world, tmp_path, migrated):
    home = tmp_path / "bank-b"
    bank = world.banks["bank-b"]
    setup.init_member(
        home,
        party="bank-b",
        name="B",
        host="127.0.0.1",
        port=1,
        coordinator_url="http://nobody.test",
        capture_directory=tmp_path / "capture",
    )
    (home / IDENTITY_FILE).write_bytes(bank.key.seed())
    shutil.copy(migrated, home / "member.sqlite3")
    setup.install_key_shares(home, bank.shares)
    chair_card = {"party": "coordinator", "name": "C", "role": "coordinator", "url": ""}
    setup.trust(
        home,
        setup.PartyCard(**chair_card, verify_key=world.chair.key.verify_key.hex()),
        world.chair.log_verifier_key,
        "unit.subrosa.example/log",
    )
    for party in ("bank-a", "bank-c"):
        key = world.banks[party].key.verify_key.hex()
        setup.pin_party(home, setup.PartyCard(party=party, name=party, role="member", verify_key=key, url=""))
    node = MemberNode(load_settings(home), clock=world.clock, coordinator=bank.port)
    node.refresh()
    with connect(node) as client:
        yield Door(world, node, client)
    node.close()


def refused(door: Door, response, status: int, name: str, party: str | None = None):
    """The problem of a refusal, after which nothing was evaluated or counted."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = parse_problem(response.content)
    assert problem.name == name
    assert problem.fix
    if party is not None:
        assert problem.party == party
    assert door.node.holder._store.counts() == []
    return problem


def test_a_signed_request_gets_a_signed_answer_bound_to_it(door):
    asked = door.request()
    headers = door.sign(encode(asked))
    response = door.post(encode(asked), headers)
    assert response.status_code == 200, response.content
    keys = door.world.chair.verify_keys()
    bound = {"signer": "bank-b", "verify_keys": keys, "now": door.world.clock.now}
    answer_headers = {key.lower(): value for key, value in response.headers.items()}
    verify_response(200, answer_headers, response.content, request_signature(headers), **bound)
    answer = open_signed(EvaluateResponse, decode(Signed, response.content), keys)
    assert answer.request_id == asked.request_id
    with pytest.raises(HttpSignatureError):
        verify_response(200, answer_headers, response.content, bytes(64), **bound)


def test_a_replay_is_refused_even_after_a_restart(door):
    body = encode(door.request())
    headers = door.sign(body)
    assert door.post(body, headers).status_code == 200
    again = door.post(body, headers)
    assert (again.status_code, parse_problem(again.content).name) == (409, "replayed")
    settings = door.node.settings
    door.node.close()
    node = MemberNode(settings, clock=door.world.clock, coordinator=door.world.banks["bank-b"].port)
    try:
        with connect(node) as client:
            once_more = client.post("/v1/evaluate", content=body, headers=headers)
        assert parse_problem(once_more.content).name == "replayed"
    finally:
        node.close()


@pytest.mark.parametrize(
    ("changes", "status", "name"),
    [
        ({"recipient": "bank-c"}, 421, "wrong-recipient"),
        ({"signer": "bank-z"}, 403, "unknown-party"),
        ({"signer": "bank-c"}, 401, "invalid-signature"),
        ({"key": SigningKey(b"x" * 32)}, 401, "invalid-signature"),
        ({"now": 1_800_000_000 - 61}, 401, "stale-request"),
        ({"now": 1_800_000_000 + 10}, 401, "stale-request"),
        ({"path": "/v1/other"}, 401, "invalid-signature"),
    ],
)
def test_wrongly_signed_requests_are_refused_by_name(door, changes, status, name):
    body = encode(door.request())
    refused(door, door.post(body, door.sign(body, **changes)), status, name)


def test_a_changed_body_header_or_missing_signature_is_refused(door):
    body = encode(door.request())
    headers = door.sign(body)
    refused(door, door.post(body + b"x", headers), 400, "wrong-digest", "bank-a")
    refused(
        door, door.post(body, headers | {"subrosa-policy-epoch": "2"}), 401, "invalid-signature", "bank-a"
    )
    bare = {"content-type": MEDIA_TYPE}
    assert "signature" not in door.post(body, bare).headers
    refused(door, door.post(body, bare), 401, "unsigned")


def test_a_body_that_is_too_long_is_refused_before_it_is_verified(door):
    body = bytes(200 * 1024)
    response = door.post(body, door.sign(body))
    refused(door, response, 413, "too-large", "bank-a")
    # Bound to a signature over these bytes an answer would be evidence of what was not read.
    assert "signature" not in response.headers
    assert response.headers["connection"] == "close"
    unsigned = door.post(body, {"content-type": MEDIA_TYPE})
    refused(door, unsigned, 401, "unsigned", "")


def test_a_body_that_does_not_end_is_given_up(door, monkeypatch):
    monkeypatch.setattr("member_node.api.gate.BODY_SECONDS", 0.05)
    sent = []

    async def receive():
        if sent:
            await asyncio.sleep(30)
        sent.append(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    body = encode(door.request())
    response = asgi(door, "/v1/evaluate", door.sign(body) | {"host": AUTHORITY}, receive)
    assert (response["status"], parse_problem(response["body"]).name) == (400, "malformed")
    assert parse_problem(response["body"]).party == "bank-a"


def asgi(door, path, headers, receive):
    """One POST straight to the application, its body as ``receive`` gives it."""
    answer = {"body": b""}

    async def send(message):
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
        else:
            answer["body"] += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(key.lower().encode(), value.encode()) for key, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    asyncio.run(door.client._transport._inner.app(scope, receive, send))
    return answer


def test_an_unverified_key_id_leaves_no_trace(door, tmp_path):
    body = encode(door.request())
    for signer in ("bank-c", "bank-z", "../../evil", "x" * 500):
        door.post(body, door.sign(body, signer=signer))
    assert {row["peer"] for row in door.node.meter.report()} == {"unknown"}
    captured = [path.name for path in (tmp_path / "capture").iterdir()]
    assert len(captured) == 8
    assert all(name.split("-")[2] == "unknown" for name in captured)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_capture_takes_no_name_from_others(tmp_path):
    capture = WireCapture(tmp_path / "capture")
    for peer in ("bank-a", "../up", "", "BANK", "a" * 33, "bank-a\n"):
        capture.write("sent", peer, "POST /v1/x?y", {}, b"")
    names = sorted(path.name for path in (tmp_path / "capture").iterdir())
    assert names[0] == "0000001-sent-bank-a-POST-v1-x.http"
    assert {name.split("-", 2)[2] for name in names[1:]} == {"unknown-POST-v1-x.http"}


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"not msgpack", encode(Signed(signer="x", payload=b"", signature=b""))]
)
def test_malformed_messages_are_signed_problems_naming_the_sender(door, body):
    headers = door.sign(body)
    response = door.post(body, headers)
    refused(door, response, 400, "malformed", "bank-a")
    verify_response(
        400,
        {key.lower(): value for key, value in response.headers.items()},
        response.content,
        request_signature(headers),
        signer="bank-b",
        verify_keys=door.world.chair.verify_keys(),
        now=door.world.clock.now,
    )


def test_the_media_type_is_the_protocols(door):
    body = encode(door.request())
    headers = door.sign(body, headers={"content-type": "application/json"})
    refused(door, door.post(body, headers), 415, "unsupported-media-type", "bank-a")


def test_policy_epochs_must_agree_and_a_newer_one_is_learned(door, monkeypatch):
    body = encode(door.request())
    refused(door, door.post(body, door.sign(body, policy_epoch=2)), 409, "stale-policy", "bank-a")
    door.world.set_policy()
    assert door.node.consortium.policy_epoch() == 1
    # Not asked again so soon, whoever claims it.
    assert parse_problem(door.post(body, door.sign(body, policy_epoch=2)).content).name == "stale-policy"
    assert door.node.consortium.policy_epoch() == 1
    monkeypatch.setattr("member_node.node.LEARN_SECONDS", 0)
    assert door.post(body, door.sign(body, policy_epoch=2)).status_code == 200
    assert door.node.consortium.policy_epoch() == 2
    other = encode(door.request())
    assert parse_problem(door.post(other, door.sign(other, policy_epoch=1)).content).name == "stale-policy"


def test_high_policy_epochs_start_one_refresh_and_hold_nobody_up(door, monkeypatch):
    begun, end = threading.Event(), threading.Event()
    refreshes = []

    def refresh():
        refreshes.append(1)
        begun.set()
        end.wait(20)

    monkeypatch.setattr(door.node, "refresh", refresh)
    first = threading.Thread(target=door.node.learn)
    first.start()
    try:
        assert begun.wait(10)
        began = time.monotonic()
        for epoch in range(10, 20):
            body = encode(door.request())
            refused(door, door.post(body, door.sign(body, policy_epoch=epoch)), 409, "stale-policy", "bank-a")
        assert time.monotonic() - began < 5
    finally:
        end.set()
        first.join(10)
    door.node.learn()
    assert len(refreshes) == 1


def test_unknown_paths_and_methods_are_problems(door):
    assert parse_problem(door.client.get("/v1/nothing").content).name == "not-found"
    assert parse_problem(door.client.get("/v1/evaluate").content).name == "method-not-allowed"


def test_health_and_ready_are_open(door):
    assert door.client.get("/health").json()["party"] == "bank-b"
    assert door.client.get("/ready").status_code == 200
    door.world.clock.now += 400
    assert door.client.get("/ready").status_code == 503


def token(door) -> dict[str, str]:
    return {"Authorization": f"Bearer {(door.node.directory / TOKEN_FILE).read_text()}"}


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", "Basic {token}", "{token}", "Bearer {token}x"]
)
def test_the_bank_api_needs_the_operator_token(door, authorization):
    real = (door.node.directory / TOKEN_FILE).read_text()
    headers = {"Authorization": authorization.replace("{token}", real)}
    for method, path in (("GET", "status"), ("POST", "totals"), ("POST", "lookups"), ("POST", "sync")):
        response = door.client.request(method, f"/bank/v1/{path}", headers=headers, json={})
        assert response.status_code == 401
        assert parse_problem(response.content).name == "unauthenticated"


def unread():
    raise AssertionError("the body was read")


@pytest.mark.parametrize("path", ["/bank/v1/lookups", "/bank/v1/nothing", "/bank/v1/replay/open"])
def test_without_the_token_no_body_is_read(door, path):
    async def receive():
        unread()

    answer = asgi(door, path, {"authorization": "Bearer wrong", "content-type": "application/json"}, receive)
    problem = parse_problem(answer["body"])
    assert (answer["status"], problem.name) == (401, "unauthenticated")


def test_a_bank_body_is_capped_declared_or_not(door):
    taken = []

    async def receive():
        taken.append(1)
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    answer = asgi(door, "/bank/v1/enrolments", token(door), receive)
    assert (answer["status"], parse_problem(answer["body"]).name) == (413, "too-large")
    assert len(taken) == 33
    declared = token(door) | {"content-length": str(2**30)}
    answer = asgi(door, "/bank/v1/enrolments", declared, receive)
    assert (answer["status"], len(taken)) == (413, 33)


def test_a_bank_body_that_does_not_end_is_given_up(door, monkeypatch):
    monkeypatch.setattr("member_node.api.operator.BODY_SECONDS", 0.05)

    async def receive():
        await asyncio.sleep(30)

    answer = asgi(door, "/bank/v1/sync", token(door), receive)
    assert (answer["status"], parse_problem(answer["body"]).name) == (400, "malformed")


def test_an_operators_mistake_is_said_to_be_one(door):
    answer = door.client.post(
        "/bank/v1/replay/open", headers=token(door), json={"mapping": "/nowhere/mappings/x.toml"}
    )
    problem = parse_problem(answer.content)
    assert (answer.status_code, problem.name, problem.party) == (422, "operator", "bank-b")
    assert "canonical" not in problem.fix


def test_what_each_party_saw_survives_a_kill(door):
    body = encode(door.request())
    assert door.post(body, door.sign(body)).status_code == 200
    first = door.node.status()
    assert (first["restarts"], first["counting_since"]) == (0, door.world.clock.now)
    assert door.node._save_traffic() == 10
    door.world.clock.now += 50
    # As after a kill: the first node is never closed before the second one opens the same directory.
    node = MemberNode(door.node.settings, clock=door.world.clock, coordinator=door.world.banks["bank-b"].port)
    try:
        status = node.status()
        assert (status["restarts"], status["counting_since"]) == (1, first["counting_since"])
        (row,) = status["traffic"]
        assert (row["peer"], row["requests"], row["elements"], row["p50_ms"]) == ("bank-a", 1, 1, None)
        assert row["bytes_in"] == len(body)
        node.meter.count("asked", "bank-c", "evaluate", bytes_in=1, bytes_out=2, seconds=0.1, elements=3)
    finally:
        node.close()
    again = MemberNode(
        door.node.settings, clock=door.world.clock, coordinator=door.world.banks["bank-b"].port
    )
    try:
        rows = {(row["direction"], row["peer"]): row for row in again.status()["traffic"]}
        assert rows["asked", "bank-c"]["elements"] == 3
        assert rows["answered", "bank-a"]["requests"] == 1
        assert again.status()["restarts"] == 2
    finally:
        again.close()


def test_a_directory_open_to_others_is_not_served(door):
    door.node.directory.chmod(0o750)
    try:
        with pytest.raises(SecretFileError, match="chmod 700"):
            MemberNode(door.node.settings, coordinator=door.world.banks["bank-b"].port)
    finally:
        door.node.directory.chmod(0o700)
    for path in door.node.directory.iterdir():
        if path.suffix != ".txt":
            assert path.stat().st_mode & 0o077 == 0, path.name


def test_an_error_of_the_database_shows_no_value(door):
    with pytest.raises(Exception, match="no such table") as caught, door.node.database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere WHERE value = ?", ("SECRET-IBAN",))
    assert "SECRET" not in str(caught.value)


def test_a_bank_call_that_is_wrong_does_not_echo_its_values(door):
    body = {"kind": "iban", "value": ["SECRET-IBAN"], "purpose": 7}
    response = door.client.post("/bank/v1/lookups", headers=token(door), json=body)
    assert parse_problem(response.content).name == "malformed"
    assert b"SECRET" not in response.content
    response = door.client.post(
        "/bank/v1/lookups", headers=token(door), json={"kind": "iban", "value": "SECRETIBAN"}
    )
    assert parse_problem(response.content).name == "invalid-indicator"
    assert b"SECRET" not in response.content


def test_an_unexpected_error_is_hidden(door, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a secret value")

    monkeypatch.setattr(door.node.holder, "evaluate", fail)
    body = encode(door.request())
    response = door.post(body, door.sign(body))
    assert (response.status_code, parse_problem(response.content).name) == (500, "internal")
    assert b"secret" not in response.content


def test_what_each_party_asked_is_counted_and_captured(door, tmp_path):
    asked = door.request()
    headers = door.sign(encode(asked))
    door.post(encode(asked), headers)
    (row,) = [each for each in door.node.meter.report() if each["call"] == "evaluate"]
    assert (row["direction"], row["peer"], row["requests"], row["elements"]) == ("answered", "bank-a", 1, 1)
    assert row["bytes_in"] == len(encode(asked))
    captured = sorted((tmp_path / "capture").iterdir())
    assert len(captured) == 2
    assert captured[0].read_bytes().startswith(b"POST /v1/evaluate\n")
    assert asked.elements in captured[0].read_bytes()
    assert headers["signature"].encode() in captured[0].read_bytes()


class Transport(httpx.BaseTransport):
    """Carries the client's requests to the door, and lets a test fail them or change the answer."""

    def __init__(self, door):
        self.inner = door.client._transport
        self.change = lambda response: response
        self.failures = 0
        self.seen = []

    def handle_request(self, request):
        self.seen.append(dict(request.headers))
        if self.failures:
            self.failures -= 1
            raise httpx.ConnectError("refused")
        return self.change(self.inner.handle_request(request))


def answer_with(content: bytes, headers) -> httpx.Response:
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(content))


def client(door, transport) -> HttpKeyHolder:
    world = door.world
    caller = Caller(
        "bank-a",
        world.banks["bank-a"].key,
        lambda: 1,
        world.chair.verify_keys,
        world.clock,
        secrets.token_bytes,
    )
    http = SignedHttp(caller, TrafficMeter(), transport=transport)
    return HttpKeyHolder(http, "bank-b", f"http://{AUTHORITY}")


def test_the_client_retries_with_a_fresh_signature_and_spends_once(door):
    transport = Transport(door)
    transport.failures = 1
    signed = client(door, transport).evaluate(door.request())
    assert signed.signer == "bank-b"
    signatures = {headers["signature"] for headers in transport.seen}
    assert len(signatures) == 2
    assert [row.requests for row in door.node.holder._store.counts()] == [1]
    transport.failures = 5
    with pytest.raises(PartyUnreachableError, match="bank-b"):
        client(door, transport).evaluate(door.request())


def test_the_client_believes_no_answer_that_is_not_the_holders(door):
    def unsigned(response):
        return answer_with(response.read(), {"content-type": MEDIA_TYPE})

    def another_body(response):
        return answer_with(response.read()[:-1] + b"?", response.headers)

    def long(response):
        return answer_with(bytes(300 * 1024), response.headers)

    for change in (unsigned, another_body, long):
        transport = Transport(door)
        transport.change = change
        with pytest.raises(PartyUnreachableError, match="bank-b"):
            client(door, transport).evaluate(door.request())


def test_the_client_raises_the_holders_problem(door):
    with pytest.raises(ProblemError) as caught:
        client(door, Transport(door)).evaluate(replace_epoch(door.request()))
    assert caught.value.answered_by == "bank-b"
    assert caught.value.problem.name == "stale-epoch"


def replace_epoch(request: EvaluateRequest) -> EvaluateRequest:
    fields = {name: getattr(request, name) for name in EvaluateRequest.__struct_fields__}
    return EvaluateRequest(**(fields | {"epoch": 9}))

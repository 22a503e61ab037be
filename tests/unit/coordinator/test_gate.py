"""What never reaches a service: each bad request gets a problem that names the party and the fix."""

from __future__ import annotations

import secrets

import httpx
import pytest

from governance.messages.codec import encode
from governance.messages.http_signatures import RequestParts, sign_request
from governance.messages.index import Deltas
from governance.messages.inquiry import InquiryTasks
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.policy import PolicyBundle
from governance.messages.problems import RequestError, parse_problem
from governance.messages.roll import MembershipRoll
from governance.messages.signed import Signed, open_signed

LABELS = "/v1/index/labels"


def unchanged(consortium):
    return consortium.coordinator.log.head.size, consortium.get("bank-a", "/v1/index/deltas", Deltas).last


def signed_headers(consortium, party, method, path, body=b""):
    return sign_request(
        RequestParts(method, "testserver", path, "", {}, body),
        signer=party,
        key=consortium.keys[party],
        recipient="coordinator",
        policy_epoch=1,
        now=int(consortium.clock.now),
        nonce=secrets.token_bytes(16),
    )


async def endless(read: list[int]):
    """A body without an end; ``read`` counts its pieces as they are asked for."""
    for _ in range(1000):
        read.append(1024)
        yield bytes(1024)


def test_reads(consortium):
    keys = {"coordinator": bytes.fromhex(consortium.anchors.card.verify_key)}
    roll = open_signed(MembershipRoll, consortium.get("bank-a", "/v1/membership", Signed), keys)
    assert [entry.party for entry in roll.parties] == [
        "bank-a",
        "bank-b",
        "bank-c",
        "coordinator",
        "regulator",
    ]
    policy = open_signed(PolicyBundle, consortium.get("regulator", "/v1/policy", Signed), keys)
    assert policy.policy_epoch == 1
    update = consortium.get("bank-a", "/v1/checkpoint?since=1", CheckpointUpdate)
    assert update.first_size == 1


def test_unsigned(consortium):
    response = consortium.request("GET", "/v1/membership")
    problem = parse_problem(response.content)
    assert (response.status_code, problem.name) == (401, "unsigned")
    assert "signature" not in response.headers


def test_wrong_key(consortium):
    answer = consortium.send("bank-a", "GET", "/v1/membership", key=consortium.keys["bank-b"])
    problem = answer.problem()
    assert (problem.name, problem.party, answer.signed) == ("invalid-signature", "bank-a", False)


def test_unknown_party(consortium):
    answer = consortium.send("bank-z", "GET", "/v1/membership", key=consortium.keys["bank-b"])
    assert (answer.problem().name, answer.problem().party) == ("unknown-party", "bank-z")
    assert not answer.signed


def test_replay_is_refused_also_after_a_restart(consortium, start):
    before = unchanged(consortium)
    body = encode(consortium.batch(consortium.label("bank-a")))
    nonce = secrets.token_bytes(16)
    assert consortium.send("bank-a", "POST", LABELS, body, nonce=nonce).status == 200
    for _ in range(2):
        answer = consortium.send("bank-a", "POST", LABELS, body, nonce=nonce)
        assert (answer.status, answer.problem().name, answer.problem().party) == (409, "replayed", "bank-a")
        assert answer.signed
        start(consortium)
    assert consortium.send("bank-b", "GET", "/v1/membership", nonce=nonce).status == 200
    assert unchanged(consortium) == (before[0] + 1, before[1] + 1)


def test_old_nonces_are_forgotten_when_they_cannot_be_accepted(consortium):
    consortium.get("bank-a", "/v1/membership", Signed)
    store = consortium.coordinator._nonces
    assert store.sweep(int(consortium.clock.now) + 60) == 0
    assert store.sweep(int(consortium.clock.now) + 200) == 1


@pytest.mark.parametrize("shift", [-61, 10])
def test_stale_requests(consortium, shift):
    answer = consortium.send("bank-a", "GET", "/v1/membership", now=int(consortium.clock.now) + shift)
    assert (answer.problem().name, answer.problem().party) == ("stale-request", "bank-a")
    assert answer.signed
    answer = consortium.send(
        "bank-a",
        "GET",
        "/v1/membership",
        now=int(consortium.clock.now) + shift,
        key=consortium.keys["bank-b"],
    )
    assert (answer.problem().name, answer.signed) == ("invalid-signature", False)


def test_another_recipient(consortium):
    answer = consortium.send("bank-a", "GET", "/v1/membership", recipient="bank-b")
    assert (answer.status, answer.problem().name) == (421, "wrong-recipient")


def test_a_changed_body_target_or_header(consortium):
    before = unchanged(consortium)
    body = encode(consortium.batch(consortium.label("bank-a")))
    answer = consortium.send("bank-a", "POST", LABELS, body, sent_body=body[:-1] + bytes([body[-1] ^ 1]))
    assert (answer.problem().name, answer.problem().party) == ("wrong-digest", "bank-a")

    def other_epoch(headers):
        headers["subrosa-policy-epoch"] = "2"

    answer = consortium.send("bank-a", "POST", LABELS, body, change=other_epoch)
    assert answer.problem().name == "invalid-signature"
    assert unchanged(consortium) == before


def test_stale_policy_epoch(consortium):
    before = unchanged(consortium)
    body = encode(consortium.batch(consortium.label("bank-a")))
    for epoch in (0, 2):
        answer = consortium.send("bank-a", "POST", LABELS, body, policy_epoch=epoch)
        problem = answer.problem()
        assert (answer.status, problem.name, problem.party) == (409, "stale-policy", "bank-a")
        assert consortium.send("bank-a", "GET", "/v1/policy", policy_epoch=epoch).status == 200
    assert unchanged(consortium) == before


def test_malformed_bodies(consortium):
    before = unchanged(consortium)
    body = encode(consortium.batch(consortium.label("bank-a")))
    for broken in (b"", b"\xc1", body + b"\0", body[:-1], encode(consortium.label("bank-a"))):
        answer = consortium.send("bank-a", "POST", LABELS, broken)
        problem = answer.problem()
        assert (answer.status, problem.name, problem.party) == (400, "malformed", "bank-a")
        assert answer.signed
    assert unchanged(consortium) == before


def test_malformed_media_type(consortium):
    body = encode(consortium.batch(consortium.label("bank-a")))
    answer = consortium.send("bank-a", "POST", LABELS, body, media_type="application/json")
    assert (answer.status, answer.problem().name) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    "query", ["since=-1", "since=01", "since=x", "since=1&since=1", "other=1", "since", "since=1e3"]
)
def test_malformed_queries(consortium, query):
    problem = consortium.refused("bank-a", "GET", f"/v1/checkpoint?{query}")
    assert (problem.name, problem.party) == ("malformed", "bank-a")


def test_a_checkpoint_from_a_size_the_log_never_had(consortium):
    problem = consortium.refused("bank-a", "GET", "/v1/checkpoint?since=1000")
    assert (problem.name, problem.status) == ("conflict", 409)


def test_waiting_takes_numbers_of_seconds(consortium):
    consortium.get("bank-a", "/v1/inquiries/tasks?wait=0.05&since=1", InquiryTasks)
    assert consortium.refused("bank-a", "GET", "/v1/inquiries/tasks?wait=.").name == "malformed"


def test_unknown_addresses_are_problems_too(consortium):
    problem = consortium.refused("bank-a", "GET", "/v1/nothing")
    assert (problem.name, problem.status) == ("not-found", 404)
    problem = consortium.refused("bank-a", "POST", "/v1/membership")
    assert (problem.name, problem.status) == ("method-not-allowed", 405)
    assert parse_problem(consortium.request("GET", "/docs").content).name == "not-found"


def test_oversized_bodies_are_not_read(idle, start):
    consortium = idle
    settings = consortium.directory / "coordinator.toml"
    settings.write_text(settings.read_text() + "max_body_bytes = 2048\n")
    start(consortium)
    answer = consortium.send("bank-a", "POST", LABELS, bytes(2049))
    problem = answer.problem()
    assert (answer.status, problem.name, problem.party) == (413, "too-large", "bank-a")
    assert not answer.signed
    assert answer.headers["connection"] == "close"

    read: list[int] = []
    headers = signed_headers(consortium, "bank-a", "POST", LABELS)
    response = consortium.request("POST", LABELS, content=endless(read), headers=headers)
    assert isinstance(response, httpx.Response)
    assert (response.status_code, parse_problem(response.content).name) == (413, "too-large")
    assert 0 < len(read) < 10


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda headers: headers.clear(), "unsigned"),
        (lambda headers: headers.update({"subrosa-recipient": "bank-b"}), "wrong-recipient"),
        (lambda headers: headers.update({"subrosa-policy-epoch": "2"}), "invalid-signature"),
        (lambda headers: headers.update({"content-digest": "sha-256=::"}), "signature-profile"),
        (
            lambda headers: headers.update(
                {"signature-input": headers["signature-input"].replace("bank-a", "bank-z")}
            ),
            "unknown-party",
        ),
    ],
)
def test_not_a_byte_is_read_from_whoever_did_not_sign(consortium, change, name):
    headers = signed_headers(consortium, "bank-a", "POST", LABELS)
    change(headers)
    read: list[int] = []
    response = consortium.request("POST", LABELS, content=endless(read), headers=headers)
    assert parse_problem(response.content).name == name
    assert "signature" not in response.headers
    assert response.headers["connection"] == "close"
    assert read == []


def test_a_relayed_signature_gets_no_signed_answer(consortium):
    """Who relays a bank's signature with another body must not get what looks like the answer to the bank's request."""
    body = encode(consortium.batch(consortium.label("bank-a")))
    nonce = secrets.token_bytes(16)
    size = consortium.coordinator.log.head.size
    for relayed in (b"", b"x", body + b"x", bytes(17 * 2**20)):
        answer = consortium.send("bank-a", "POST", LABELS, body, sent_body=relayed, nonce=nonce)
        assert answer.problem().name in ("wrong-digest", "too-large")
        assert not answer.signed
    answer = consortium.send("bank-a", "POST", "/v1/nothing", body, sent_body=b"x")
    assert (answer.problem().name, answer.signed) == ("not-found", False)
    assert consortium.coordinator.log.head.size == size
    # the relay has used up nothing: the request itself is served
    assert consortium.send("bank-a", "POST", LABELS, body, nonce=nonce).status == 200


def test_bodies_share_one_allowance(consortium):
    allowance = consortium.app.state.allowance
    free = allowance._free
    body = encode(consortium.batch(consortium.label("bank-a")))
    assert consortium.send("bank-a", "POST", LABELS, body).status == 200
    consortium.send("bank-a", "POST", LABELS, bytes(17 * 2**20))
    assert (allowance._free, allowance._held) == (free, {})
    share = free // 5
    for party in ("bank-b", "bank-c", "regulator", "coordinator", "bank-a"):
        allowance.take(party, share)
    with pytest.raises(RequestError, match="of this party"):
        allowance.take("bank-b", 1)
    with pytest.raises(RequestError, match="arrive at a time"):
        allowance.take("bank-z", 10)
    answer = consortium.send("bank-a", "POST", LABELS, body)
    assert (answer.status, answer.problem().name, answer.signed) == (503, "unavailable", False)
    assert consortium.send("bank-a", "GET", "/v1/membership").status == 200
    for party in ("bank-b", "bank-c", "regulator", "coordinator", "bank-a"):
        allowance.give_back(party, share)
    assert (allowance._free, allowance._held) == (free, {})


def test_a_party_that_fills_its_share_leaves_the_others_theirs(consortium):
    allowance = consortium.app.state.allowance
    allowance.take("bank-a", allowance._per_party)
    body = encode(consortium.batch(consortium.label("bank-a")))
    answer = consortium.send("bank-a", "POST", LABELS, body)
    assert (answer.problem().name, answer.problem().party) == ("unavailable", "bank-a")
    body = encode(consortium.batch(consortium.label("bank-b")))
    assert consortium.send("bank-b", "POST", LABELS, body).status == 200
    allowance.give_back("bank-a", allowance._per_party)


def test_what_is_unexpected_says_nothing(consortium, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret 42")

    monkeypatch.setattr(consortium.coordinator.totals, "submit", broken)
    answer = consortium.send("bank-a", "POST", "/v1/evaluation-totals", encode(consortium.label("bank-a")))
    assert (answer.status, answer.problem().name, answer.signed) == (500, "internal", True)
    assert b"42" not in answer.body
    assert "secret 42" in caplog.text


def test_everyone_reads_its_own_entries_and_regulators_all(consortium):
    consortium.refused("bank-a", "POST", "/v1/inquiries", consortium.inquiry(purpose="curiosity"))
    pages = {
        party: consortium.get(party, "/v1/log?first=0&count=100", LogPage)
        for party in ("bank-a", "bank-b", "regulator")
    }
    indexes = {party: [entry.index for entry in page.entries] for party, page in pages.items()}
    assert indexes == {"bank-a": [0, 1, 2], "bank-b": [0, 1], "regulator": [0, 1, 2]}
    for party in pages:
        assert len(consortium.entries(party)) == len(indexes[party])
    page = consortium.get("bank-a", "/v1/log?first=1&count=1&since=2", LogPage)
    assert [entry.index for entry in page.entries] == [1]


def test_checkpoints_are_signed_again(consortium):
    first = consortium.get("bank-a", "/v1/checkpoint", CheckpointUpdate)
    consortium.clock.now += 29
    assert consortium.get("bank-a", "/v1/checkpoint", CheckpointUpdate) == first
    consortium.clock.now += 1
    second = consortium.get("bank-a", "/v1/checkpoint", CheckpointUpdate)
    trusted = consortium.trusted().advance(second, now=int(consortium.clock.now), max_age=1)
    assert trusted.size == 2


def test_health(consortium):
    assert consortium.request("GET", "/health").json() == {
        "status": "serving",
        "party": "coordinator",
        "entries": 2,
        "signed": int(consortium.clock.now),
    }
    assert consortium.request("GET", "/ready").status_code == 200

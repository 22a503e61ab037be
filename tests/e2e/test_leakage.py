"""docs/leakage.md held against a run: only calls that its table lists cross a boundary, in the stated sizes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from governance.messages.codec import Message, decode
from governance.messages.index import Deltas, SealedLabel, SubmitLabels
from governance.messages.inquiry import Contribution, InquiryStatus, MaskKey, OpenInquiry, Outcome
from governance.messages.lookup import EvaluateRequest, EvaluateResponse
from governance.messages.signed import Signed

if TYPE_CHECKING:
    from conftest import SandboxRun

pytestmark = pytest.mark.e2e

DOCUMENT = Path(__file__).parents[2] / "docs" / "leakage.md"
NAME = re.compile(r"\d+-(?P<direction>sent|received)-(?P<peer>bank-[a-z]|coordinator|regulator|unknown)-.*")
SIZE = re.compile(r"(at most )?(\d+) bytes")
Call = tuple[str, str, str]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Row:
    """One row of the table: when the call occurs, and the stated sizes by name."""

    occurs: str
    sizes: dict[str, tuple[int, bool]]


@dataclass(frozen=True)
class Captured:
    """One request or answer as it crossed a boundary, by the call it belongs to; ``status`` 0 for a request."""

    call: Call
    status: int
    body: bytes


def read_table(text: str) -> dict[Call, Row]:
    """The rows of the table of calls by (sender, receiver, call)."""
    section = text.split("### The table of calls", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    rows = {}
    for line in lines:
        sender, receiver, call, occurs, _, _, sizes = (cell.strip() for cell in line.strip("|").split("|"))
        stated = {}
        for size in filter(None, sizes.split(", ")):
            found = SIZE.search(size)
            assert found is not None, line
            stated[size[: found.start()].strip()] = (int(found[2]), found[1] is not None)
        rows[sender, receiver, call.strip("`")] = Row(occurs, stated)
    assert len(rows) == len(lines)
    return rows


TABLE = read_table(DOCUMENT.read_text(encoding="utf-8"))
SIZES = {name: size for row in TABLE.values() for name, size in row.sizes.items()}


def kind(party: str) -> str:
    # The sandbox's probe speaks with one bank's key, so it is that bank as far as the coordinator sees.
    return "bank" if party.startswith("bank-") or party == "probe" else party


def captured(run: SandboxRun) -> Iterator[Captured]:
    """Every captured message. A sender and its receiver may both be banks, and then both have captured it."""
    for path in sorted((run.out / "capture").rglob("*.http")):
        name = NAME.fullmatch(path.name)
        assert name is not None, path.name
        head, _, body = path.read_bytes().partition(b"\n\n")
        words = head.split(b"\n", 1)[0].decode().split(" ")
        status = int(words.pop(0)) if words[0].isdigit() else 0
        method, target = words
        where = re.sub(r"[0-9a-f]{64}", "{id}", target.partition("?")[0])
        own, peer = kind(path.parent.name), kind(name["peer"])
        asks = (name["direction"] == "sent") == (status == 0)
        parties = (own, peer) if asks else (peer, own)
        yield Captured((*parties, f"{method} {where}"), status, body)


@pytest.fixture(scope="module")
def messages(sandbox_run: SandboxRun) -> dict[str, list[Captured]]:
    """The captured messages by method and path."""
    found: dict[str, list[Captured]] = {}
    for message in captured(sandbox_run):
        found.setdefault(message.call[2], []).append(message)
    return found


def bodies(messages: dict[str, list[Captured]], call: str, form: type[M], *, status: int = 0) -> list[M]:
    found = [decode(form, each.body) for each in messages[call] if each.status == status]
    assert found, f"no {call} with status {status} was captured"
    return found


def check(name: str, sizes: set[int]) -> None:
    stated, most = SIZES[name]
    assert sizes, f"no {name} was captured"
    assert max(sizes) <= stated if most else sizes == {stated}, f"{name}: {sizes}, the document says {stated}"


def test_the_calls_are_those_of_the_document(messages: dict[str, list[Captured]]) -> None:
    seen = {each.call for found in messages.values() for each in found}
    assert seen <= TABLE.keys(), f"not in docs/leakage.md: {seen - TABLE.keys()}"
    always = {call for call, row in TABLE.items() if row.occurs == "always"}
    assert always <= seen, f"in docs/leakage.md, but it did not happen: {always - seen}"
    assert {row.occurs for row in TABLE.values()} == {"always", "sometimes"}


def test_sizes_of_lookups(messages: dict[str, list[Captured]]) -> None:
    call = "POST /v1/evaluate"
    asked: dict[bytes, int] = {}
    for each in messages[call]:
        if not each.status:
            request = decode(EvaluateRequest, each.body)
            asked[hashlib.sha256(each.body).digest()] = len(request.elements)
    (element, _), (proof, _) = SIZES["element"], SIZES["proof"]
    assert asked
    assert {size % element for size in asked.values()} == {0}
    for signed in bodies(messages, call, Signed, status=200):
        response = decode(EvaluateResponse, signed.payload)
        assert len(response.elements) == asked[response.request_digest]
        assert len(response.proof) == proof


def test_sizes_of_labels(messages: dict[str, list[Captured]]) -> None:
    sent = [
        label for each in bodies(messages, "POST /v1/index/labels", SubmitLabels) for label in each.labels
    ]
    pages = bodies(messages, "GET /v1/index/deltas", Deltas, status=200)
    mirrored = [label for page in pages for delta in page.deltas for label in delta.labels]
    assert mirrored
    labels = [decode(SealedLabel, envelope.payload) for envelope in [*sent, *mirrored]]
    check("tag", {len(label.tag) for label in labels})
    check("sealed label", {len(label.sealed) for label in labels})


def test_sizes_of_joint_statistics(messages: dict[str, list[Captured]]) -> None:
    def payloads(step: str, form: type[M]) -> list[M]:
        envelopes = bodies(messages, f"POST /v1/inquiries/{{id}}/{step}", Signed)
        return [decode(form, envelope.payload) for envelope in envelopes]

    check("context", {len(each.context) for each in bodies(messages, "POST /v1/inquiries", OpenInquiry)})
    check("mask key", {len(each.public_key) for each in payloads("mask-key", MaskKey)})
    check("commitment", {len(each.commitment) for each in payloads("outcome", Outcome)})
    contributed = payloads("contribution", Contribution)
    states = bodies(messages, "GET /v1/inquiries/{id}", InquiryStatus, status=200)
    handed_over = [decode(Contribution, each.payload) for state in states for each in state.contributions]
    assert handed_over
    check(
        "ciphertext",
        {len(one) for contribution in [*contributed, *handed_over] for one in contribution.ciphertexts},
    )


def test_a_call_that_is_not_listed_is_noticed() -> None:
    rows = read_table(DOCUMENT.read_text(encoding="utf-8").replace("/v1/evaluate`", "/v1/other`"))
    assert ("bank", "bank", "POST /v1/evaluate") in TABLE
    assert ("bank", "bank", "POST /v1/evaluate") not in rows
    assert SIZES["sealed label"] == (224, False)
    assert SIZES["context"] == (90_000, True)

"""A coordinator over a real store with three banks and a regulator, called through its ASGI application."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from coordinator.app import create_app
from coordinator.composition import Coordinator
from coordinator.setup import Anchors, admit, init_coordinator, install_directory, install_policy
from crypto.signing import SigningKey
from governance.inquiries import CONFIRMED_FRAUDS, cohort_digest, mask_keys_digest
from governance.log.entries import Entry
from governance.log.follow import TrustedLog
from governance.messages.codec import MEDIA_TYPE, Message, decode, encode
from governance.messages.http_signatures import (
    RequestParts,
    collect_headers,
    request_signature,
    sign_request,
    verify_response,
)
from governance.messages.index import SealedLabel, SubmitLabels
from governance.messages.inquiry import (
    Contribution,
    Inquiry,
    InquiryTask,
    MaskKey,
    OpenInquiry,
    Outcome,
    Veto,
)
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.policy import PolicyBundle
from governance.messages.problems import Problem, parse_problem
from governance.messages.roll import Directory, PartyCard
from governance.messages.signed import Signed, sign_message
from governance.policy.default import default_bundle

BANKS = ("bank-a", "bank-b", "bank-c")
ORIGIN = "test.example/log"
HOST = "testserver"
START = 1_800_000_000
DAY_MS = 86_400_000
CELLS = 3
CONTEXT = b"public context"
M = TypeVar("M", bound=Message)


@dataclass
class Clock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    request_signature: bytes
    signed: bool

    def problem(self) -> Problem:
        assert self.headers["content-type"] == "application/problem+json"
        return parse_problem(self.body)


@dataclass
class Consortium:
    """The parties' keys and a signed call; every signed answer is verified on arrival."""

    directory: Path
    anchors: Anchors
    keys: dict[str, SigningKey]
    clock: Clock
    portal: BlockingPortal = field(init=False)
    app: FastAPI = field(init=False)
    http: httpx.AsyncClient = field(init=False)
    policy_epoch: int = 1

    @property
    def coordinator(self) -> Coordinator:
        running: Coordinator = self.app.state.coordinator
        return running

    def request(self, method: str, target: str, **options: object) -> httpx.Response:
        """A plain HTTP request to the application."""
        return self.portal.call(lambda: self.http.request(method, target, **options))

    def send(
        self,
        party: str,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        change: Callable[[dict[str, str]], None] = lambda headers: None,
        sent_body: bytes | None = None,
        media_type: str = MEDIA_TYPE,
        key: SigningKey | None = None,
        **overrides: object,
    ) -> Answer:
        path, _, query = target.partition("?")
        options = {
            "signer": party,
            "key": key or self.keys[party],
            "recipient": "coordinator",
            "policy_epoch": self.policy_epoch,
            "now": int(self.clock.now),
            "nonce": secrets.token_bytes(16),
            **overrides,
        }
        headers = sign_request(
            RequestParts(method, HOST, path, query, {"content-type": media_type}, body), **options
        )
        change(headers)
        content = body if sent_body is None else sent_body
        response = self.request(method, target, content=content, headers=headers)
        return self._verified(response, request_signature(headers))

    def _verified(self, response: httpx.Response, signature: bytes) -> Answer:
        headers = collect_headers(response.headers.raw)
        signed = "signature" in headers
        if signed:
            verify_response(
                response.status_code,
                headers,
                response.content,
                signature,
                signer="coordinator",
                verify_keys={"coordinator": bytes.fromhex(self.anchors.card.verify_key)},
                now=int(self.clock.now),
            )
        return Answer(response.status_code, headers, response.content, signature, signed)

    def get(self, party: str, target: str, kind: type[M]) -> M:
        answer = self.send(party, "GET", target)
        assert answer.status == 200, answer.body
        return decode(kind, answer.body)

    def post(self, party: str, target: str, message: Message, kind: type[M]) -> M:
        answer = self.send(party, "POST", target, encode(message))
        assert answer.status == 200, answer.body
        return decode(kind, answer.body)

    def refused(self, party: str, method: str, target: str, message: Message | None = None) -> Problem:
        """The problem of a call that must fail, signed, and leave the log as it was."""
        answer = self.send(party, method, target, b"" if message is None else encode(message))
        assert answer.status >= 400, answer.body
        assert answer.signed
        return answer.problem()

    # messages

    def label(self, contributor: str, /, *, signer: str = "", **changes: object) -> Signed:
        label = SealedLabel(
            epoch=1,
            kind="terminal",
            tag=secrets.token_bytes(16),
            contributor=contributor,
            issued_at=1000 * START,
            expires_at=1000 * START + DAY_MS,
            sealed=b"sealed",
        )
        signer = signer or contributor
        return sign_message(msgspec.structs.replace(label, **changes), signer, self.keys[signer])

    def batch(self, *labels: Signed, purpose: str = "indicator-sharing") -> SubmitLabels:
        return SubmitLabels(purpose=purpose, labels=list(labels))

    def inquiry(self, asked_by: str = "bank-a", /, *, signer: str = "", **changes: object) -> OpenInquiry:
        inquiry = Inquiry(
            nonce=secrets.token_bytes(16),
            requester=asked_by,
            template=CONFIRMED_FRAUDS,
            dataset="terminals",
            purpose="joint-statistics",
            first_day=17_700,
            last_day=17_701,
            cells=2 * CELLS,
            privacy="none",
            mode="strict",
            roll_version=1,
            policy_epoch=self.policy_epoch,
            created_at=int(self.clock.now),
            context_digest=hashlib.sha256(CONTEXT).digest(),
        )
        signer = signer or asked_by
        signed = sign_message(msgspec.structs.replace(inquiry, **changes), signer, self.keys[signer])
        return OpenInquiry(inquiry=signed, context=CONTEXT)

    def ask(self, requester: str = "bank-a") -> InquiryTask:
        return self.post(requester, "/v1/inquiries", self.inquiry(requester), InquiryTask)

    def mask_key(self, task: InquiryTask, member: str, /, **changes: object) -> Signed:
        message = MaskKey(
            inquiry_id=task.inquiry_id,
            cohort_digest=cohort_digest(task.cohort),
            member=member,
            public_key=hashlib.sha256(task.inquiry_id + member.encode()).digest(),
        )
        return sign_message(msgspec.structs.replace(message, **changes), member, self.keys[member])

    def contribution(self, task: InquiryTask, member: str, /, **changes: object) -> Signed:
        publics = {bank: hashlib.sha256(task.inquiry_id + bank.encode()).digest() for bank in task.cohort}
        message = Contribution(
            inquiry_id=task.inquiry_id,
            member=member,
            mask_keys_digest=mask_keys_digest(publics),
            ciphertexts=[b"ciphertext of " + member.encode()],
        )
        return sign_message(msgspec.structs.replace(message, **changes), member, self.keys[member])

    def outcome(self, task: InquiryTask, requester: str = "bank-a", /, **changes: object) -> Signed:
        message = Outcome(
            inquiry_id=task.inquiry_id, requester=requester, commitment=bytes(32), cells=2 * CELLS
        )
        return sign_message(msgspec.structs.replace(message, **changes), requester, self.keys[requester])

    def veto(self, task: InquiryTask, member: str, reason: str = "not-matured") -> Signed:
        message = Veto(inquiry_id=task.inquiry_id, member=member, reason=reason)
        return sign_message(message, member, self.keys[member])

    def step(self, task: InquiryTask, name: str, envelope: Signed) -> CheckpointUpdate:
        target = f"/v1/inquiries/{task.inquiry_id.hex()}/{name}"
        return self.post(envelope.signer, target, envelope, CheckpointUpdate)

    def trusted(self) -> TrustedLog:
        return TrustedLog.start(self.anchors.log_verifier_key)

    def entries(self, party: str = "regulator", first: int = 0) -> list[Entry]:
        """The entries that ``party`` may read from ``first`` on, each proven."""
        page = self.get(party, f"/v1/log?first={first}&count=500", LogPage)
        trusted = self.trusted().advance(page.checkpoint, now=int(self.clock.now), max_age=10**6)
        return [trusted.verify_entry(entry) for entry in page.entries]


def set_up(directory: Path, bundle: PolicyBundle | None = None) -> Consortium:
    """A data directory with three banks, a regulator, a public directory and the default policy."""
    anchors = init_coordinator(directory, port=0, origin=ORIGIN)
    keys = {party: SigningKey(secrets.token_bytes(32)) for party in (*BANKS, "regulator")}
    for index, (party, key) in enumerate(keys.items(), 1):
        role = "regulator" if party == "regulator" else "member"
        card = PartyCard(
            party=party, name=party, role=role, verify_key=key.verify_key.hex(), url="http://127.0.0.1:1"
        )
        admit(directory, card, index if role == "member" else 0)
    install_directory(directory, Directory(dataset="terminals", cells=CELLS, digest=bytes(32)))
    install_policy(directory, bundle or default_bundle())
    return Consortium(directory, anchors, keys, Clock())


@pytest.fixture
def start() -> Iterator[Callable[[Consortium], Consortium]]:
    """Serve a set-up consortium in this process until the test ends."""
    with start_blocking_portal() as portal, ExitStack() as stack:

        def serve(consortium: Consortium) -> Consortium:
            consortium.portal = portal
            consortium.app = create_app(consortium.directory, clock=consortium.clock)
            lifespan = consortium.app.router.lifespan_context(consortium.app)
            stack.enter_context(portal.wrap_async_context_manager(lifespan))
            transport = httpx.ASGITransport(consortium.app)
            consortium.http = httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}")
            return consortium

        yield serve


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """A consortium set up once; tests work on copies of its directory."""
    return set_up(tmp_path_factory.mktemp("prepared") / "coordinator")


@pytest.fixture
def idle(prepared: Consortium, tmp_path: Path) -> Consortium:
    """A consortium that does not serve yet."""
    directory = tmp_path / "coordinator"
    shutil.copytree(prepared.directory, directory)
    return replace(prepared, directory=directory, clock=Clock())


@pytest.fixture
def consortium(idle: Consortium, start: Callable[[Consortium], Consortium]) -> Consortium:
    """A serving coordinator with three banks and a regulator."""
    return start(idle)


@pytest.fixture
def set_up_with() -> Callable[[Path, PolicyBundle], Consortium]:
    """Set up a consortium under another policy."""
    return set_up

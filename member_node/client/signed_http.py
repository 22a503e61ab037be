"""One signed call over HTTP: sign, send, cap, verify. Everything a member asks of another organisation goes here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import httpx

from crypto.signing import SigningKey
from governance.messages.codec import MAX_MESSAGE_BYTES, MalformedError
from governance.messages.http_signatures import (
    NONCE_SIZE,
    HttpSignatureError,
    RequestParts,
    collect_headers,
    request_signature,
    sign_request,
    verify_response,
)
from governance.messages.problems import MAX_PROBLEM_BYTES, ProblemError, parse_problem
from member_node.client.deadlines import DeadlineTransport, until
from member_node.client.ports import Clock, PartyUnreachableError, Random
from member_node.traffic import TrafficMeter, WireCapture

ATTEMPTS = 3
BACKOFF_SECONDS = 0.2
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
# Slower than this the largest messages do not arrive in time.
LEAST_BYTES_PER_SECOND = 2 * 2**20


@dataclass(frozen=True)
class Caller:
    """Who signs: this member, and what it currently believes. Functions, because beliefs change while it runs."""

    party: str
    key: SigningKey
    policy_epoch: Callable[[], int]
    verify_keys: Callable[[], Mapping[str, bytes]]
    clock: Clock
    random: Random


@dataclass(frozen=True)
class _Sending:
    """What is sent, before it is signed."""

    recipient: str
    base_url: str
    method: str
    path: str
    name: str
    query: str
    body: bytes
    elements: int

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class SignedHttp:
    """A connection pool whose every request is signed and every answer verified."""

    def __init__(
        self,
        caller: Caller,
        meter: TrafficMeter,
        *,
        capture: WireCapture | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._caller = caller
        self._meter = meter
        self._capture = capture
        self._transport = DeadlineTransport() if transport is None else transport
        self._http = httpx.Client(
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
            follow_redirects=False,
            transport=self._transport,
        )

    def abort(self) -> None:
        """End every call that is under way, in whatever thread: the node is closing."""
        if isinstance(self._transport, DeadlineTransport):
            self._transport.abort()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def call(
        self,
        recipient: str,
        base_url: str,
        method: str,
        path: str,
        *,
        name: str,
        query: Mapping[str, str | int | float] | None = None,
        body: bytes = b"",
        idempotent: bool = False,
        wait: float = 0.0,
        seconds: float | None = None,
        elements: int = 0,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> bytes:
        """The verified body of a 2xx answer of ``recipient``.

        ``name`` is the call's row in the meter, ``elements`` the blinded elements it carries. The whole call ends
        within ``seconds`` (by default :data:`ANSWER_SECONDS` and the time for large bodies) plus ``wait``. Only an
        ``idempotent`` call is repeated when the connection fails, each time under a fresh signature.
        """
        if seconds is None:
            seconds = ANSWER_SECONDS + (len(body) + max_bytes) / LEAST_BYTES_PER_SECOND
        sending = _Sending(recipient, base_url, method, path, name, urlencode(query or {}), body, elements)
        deadline = time.monotonic() + seconds + wait
        attempts = ATTEMPTS if idempotent else 1
        for attempt in range(1, attempts + 1):
            try:
                return self._attempt(sending, deadline, max_bytes)
            except (httpx.InvalidURL, UnicodeError) as error:
                raise PartyUnreachableError(
                    recipient, f"{name}: its address on the roll cannot be used"
                ) from error
            except httpx.TransportError as error:
                pause = BACKOFF_SECONDS * attempt
                late = time.monotonic() + pause >= deadline
                if late and isinstance(error, httpx.TimeoutException):
                    why = f"no complete answer within {seconds + wait:g} s"
                    raise PartyUnreachableError(recipient, f"{name}: {why}") from error
                if late or attempt == attempts:
                    raise PartyUnreachableError(recipient, f"{name}: {type(error).__name__}") from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _attempt(self, sending: _Sending, deadline: float, max_bytes: int) -> bytes:
        recipient, name, body = sending.recipient, sending.name, sending.body
        netloc = urlsplit(sending.base_url).netloc
        parts = RequestParts(sending.method, netloc, sending.path, sending.query, {}, body)
        caller = self._caller
        headers = sign_request(
            parts,
            signer=caller.party,
            key=caller.key,
            recipient=recipient,
            policy_epoch=caller.policy_epoch(),
            now=caller.clock(),
            nonce=caller.random(NONCE_SIZE),
        )
        method, target = sending.method, sending.target
        if self._capture is not None:
            self._capture.write("sent", recipient, f"{method} {target}", headers, body)
        began = time.perf_counter()
        received, status = b"", 0
        try:
            with until(deadline):
                status, answered, received = self._send(sending, headers, deadline, max_bytes)
        finally:
            self._meter.count(
                "asked",
                recipient,
                name,
                bytes_in=len(received),
                bytes_out=len(body),
                seconds=time.perf_counter() - began,
                failed=not 200 <= status < 300,
                elements=sending.elements,
            )
        if self._capture is not None:
            self._capture.write(
                "received", recipient, f"{status} {method} {sending.path}", answered, received
            )
        return self._verified(recipient, name, status, answered, received, request_signature(headers))

    def _send(
        self, sending: _Sending, headers: Mapping[str, str], deadline: float, max_bytes: int
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; all of it is there before ``deadline``, or an error is raised."""
        recipient, url = sending.recipient, sending.base_url + sending.target
        with self._http.stream(sending.method, url, headers=dict(headers), content=sending.body) as response:
            cap = max_bytes if response.is_success else MAX_PROBLEM_BYTES
            chunks: list[bytes] = []
            size = 0
            for chunk in response.iter_raw():
                size += len(chunk)
                if size > cap:
                    raise PartyUnreachableError(recipient, f"its answer is longer than {cap} bytes")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the call's deadline has passed", request=response.request)
                chunks.append(chunk)
            try:
                answered = collect_headers(response.headers.raw)
            except HttpSignatureError as error:
                raise PartyUnreachableError(recipient, error.detail) from error
            return response.status_code, answered, b"".join(chunks)

    def _verified(
        self,
        recipient: str,
        name: str,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        signature: bytes,
    ) -> bytes:
        try:
            verify_response(
                status,
                headers,
                body,
                signature,
                signer=recipient,
                verify_keys=self._caller.verify_keys(),
                now=self._caller.clock(),
            )
        except HttpSignatureError as error:
            # Only who could not identify the caller answers unsigned; such a text is a hint and proves nothing.
            hint = f" (status {status}: {_hint(body)})" if status >= 400 else ""
            raise PartyUnreachableError(recipient, f"{name}: {error.detail}{hint}") from error
        if 200 <= status < 300:
            return body
        try:
            problem = parse_problem(body)
        except MalformedError as error:
            raise PartyUnreachableError(recipient, f"{name}: status {status} without a problem") from error
        raise ProblemError(problem, recipient)


def _hint(body: bytes) -> str:
    try:
        problem = parse_problem(body)
    except MalformedError:
        return "no problem document"
    return f"{problem.title}: {problem.detail}"

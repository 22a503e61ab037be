"""The coordinator over HTTP (see :class:`~member_node.client.ports.CoordinatorPort`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from governance.messages.codec import MAX_MESSAGE_BYTES, Message, decode, encode
from governance.messages.index import Deltas, SubmitLabels
from governance.messages.inquiry import InquiryStatus, InquiryTask, InquiryTasks, OpenInquiry
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.signed import Signed
from member_node.client.signed_http import SignedHttp

# A status carries the contributions of the whole cohort, each up to one message long.
MAX_STATUS_BYTES = 16 * MAX_MESSAGE_BYTES
MAX_WAIT_SECONDS = 20.0

M = TypeVar("M", bound=Message)


class HttpCoordinator:
    """Signed calls to one coordinator."""

    def __init__(self, http: SignedHttp, party: str, url: str) -> None:
        self._http = http
        self._party = party
        self._url = url.rstrip("/")

    def membership(self) -> Signed:
        return self._get(Signed, "/v1/membership", "membership")

    def policy(self) -> Signed:
        return self._get(Signed, "/v1/policy", "policy")

    def checkpoint(self, since: int) -> CheckpointUpdate:
        return self._get(CheckpointUpdate, "/v1/checkpoint", "checkpoint", {"since": since})

    def log(self, first: int, count: int, since: int) -> LogPage:
        return self._get(LogPage, "/v1/log", "log", {"first": first, "count": count, "since": since})

    def submit_labels(self, submission: SubmitLabels) -> Signed:
        return decode(Signed, self._post("/v1/index/labels", "submit-labels", submission, idempotent=True))

    def deltas(self, after: int, since: int) -> Deltas:
        return self._get(Deltas, "/v1/index/deltas", "deltas", {"after": after, "since": since})

    def send_totals(self, totals: Signed) -> CheckpointUpdate:
        return decode(
            CheckpointUpdate, self._post("/v1/evaluation-totals", "totals", totals, idempotent=True)
        )

    def open_inquiry(self, opening: OpenInquiry) -> InquiryTask:
        return decode(InquiryTask, self._post("/v1/inquiries", "open-inquiry", opening))

    def tasks(self, wait: float, since: int) -> InquiryTasks:
        query: dict[str, str | int | float] = {"wait": _seconds(wait), "since": since}
        return self._get(
            InquiryTasks, "/v1/inquiries/tasks", "tasks", query, wait=wait, max_bytes=MAX_STATUS_BYTES
        )

    def send_mask_key(self, inquiry_id: bytes, envelope: Signed) -> None:
        self._post(f"/v1/inquiries/{inquiry_id.hex()}/mask-key", "mask-key", envelope, idempotent=True)

    def send_contribution(self, inquiry_id: bytes, envelope: Signed) -> None:
        self._post(
            f"/v1/inquiries/{inquiry_id.hex()}/contribution", "contribution", envelope, idempotent=True
        )

    def send_veto(self, inquiry_id: bytes, envelope: Signed) -> None:
        self._post(f"/v1/inquiries/{inquiry_id.hex()}/veto", "veto", envelope, idempotent=True)

    def inquiry_status(self, inquiry_id: bytes, wait: float) -> InquiryStatus:
        path = f"/v1/inquiries/{inquiry_id.hex()}"
        query: dict[str, str | int | float] = {"wait": _seconds(wait)}
        return self._get(InquiryStatus, path, "inquiry-status", query, wait=wait, max_bytes=MAX_STATUS_BYTES)

    def send_outcome(self, inquiry_id: bytes, envelope: Signed) -> CheckpointUpdate:
        path = f"/v1/inquiries/{inquiry_id.hex()}/outcome"
        return decode(CheckpointUpdate, self._post(path, "outcome", envelope, idempotent=True))

    def _get(
        self,
        kind: type[M],
        path: str,
        name: str,
        query: Mapping[str, str | int | float] | None = None,
        *,
        wait: float = 0.0,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> M:
        body = self._http.call(
            self._party,
            self._url,
            "GET",
            path,
            name=name,
            query=query,
            idempotent=True,
            wait=wait,
            max_bytes=max_bytes,
        )
        return decode(kind, body, max_bytes=max_bytes)

    def _post(self, path: str, name: str, message: Message, *, idempotent: bool = False) -> bytes:
        return self._http.call(
            self._party, self._url, "POST", path, name=name, body=encode(message), idempotent=idempotent
        )


def _seconds(wait: float) -> str:
    return f"{min(max(wait, 0.0), MAX_WAIT_SECONDS):g}"

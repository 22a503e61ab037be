"""A key holder over HTTP (see :class:`~member_node.client.ports.KeyHolderPort`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from governance.members import key_holders
from governance.messages.codec import decode, encode
from governance.messages.lookup import EvaluateRequest
from governance.messages.roll import MembershipRoll, RollEntry
from governance.messages.signed import Signed
from member_node.client.ports import DEFAULT_PATIENCE, KeyHolderPort, Patience
from member_node.client.signed_http import SignedHttp

MAX_ANSWER_BYTES = 256 * 1024
ELEMENT_SIZE = 32


class HttpKeyHolder:
    """Signed evaluation requests to one member."""

    def __init__(self, http: SignedHttp, party: str, url: str, patience: Patience = DEFAULT_PATIENCE) -> None:
        self._http = http
        self._patience = patience
        self._party = party
        self._url = url.rstrip("/")

    def evaluate(self, request: EvaluateRequest) -> Signed:
        elements = len(request.elements) // ELEMENT_SIZE
        # A holder answers a repeated request id from memory without spending again, so a retry is safe.
        body = self._http.call(
            self._party,
            self._url,
            "POST",
            "/v1/evaluate",
            name="evaluate",
            body=encode(request),
            idempotent=True,
            seconds=self._patience.deadline(elements),
            elements=elements,
            max_bytes=MAX_ANSWER_BYTES,
        )
        return decode(Signed, body, max_bytes=MAX_ANSWER_BYTES)


class HttpKeyHolders(Mapping[str, KeyHolderPort]):
    """Ports to all other key holders, as the membership roll of the moment names them."""

    def __init__(
        self,
        http: SignedHttp,
        roll: Callable[[], MembershipRoll],
        own: str,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self._patience = patience
        self._http = http
        self._roll = roll
        self._own = own

    def __getitem__(self, party: str) -> KeyHolderPort:
        for entry in self._others():
            if entry.party == party:
                return HttpKeyHolder(self._http, party, entry.url, self._patience)
        raise KeyError(party)

    def __iter__(self) -> Iterator[str]:
        return (entry.party for entry in self._others())

    def __len__(self) -> int:
        return len(self._others())

    def _others(self) -> list[RollEntry]:
        return [
            entry for entry in key_holders(self._roll()).values() if entry.party != self._own and entry.url
        ]

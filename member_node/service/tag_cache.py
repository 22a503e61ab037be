"""Tags and label keys this bank knows: in memory while it runs, sealed on disk under the bank's storage key.

A row on disk is named by an HMAC of kind and normal form under a subkey, so the file betrays no value to whoever
lacks the key; value, tag and label key are inside the seal.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from governance.indicators import NormalForm
from member_node.secret_files import StorageKey
from member_node.storage.tags import TagStore

_ROW_SIZE = 192


@dataclass(frozen=True, slots=True)
class CachedTag:
    """What the OPRF output of one indicator gives: tag (16 bytes) and label key (32 bytes)."""

    kind: str
    text: str
    tag: bytes
    label_key: bytes

    def __repr__(self) -> str:
        return "CachedTag(...)"


class TagCache:
    """The cache of one key epoch at a time. Thread safe."""

    def __init__(self, store: TagStore, storage: StorageKey) -> None:
        self._store = store
        self._storage = storage
        self._name_key = storage.subkey("tag-names")
        self._lock = threading.Lock()
        self._epoch = 0
        self._by_form: dict[tuple[str, str], CachedTag] = {}
        self._by_value: dict[str, dict[str, CachedTag]] = {}
        self._by_tag: dict[tuple[str, bytes], CachedTag] = {}

    def use_epoch(self, epoch: int) -> None:
        """Load the rows of ``epoch`` and forget those of any other; does nothing if it is loaded."""
        with self._lock:
            if epoch == self._epoch:
                return
            self._by_form.clear()
            self._by_value.clear()
            self._by_tag.clear()
            for name, sealed in self._store.all(epoch):
                content = self._storage.unseal("tag-cache", _associated(epoch, name), sealed)
                kind, text, tag, label_key = msgspec.msgpack.decode(
                    content, type=tuple[str, str, bytes, bytes]
                )
                self._keep(CachedTag(kind, text, tag, label_key))
            self._epoch = epoch
        self._store.forget_other_epochs(epoch)

    def find(self, kind: str, value: str) -> CachedTag | None:
        """By the spelling a caller has used before."""
        known = self._by_value.get(kind)
        return None if known is None else known.get(value)

    def values_of(self, kind: str) -> dict[str, CachedTag]:
        """All spellings of a kind seen since the start; do not change it."""
        return self._by_value.setdefault(kind, {})

    def find_form(self, form: NormalForm) -> CachedTag | None:
        """By normal form."""
        return self._by_form.get((form.kind.value, form.text))

    def find_tag(self, kind: str, tag: bytes) -> CachedTag | None:
        """The indicator behind a tag, if this bank has ever looked it up."""
        return self._by_tag.get((kind, tag))

    def alias(self, kind: str, value: str, cached: CachedTag) -> None:
        """Remember that ``value`` is a spelling of ``cached`` (in memory only)."""
        self._by_value.setdefault(kind, {})[value] = cached

    def add(self, epoch: int, found: Sequence[CachedTag]) -> None:
        """Keep new results, on disk first. Results of another epoch than the one in use are dropped."""
        if epoch != self._epoch:
            return
        self._store.save(epoch, self._rows(epoch, found))
        with self._lock:
            if epoch == self._epoch:
                for cached in found:
                    self._keep(cached)

    def __len__(self) -> int:
        return len(self._by_form)

    def _rows(self, epoch: int, found: Iterable[CachedTag]) -> Iterable[tuple[bytes, bytes]]:
        for cached in found:
            name = hmac.digest(self._name_key, msgspec.msgpack.encode((cached.kind, cached.text)), "sha256")
            content = msgspec.msgpack.encode((cached.kind, cached.text, cached.tag, cached.label_key))
            yield name, self._storage.seal("tag-cache", _associated(epoch, name), content, multiple=_ROW_SIZE)

    def _keep(self, cached: CachedTag) -> None:
        self._by_form[cached.kind, cached.text] = cached
        self._by_tag[cached.kind, cached.tag] = cached


def _associated(epoch: int, name: bytes) -> bytes:
    return epoch.to_bytes(8, "big") + name

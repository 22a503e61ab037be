"""A model as one file: what it reads, what it is, how good it was, and what its inputs looked like.

The container: a line that names the format, the SHA-256 of everything after it, then one MessagePack document.
Nothing in it is executed on loading: no pickle, no code; arrays are raw little-endian numbers of fixed types, and
every index in them is checked before it is followed. Nothing in it is a transaction: the rows that a loaded model is
tried on are made up from the histograms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from scoring.drift import Baseline, Histogram
from scoring.models.dataset import DataWindow
from scoring.models.metrics import Metrics
from scoring.models.trees import TreeEnsemble, TreeError

MAGIC = b"subrosa model 1\n"
DIGEST_SIZE = 32
MAX_ARTEFACT_BYTES = 64 * 2**20
MAX_FEATURES = 4096
MAX_CARD_BYTES = 2**20
MAX_NAME = 64


class ArtefactError(ValueError):
    """A file is no model, or not the one it should be; the text says what is wrong."""


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told about a model. ``features``: its inputs in their order; ``parameters``: of the training."""

    name: str
    features: tuple[str, ...]
    window: DataWindow
    metrics: Metrics
    train_rows: int
    train_frauds: int
    parameters: dict[str, bool | int | float | str]
    trained_with: str


@dataclass(frozen=True, eq=False)
class ModelArtefact:
    """A trained model, complete. ``probes`` float32 [k, f] are rows to try it on, ``probe_scores`` float64 [k]."""

    card: ModelCard
    onnx: bytes
    trees: TreeEnsemble
    baselines: tuple[Baseline, ...]
    score_baseline: Baseline
    probes: NDArray[np.float32]
    probe_scores: NDArray[np.float64]


class _Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    edges: bytes
    counts: bytes
    missing: int


class _Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    coarse: _Histogram
    fine: _Histogram


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    card: ModelCard
    onnx: bytes
    trees: dict[str, bytes]
    baselines: list[_Baseline]
    score_baseline: _Baseline
    probes: bytes
    probe_scores: bytes


_TREE_TYPES = {
    "roots": "<i8",
    "feature": "<i4",
    "threshold": "<f4",
    "missing_left": "|b1",
    "left": "<i8",
    "right": "<i8",
    "value": "<f8",
    "cover": "<f8",
}


def encode_artefact(artefact: ModelArtefact) -> bytes:
    """The artefact as bytes; raises :class:`ArtefactError` when it is too large to be loaded again."""
    document = _Document(
        card=artefact.card,
        onnx=artefact.onnx,
        trees={
            each.name: _raw(getattr(artefact.trees, each.name), _TREE_TYPES[each.name])
            for each in fields(artefact.trees)
        },
        baselines=[_stored(each) for each in artefact.baselines],
        score_baseline=_stored(artefact.score_baseline),
        probes=_raw(artefact.probes, "<f4"),
        probe_scores=_raw(artefact.probe_scores, "<f8"),
    )
    body = msgspec.msgpack.encode(document)
    content = MAGIC + hashlib.sha256(body).digest() + body
    if len(content) > MAX_ARTEFACT_BYTES:
        raise ArtefactError(f"the model has {len(content)} bytes, at most {MAX_ARTEFACT_BYTES} are kept")
    return content


def artefact_digest(content: bytes) -> bytes:
    """SHA-256 (32 bytes) of a whole artefact file, as the registry keeps it."""
    return hashlib.sha256(content).digest()


def decode_artefact(content: bytes, *, expected_digest: bytes | None = None) -> ModelArtefact:
    """The artefact in ``content``, checked as a whole, or :class:`ArtefactError`.

    ``expected_digest``: the :func:`artefact_digest` it must have.
    """
    if len(content) > MAX_ARTEFACT_BYTES:
        raise ArtefactError(f"the file has {len(content)} bytes, a model at most {MAX_ARTEFACT_BYTES}")
    if expected_digest is not None and artefact_digest(content) != expected_digest:
        raise ArtefactError("the file is not the model that was registered: its digest is another")
    if not content.startswith(MAGIC):
        raise ArtefactError("the file is no model of this version")
    digest, body = content[len(MAGIC) : len(MAGIC) + DIGEST_SIZE], content[len(MAGIC) + DIGEST_SIZE :]
    if hashlib.sha256(body).digest() != digest:
        raise ArtefactError("the file is damaged: its digest does not fit its content")
    try:
        document = msgspec.msgpack.decode(body, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtefactError(f"the file is no model of this version: {error}") from error
    return _checked(document)


def _checked(document: _Document) -> ModelArtefact:
    card = document.card
    features = len(card.features)
    if not 0 < features <= MAX_FEATURES or len(set(card.features)) != features:
        raise ArtefactError(f"a model reads 1 to {MAX_FEATURES} features, each once")
    check_name(card.name)
    _check_told(card)
    if set(document.trees) != set(_TREE_TYPES):
        raise ArtefactError("the trees lack an array or have one too many")
    try:
        trees = TreeEnsemble(
            **{name: _array(document.trees[name], kind) for name, kind in _TREE_TYPES.items()}
        )
        trees.check(features)
        baselines = tuple(_loaded(each) for each in document.baselines)
        score_baseline = _loaded(document.score_baseline)
        probes = _array(document.probes, "<f4").reshape(-1, features)
        probe_scores = _array(document.probe_scores, "<f8")
    except (TreeError, ValueError) as error:
        raise ArtefactError(f"the model contradicts itself: {error}") from error
    if len(baselines) != features or len(probes) != len(probe_scores) or not len(probes):
        raise ArtefactError("the model contradicts itself: baselines or probes do not fit its features")
    return ModelArtefact(card, document.onnx, trees, baselines, score_baseline, probes, probe_scores)


def check_name(name: str) -> None:
    """Raise :class:`ArtefactError` unless ``name`` is a plain word: letters, digits, ``-``, ``_`` and dots."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (0 < len(name) <= MAX_NAME and plain.isascii() and plain.isalnum()):
        raise ArtefactError(
            f"{name!r} is no name of a model: letters, digits, -, _ and ., at most {MAX_NAME}"
        )


def _check_told(card: ModelCard) -> None:
    """A card is told as JSON, which knows no NaN and no infinity; one that cannot be read back breaks every listing."""
    try:
        told = msgspec.json.encode(card)
        if len(told) > MAX_CARD_BYTES:
            raise ArtefactError(f"the model's card has {len(told)} bytes, at most {MAX_CARD_BYTES} are kept")
        same = msgspec.json.decode(told, type=ModelCard) == card
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ArtefactError(f"the model's card cannot be told: {error}") from error
    if not same:
        raise ArtefactError("the model's card cannot be told: a number in it is not finite")


def column_baselines(artefact: ModelArtefact) -> Mapping[str, Baseline]:
    """What every feature looked like in training, by name."""
    return dict(zip(artefact.card.features, artefact.baselines, strict=True))


def _raw(array: NDArray[Any], kind: str) -> bytes:
    return np.ascontiguousarray(array, dtype=np.dtype(kind)).tobytes()


def _array(raw: bytes, kind: str) -> NDArray[Any]:
    if kind == "|b1":
        values = np.frombuffer(raw, np.uint8)
        if np.any(values > 1):
            raise ValueError("a truth value is neither 0 nor 1")
        return values.astype(np.bool_)
    return np.frombuffer(raw, np.dtype(kind)).astype(np.dtype(kind).newbyteorder("="))


def _stored(each: Baseline) -> _Baseline:
    coarse, fine = (
        _Histogram(_raw(found.edges, "<f8"), _raw(found.counts, "<i8"), found.missing)
        for found in (each.coarse, each.fine)
    )
    return _Baseline(coarse, fine)


def _loaded(stored: _Baseline) -> Baseline:
    coarse, fine = (
        Histogram(_array(each.edges, "<f8"), _array(each.counts, "<i8"), each.missing)
        for each in (stored.coarse, stored.fine)
    )
    return Baseline(coarse, fine)

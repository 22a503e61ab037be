"""The bank's models: files below its data directory, states in its registry, and what is in service now.

A change takes effect with the next batch: whoever scores takes :meth:`ModelBook.serving` once a batch, which is the
reading of one attribute. Order of a change: load and try the model -> write the registry -> swap what serves. Order of
a registration: write the file -> write the registry; a file nobody registered is overwritten by the next one or
removed at start.

Two persons: who registered a model does not promote it, and the operator token, which names nobody, is neither of them.
What is served is the file whose digest was registered, and its graph is that of its own trees.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from member_node.service.staff import SamePersonError, check_two_persons
from member_node.storage.registry import ModelChange, ModelRegistry, RegisteredModel
from member_node.streams.durable import replace_file
from scoring.models.artefact import (
    MAX_ARTEFACT_BYTES,
    ArtefactError,
    ModelArtefact,
    ModelCard,
    artefact_digest,
    check_name,
    decode_artefact,
)
from scoring.models.lifecycle import LifecycleError, ModelState, ModelVerb, next_state
from scoring.models.onnx_export import OnnxError, check_onnx
from scoring.models.served import ModelError, ServedModel, Serving

LOGGER = logging.getLogger(__name__)
SUFFIX = ".model"
TRAINED = ".trained"
# Retired models whose files stay, so that a rollback or a comparison is possible.
KEPT_RETIRED = 10


class ModelBook:
    """All models of one bank. Thread safe: verbs run one at a time, :meth:`serving` never waits."""

    def __init__(
        self,
        registry: ModelRegistry,
        directory: Path,
        clock_us: Callable[[], int],
        *,
        threads: int = 1,
        kept_retired: int = KEPT_RETIRED,
        added_by: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """``directory``: for the files; it is made. ``threads``: how many may score one batch; ``added_by``: who gave
        out whose token (see ``check_two_persons``).

        Models in service are loaded now; one that cannot be is told by :meth:`serving`, and events get their verdicts.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._registry = registry
        self._directory = directory
        self._clock_us = clock_us
        self._threads = threads
        self._kept_retired = kept_retired
        self._added_by = added_by
        self._columns: frozenset[str] | None = None
        self._lock = threading.RLock()
        self._serving = Serving()
        self._remove_unregistered()
        self._reload()

    def serving(self) -> Serving:
        """What scores now. It does not change: take it once a batch."""
        return self._serving

    def bind(self, columns: Collection[str]) -> None:
        """Declare the columns that models can read from now on (a stream was opened).

        A model in service that needs others goes out of service, which :meth:`serving` tells.
        """
        with self._lock:
            self._columns = frozenset(columns)
            self._reload()

    @property
    def columns(self) -> frozenset[str] | None:
        """What :meth:`bind` was told; None before."""
        return self._columns

    def take_in(self, name: str, digest: bytes, who: str, why: str = "") -> RegisteredModel:
        """Register the file ``NAME.trained`` that somebody put into the models' directory, and remove it.

        ``digest``: SHA-256 of what they put there; somebody else's file is left alone. Raises what :meth:`register`
        raises, and :class:`~scoring.models.artefact.ArtefactError` for a bad name or another file.
        """
        check_name(name)
        path = self._directory / f"{name}{TRAINED}"
        content = read_artefact(path)
        if artefact_digest(content) != digest:
            raise ArtefactError(
                f"{path.name} is not the file you mean: somebody else put another there, repeat it"
            )
        try:
            return self.register(content, who, why)
        finally:
            path.unlink(missing_ok=True)

    def register(self, content: bytes, who: str, why: str = "") -> RegisteredModel:
        """Add a model (an artefact file's bytes) in state ``registered``.

        Raises :class:`~scoring.models.served.ModelError` for a file that is no model or does not score, and
        :class:`~scoring.models.lifecycle.LifecycleError` for one that is registered already.
        """
        with self._lock:
            try:
                artefact = decode_artefact(content)
                check_onnx(artefact.onnx, artefact.trees, len(artefact.card.features))
            except (ArtefactError, OnnxError) as error:
                raise ModelError(str(error)) from error
            model = ServedModel(artefact, digest=artefact_digest(content))
            replace_file(self._path(model.digest), content)
            card = msgspec.json.encode(model.card).decode()
            return self._registry.register(model.card.name, model.digest, card, who, self._clock_us(), why)

    def shadow(self, version: int, who: str, why: str = "") -> RegisteredModel:
        """Let a registered model score every event beside the active one, without deciding."""
        return self._change(version, ModelVerb.SHADOW, who, why)

    def promote(self, version: int, who: str, why: str = "") -> RegisteredModel:
        """Make a model the active one; ``who`` must not be who registered it. The active one before is retired."""
        return self._change(version, ModelVerb.PROMOTE, who, why)

    def retire(self, version: int, who: str, why: str = "") -> RegisteredModel:
        """Take a model out of service; without an active model rules decide alone."""
        return self._change(version, ModelVerb.RETIRE, who, why)

    def roll_back(self, who: str, why: str = "") -> RegisteredModel:
        """Go back to the model that the active one took over from; gives the model that is active then."""
        with self._lock:
            current = next((each for each in self.models() if each.state is ModelState.ACTIVE), None)
            if current is not None and current.replaced:
                self._load(self._registry.model(current.replaced))
            _, restored = self._registry.roll_back(who, self._clock_us(), why)
            self._after_change(who)
            return restored

    def models(self) -> list[RegisteredModel]:
        """All models, the newest first."""
        return self._registry.models()

    def model(self, version: int) -> RegisteredModel:
        """One model, or :class:`~member_node.storage.registry.UnknownModelError`."""
        return self._registry.model(version)

    def changes(self, version: int) -> list[ModelChange]:
        """Who did what to a model, when and why; oldest first."""
        return self._registry.changes(version)

    def artefact(self, version: int) -> ModelArtefact:
        """The model itself; raises :class:`~scoring.models.served.ModelError` for a file that is not what it was."""
        model = self._registry.model(version)
        try:
            return decode_artefact(self._read(model), expected_digest=model.digest)
        except ArtefactError as error:
            raise ModelError(f"model {version}: {error}") from error

    def load(self, version: int) -> ServedModel:
        """The model ready to score, apart from what serves."""
        model = self._registry.model(version)
        return ServedModel.load(self._read(model), version=version, expected_digest=model.digest)

    def close(self) -> None:
        """End the threads of what serves."""
        with self._lock:
            serving, self._serving = self._serving, Serving()
            for each in (serving.active, *serving.shadows):
                if each is not None:
                    each.close()

    def _change(self, version: int, verb: ModelVerb, who: str, why: str) -> RegisteredModel:
        with self._lock:
            model = self._registry.model(version)
            if next_state(version, model.state, verb) is not ModelState.RETIRED:
                self._load(model)
            if verb is ModelVerb.PROMOTE:
                try:
                    check_two_persons(f"model {version}", model.registered_by, who, self._added_by())
                except SamePersonError as error:
                    raise LifecycleError(str(error)) from error
            changed = self._registry.change(version, verb, who, self._clock_us(), why)
            self._after_change(who)
            return changed

    def _after_change(self, who: str) -> None:
        self._reload()
        for gone in self._registry.forget_files(self._kept_retired, who, self._clock_us()):
            self._path(gone.digest).unlink(missing_ok=True)

    def _load(self, model: RegisteredModel) -> ServedModel:
        """Raises :class:`~scoring.models.served.ModelError`."""
        return ServedModel.load(
            self._read(model),
            version=model.version,
            threads=self._threads,
            expected_digest=model.digest,
            columns=self._columns,
        )

    def _reload(self) -> None:
        held = {
            each.version: each for each in (self._serving.active, *self._serving.shadows) if each is not None
        }
        active: ServedModel | None = None
        shadows: list[ServedModel] = []
        failure = ""
        broken: dict[int, str] = {}
        for model in reversed(self._registry.models()):
            if model.state not in (ModelState.ACTIVE, ModelState.SHADOW):
                continue
            try:
                served = held.get(model.version)
                if served is None:
                    served = self._load(model)
                elif self._columns is not None:
                    served.check_columns(self._columns)
            except ModelError as error:
                LOGGER.error("model %d is out of service: %s", model.version, error)
                broken[model.version] = str(error)
                if model.state is ModelState.ACTIVE:
                    failure = str(error)
                continue
            if model.state is ModelState.ACTIVE:
                active = served
            else:
                shadows.append(served)
        self._serving = Serving(active, tuple(shadows), failure, broken)

    def _read(self, model: RegisteredModel) -> bytes:
        try:
            return read_artefact(self._path(model.digest))
        except ModelError as error:
            raise ModelError(f"model {model.version}: {error}") from error

    def _path(self, digest: bytes) -> Path:
        return self._directory / f"{digest.hex()}{SUFFIX}"

    def _remove_unregistered(self) -> None:
        """Files of a registration that a crash cut short, and of models whose retention was."""
        known = {self._path(each.digest) for each in self._registry.models() if each.kept}
        for path in (*self._directory.glob(f"*{SUFFIX}"), *self._directory.glob("*.part")):
            if path not in known:
                path.unlink()


def read_artefact(path: Path) -> bytes:
    """A model's file as bytes; raises :class:`~scoring.models.served.ModelError` if it is too large or missing."""
    try:
        if path.stat().st_size > MAX_ARTEFACT_BYTES:
            raise ModelError(f"{path.name} is too large to be a model")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error


def card_of(model: RegisteredModel) -> ModelCard:
    """What the registry tells about a model."""
    return msgspec.json.decode(model.card, type=ModelCard)

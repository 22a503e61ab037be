"""The registry of models: what there is, in which state, and who changed it when and why.

Every public method is one transaction; a change and its line in the audit trail are durable together.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    LargeBinary,
    Row,
    Table,
    Text,
    func,
    insert,
    select,
    update,
)

from member_node.storage.database import Connection, Database
from member_node.storage.models import METADATA
from scoring.models.lifecycle import (
    MAX_SHADOWS,
    LifecycleError,
    ModelState,
    ModelVerb,
    check_second_person,
    next_state,
)

# ``replaced``: the version that was active when this one was promoted (0: none). ``kept``: 1 while its file is there.
MODELS = Table(
    "models",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("card", Text, nullable=False),
    Column("registered_by", Text, nullable=False),
    Column("registered_at_us", BigInteger, nullable=False),
    Column("changed_at_us", BigInteger, nullable=False),
    Column("replaced", Integer, nullable=False),
    Column("kept", Integer, nullable=False),
)

MODEL_CHANGES = Table(
    "model_changes",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("version", Integer, nullable=False, index=True),
    Column("verb", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("why", Text, nullable=False),
)


class UnknownModelError(LookupError):
    """There is no model of this version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"there is no model {version}")


@dataclass(frozen=True)
class RegisteredModel:
    """A line of the registry. ``card``: JSON of :class:`~scoring.models.artefact.ModelCard`; times in us since 1970."""

    version: int
    name: str
    state: ModelState
    digest: bytes
    card: str
    registered_by: str
    registered_at_us: int
    changed_at_us: int
    replaced: int
    kept: bool


@dataclass(frozen=True)
class ModelChange:
    """A line of the audit trail: ``state`` is what the model was in afterwards."""

    version: int
    verb: str
    state: ModelState
    who: str
    at_us: int
    why: str


class ModelRegistry:
    """Registered models of one bank."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(
        self, name: str, digest: bytes, card: str, who: str, at_us: int, why: str
    ) -> RegisteredModel:
        """Add a model in state ``registered`` under the next version; the same digest again is refused.

        Raises :class:`~scoring.models.lifecycle.LifecycleError`.
        """
        with self._database.write() as connection:
            held = connection.execute(select(MODELS.c.version).where(MODELS.c.digest == digest)).first()
            if held is not None:
                raise LifecycleError(f"this very model is registered already, as version {held[0]}")
            version = 1 + int(
                connection.execute(select(func.coalesce(func.max(MODELS.c.version), 0))).scalar_one()
            )
            connection.execute(
                insert(MODELS).values(
                    version=version,
                    name=name,
                    state=ModelState.REGISTERED.value,
                    digest=digest,
                    card=card,
                    registered_by=who,
                    registered_at_us=at_us,
                    changed_at_us=at_us,
                    replaced=0,
                    kept=1,
                )
            )
            _note(connection, version, "register", ModelState.REGISTERED, who, at_us, why)
            return _one(connection, version)

    def change(self, version: int, verb: ModelVerb, who: str, at_us: int, why: str) -> RegisteredModel:
        """Change the state of a model; the model that a promoted one takes over from is retired with it.

        Raises :class:`UnknownModelError` and :class:`~scoring.models.lifecycle.LifecycleError`.
        """
        with self._database.write() as connection:
            model = _one(connection, version)
            replaced = model.replaced
            if verb is ModelVerb.SHADOW and _count(connection, ModelState.SHADOW) >= MAX_SHADOWS:
                raise LifecycleError(f"{MAX_SHADOWS} models run in shadow: retire one first")
            if verb is ModelVerb.PROMOTE:
                check_second_person(version, model.registered_by, who)
                before = _active(connection)
                replaced = 0 if before is None else before.version
                if before is not None:
                    _move(
                        connection, before, ModelVerb.RETIRE, who, at_us, f"model {version} takes over: {why}"
                    )
            _move(connection, model, verb, who, at_us, why)
            connection.execute(update(MODELS).where(MODELS.c.version == version).values(replaced=replaced))
            return _one(connection, version)

    def roll_back(self, who: str, at_us: int, why: str) -> tuple[RegisteredModel, RegisteredModel]:
        """Retire the active model and restore the one it took over from: (retired, restored).

        A model restored was promoted by two people once, so one person may do this. Raises
        :class:`~scoring.models.lifecycle.LifecycleError` when there is nothing to go back to.
        """
        with self._database.write() as connection:
            current = _active(connection)
            if current is None:
                raise LifecycleError("no model is active: there is nothing to roll back")
            if not current.replaced:
                raise LifecycleError(
                    f"model {current.version} took over from no other: retire it to score without a model"
                )
            before = _one(connection, current.replaced)
            if not before.kept:
                raise LifecycleError(f"the file of model {before.version} is not kept any more")
            _move(connection, current, ModelVerb.RETIRE, who, at_us, f"rolled back: {why}")
            _move(connection, before, ModelVerb.RESTORE, who, at_us, why)
            return _one(connection, current.version), _one(connection, before.version)

    def model(self, version: int) -> RegisteredModel:
        """One model, or :class:`UnknownModelError`."""
        with self._database.read() as connection:
            return _one(connection, version)

    def models(self) -> list[RegisteredModel]:
        """All models, the newest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(MODELS).order_by(MODELS.c.version.desc()))
            return [_model(row) for row in rows]

    def changes(self, version: int) -> list[ModelChange]:
        """The audit trail of one model, oldest first."""
        query = (
            select(MODEL_CHANGES).where(MODEL_CHANGES.c.version == version).order_by(MODEL_CHANGES.c.number)
        )
        with self._database.read() as connection:
            return [
                ModelChange(row.version, row.verb, ModelState(row.state), row.who, row.at_us, row.why)
                for row in connection.execute(query)
            ]

    def forget_files(self, keep: int, who: str, at_us: int) -> list[RegisteredModel]:
        """Mark as not kept all retired models but the ``keep`` that were changed last; gives those newly marked.

        The models that a rollback would go back to from the active one are always kept.
        """
        with self._database.write() as connection:
            query = select(MODELS).where(MODELS.c.state == ModelState.RETIRED.value, MODELS.c.kept == 1)
            retired = [_model(row) for row in connection.execute(query)]
            active = _active(connection)
            needed = {active.replaced} if active is not None else set()
            newest = sorted(retired, key=lambda each: (each.changed_at_us, each.version), reverse=True)[:keep]
            needed |= {each.version for each in newest}
            gone = [each for each in retired if each.version not in needed]
            for each in gone:
                connection.execute(update(MODELS).where(MODELS.c.version == each.version).values(kept=0))
                _note(connection, each.version, "forget", each.state, who, at_us, "retention")
            return gone


def _active(connection: Connection) -> RegisteredModel | None:
    row = connection.execute(select(MODELS).where(MODELS.c.state == ModelState.ACTIVE.value)).first()
    return None if row is None else _model(row)


def _count(connection: Connection, state: ModelState) -> int:
    query = select(func.count()).select_from(MODELS).where(MODELS.c.state == state.value)
    return int(connection.execute(query).scalar_one())


def _one(connection: Connection, version: int) -> RegisteredModel:
    row = connection.execute(select(MODELS).where(MODELS.c.version == version)).first()
    if row is None:
        raise UnknownModelError(version)
    return _model(row)


def _model(row: Row[tuple[object, ...]]) -> RegisteredModel:
    values = dict(row._mapping)
    return RegisteredModel(**values | {"state": ModelState(values["state"]), "kept": bool(values["kept"])})


def _move(
    connection: Connection, model: RegisteredModel, verb: ModelVerb, who: str, at_us: int, why: str
) -> None:
    state = next_state(model.version, model.state, verb)
    connection.execute(
        update(MODELS).where(MODELS.c.version == model.version).values(state=state.value, changed_at_us=at_us)
    )
    _note(connection, model.version, verb.value, state, who, at_us, why)


def _note(
    connection: Connection, version: int, verb: str, state: ModelState, who: str, at_us: int, why: str
) -> None:
    connection.execute(
        insert(MODEL_CHANGES).values(
            version=version, verb=verb, state=state.value, who=who, at_us=at_us, why=why
        )
    )

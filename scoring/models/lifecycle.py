"""The life of a registered model, as a table: which verb leads from which state to which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class ModelState(StrEnum):
    """``shadow``: scores are recorded and decide nothing. At most one model is ``active``."""

    REGISTERED = "registered"
    SHADOW = "shadow"
    ACTIVE = "active"
    RETIRED = "retired"


class ModelVerb(StrEnum):
    """What staff can do with a model. ``restore`` is what a rollback does to the model it goes back to."""

    SHADOW = "shadow"
    PROMOTE = "promote"
    RETIRE = "retire"
    RESTORE = "restore"


NEXT: Mapping[tuple[ModelState, ModelVerb], ModelState] = {
    (ModelState.REGISTERED, ModelVerb.SHADOW): ModelState.SHADOW,
    (ModelState.REGISTERED, ModelVerb.PROMOTE): ModelState.ACTIVE,
    (ModelState.SHADOW, ModelVerb.PROMOTE): ModelState.ACTIVE,
    (ModelState.REGISTERED, ModelVerb.RETIRE): ModelState.RETIRED,
    (ModelState.SHADOW, ModelVerb.RETIRE): ModelState.RETIRED,
    (ModelState.ACTIVE, ModelVerb.RETIRE): ModelState.RETIRED,
    (ModelState.RETIRED, ModelVerb.RESTORE): ModelState.ACTIVE,
}


# Each scores every event.
MAX_SHADOWS = 4


class LifecycleError(ValueError):
    """A change of state that is not allowed; the text says what is."""


def next_state(version: int, state: ModelState, verb: ModelVerb) -> ModelState:
    """Where ``verb`` leads from ``state``, or :class:`LifecycleError`."""
    following = NEXT.get((state, verb))
    if following is None:
        possible = [each.value for start, each in NEXT if start is state]
        raise LifecycleError(
            f"model {version} is {state.value}: {verb.value} is not possible then, only {' or '.join(possible)}"
        )
    return following


def check_second_person(version: int, registered_by: str, who: str) -> None:
    """Raise :class:`LifecycleError` when the one who registered a model would also promote it."""
    if registered_by == who:
        raise LifecycleError(
            f"model {version} was registered by {who}: somebody else must promote it (four eyes)"
        )

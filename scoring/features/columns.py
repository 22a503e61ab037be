"""What the feature engine reads off a batch: keys of entities and pairs, categories, numbers, fields."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.features.spec import FieldFeature
from scoring.schema import MISSING, SchemaError, TransactionBatch, pair_keys

_EXACT_INTEGERS = 1 << 53


def entity_column(batch: TransactionBatch, entity: str) -> NDArray[np.uint64]:
    """Keys uint64 [n] of an entity, or of a pair such as ``card+terminal``; all missing when the batch has none."""
    first, _, second = entity.partition("+")
    if second:
        return pair_keys(entity_column(batch, first), entity_column(batch, second))
    keys = batch.entities.get(entity)
    return np.full(len(batch), MISSING) if keys is None else keys


def category_column(batch: TransactionBatch, name: str) -> NDArray[np.uint64]:
    """Keys uint64 [n] of what is told apart: an entity, or ``channel``."""
    return batch.channel.astype(np.uint64) if name == "channel" else entity_column(batch, name)


def number_column(batch: TransactionBatch, name: str) -> NDArray[np.float64]:
    """``amount`` or a numeric attribute, float64 [n]. Raises SchemaError when the batch lacks it."""
    if name == "amount":
        return batch.amount
    numbers = batch.numbers.get(name)
    if numbers is None:
        raise SchemaError(name, "is used by the feature spec and missing in the batch")
    return numbers


def field_column(batch: TransactionBatch, feature: FieldFeature) -> NDArray[np.float64]:
    """The field passed through as float64 [n]. Raises SchemaError where it is missing or not exact as a number."""
    if feature.field == "channel":
        return batch.channel.astype(np.float64)
    if feature.field != "event_id":
        return number_column(batch, feature.field)
    if batch.event_id.dtype == object:
        raise SchemaError(
            "event_id", f"holds texts, which feature {feature.name!r} cannot pass on as numbers"
        )
    if len(batch) and max(abs(int(batch.event_id.min())), abs(int(batch.event_id.max()))) > _EXACT_INTEGERS:
        raise SchemaError("event_id", f"is beyond 2^53, which feature {feature.name!r} cannot hold exactly")
    return batch.event_id.astype(np.float64)

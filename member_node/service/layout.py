"""Which columns a bank's rules may read, and how they are filled for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from governance.messages.policy import PolicyBundle
from member_node.service.evidence import KindEvidence
from member_node.streams.mapping import StreamMapping
from scoring.compiled import compiled_brief
from scoring.rules.columns import Column, ColumnSchema, ColumnType, ColumnValues, TextColumn
from scoring.schema import Channel
from scoring.scored import MODEL_DEGRADED, MODEL_SCORE
from scoring.verdicts import EvidenceTier, TierTable, verdict_named

_CHANNEL_NAMES = tuple(channel.text for channel in Channel)
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_FIRST_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def rule_columns(
    mapping: StreamMapping,
    features: Sequence[str],
    counts: Sequence[str],
    *,
    numbers: Sequence[str] = (),
    lists: Sequence[Column] = (),
) -> ColumnSchema:
    """Transaction fields, ``numbers`` of devices, features whose names are identifiers, the consortium's columns,
    membership of ``lists``, and the model's score."""
    number, text = ColumnType.NUMBER, ColumnType.TEXT
    columns = [
        Column("amount", number),
        Column("channel", text),
        Column("hour", number),
        Column("weekday", number),
        Column("degraded", ColumnType.BOOLEAN),
    ]
    for kind in mapping.indicators.values():
        columns += [
            Column(f"{kind}_victims_own", number),
            Column(f"{kind}_victims_all", number, evidence=kind),
            Column(f"{kind}_reporters", number, evidence=kind),
            Column(f"{kind}_tier", text, evidence=kind),
        ]
    columns += [Column(name, number) for name in counts]
    columns += [Column(MODEL_SCORE, number), Column(MODEL_DEGRADED, ColumnType.BOOLEAN), *lists]
    columns += [Column(name, number) for name in dict.fromkeys((*mapping.numbers, *numbers))]
    taken = {column.name for column in columns}
    columns += [Column(name, number) for name in features if name.isidentifier() and name not in taken]
    return ColumnSchema(columns)


def tier_table(policy: PolicyBundle) -> TierTable:
    """The policy's evidence tiers."""
    return TierTable([EvidenceTier(t.name, t.min_victims, verdict_named(t.verdict)) for t in policy.tiers])


def transaction_columns(
    mapping: StreamMapping,
    amount: NDArray[np.float64],
    channel: NDArray[np.uint8],
    time_us: NDArray[np.int64],
) -> dict[str, ColumnValues]:
    """amount, channel, and hour and weekday in the data set's zone."""
    hour, weekday = hours_and_weekdays(mapping.local_us(time_us))
    return {
        "amount": amount,
        "channel": TextColumn(np.subtract(channel, 1, dtype=np.int32), _CHANNEL_NAMES),
        "hour": hour,
        "weekday": weekday,
    }


@compiled_brief
def hours_and_weekdays(local_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hour and weekday (0: Monday) of wall-clock times, float64 [2, n]."""
    clock = np.empty((2, len(local_us)))
    for row in range(len(local_us)):
        clock[0, row] = local_us[row] % _DAY_US // _HOUR_US
        clock[1, row] = (local_us[row] // _DAY_US + _FIRST_WEEKDAY) % 7
    return clock


def evidence_columns(
    evidence: Mapping[str, KindEvidence], tiers: TierTable, *, alone: bool
) -> tuple[dict[str, ColumnValues], dict[str, NDArray[np.uint8]]]:
    """Columns of every kind, and the strongest verdict its tier permits in each row.

    ``alone``: as if only the bank's own labels existed.
    """
    columns: dict[str, ColumnValues] = {}
    limits: dict[str, NDArray[np.uint8]] = {}
    for kind, found in evidence.items():
        victims = found.own if alone else found.all
        rank = tiers.rank(victims)
        columns[f"{kind}_victims_own"] = found.own
        columns[f"{kind}_victims_all"] = victims
        columns[f"{kind}_reporters"] = found.own_reporters if alone else found.reporters
        columns[f"{kind}_tier"] = TextColumn(rank.astype(np.int32), tiers.names)
        limits[kind] = tiers.verdict(rank)
    return columns, limits

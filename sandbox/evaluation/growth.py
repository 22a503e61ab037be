"""What each further member adds: the same rows, with the evidence and counts of fewer banks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sandbox.evaluation.comparison import Comparison
from sandbox.evaluation.daily import BankDayCounts, admitted
from sandbox.evaluation.results import FOREST, ExactnessCheck, GrowthStep, ModelRow
from sandbox.evaluation.stream import ScoredStream

CHALLENGE = "challenge"


def count_columns(
    stream: ScoredStream, counts: BankDayCounts, members: int, delay_days: int
) -> npt.NDArray[np.float64]:
    """The history's consortium columns as they would be with ``members`` banks, shape ``[n, columns]``.

    ``others`` sums the other admitted banks. ``all`` is that plus whatever the bank itself had put in (the history's
    all minus its others), so that full membership gives the history's own columns.
    """
    table = admitted(len(stream.banks), members)
    np.fill_diagonal(table, False)
    allowed = table[stream.bank].T  # [contributor, n]
    columns, others = [], {}
    for column in stream.consortium:
        if column.days not in others:
            per_bank = counts.of_banks(column.days, delay_days)
            others[column.days] = np.where(allowed, per_bank, 0).sum(axis=0).astype(np.float64)
        value = others[column.days]
        if column.whose == "all":
            whole = stream.matrix([column.name])[:, 0]
            rest = stream.matrix([column.name.removesuffix("_all") + "_others"])[:, 0]
            value = value + whole - rest
        columns.append(value)
    return np.stack(columns, axis=1) if columns else np.empty((len(stream), 0))


def exactness(stream: ScoredStream, counts: BankDayCounts, delay_days: int) -> list[ExactnessCheck]:
    """Encrypted sums and sealed labels of the history against the same values in the clear."""
    checks = []
    if stream.consortium:
        plain = count_columns(stream, counts, len(stream.banks), delay_days)
        held = stream.matrix([c.name for c in stream.consortium])
        at_cell = stream.cell >= 0
        compared = at_cell & ~stream.degraded
        different = ((plain != held) & ~(np.isnan(held) & (plain == 0))).any(axis=1) & compared
        checks.append(
            ExactnessCheck(
                "other banks' fraud counts, from encrypted sums, against plain sums",
                int(compared.sum()),
                int(different.sum()),
                left_out=int((at_cell & stream.degraded).sum()),
            )
        )
    for kind in stream.kinds:
        named = stream.victims_by_bank(kind).sum(axis=1)
        held_victims = stream.victims(kind, "all")
        checks.append(
            ExactnessCheck(
                f"{kind}: victims counted against the labels' contributors",
                len(stream),
                int((named != held_victims).sum()),
            )
        )
    return checks


def growth_steps(
    comparison: Comparison,
    counts: BankDayCounts,
    *,
    own: npt.NDArray[np.float64],
    tiers: Mapping[str, int],
    delay_days: int,
    least_cohort: int,
    measured: Sequence[ModelRow],
) -> list[GrowthStep]:
    """One step for each size of consortium from 1 (each bank alone) to all banks.

    ``own``: the banks' own features ``[n, f]``. ``measured``: the random-forest rows alone and with the full
    consortium, which need no second training. ``least_cohort``: the smallest cohort that policy serves. With no
    ``challenge`` tier nothing counts as flagged.
    """
    stream = comparison.stream
    by_bank = {kind: stream.victims_by_bank(kind) for kind in stream.kinds}
    least = tiers.get(CHALLENGE)
    known = {1: measured[0], len(stream.banks): measured[-1]} if measured else {}
    steps = []
    for members in range(1, len(stream.banks) + 1):
        allowed = admitted(len(stream.banks), members)[stream.bank]
        flagged = np.zeros(len(stream), bool)
        if least is not None:
            for victims in by_bank.values():
                flagged |= np.where(allowed, victims, 0).sum(axis=1) >= least
        row = known.get(members)
        if row is None and measured:
            x = np.concatenate([own, count_columns(stream, counts, members, delay_days)], axis=1)
            row = comparison.row(FOREST, f"consortium of {members}", x)
        bad = flagged & (stream.fraud == 1)
        steps.append(
            GrowthStep(
                members=members,
                frauds_flagged=int(bad.sum()),
                fraud_money_flagged=float(stream.amount[bad].sum()),
                genuine_flagged=int((flagged & (stream.fraud == 0)).sum()),
                average_precision=row.joint.average_precision if row else None,
                roc_auc=row.joint.roc_auc if row else None,
                counterfactual=1 < members < len(stream.banks),
                refused_by_policy=_refusal(members, least_cohort),
            )
        )
    return steps


def _refusal(members: int, least_cohort: int) -> str | None:
    if 1 < members < least_cohort:
        return f"policy refuses encrypted sums below {least_cohort} members: the result would show single banks' counts"
    return None

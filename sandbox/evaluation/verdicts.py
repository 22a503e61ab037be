"""Frauds and money stopped beside the honest payments disturbed, and the precision of each evidence tier."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sandbox.evaluation.results import ALONE, CONSORTIUM, TierRow, VerdictRow, VerdictTable
from sandbox.evaluation.stream import VERDICTS, ScoredStream

ALL = "all"


def verdict_tables(stream: ScoredStream) -> list[VerdictTable]:
    """For each bank and for all together: what was decided alone and with the consortium, over the whole stream."""
    tables = []
    everyone = np.ones(len(stream), bool)
    groups = [(party, stream.bank == number) for number, party in enumerate(stream.banks)] + [(ALL, everyone)]
    for party, rows in groups:
        for view, verdict in ((ALONE, stream.verdict_alone), (CONSORTIUM, stream.verdict)):
            tables.append(VerdictTable(party, view, _rows(stream, rows, verdict)))
    return tables


def _rows(
    stream: ScoredStream, rows: npt.NDArray[np.bool_], verdict: npt.NDArray[np.int64]
) -> tuple[VerdictRow, ...]:
    fraud = stream.fraud == 1
    answer = []
    for number, word in enumerate(VERDICTS):
        bad, good = rows & (verdict == number) & fraud, rows & (verdict == number) & ~fraud
        answer.append(
            VerdictRow(
                verdict=word,
                frauds=int(bad.sum()),
                fraud_money=float(stream.amount[bad].sum()),
                genuine=int(good.sum()),
                genuine_money=float(stream.amount[good].sum()),
            )
        )
    return tuple(answer)


def tier_rows(stream: ScoredStream, tiers: Mapping[str, int]) -> list[TierRow]:
    """Hits and frauds at each tier's number of victims or more; ``tiers``: name to least number of victims."""
    fraud = stream.fraud == 1
    answer = []
    for kind in stream.kinds:
        for evidence in ("own", "all"):
            victims = stream.victims(kind, evidence)
            for tier, least in sorted(tiers.items(), key=lambda item: item[1]):
                hit = victims >= least
                answer.append(
                    TierRow(
                        kind=kind,
                        tier=tier,
                        min_victims=least,
                        evidence=evidence,
                        hits=int(hit.sum()),
                        frauds=int((hit & fraud).sum()),
                        fraud_money=float(stream.amount[hit & fraud].sum()),
                        genuine_money=float(stream.amount[hit & ~fraud].sum()),
                    )
                )
    return answer

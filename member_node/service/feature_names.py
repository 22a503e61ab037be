"""Names that features of a stream cannot have: those of the columns that rules read and the history keeps beside them.

Such a feature would be left out of the history without a word, and rules and models would read the other column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from member_node.service.decisions import BRAKED, CORRECTED, EXEMPT, FRAME
from member_node.streams.events import CORRECTION, DEVICE_COMPONENTS, FIXED
from member_node.streams.mapping import StreamMapping
from scoring.devices.linker import NUMBERS as DEVICE_NUMBERS
from scoring.features.spec import FeatureSpec, FieldFeature, SpecError
from scoring.features.spec_source import located
from scoring.schema import ENTITIES
from scoring.scored import MODEL_DEGRADED, MODEL_SCORE

_EVERY_STREAM = frozenset(
    (
        *FIXED, "time", CORRECTION, DEVICE_COMPONENTS, FRAME, CORRECTED, *ENTITIES, "hour", "weekday", "degraded",
        "verdict", "rule", "verdict_alone", "rule_alone", "rule_version", "reasons", EXEMPT, BRAKED,
        MODEL_SCORE, MODEL_DEGRADED, "model_version", "device_linked", *DEVICE_NUMBERS,
        # What questions to the files add: where a row lies, and its outcome.
        "filename", "file_row_number", "fraud", "fraud_known_us",
    )
)  # fmt: skip
# Lists, versions of rules and of models, windows of the consortium may still come.
_TO_COME = re.compile(r"listed_.*|verdict_rules_\d+|score_model_\d+|consortium_.*_fraud_\d+d_(others|all)")
_OF_A_KIND = ("victims_own", "victims_all", "reporters", "labels", "tier", "limit")


def check_feature_names(spec: FeatureSpec, text: str, mapping: StreamMapping) -> None:
    """Raise SpecError with the place in ``text`` for a feature with the name of another column of the stream.

    Cases do not tell names apart, since SQL sees the history. A feature that passes a field on is no column of its own.
    """
    taken = _EVERY_STREAM | set(_lowered(mapping.numbers))
    taken |= {f"{kind.lower()}_{what}" for kind in mapping.indicators.values() for what in _OF_A_KIND}
    for place, feature in enumerate(spec.features):
        if isinstance(feature, FieldFeature):
            continue
        name = feature.name.lower()
        if name in taken or _TO_COME.fullmatch(name):
            error = SpecError(
                f"feature {feature.name!r}",
                "has the name of a column that the stream itself keeps: choose another",
                path=("feature", place, "name"),
            )
            raise located(error, text)


def _lowered(names: Iterable[str]) -> Iterable[str]:
    return (name.lower() for name in names)

"""The VOPRF of RFC 9497 under a key that no single party holds: t of n Shamir shares evaluate together.

``shares`` deals and describes keys, ``evaluation`` is the key holder's and ``lookup`` the caller's side.
"""

from crypto.oprf.client import PendingBatch
from crypto.threshold.evaluation import ShareEvaluation, evaluate_share, verify_evaluation
from crypto.threshold.lookup import (
    LABEL_KEY_SIZE,
    TAG_SIZE,
    blind,
    derive_label_key,
    derive_tag,
    finalize,
)
from crypto.threshold.shares import (
    KeyShare,
    PublicKeySet,
    deal,
    lagrange_coefficients,
    least_threshold,
)

__all__ = [
    "LABEL_KEY_SIZE",
    "TAG_SIZE",
    "KeyShare",
    "PendingBatch",
    "PublicKeySet",
    "ShareEvaluation",
    "blind",
    "deal",
    "derive_label_key",
    "derive_tag",
    "evaluate_share",
    "finalize",
    "lagrange_coefficients",
    "least_threshold",
    "verify_evaluation",
]

"""What the requester does with the contributions of its cohort: check, add, decrypt. A pure function of bytes.

``member_node.compute.decryption`` runs it in a child process, because SEAL parses bytes of other parties here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from crypto.errors import OutOfRangeError
from crypto.he.contexts import RequesterKey
from crypto.he.contributions import add_column
from crypto.he.envelope import check_ciphertexts, check_contributions
from crypto.he.parameters import P


def decrypt_sum(
    key: RequesterKey, contributions: Mapping[str, Sequence[bytes]], length: int, *, bound: int = P - 1
) -> npt.NDArray[np.int64]:
    """The sum modulo P of all contributions: int64 of shape (``length``,).

    ``contributions``: ciphertexts by party, signatures verified. ``bound``: the largest sum that is possible, for
    instance members x clamp: masks that do not cancel give random residues, which are almost surely above it.
    Raises InvalidEncodingError (malformed) or OutOfRangeError (too many, or a sum above ``bound``).
    """
    check_contributions(contributions, length)
    columns = zip(*contributions.values(), strict=True)
    sums = np.concatenate(
        [np.array(add_column(key.native, column).decrypt(), dtype=np.int64) for column in columns]
    )[:length]
    sums %= P  # SEAL returns representatives around zero
    above = np.flatnonzero(sums > bound)
    if len(above):
        raise OutOfRangeError(
            f"{len(above)} of {length} sums exceed the bound {bound}: "
            "a member did not use the masks of this inquiry, or did not clamp its values"
        )
    return sums


def check_one_contribution(key: RequesterKey, ciphertexts: Sequence[bytes], length: int) -> None:
    """Parse one contribution as :func:`decrypt_sum` would, to find out whose bytes kill the process."""
    check_ciphertexts(ciphertexts, length)
    for serialised in ciphertexts:
        add_column(key.native, [serialised])

"""Deals the OPRF key shares of a sandbox.

**This is the sandbox's shortcut, and it says so wherever it is used**: one program draws every kind group's key,
splits it by Shamir's scheme and forgets it. In a consortium nobody may hold a whole key; the dealer-free key
ceremony replaces this module. Everything downstream (thresholds, per-share proofs, generations) is the real thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from crypto.threshold import KeyShare, deal, least_threshold
from governance.messages.roll import GroupKey, PublicShare

NOTICE = "OPRF key shares were dealt by the sandbox; a consortium draws them in a ceremony without a dealer."


def deal_keys(
    kind_groups: Iterable[str], holders: int, *, epoch: int, random: Callable[[int], bytes]
) -> tuple[list[GroupKey], list[list[KeyShare]]]:
    """One independent key per kind group; returns the public keys and, per holder, its shares."""
    public: list[GroupKey] = []
    private: list[list[KeyShare]] = [[] for _ in range(holders)]
    for kind_group in kind_groups:
        keys, shares = deal(
            epoch=epoch,
            kind_group=kind_group,
            threshold=least_threshold(holders),
            holders=holders,
            random=random,
        )
        public.append(
            GroupKey(
                epoch=epoch,
                kind_group=kind_group,
                generation=keys.generation,
                threshold=keys.threshold,
                public_key=keys.public_key,
                public_shares=[
                    PublicShare(share_index=index, element=element)
                    for index, element in sorted(keys.public_shares.items())
                ],
            )
        )
        for own, share in zip(private, shares, strict=True):
            own.append(share)
    return public, private

"""What is in force while the process runs: the roll, the policy and who decides by them, published at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from coordinator.service.log import GovernanceLog
from coordinator.storage import parties as stored
from coordinator.storage.database import Database
from crypto.signing import SigningKey
from governance.log.entries import KeyEpochEntry
from governance.log.evidence import membership_entry, policy_entry
from governance.members import Role, check_roll, check_successor, cohort, find_party, key_holders, verify_keys
from governance.messages.codec import decode
from governance.messages.policy import PolicyBundle
from governance.messages.roll import GroupKey, MembershipRoll
from governance.messages.signed import Signed, sign_message
from governance.policy.decider import Decider


class NotReadyError(Exception):
    """The data directory lacks something without which the coordinator cannot serve; the message says what to do."""


@dataclass(frozen=True)
class Consortium:
    """The roll and policy in force with their envelopes; ``keys`` verifies what each party signs."""

    party: str
    roll: MembershipRoll
    signed_roll: Signed
    policy: PolicyBundle
    signed_policy: Signed
    decider: Decider
    keys: Mapping[str, bytes]
    everyone: tuple[str, ...]
    cohort: tuple[str, ...]

    def is_regulator(self, party: str) -> bool:
        """Whether ``party`` reads the whole log."""
        return find_party(self.roll, party).role == Role.REGULATOR


def publish(database: Database, log: GovernanceLog, party: str, key: SigningKey) -> Consortium:
    """Sign and log what changed since the last start, then return what is in force.

    Raises :class:`NotReadyError`, or what makes the roll or the policy unusable.
    """
    with log.transaction() as transaction:
        connection, now = transaction.connection, transaction.at
        signed_roll = stored.newest_roll(connection, party)
        previous = None if signed_roll is None else decode(MembershipRoll, signed_roll.payload)
        version = 1 if previous is None else previous.version + 1
        roll = stored.current_roll(connection, version=version, issued_at=now)
        check_roll(roll)
        if previous is not None and _same(previous, roll):
            roll = previous
        else:
            if previous is not None:
                check_successor(previous, roll)
            signed_roll = sign_message(roll, party, key)
            stored.add_roll(connection, roll, signed_roll)
            transaction.append(membership_entry(signed_roll, at=now))
            known = [] if previous is None else previous.group_keys
            for group_key in roll.group_keys:
                if group_key not in known:
                    transaction.append(_key_epoch_entry(group_key, roll, now))
        everyone = tuple(sorted(entry.party for entry in roll.parties))
        for envelope in stored.unpublished_policies(connection, party):
            index = transaction.append(policy_entry(envelope, at=now, parties=everyone))
            bundle = decode(PolicyBundle, envelope.payload)
            stored.mark_policy_published(connection, bundle.policy_epoch, index)
        signed_policy = stored.newest_policy(connection, party)
        if signed_roll is None or signed_policy is None:
            raise NotReadyError("no policy is installed: `subrosa coordinator init` installs the default one")
        policy = decode(PolicyBundle, signed_policy.payload)
        return Consortium(
            party=party,
            roll=roll,
            signed_roll=signed_roll,
            policy=policy,
            signed_policy=signed_policy,
            decider=Decider(policy, roll),
            keys=verify_keys(roll),
            everyone=everyone,
            cohort=tuple(cohort(roll)),
        )


def _same(previous: MembershipRoll, roll: MembershipRoll) -> bool:
    """Whether two rolls say the same, whatever their version and date."""
    return msgspec.structs.replace(roll, version=previous.version, issued_at=previous.issued_at) == previous


def _key_epoch_entry(key: GroupKey, roll: MembershipRoll, now: int) -> KeyEpochEntry:
    return KeyEpochEntry(
        at=now,
        parties=sorted(entry.party for entry in roll.parties),
        epoch=key.epoch,
        kind_group=key.kind_group,
        generation=key.generation,
        threshold=key.threshold,
        public_key=key.public_key.hex(),
        holders=[entry.party for entry in key_holders(roll).values()],
    )

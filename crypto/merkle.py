"""RFC 6962 Merkle trees over SHA-256: an append-only tree, its proofs, and their verification.

Sections cited are of RFC 6962 (2.1 hashes, 2.1.1 audit paths, 2.1.2 consistency proofs); verification follows
the iterative algorithms of RFC 9162, 2.1.3.2 and 2.1.4.2, which accept exactly the same proofs. Every hash is
32 bytes; anything else is refused before it is hashed; so are proofs about the empty tree, which say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from crypto.errors import InvalidEncodingError, InvalidProofError, OutOfRangeError

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()
# A tree of 2**63 leaves has proofs of 63 hashes; RFC 6962 sizes are 64-bit.
MAX_SIZE = 2**63 - 1


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data), 32 bytes (2.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes (2.1)."""
    return sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """An in-memory tree of leaf hashes that only grows.

    ``_levels[k][i]`` is the hash of leaves ``i * 2**k`` up to ``(i + 1) * 2**k``, kept only for complete
    subtrees: appending costs one node hash on average, roots and proofs O(log n).
    """

    __slots__ = ("_levels",)

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        self.extend(leaf_hashes)

    def __repr__(self) -> str:
        return f"MerkleTree(size={self.size})"

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add one leaf hash (32 bytes); returns its index."""
        if len(leaf) != HASH_SIZE:
            raise InvalidEncodingError(f"a leaf hash has {HASH_SIZE} bytes, not {len(leaf)}")
        levels = self._levels
        index = len(levels[0])
        levels[0].append(leaf)
        position, level = index, 0
        while position & 1:
            row = levels[level]
            level += 1
            if level == len(levels):
                levels.append([])
            levels[level].append(node_hash(row[position - 1], row[position]))
            position >>= 1
        return index

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes in order, level by level; nothing is added if one of them is malformed."""
        added = list(leaves)
        for leaf in added:
            if len(leaf) != HASH_SIZE:
                raise InvalidEncodingError(f"a leaf hash has {HASH_SIZE} bytes, not {len(leaf)}")
        levels = self._levels
        levels[0].extend(added)
        level = 0
        while len(levels[level]) > 1:
            row = levels[level]
            level += 1
            if level == len(levels):
                levels.append([])
            above = levels[level]
            above.extend(
                [
                    sha256(b"\x01" + row[i] + row[i + 1]).digest()
                    for i in range(2 * len(above), len(row) & ~1, 2)
                ]
            )

    def leaf(self, index: int) -> bytes:
        """The leaf hash at ``index``."""
        if not 0 <= index < self.size:
            raise OutOfRangeError(f"leaf {index} of a tree of {self.size}")
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """The root of the first ``size`` leaves (default: all); 32 bytes."""
        size = self._checked_size(size)
        return EMPTY_ROOT if size == 0 else self._range_hash(0, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Audit path of leaf ``index`` among the first ``size`` leaves, lowest sibling first (2.1.1)."""
        size = self._checked_size(size)
        if not 0 <= index < size:
            raise OutOfRangeError(f"leaf {index} is not in a tree of {size}")
        path: list[bytes] = []
        first, last = 0, size
        while last - first > 1:
            middle = first + _largest_power_below(last - first)
            if index < middle:
                path.append(self._range_hash(middle, last))
                last = middle
            else:
                path.append(self._range_hash(first, middle))
                first = middle
        path.reverse()
        return path

    def consistency_proof(self, first_size: int, second_size: int | None = None) -> list[bytes]:
        """Proof that the tree of ``first_size`` leaves is a prefix of that of ``second_size`` (2.1.2).

        Empty when the sizes are equal; ``first_size`` 0 raises, because nothing can be proved about it.
        """
        second_size = self._checked_size(second_size)
        if not 0 < first_size <= second_size:
            raise OutOfRangeError(f"no consistency proof from size {first_size} to {second_size}")
        path: list[bytes] = []
        first, last = 0, second_size
        while first_size != last:
            middle = first + _largest_power_below(last - first)
            if first_size <= middle:
                path.append(self._range_hash(middle, last))
                last = middle
            else:
                path.append(self._range_hash(first, middle))
                first = middle
        if first != 0:  # the verifier does not hold this subtree's hash
            path.append(self._range_hash(first, last))
        path.reverse()
        return path

    def _checked_size(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise OutOfRangeError(f"the tree has {self.size} leaves, not {size}")
        return size

    def _range_hash(self, first: int, last: int) -> bytes:
        """MTH(D[first:last]); ``first`` is a multiple of the largest power of two within the length."""
        hashes: list[bytes] = []
        while first < last:
            level = (last - first).bit_length() - 1
            hashes.append(self._levels[level][first >> level])
            first += 1 << level
        combined = hashes.pop()
        while hashes:
            combined = node_hash(hashes.pop(), combined)
        return combined


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root implied for ``leaf`` at ``index`` of ``size``; InvalidProofError on a wrong shape."""
    _check_hash(leaf, "leaf hash")
    if not 0 <= index < size <= MAX_SIZE:
        raise InvalidProofError(f"leaf {index} cannot be in a tree of {size}")
    node, last, hash_ = index, size - 1, leaf
    for sibling in proof:
        _check_hash(sibling, "proof node")
        if last == 0:
            raise InvalidProofError("the inclusion proof is too long")
        if node & 1 or node == last:
            hash_ = node_hash(sibling, hash_)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            hash_ = node_hash(hash_, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise InvalidProofError("the inclusion proof is too short")
    return hash_


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if ``leaf`` is entry ``index`` of the tree (``size``, ``root``); else InvalidProofError."""
    _check_hash(root, "root")
    if root_from_inclusion(leaf, index, size, proof) != root:
        raise InvalidProofError(f"entry {index} is not in the tree of {size} with this root")


def verify_consistency(first: int, second: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Return if tree (``first``, ``root1``) is a prefix of (``second``, ``root2``); else InvalidProofError.

    Sizes 0 are refused: any tree extends the empty one, so such a proof would be believed for nothing.
    Equal sizes hash nothing: their roots are only compared (as the public vectors ask).
    """
    if not 0 < first <= second <= MAX_SIZE:
        raise InvalidProofError(f"no consistency proof goes from size {first} to {second}")
    if first == second:
        if proof:
            raise InvalidProofError("equal sizes need an empty consistency proof")
        if root1 != root2:
            raise InvalidProofError(f"two different roots for one size {first}")
        return
    _check_hash(root1, "first root")
    _check_hash(root2, "second root")
    for sibling in proof:
        _check_hash(sibling, "proof node")
    nodes = list(proof) if first & (first - 1) else [root1, *proof]
    if not nodes:
        raise InvalidProofError("the consistency proof is empty")
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            raise InvalidProofError("the consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise InvalidProofError("the consistency proof is too short")
    if old != root1 or new != root2:
        raise InvalidProofError(f"the tree of {second} does not extend the tree of {first}")


def _largest_power_below(count: int) -> int:
    """Largest power of two smaller than ``count`` (``count`` > 1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_hash(value: bytes, what: str) -> None:
    if len(value) != HASH_SIZE:
        raise InvalidProofError(f"a {what} has {HASH_SIZE} bytes, not {len(value)}")

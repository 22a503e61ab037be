"""The published Merkle proof vectors (transparency-dev) and the tree of RFC 6962's reference code."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from crypto.errors import InvalidProofError
from crypto.merkle import EMPTY_ROOT, MerkleTree, leaf_hash, verify_consistency, verify_inclusion

VECTORS = Path(__file__).parents[2].parent / "shared" / "vectors" / "rfc6962"

# Leaves and roots used by the certificate-transparency reference code for RFC 6962, 2.1.
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def load(name: str) -> list[dict[str, Any]]:
    path = VECTORS / name
    if not path.exists():
        return []
    loaded: list[dict[str, Any]] = json.loads(path.read_text())
    return loaded


def raw(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def hashes(proof: list[str] | None) -> list[bytes]:
    return [raw(node) for node in proof or []]


@pytest.mark.parametrize("name", ["inclusion.json", "consistency.json"])
def test_vectors_are_present(name: str) -> None:
    if not (VECTORS / name).exists():
        pytest.skip(f"the published vectors {name} are not beside this repository")
    cases = load(name)
    assert {case["wantErr"] for case in cases} == {True, False}


@pytest.mark.parametrize("case", load("inclusion.json"), ids=lambda case: case["name"])
def test_inclusion(case: dict[str, Any]) -> None:
    arguments = (
        raw(case["leafHash"]),
        case["leafIdx"],
        case["treeSize"],
        hashes(case["proof"]),
        raw(case["root"]),
    )
    if case["wantErr"]:
        with pytest.raises(InvalidProofError):
            verify_inclusion(*arguments)
    else:
        verify_inclusion(*arguments)


@pytest.mark.parametrize("case", load("consistency.json"), ids=lambda case: case["name"])
def test_consistency(case: dict[str, Any]) -> None:
    arguments = (
        case["size1"],
        case["size2"],
        hashes(case["proof"]),
        raw(case["root1"]),
        raw(case["root2"]),
    )
    if case["wantErr"]:
        with pytest.raises(InvalidProofError):
            verify_consistency(*arguments)
    else:
        verify_consistency(*arguments)


@pytest.mark.parametrize("size", sorted(ROOTS))
def test_reference_roots(size: int) -> None:
    tree = MerkleTree(leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES[:size])
    assert tree.root().hex() == ROOTS[size]


def test_empty_root_is_the_hash_of_nothing() -> None:
    assert EMPTY_ROOT.hex() == ROOTS[0]

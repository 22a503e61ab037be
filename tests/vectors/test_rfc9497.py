"""RFC 9497 appendix A.1: ristretto255-SHA512 in modes OPRF and VOPRF, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crypto import group
from crypto.errors import InvalidProofError
from crypto.oprf import dleq
from crypto.oprf.client import OprfClient, VoprfClient, blind_with_known_scalars_for_published_vectors_only
from crypto.oprf.server import OprfServer, VoprfServer
from crypto.oprf.suite import OPRF, VOPRF, Mode, Suite

VECTORS = Path(__file__).parents[2].parent / "shared/vectors/rfc9497/ristretto255-sha512.json"
SUITES: dict[int, Suite] = {0: OPRF, 1: VOPRF}


def _hex_list(text: str) -> list[bytes]:
    return [bytes.fromhex(part) for part in text.split(",")]


@pytest.fixture(scope="module")
def groups() -> list[dict[str, Any]]:
    if not VECTORS.exists():
        pytest.skip(f"the published vectors are not at {VECTORS}")
    return list(json.loads(VECTORS.read_text()))


def test_the_file_holds_both_modes_and_a_batch(groups: list[dict[str, Any]]) -> None:
    assert {group_["mode"] for group_ in groups} == {0, 1}
    assert any(vector["Batch"] == 2 for vector in groups[1]["vectors"])


def test_contexts_and_key_derivation(groups: list[dict[str, Any]]) -> None:
    for vectors in groups:
        suite = SUITES[vectors["mode"]]
        assert suite.hash_to_group_domain == bytes.fromhex(vectors["groupDST"])
        key = suite.derive_key(bytes.fromhex(vectors["seed"]), bytes.fromhex(vectors["keyInfo"]))
        assert key == bytes.fromhex(vectors["skSm"])
        if "pkSm" in vectors:
            assert group.multiply_base(key) == bytes.fromhex(vectors["pkSm"])


def test_every_vector_of_both_modes(groups: list[dict[str, Any]]) -> None:
    seen = 0
    for vectors in groups:
        secret = bytes.fromhex(vectors["skSm"])
        for vector in vectors["vectors"]:
            inputs = _hex_list(vector["Input"])
            pending, blinded = blind_with_known_scalars_for_published_vectors_only(
                SUITES[vectors["mode"]], inputs, _hex_list(vector["Blind"])
            )
            assert list(blinded) == _hex_list(vector["BlindedElement"])
            if vectors["mode"] == Mode.OPRF:
                oprf_server = OprfServer(secret)
                evaluated = oprf_server.evaluate(blinded)
                outputs = OprfClient().finalize(pending, evaluated)
                assert outputs == [oprf_server.evaluate_input(value) for value in inputs]
            else:
                server = VoprfServer(secret)
                evaluated, proof = server.evaluate_with_known_nonce_for_published_vectors_only(
                    blinded, bytes.fromhex(vector["Proof"]["r"])
                )
                assert proof == bytes.fromhex(vector["Proof"]["proof"])
                outputs = VoprfClient(server.public_key).finalize(pending, blinded, evaluated, proof)
                assert outputs == [server.evaluate_input(value) for value in inputs]
            assert evaluated == _hex_list(vector["EvaluationElement"])
            assert outputs == _hex_list(vector["Output"])
            seen += 1
    assert seen == 5


def test_every_changed_byte_of_a_published_proof_is_refused(groups: list[dict[str, Any]]) -> None:
    vectors = next(entry for entry in groups if entry["mode"] == 1)
    vector = vectors["vectors"][2]
    public_key = bytes.fromhex(vectors["pkSm"])
    blinded, evaluated = _hex_list(vector["BlindedElement"]), _hex_list(vector["EvaluationElement"])
    proof = bytes.fromhex(vector["Proof"]["proof"])
    dleq.verify(VOPRF, public_key, blinded, evaluated, proof)
    for position in range(len(proof)):
        changed = bytearray(proof)
        changed[position] ^= 1
        with pytest.raises(InvalidProofError):
            dleq.verify(VOPRF, public_key, blinded, evaluated, bytes(changed))
    with pytest.raises(InvalidProofError):
        dleq.verify(VOPRF, public_key, blinded, evaluated[::-1], proof)


# The first vectors of appendices A.1.1 (OPRF) and A.1.2 (VOPRF), inline: they hold without the shared folder.
SEED, KEY_INFO = b"\xa3" * 32, b"test key"
BLIND = bytes.fromhex("64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706")


def test_appendix_a_1_1_first_vector_inline() -> None:
    pending, blinded = blind_with_known_scalars_for_published_vectors_only(OPRF, [b"\x00"], [BLIND])
    assert blinded[0].hex() == "609a0ae68c15a3cf6903766461307e5c8bb2f95e7e6550e1ffa2dc99e412803c"
    evaluated = OprfServer(OPRF.derive_key(SEED, KEY_INFO)).evaluate(blinded)
    assert evaluated[0].hex() == "7ec6578ae5120958eb2db1745758ff379e77cb64fe77b0b2d8cc917ea0869c7e"
    assert OprfClient().finalize(pending, evaluated)[0].hex() == (
        "527759c3d9366f277d8c6020418d96bb393ba2afb20ff90df23fb7708264e2f3"
        "ab9135e3bd69955851de4b1f9fe8a0973396719b7912ba9ee8aa7d0b5e24bcf6"
    )


def test_appendix_a_1_2_first_vector_inline() -> None:
    pending, blinded = blind_with_known_scalars_for_published_vectors_only(VOPRF, [b"\x00"], [BLIND])
    server = VoprfServer(VOPRF.derive_key(SEED, KEY_INFO))
    assert server.public_key.hex() == "c803e2cc6b05fc15064549b5920659ca4a77b2cca6f04f6b357009335476ad4e"
    nonce = bytes.fromhex("222a5e897cf59db8145db8d16e597e8facb80ae7d4e26d9881aa6f61d645fc0e")
    evaluated, proof = server.evaluate_with_known_nonce_for_published_vectors_only(blinded, nonce)
    assert proof.hex() == (
        "ddef93772692e535d1a53903db24367355cc2cc78de93b3be5a8ffcc6985dd06"
        "6d4346421d17bf5117a2a1ff0fcb2a759f58a539dfbe857a40bce4cf49ec600d"
    )
    outputs = VoprfClient(server.public_key).finalize(pending, blinded, evaluated, proof)
    assert outputs[0].hex() == (
        "b58cfbe118e0cb94d79b5fd6a6dafb98764dff49c14e1770b566e42402da1a7d"
        "a4d8527693914139caee5bd03903af43a491351d23b430948dd50cde10d32b3c"
    )

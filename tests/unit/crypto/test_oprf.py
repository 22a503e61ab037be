"""The single-key OPRF and VOPRF: round trips, refusals, hedged nonces, and the `voprf` package as a second opinion."""

from __future__ import annotations

import pickle
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from voprf import ristretto as other

from crypto import group
from crypto.errors import InvalidEncodingError, InvalidProofError, OutOfRangeError
from crypto.oprf import dleq
from crypto.oprf.client import OprfClient, PendingBatch, VoprfClient, blind_with
from crypto.oprf.server import OprfServer, VoprfServer
from crypto.oprf.suite import MAX_INPUT_SIZE, OPRF, VOPRF

SECRET = group.scalar_from_int(0xC0FFEE)
INPUTS = [b"", b"a", b"subrosa" * 20, b"a"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=5))
def test_both_modes_return_the_servers_own_outputs(inputs: list[bytes]) -> None:
    server = VoprfServer(SECRET)
    client = VoprfClient(server.public_key)
    pending, blinded = client.blind(inputs, secrets.token_bytes)
    evaluated, proof = server.evaluate(blinded, secrets.token_bytes)
    assert client.finalize(pending, blinded, evaluated, proof) == [server.evaluate_input(x) for x in inputs]
    plain = OprfServer(SECRET)
    pending, blinded = OprfClient().blind(inputs, secrets.token_bytes)
    outputs = OprfClient().finalize(pending, plain.evaluate(blinded))
    assert outputs == [plain.evaluate_input(x) for x in inputs]
    assert plain.evaluate_input(b"x") != server.evaluate_input(b"x"), "the modes are separate domains"


def test_equal_inputs_are_blinded_differently_and_finalize_equally() -> None:
    server = OprfServer(SECRET)
    pending, blinded = OprfClient().blind(INPUTS, secrets.token_bytes)
    assert len(set(blinded)) == len(INPUTS)
    outputs = OprfClient().finalize(pending, server.evaluate(blinded))
    assert outputs[1] == outputs[3]
    assert len(set(outputs)) == len(INPUTS) - 1


# --- the voprf package (Rust) against ours, both ways round --------------------------------------------------


def _theirs() -> tuple[other.Evaluator, VoprfServer]:
    seed, info = secrets.token_bytes(32), b"cross-check"
    return other.Evaluator.from_seed(seed, info), VoprfServer(VOPRF.derive_key(seed, info))


def test_our_client_accepts_the_other_server() -> None:
    evaluator, ours = _theirs()
    assert evaluator.public_key.serialize() == ours.public_key
    client = VoprfClient(ours.public_key)
    inputs = [b"alpha", b"beta", b"gamma"]
    pending, blinded = client.blind(inputs, secrets.token_bytes)
    answer = evaluator.evaluate_batch([other.BlindedInput.deserialize(element) for element in blinded])
    proof, *evaluated = _proof_and_elements(answer.serialize())
    outputs = client.finalize(pending, blinded, evaluated, proof)
    assert outputs == [evaluator.evaluate_known_input(value) for value in inputs]


def test_the_other_client_accepts_our_server() -> None:
    evaluator, ours = _theirs()
    inputs = [b"alpha", b"beta", b"gamma"]
    clients, blinded = zip(*(other.Client.blind(value) for value in inputs), strict=True)
    evaluated, proof = ours.evaluate([element.serialize() for element in blinded], secrets.token_bytes)
    answer = other.VerifiableBatchOutput.deserialize(proof + b"".join(evaluated))
    outputs = other.Client.finalize_batch(list(clients), answer, evaluator.public_key)
    assert outputs == [ours.evaluate_input(value) for value in inputs]


def _proof_and_elements(serialized: bytes) -> list[bytes]:
    return [serialized[:64], *group.split(serialized[64:])]


# --- what must be refused ------------------------------------------------------------------------------------


@pytest.fixture
def exchange() -> tuple[VoprfServer, tuple[bytes, ...], list[bytes], bytes]:
    server = VoprfServer(SECRET)
    _, blinded = VoprfClient(server.public_key).blind(INPUTS, secrets.token_bytes)
    evaluated, proof = server.evaluate(blinded, secrets.token_bytes)
    return server, blinded, evaluated, proof


def test_a_proof_is_bound_to_key_elements_and_order(
    exchange: tuple[VoprfServer, tuple[bytes, ...], list[bytes], bytes],
) -> None:
    server, blinded, evaluated, proof = exchange
    dleq.verify(VOPRF, server.public_key, blinded, evaluated, proof)
    stranger = VoprfServer(group.scalar_from_int(5))
    other_element = group.hash_to_element(bytes(range(64)))
    for key, inputs, outputs in (
        (stranger.public_key, blinded, evaluated),
        (server.public_key, blinded[::-1], evaluated[::-1]),
        (server.public_key, blinded, [other_element, *evaluated[1:]]),
        (server.public_key, (other_element, *blinded[1:]), evaluated),
        (server.public_key, blinded, stranger.evaluate(blinded, secrets.token_bytes)[0]),
        (server.public_key, blinded[:-1], evaluated[:-1]),
    ):
        with pytest.raises(InvalidProofError):
            dleq.verify(VOPRF, key, inputs, outputs, proof)
    with pytest.raises(InvalidProofError):
        dleq.verify(OPRF, server.public_key, blinded, evaluated, proof)


def test_the_provers_and_the_callers_faults_are_told_apart(
    exchange: tuple[VoprfServer, tuple[bytes, ...], list[bytes], bytes],
) -> None:
    server, blinded, evaluated, proof = exchange
    for outputs, bad_proof in (
        (evaluated[:-1], proof),
        ([*evaluated, evaluated[0]], proof),
        ([*evaluated[:-1], bytes(32)], proof),
        ([*evaluated[:-1], b"\xff" * 32], proof),
        ([*evaluated[:-1], b"short"], proof),
        (evaluated, proof[:-1]),
        (evaluated, bytes(64)),
        (evaluated, b"\xff" * 64),
        (evaluated, proof[:32] + group.ORDER.to_bytes(32, "little")),
    ):
        with pytest.raises(InvalidProofError):
            dleq.verify(VOPRF, server.public_key, blinded, outputs, bad_proof)
    with pytest.raises(InvalidEncodingError):
        dleq.verify(VOPRF, server.public_key, (*blinded[:-1], b"\xff" * 32), evaluated, proof)
    with pytest.raises(InvalidEncodingError):
        dleq.verify(VOPRF, bytes(32), blinded, evaluated, proof)
    with pytest.raises(OutOfRangeError):
        dleq.verify(VOPRF, server.public_key, [], [], proof)


def test_malformed_blinded_elements_and_batches_are_refused() -> None:
    server = VoprfServer(SECRET)
    good = group.hash_to_element(bytes(range(64)))
    with pytest.raises(InvalidEncodingError, match="element 1"):
        server.evaluate([good, bytes(32)], secrets.token_bytes)
    for count in (0, 2**16):
        with pytest.raises(OutOfRangeError):
            server.evaluate([good] * count, secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        OprfClient().blind([], secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        OprfClient().blind([bytes(MAX_INPUT_SIZE + 1)], secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        blind_with(VOPRF, [b"a"], lambda size: bytes(size + 1))
    with pytest.raises(InvalidEncodingError):
        blind_with(VOPRF, [b"a"], bytes)  # blinds that reduce to zero
    for key in (bytes(32), b"\xff" * 32, b"short"):
        with pytest.raises(InvalidEncodingError):
            OprfServer(key)
        with pytest.raises(InvalidEncodingError):
            VoprfClient(key)


def test_a_batch_is_finalized_in_its_own_mode_and_length() -> None:
    server = OprfServer(SECRET)
    pending, blinded = OprfClient().blind(INPUTS, secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        OprfClient().finalize(pending, server.evaluate(blinded)[:-1])
    verifiable = VoprfServer(SECRET)
    evaluated, proof = verifiable.evaluate(blinded, secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        VoprfClient(verifiable.public_key).finalize(pending, blinded, evaluated, proof)
    with pytest.raises(OutOfRangeError):
        VoprfClient(verifiable.public_key).finalize(pending, blinded[:-1], evaluated, proof)


def test_key_derivation_bounds_its_inputs() -> None:
    with pytest.raises(InvalidEncodingError):
        VOPRF.derive_key(bytes(31), b"")
    with pytest.raises(OutOfRangeError):
        VOPRF.derive_key(bytes(32), bytes(MAX_INPUT_SIZE + 1))
    assert VOPRF.derive_key(bytes(32), b"") != OPRF.derive_key(bytes(32), b"")


# --- secrets -------------------------------------------------------------------------------------------------


def test_a_repeated_random_state_does_not_repeat_the_nonce() -> None:
    server = VoprfServer(SECRET)
    proofs = []
    for label in (b"first", b"second"):
        _, blinded = blind_with(VOPRF, [label], secrets.token_bytes)
        proofs.append(server.evaluate(blinded, lambda size: b"\x2a" * size)[1])
    (c1, s1), (c2, s2) = (
        (group.scalar_to_int(proof[:32]), group.scalar_to_int(proof[32:])) for proof in proofs
    )
    # With one nonce for both, s1 - s2 = (c2 - c1) * secret would give the secret away.
    leaked = (s1 - s2) * pow(c2 - c1, -1, group.ORDER) % group.ORDER
    assert leaked != group.scalar_to_int(SECRET)


def test_the_alarmingly_named_seam_does_leak_the_key_when_the_nonce_is_known() -> None:
    server = VoprfServer(SECRET)
    _, blinded = blind_with(VOPRF, [b"x"], secrets.token_bytes)
    nonce = group.scalar_from_int(99)
    _, proof = server.evaluate_with_known_nonce_for_published_vectors_only(blinded, nonce)
    c, s = group.scalar_to_int(proof[:32]), group.scalar_to_int(proof[32:])
    assert (99 - s) * pow(c, -1, group.ORDER) % group.ORDER == group.scalar_to_int(SECRET)


def test_secrets_do_not_print_and_servers_do_not_pickle() -> None:
    pending, _ = OprfClient().blind([b"DE89370400440532013000"], secrets.token_bytes)
    assert repr(pending) == str(pending) == "PendingBatch(...)"
    assert repr(OprfServer(SECRET)) == "OprfServer(...)"
    assert repr(VoprfServer(SECRET)) == "VoprfServer(...)"
    with pytest.raises(TypeError):
        pickle.dumps(VoprfServer(SECRET))
    again = pickle.loads(pickle.dumps(pending))
    assert isinstance(again, PendingBatch)
    assert (again.mode, again.inputs, again.blinds) == (pending.mode, pending.inputs, pending.blinds)

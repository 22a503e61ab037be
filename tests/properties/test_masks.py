"""The law of masks: over a whole cohort they add up to nothing; over less they hide everything."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.masks import MaskSecret, mask_vector


def cohort_masks(names: list[str], binding: bytes, length: int, modulus: int) -> dict[str, np.ndarray]:
    secrets = {name: MaskSecret(hashlib.sha256(binding + name.encode()).digest()) for name in names}
    keys = {name: secret.public_key for name, secret in secrets.items()}
    return {
        name: mask_vector(
            secrets[name],
            name,
            {peer: key for peer, key in keys.items() if peer != name},
            binding=binding,
            length=length,
            modulus=modulus,
        )
        for name in names
    }


names_strategy = st.lists(
    st.from_regex(r"[a-z][a-z0-9-]{1,31}", fullmatch=True), min_size=2, max_size=6, unique=True
)


@given(names_strategy, st.binary(max_size=64), st.integers(1, 200), st.integers(2, 2**62))
@settings(max_examples=60, deadline=None)
def test_masks_of_a_cohort_cancel(names: list[str], binding: bytes, length: int, modulus: int) -> None:
    masks = cohort_masks(names, binding, length, modulus)
    total = sum(mask.astype(object) for mask in masks.values())
    assert not np.any(total % modulus)
    assert all(((mask >= 0) & (mask < modulus)).all() for mask in masks.values())


@given(names_strategy, st.data())
@settings(max_examples=25, deadline=None)
def test_aggregation_obeys_its_law(names: list[str], data: st.DataObject) -> None:
    """Sum of masked values = masked-free sum, and without one member it is not."""
    modulus = 35_184_371_884_033
    masks = cohort_masks(names, b"law", 40, modulus)
    values = {
        name: np.array(data.draw(st.lists(st.integers(0, 10_000), min_size=40, max_size=40)))
        for name in names
    }
    masked = {name: (values[name] + masks[name]) % modulus for name in names}
    assert (sum(masked.values()) % modulus == sum(values.values())).all()
    missing = data.draw(st.sampled_from(names))
    partial = sum(vector for name, vector in masked.items() if name != missing) % modulus
    # A partial sum is uniform: that all of 40 cells fall below 60,000 of 2^45 has probability below 2^-1100.
    assert (partial > 60_000).any()

"""Linking: the same device through drift, two devices apart, identifiers, sweeps, determinism, state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.browsers import (
    DAY,
    START,
    agent_text,
    bundle_of,
    component,
    iphone,
    visits,
    windows,
)
from scoring.devices import NUMBERS, DeviceLinker
from scoring.devices.matching import count_customer, customers, resemblance, similarity
from scoring.schema import entity_keys

KEY = b"a bank's own key"
PLAIN = {
    "gpu": "ANGLE (Intel, Intel(R) UHD Graphics 620 Direct3D11 vs_5_0 ps_5_0, D3D11-27.20.100)",
    "driver": 1,
    "cores": 8,
    "memory": 8.0,
    "screen": [1920, 1080],
    "zoom": 149.3,
    "touch": 0,
    "languages": ["de-DE", "de"],
}


def device(**fixed):
    return windows(np.random.default_rng(3), **(PLAIN | fixed))


def observe(linker, *bundles, customers=None, times=None):
    n = len(bundles)
    who = np.array(customers if customers is not None else range(1, n + 1), dtype=np.uint64)
    when = np.array(times if times is not None else [START + i * DAY for i in range(n)], dtype=np.int64)
    return linker.observe(bundles, who, when)


def same(*bundles):
    """Whether all bundles, one a day, are linked to one device."""
    return len(set(observe(DeviceLinker(KEY), *bundles).device_id)) == 1


def later(made, **changed):
    bundle = bundle_of(made)
    for name, value in changed.items():
        bundle[name] = component(value)
    return bundle


def with_version(made, version, **changed):
    return later(made, **({"userAgent": agent_text(made.kind, version)} | changed))


def test_small_drift_keeps_the_id_and_is_counted():
    made = device()
    fonts = made.bundle["fonts"]["value"]
    seen = observe(
        DeviceLinker(KEY),
        bundle_of(made),
        with_version(made, 121),
        with_version(made, 121, fonts=[*fonts, "A new font"]),
        with_version(made, 122, timezone="Asia/Tokyo", timezoneOffset=-540),
        with_version(made, 122, screenResolution=[3840, 2160], screenFrame=[0, 0, 80, 0]),
        with_version(made, 122, screenResolution=[3840, 2160], screenFrame=[0, 0, 10, 0]),
    )
    assert len(set(seen.device_id)) == 1
    assert seen.numbers["device_new"].tolist() == [1, 0, 0, 0, 0, 0]
    assert seen.numbers["device_drift"].tolist() == [0, 1, 2, 3, 4, 4]
    assert seen.numbers["device_seen"].tolist() == [1, 2, 3, 4, 5, 6]
    assert seen.numbers["device_age_hours"].tolist() == [0, 24, 48, 72, 96, 120]
    assert seen.device.tolist() == entity_keys(seen.device_id, column="device").tolist()
    assert set(seen.numbers) == set(NUMBERS)


def test_a_new_driver_name_and_turned_screen_are_no_change():
    made = device()
    turned = later(made, screenResolution=[1080, 1920])
    turned["webGlBasics"]["value"]["rendererUnmasked"] = PLAIN["gpu"].replace("27.20.100", "31.0.101.2111")
    seen = observe(DeviceLinker(KEY), bundle_of(made), turned)
    assert seen.numbers["device_drift"].tolist() == [0, 0]


def test_rendering_may_change_with_an_update_only():
    made = device()
    canvas = {"winding": True, "geometry": "another", "text": "another"}
    assert same(bundle_of(made), with_version(made, 121, canvas=canvas))
    assert not same(bundle_of(made), later(made, canvas=canvas))
    math = {"acos": 1.5}
    assert not same(bundle_of(made), with_version(made, 121, canvas=canvas, audio=99.0, math=math))


@pytest.mark.parametrize(
    "other",
    [
        {"driver": 2},
        {"gpu": "ANGLE (Intel, Intel(R) HD Graphics 530 Direct3D11 vs_5_0 ps_5_0, D3D11)"},
        {"cores": 16},
        {"memory": 16.0},
        {"touch": 10},
        {"fonts": [f"Other {i}" for i in range(30)]},
        {"languages": ["fr-FR"], "screen": [1366, 768], "zoom": 152.2},
    ],
)
def test_other_devices_of_the_same_kind_stay_apart(other):
    assert not same(bundle_of(device()), bundle_of(device(**other)))


def test_same_model_with_another_canvas_and_audio_stays_apart_even_with_a_newer_browser():
    made = device()
    twin = with_version(made, 121, audio=124.08, canvas={"winding": True, "geometry": "g2", "text": "t2"})
    twin["screenResolution"] = component([1366, 768])
    twin["languages"] = component([["fr-FR"]])
    assert not same(bundle_of(made), twin)


def test_identical_machines_cannot_be_told_apart():
    """The limit of any fingerprint, stated: two equal bundles are one device, whoever sends them."""
    seen = observe(DeviceLinker(KEY), bundle_of(device()), bundle_of(device()), customers=[1, 2])
    assert len(set(seen.device_id)) == 1
    assert seen.numbers["device_customers"].tolist() == [1, 2]


def test_versions_never_go_down_and_browsers_are_not_mixed():
    made = device()
    assert not same(with_version(made, 121), with_version(made, 120))
    other = windows(np.random.default_rng(3), "edge", **PLAIN)
    assert not same(bundle_of(made), bundle_of(other))


def test_of_two_candidates_as_good_as_each_other_neither_is_taken():
    one = later(device(), timezone="Europe/Paris", languages=[["a"]], dateTimeLocale="a")
    two = later(device(), timezone="Europe/Rome", languages=[["b"]], dateTimeLocale="b")
    # Languages (weight 3) set it apart from the one, time zone and locale (2 and 1) from the other.
    between = later(device(), timezone="Europe/Paris", languages=[["b"]], dateTimeLocale="a")
    nearer = later(device(), timezone="Europe/Paris", languages=[["a"]], dateTimeLocale="b")
    assert len(set(observe(DeviceLinker(KEY), one, two, between).device_id)) == 3
    seen = observe(DeviceLinker(KEY), one, two, nearer)
    assert seen.device_id[2] == seen.device_id[0] != seen.device_id[1]


def test_ids_depend_on_the_key_and_do_not_count():
    bundles = [bundle_of(device(driver=i)) for i in range(4)]
    mine, again, theirs = (
        observe(DeviceLinker(key), *bundles).device_id for key in (KEY, KEY, b"another key 16 b")
    )
    assert mine.tolist() == again.tolist()
    assert not set(mine) & set(theirs)
    assert all(len(each) == 16 for each in mine)
    assert sorted(mine) != list(mine) or sorted(theirs) != list(theirs)


PHONE = {"os": "iOS", "osVersion": "17.5", "model": "iPhone15,2", "screen": [1179, 2556], "locale": "de_DE"}


def test_apps_are_known_by_either_identifier_through_every_other_change():
    linker = DeviceLinker(KEY)
    seen = observe(
        linker,
        PHONE | {"identifierForVendor": "AB-1", "installId": "i1"},
        PHONE | {"identifierForVendor": "ab-1", "installId": "i2", "osVersion": "18.0", "carrier": "x"},
        PHONE | {"identifierForVendor": "CD-2", "installId": "i2", "locale": "fr"},
        PHONE | {"identifierForVendor": "EF-3", "installId": "i3"},
    )
    assert len(set(seen.device_id[:3])) == 1
    assert seen.device_id[3] != seen.device_id[0]
    assert len(linker) == 2


@pytest.mark.parametrize("identifier", [{}, {"identifierForVendor": "00000000-0000-0000-0000-000000000000"}])
def test_a_phone_without_identifier_has_no_device(identifier):
    seen = observe(DeviceLinker(KEY), PHONE | identifier)
    assert seen.device_id.tolist() == [None]
    assert seen.device.tolist() == [0]
    assert np.isnan(seen.numbers["device_new"][0])
    assert seen.signs[0] == ("identifier-missing",)


def test_an_identifier_on_another_model_is_another_device_and_a_sign():
    seen = observe(
        DeviceLinker(KEY), PHONE | {"installId": "i1"}, PHONE | {"installId": "i1", "model": "iPhone16,1"}
    )
    assert len(set(seen.device_id)) == 2
    assert "identifier-moved" in seen.signs[1]
    assert seen.numbers["device_tampering"][1] >= 0.8


def test_browsers_of_telephones_that_all_look_alike_have_no_device_of_their_own():
    """Every iPhone of one model draws the same: without an installation's id there is nothing to tell them by."""
    made = iphone(np.random.default_rng(1))
    assert observe(DeviceLinker(KEY), bundle_of(made)).device_id.tolist() == [None]
    assert same(later(made, installId="a"), later(made, installId="a", timezone="Asia/Tokyo"))
    assert not same(later(made, installId="a"), later(made, installId="b"))


def test_too_little_evidence_gives_no_device():
    seen = observe(DeviceLinker(KEY), {"platform": component("Win32"), "timezone": component("UTC")}, None)
    assert seen.device_id.tolist() == [None, None]
    assert "components-blocked" in seen.signs[0]
    assert seen.numbers["device_tampering"][0] > 0
    assert np.isnan(seen.numbers["device_tampering"][1])


@pytest.mark.parametrize("hundreds", [0, 1, 5, 20])
def test_customers_are_exact_up_to_eight_and_close_beyond(hundreds):
    people, exact = np.zeros(8, np.uint64), 0
    n = 100 * hundreds + 8
    for customer in range(1, n + 1):
        for _ in range(2):
            exact = count_customer(people, exact, np.uint64(customer))
        if customer <= 8:
            assert customers(people, exact) == customer
    assert customers(people, exact) == pytest.approx(n, rel=0.2 if hundreds else 0)


def test_sharing_shows_in_the_numbers():
    bundles = [bundle_of(device())] * 12
    seen = observe(DeviceLinker(KEY), *bundles, customers=[1, 2, 3, 2, 0, 4, 5, 6, 7, 8, 9, 9])
    shown = seen.numbers["device_customers"]
    assert shown[:10].tolist() == [1, 2, 3, 3, 3, 4, 5, 6, 7, 8]
    assert shown[10:] == pytest.approx(9, rel=0.1)


def test_devices_are_swept_by_age_and_by_number():
    linker = DeviceLinker(KEY, keep_us=90 * DAY)
    times = [START, START + 89 * DAY, START + 180 * DAY]
    seen = observe(linker, *[bundle_of(device())] * 3, times=times)
    assert seen.numbers["device_new"].tolist() == [1, 0, 1]
    assert len(linker) == 1
    small = DeviceLinker(KEY, max_devices=2)
    one, two, three = (bundle_of(device(driver=i)) for i in range(3))
    seen = observe(small, one, two, one, three, one, two)
    assert seen.numbers["device_new"].tolist() == [1, 1, 0, 1, 0, 1]
    assert len(small) == 2


def test_a_far_future_clock_forgets_two_devices_at_most():
    linker = DeviceLinker(KEY)
    bundles = [bundle_of(device(driver=i)) for i in range(5)]
    observe(linker, *bundles)
    observe(linker, bundle_of(device(driver=9)), times=[START + 5000 * DAY])
    assert len(linker) == 4


def outcome(truth, seen, rows):
    """Right, wrong and missed links among ``rows``: an id belongs to the true device it was made for."""
    owner, met, counts = {}, set(), np.zeros(3, int)
    for i, (name, who, new) in enumerate(zip(seen.device_id, truth, seen.numbers["device_new"], strict=True)):
        if new == 1:
            owner[name] = who
        if rows[i] and (new == 0 or who in met):
            counts[2 if new == 1 else int(owner[name] != who)] += 1
        met.add(who)
    return counts


def test_precision_and_recall_on_a_drifting_population(record_property):
    bundles, truth, times, private = visits(1, 150, 0, 90)
    seen = DeviceLinker(KEY).observe(bundles, (truth + 1).astype(np.uint64), times)
    assert not seen.refusals
    for name, rows, least in (("all", ~private | private, 0.96), ("private", private, 0.75)):
        right, wrong, missed = outcome(truth, seen, rows)
        precision, recall = right / (right + wrong), right / (right + wrong + missed)
        record_property(f"{name}_precision", round(precision, 4))
        record_property(f"{name}_recall", round(recall, 4))
        assert precision >= 0.95, name
        assert recall >= least, name
    assert np.nanmax(seen.numbers["device_tampering"]) == 0, "nothing in an honest population looks forged"


STREAM = visits(5, 12, 3, 60)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(5, 40), st.booleans())
@settings(max_examples=12, deadline=None)
def test_cuts_and_restored_states_change_nothing(sizes, most, restore):
    bundles, truth, times, _ = STREAM
    who = (truth % 9).astype(np.uint64)

    def columns(seen):
        return [seen.device, *seen.numbers.values()]

    whole = DeviceLinker(KEY, max_devices=most, keep_us=20 * DAY)
    expected = columns(whole.observe(bundles, who, times))
    linker, begin, parts = DeviceLinker(KEY, max_devices=most, keep_us=20 * DAY), 0, []
    for size in [*sizes, len(bundles)]:
        part = slice(begin, begin + size)
        parts.append(columns(linker.observe(bundles[part], who[part], times[part])))
        begin += size
        if restore:
            fresh = DeviceLinker(KEY, max_devices=most, keep_us=20 * DAY)
            fresh.restore(linker.state())
            linker = fresh
    for i, column in enumerate(expected):
        found = np.concatenate([part[i] for part in parts])
        assert found.tobytes() == column.tobytes()
    ours, theirs = linker.state(), whole.state()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_chains_and_table_hold_the_same_devices(seed):
    """After any stream every live device is found under each of its keys, and nothing else is."""
    random = np.random.default_rng(seed)
    linker = DeviceLinker(KEY, max_devices=6)
    made = [device(driver=i) for i in range(10)]
    for step in range(60):
        one = made[int(random.integers(0, 10))]
        one.version += int(random.random() < 0.2)
        observe(linker, bundle_of(one), times=[START + step * DAY])
    state = linker.state()
    live = np.setdiff1d(np.arange(state["counts"][0]), state["free"])
    assert len(live) == len(linker) <= 6
    keys = state["device_buckets"][live]
    entered = {
        (int(slot), kind) for slot, row in zip(live, keys, strict=True) for kind in np.flatnonzero(row)
    }
    heads = state["chain_heads"].astype(int) - 1
    reached = set()
    for member in heads[heads >= 0]:
        while member >= 0:
            reached.add((member // 6, member % 6))
            member = int(state["chain_after"][member]) - 1
    assert reached == entered
    assert state["chain_index_meta"][2] == len({int(key) for key in keys.ravel() if key})


def test_resemblance_and_similarity_by_hand():
    a, b = np.array([0b1111, 0], np.uint64), np.array([0b0111, 1], np.uint64)
    assert resemblance(a, b, 0, 2) == 3 / 5
    assert resemblance(a, a, 1, 2) == 1.0
    hashes, sets, old = np.zeros(16, np.uint32), np.zeros(8, np.uint64), np.zeros(2, np.int64)
    hashes[:] = 1
    changed = hashes.copy()
    changed[10] = 2  # timezone, weight 2 of 32
    assert similarity(changed, sets, old, hashes, sets, old) == pytest.approx(1 - 2 / 32)
    changed[11] = changed[12] = 2
    assert similarity(changed, sets, old, hashes, sets, old) == -1
    assert similarity(hashes, sets, old, hashes, sets, old + 1) == -1


@pytest.mark.parametrize(("key", "most"), [(b"short", 1), (KEY, 0)])
def test_bad_arguments(key, most):
    with pytest.raises(ValueError, match=r"key|room"):
        DeviceLinker(key, max_devices=most)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="customers"):
        DeviceLinker(KEY).observe([None], np.zeros(2, np.uint64), np.zeros(1, np.int64))


def test_a_row_that_replaces_an_event_finds_its_device_and_is_not_counted_again():
    linker = DeviceLinker(KEY)
    made = device()
    first = observe(linker, bundle_of(made), bundle_of(made), customers=[1, 2])
    before = linker.state()
    again = linker.observe(
        [with_version(made, 121)], np.ones(1, np.uint64), np.array([START + 3 * DAY]), np.array([True])
    )
    assert again.device_id[0] == first.device_id[0]
    assert again.numbers["device_seen"].tolist() == [2]
    after = linker.state()
    assert all(np.array_equal(after[name], held) for name, held in before.items())
    # A device that was not seen before is made even so: the event has one.
    phone = PHONE | {"installId": "i9"}
    new = linker.observe([phone], np.ones(1, np.uint64), np.array([START + 3 * DAY]), np.array([True]))
    assert new.numbers["device_new"].tolist() == [1]
    assert len(linker) == 2


def test_a_linker_without_devices_goes_on_after_a_restart():
    again = DeviceLinker(KEY)
    again.restore(DeviceLinker(KEY).state())
    assert observe(again, bundle_of(device())).numbers["device_seen"].tolist() == [1]

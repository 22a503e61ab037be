"""Setting up a data directory: secrets are private and never overwritten, and what is wrong is said by name."""

from __future__ import annotations

import hashlib
import secrets
import stat

import pytest
from typer.testing import CliRunner

from crypto.errors import UnsealingError
from crypto.signing import SigningKey
from crypto.threshold import deal
from governance.log.notes import verifier_key
from governance.members import MembershipError, PinnedParty
from governance.messages.roll import PartyCard
from member_node import setup
from member_node.cli import app
from member_node.secret_files import (
    IDENTITY_FILE,
    KEY_SHARES_FILE,
    STORAGE_KEY_FILE,
    TOKEN_FILE,
    SecretFileError,
    StorageKey,
    load_key_shares,
    read_identity,
    read_secret,
    write_secret,
)
from member_node.settings import SettingsError, load_settings

ORIGIN = "log.example/one"


@pytest.fixture
def home(tmp_path):
    directory = tmp_path / "bank"
    make(directory)
    return directory


def make(directory, **changes):
    fields = {
        "party": "bank-a",
        "name": 'Bank "A" ü',
        "host": "127.0.0.1",
        "port": 7001,
        "coordinator_url": "http://127.0.0.1:7000/",
    }
    return setup.init_member(directory, **(fields | changes))


def coordinator_card(**changes) -> PartyCard:
    fields = {
        "party": "coordinator",
        "name": "Chair",
        "role": "coordinator",
        "verify_key": SigningKey(b"c" * 32).verify_key.hex(),
        "url": "http://127.0.0.1:7000",
    }
    return PartyCard(**(fields | changes))


def log_key(origin: str = ORIGIN) -> str:
    return verifier_key(origin, SigningKey(b"l" * 32).verify_key)


def test_a_new_member_has_private_secrets_and_a_card_that_matches_them(home):
    card = setup.member_card(home)
    assert (card.party, card.role, card.url) == ("bank-a", "member", "http://127.0.0.1:7001")
    assert bytes.fromhex(card.verify_key) == read_identity(home).verify_key
    for name in (IDENTITY_FILE, STORAGE_KEY_FILE, TOKEN_FILE):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    settings = load_settings(home)
    assert settings.name == 'Bank "A" ü'
    assert settings.coordinator_url == "http://127.0.0.1:7000"
    assert len(read_secret(home / TOKEN_FILE)) >= 43


def test_two_members_share_no_secret(home, tmp_path):
    make(tmp_path / "other")
    for name in (IDENTITY_FILE, STORAGE_KEY_FILE, TOKEN_FILE):
        assert (home / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_a_member_is_not_made_twice_and_bad_names_and_ports_are_refused(home, tmp_path):
    before = (home / IDENTITY_FILE).read_bytes()
    with pytest.raises(SettingsError, match="already"):
        make(home)
    assert (home / IDENTITY_FILE).read_bytes() == before
    with pytest.raises(MembershipError):
        make(tmp_path / "x", party="Bank A")
    with pytest.raises(SettingsError, match="port"):
        make(tmp_path / "x", port=0)
    assert not (tmp_path / "x").exists()


def test_trust_pins_the_coordinator_and_its_log(home):
    with pytest.raises(SettingsError, match="trust"):
        load_settings(home).require_trust()
    setup.trust(home, coordinator_card(), log_key(), ORIGIN)
    trust = load_settings(home).require_trust()
    assert trust.coordinator_key == SigningKey(b"c" * 32).verify_key
    assert (trust.log_verifier_key, trust.origin) == (log_key(), ORIGIN)


@pytest.mark.parametrize(
    ("card", "key", "origin", "reason"),
    [
        ({"role": "member"}, log_key(), ORIGIN, "not of a coordinator"),
        ({"verify_key": "zz"}, log_key(), ORIGIN, "cannot be read"),
        ({"verify_key": "ab"}, log_key(), ORIGIN, "bytes"),
        ({}, log_key("other.example"), ORIGIN, "not of"),
        ({}, "nonsense", ORIGIN, "cannot be read"),
    ],
)
def test_wrong_anchors_are_refused_and_nothing_is_pinned(home, card, key, origin, reason):
    with pytest.raises(SettingsError, match=reason):
        setup.trust(home, coordinator_card(**card), key, origin)
    assert load_settings(home).trust is None


def member_card(**changes) -> PartyCard:
    return coordinator_card(
        **({"party": "bank-b", "name": "B", "role": "member", "url": "http://127.0.0.1:7002"} | changes)
    )


def test_cards_of_other_parties_are_pinned_beside_everything_else(home):
    setup.trust(home, coordinator_card(), log_key(), ORIGIN)
    assert load_settings(home).pins == {}
    key = SigningKey(b"c" * 32).verify_key
    for _ in range(2):
        setup.pin_party(home, member_card())
    setup.pin_party(home, member_card(party="regulator", role="regulator"))
    settings = load_settings(home)
    assert settings.pins == {
        "bank-b": PinnedParty("member", key),
        "regulator": PinnedParty("regulator", key),
    }
    assert settings.require_trust().origin == ORIGIN


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"role": "coordinator"}, SettingsError, "only members and regulators"),
        ({"role": "king"}, SettingsError, "only members and regulators"),
        ({"party": "Bank B"}, MembershipError, "party id"),
        ({"verify_key": "zz"}, SettingsError, "cannot be read"),
        ({"verify_key": "ab"}, SettingsError, "bytes"),
        ({"verify_key": "00" * 32}, SettingsError, "another card of bank-b"),
        ({"role": "regulator"}, SettingsError, "another card of bank-b"),
    ],
)
def test_wrong_cards_and_second_keys_of_a_party_are_not_pinned(home, changes, error, reason):
    setup.pin_party(home, member_card())
    before = load_settings(home).pins
    with pytest.raises(error, match=reason):
        setup.pin_party(home, member_card(**changes))
    assert load_settings(home).pins == before


def test_the_pin_command_takes_a_card_file(home, tmp_path):
    card = tmp_path / "bank-b.json"
    card.write_text(member_card().to_json())
    done = CliRunner().invoke(app, ["pin", "--directory", str(home), str(card)])
    assert done.exit_code == 0, done.output
    assert list(load_settings(home).pins) == ["bank-b"]
    card.write_text("{}")
    refused = CliRunner().invoke(app, ["pin", "--directory", str(home), str(card)])
    assert refused.exit_code != 0


def test_key_shares_are_stored_sealed_and_only_added_to(home):
    _, shares = deal(epoch=1, kind_group="terminals", threshold=2, holders=3, random=secrets.token_bytes)
    _, others = deal(epoch=1, kind_group="contacts", threshold=2, holders=3, random=secrets.token_bytes)
    setup.install_key_shares(home, [shares[0]])
    setup.install_key_shares(home, [others[0], shares[0]])
    storage = StorageKey.load(home, secrets.token_bytes)
    assert load_key_shares(home, storage) == [shares[0], others[0]]
    assert shares[0].secret not in (home / KEY_SHARES_FILE).read_bytes()
    with pytest.raises(SettingsError, match="installed already"):
        setup.install_key_shares(home, [shares[1]])
    assert load_key_shares(home, storage) == [shares[0], others[0]]
    with pytest.raises(UnsealingError):
        load_key_shares(home, StorageKey(bytes(32), secrets.token_bytes))


def test_a_directory_is_copied_with_its_digest(home, tmp_path):
    source = tmp_path / "ids.txt"
    source.write_text("T1\nT2\nT3\n")
    public = setup.install_directory(home, source)
    assert (public.dataset, public.cells) == ("terminals", 3)
    assert public.digest == hashlib.sha256(b"T1\nT2\nT3\n").digest()
    installed = load_settings(home).public_directory
    assert installed is not None
    assert installed.file.read_text() == "T1\nT2\nT3\n"
    assert installed.digest == public.digest


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"T1\nT2", "line end"),
        (b"T1\n\nT2\n", "line 2"),
        (b"T1\nT2\nT1\n", "line 3.*line 1"),
        (b"T1\n T2\n", "line 2"),
        (b"T\xff\n", "UTF-8"),
        (b"", "line end"),
    ],
)
def test_a_directory_with_a_mistake_names_the_line(home, tmp_path, content, reason):
    source = tmp_path / "ids.txt"
    source.write_bytes(content)
    with pytest.raises(SettingsError, match=reason):
        setup.install_directory(home, source)
    assert load_settings(home).public_directory is None


def test_a_secret_that_others_can_read_or_that_is_missing_or_short_is_refused(home):
    (home / IDENTITY_FILE).chmod(0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        read_identity(home)
    (home / STORAGE_KEY_FILE).unlink()
    with pytest.raises(SecretFileError, match="missing"):
        StorageKey.load(home, secrets.token_bytes)
    write_secret(home / STORAGE_KEY_FILE, b"short")
    with pytest.raises(SecretFileError, match="5 bytes"):
        StorageKey.load(home, secrets.token_bytes)
    with pytest.raises(SecretFileError, match="never overwritten"):
        write_secret(home / STORAGE_KEY_FILE, b"other")


def test_a_storage_key_does_not_print_and_its_uses_are_apart():
    storage = StorageKey(b"k" * 32, secrets.token_bytes)
    assert repr(storage) == "StorageKey(...)"
    with pytest.raises(TypeError):
        storage.__reduce__()
    sealed = storage.seal("one", b"name", b"content")
    assert storage.unseal("one", b"name", sealed) == b"content"
    for use, name in (("two", b"name"), ("one", b"other")):
        with pytest.raises(UnsealingError):
            storage.unseal(use, name, sealed)
    assert len(storage.seal("one", b"", b"")) == len(storage.seal("one", b"", b"x" * 512))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not toml [", "not TOML"),
        ("[member]\nparty = 'bank-a'\n", "is missing"),
        ("[member]\nparty='a'\nname='a'\nhost='h'\nport='x'\ncoordinator_url=''\n", "member.toml"),
    ],
)
def test_broken_settings_name_the_file_and_the_key(home, text, reason):
    (home / "member.toml").write_text(text)
    with pytest.raises(SettingsError, match=reason):
        load_settings(home)
    (home / "member.toml").unlink()
    with pytest.raises(SettingsError, match="init"):
        load_settings(home)


def test_settings_are_private_and_a_directory_open_to_others_is_refused(home, tmp_path):
    for path in home.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(SecretFileError, match="chmod 700"):
        make(shared)
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("shards = 0", "shards"), ("shards = 65", "shards"), ("evaluation_seconds = 0", "evaluation_seconds")],
)
def test_settings_of_the_node_are_bounded(home, line, wrong):
    assert load_settings(home).shards == 1
    path = home / "member.toml"
    path.write_text(path.read_text().replace("[member]", "[member]\nshards = 2\nevaluation_late_share = 0.5"))
    assert (load_settings(home).shards, load_settings(home).patience.late_share) == (2, 0.5)
    path.write_text(path.read_text().replace("shards = 2", line))
    with pytest.raises(SettingsError, match=wrong):
        load_settings(home)

"""Setting up a data directory: secrets stay private, and what is wrong is refused before anything serves."""

from __future__ import annotations

import secrets
import stat
import tomllib
from contextlib import closing

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from typer.testing import CliRunner

from coordinator.app import serve
from coordinator.cli import app
from coordinator.composition import Coordinator
from coordinator.service.consortium import NotReadyError
from coordinator.settings import SettingsError, check_private, load_settings
from coordinator.setup import admit, init_coordinator, install_directory, install_group_keys, install_policy
from coordinator.storage.database import Database
from coordinator.storage.tables import metadata
from crypto.errors import CryptoError
from crypto.signing import SigningKey
from crypto.threshold import deal, least_threshold
from governance.log.notes import parse_verifier_key
from governance.members import MembershipError
from governance.messages.codec import decode
from governance.messages.roll import Directory, GroupKey, MembershipRoll, PartyCard, PublicShare
from governance.policy.decision import PolicyError
from governance.policy.default import default_bundle

ORIGIN = "test.example/log"


def dealt(kind_group="terminals", holders=3, epoch=1):
    threshold = least_threshold(holders)
    keys, _ = deal(
        epoch=epoch, kind_group=kind_group, threshold=threshold, holders=holders, random=secrets.token_bytes
    )
    return GroupKey(
        epoch=epoch,
        kind_group=kind_group,
        generation=keys.generation,
        threshold=threshold,
        public_key=keys.public_key,
        public_shares=[
            PublicShare(share_index=index, element=element)
            for index, element in sorted(keys.public_shares.items())
        ],
    )


def roll_of(consortium, start):
    return decode(MembershipRoll, start(consortium).coordinator.consortium.signed_roll.payload)


def card(party="bank-d", **changes):
    key = SigningKey(secrets.token_bytes(32))
    new = PartyCard(
        party=party, name="Bank D", role="member", verify_key=key.verify_key.hex(), url="http://127.0.0.1:1"
    )
    return msgspec.structs.replace(new, **changes)


def test_the_directory_keeps_its_secrets(tmp_path):
    anchors = init_coordinator(tmp_path / "c", port=8700, origin=ORIGIN)
    origin, log_key = parse_verifier_key(anchors.log_verifier_key)
    settings = load_settings(tmp_path / "c")
    assert origin == ORIGIN
    assert log_key == settings.log_key.verify_key != settings.identity.verify_key
    assert anchors.card.url == "http://127.0.0.1:8700"
    assert bytes.fromhex(anchors.card.verify_key) == settings.identity.verify_key
    assert settings.identity.seed().hex() not in repr(settings)
    assert "SigningKey(...)" in repr(settings)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    for name in ("identity.seed", "log.seed", "coordinator.toml"):
        assert stat.S_IMODE((tmp_path / "c" / name).stat().st_mode) == 0o600
    assert PartyCard.from_json(anchors.card.to_json()) == anchors.card


def test_an_existing_directory_is_not_overwritten(idle):
    before = (idle.directory / "identity.seed").read_bytes()
    with pytest.raises(SettingsError, match="exists already"):
        init_coordinator(idle.directory, port=1, origin=ORIGIN)
    assert (idle.directory / "identity.seed").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("speed = 1", "unknown setting 'speed'"),
        ('port = "x"', "port must be of type int"),
        ("threads = 1", "threads must lie within"),
        ('label_clock = "moon"', "label_clock must be one of"),
        ("port = ", "coordinator.toml"),
    ],
)
def test_wrong_settings(idle, line, message):
    path = idle.directory / "coordinator.toml"
    name = line.split(" = ")[0]
    kept = [text for text in path.read_text().splitlines() if not text.startswith(f"{name} ")]
    path.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(SettingsError, match=message):
        load_settings(idle.directory)


def test_missing_or_readable_secrets(idle, tmp_path):
    with pytest.raises(SettingsError, match="coordinator init"):
        load_settings(tmp_path / "nowhere")
    seed = idle.directory / "log.seed"
    seed.chmod(0o644)
    with pytest.raises(SettingsError, match="readable by others"):
        load_settings(idle.directory)
    seed.chmod(0o600)
    seed.write_bytes(b"short")
    with pytest.raises(SettingsError, match="5 bytes"):
        load_settings(idle.directory)
    seed.unlink()
    with pytest.raises(SettingsError, match="missing"):
        load_settings(idle.directory)


@pytest.mark.parametrize(
    "wrong",
    [
        card("bank-a"),
        card("Bank D"),
        card(role="bystander"),
        card(verify_key="zz"),
        card(verify_key="00"),
        card(url="ftp://x"),
    ],
)
def test_wrong_cards(idle, wrong):
    with pytest.raises(MembershipError):
        admit(idle.directory, wrong, 0)
    with pytest.raises(MembershipError):
        admit(idle.directory, card(), 1)


def test_a_change_is_published_with_the_next_start(idle, start):
    assert roll_of(idle, start).version == 1
    assert roll_of(idle, start).version == 1
    size = idle.coordinator.log.head.size
    admit(idle.directory, card(), 0)
    roll = roll_of(idle, start)
    assert (roll.version, [entry.party for entry in roll.parties][3]) == (2, "bank-d")
    assert idle.coordinator.log.head.size == size + 1


def test_group_keys(idle, start):
    install_group_keys(idle.directory, [dealt(), dealt("accounts")])
    roll = roll_of(idle, start)
    assert [key.kind_group for key in roll.group_keys] == ["accounts", "terminals"]
    assert idle.coordinator.log.head.size == 4
    install_group_keys(idle.directory, [dealt(epoch=2), dealt("accounts", epoch=2)])
    roll = roll_of(idle, start)
    assert (roll.version, roll.epoch, idle.coordinator.log.head.size) == (2, 2, 7)
    with pytest.raises(MembershipError, match="not newer"):
        install_group_keys(idle.directory, [dealt(epoch=2)])


def test_wrong_group_keys(idle):
    with pytest.raises(MembershipError, match="key holders"):
        install_group_keys(idle.directory, [dealt(holders=4)])
    with pytest.raises(MembershipError, match="unknown kind group"):
        install_group_keys(idle.directory, [dealt("passports")])
    mixed = msgspec.structs.replace(dealt(), public_key=dealt().public_key)
    with pytest.raises(CryptoError):
        install_group_keys(idle.directory, [mixed])


def test_directories(idle, start):
    with pytest.raises(MembershipError):
        install_directory(idle.directory, Directory(dataset="terminals", cells=0, digest=bytes(32)))
    install_directory(idle.directory, Directory(dataset="terminals", cells=9, digest=bytes(32)))
    assert [public.cells for public in roll_of(idle, start).directories] == [9]


def test_policies_are_numbered_and_usable(idle, start):
    with pytest.raises(MembershipError, match="the next one is 2"):
        install_policy(idle.directory, default_bundle(1))
    broken = msgspec.structs.replace(default_bundle(2), cedar="permit (")
    with pytest.raises(PolicyError):
        install_policy(idle.directory, broken)
    install_policy(idle.directory, default_bundle(2))
    start(idle)
    assert idle.coordinator.consortium.policy.policy_epoch == 2
    assert idle.coordinator.log.head.size == 3


def test_without_a_policy_nothing_starts(tmp_path):
    init_coordinator(tmp_path / "c", port=1, origin=ORIGIN)
    with pytest.raises(NotReadyError, match="policy"):
        Coordinator(load_settings(tmp_path / "c"), clock=lambda: 1_800_000_000.0)


def test_migrations_build_the_tables(tmp_path):
    with closing(Database.in_directory(tmp_path)) as database, database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_commands(tmp_path):
    runner = CliRunner()
    directory = str(tmp_path / "c")
    result = runner.invoke(app, ["init", "--directory", directory, "--port", "8701"])
    assert result.exit_code == 0, result.output
    assert tomllib.loads((tmp_path / "c" / "coordinator.toml").read_text())["label_clock"] == "wall"
    (tmp_path / "card.json").write_text(card("bank-a").to_json())
    arguments = ["admit", str(tmp_path / "card.json"), "--directory", directory, "--share-index", "1"]
    assert runner.invoke(app, arguments).exit_code == 0
    again = runner.invoke(app, arguments)
    assert again.exit_code == 1
    assert "bank-a: is admitted already" in again.output
    (tmp_path / "card.json").write_text("{}")
    assert runner.invoke(app, arguments).exit_code == 1
    (tmp_path / "terminals.txt").write_text("T1\nT2\nT3\n")
    result = runner.invoke(app, ["directory", str(tmp_path / "terminals.txt"), "--directory", directory])
    assert result.output.startswith("terminals: 3 entries, SHA-256 ")
    (tmp_path / "terminals.txt").write_text("")
    result = runner.invoke(app, ["directory", str(tmp_path / "terminals.txt"), "--directory", directory])
    assert result.exit_code == 1
    result = runner.invoke(app, ["serve", "--directory", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "coordinator init" in result.output
    Coordinator(load_settings(tmp_path / "c"), clock=lambda: 1_800_000_000.0).close()
    result = runner.invoke(app, ["export", "--directory", directory, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "exported 3 entries" in result.output
    result = runner.invoke(app, ["export", "--directory", directory, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1


def test_what_waits_for_the_disk(tmp_path):
    with closing(Database.in_directory(tmp_path)) as database:
        for wait, level in ((True, 2), (False, 1), (True, 2)):
            with database.write(wait_for_disk=wait) as connection:
                assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == level


def test_a_directory_open_to_others_is_refused_and_the_store_is_private(tmp_path):
    home = tmp_path / "coordinator"
    init_coordinator(home, port=1, origin=ORIGIN)
    assert {path.name: oct(path.stat().st_mode & 0o077) for path in home.iterdir()} == {
        path.name: "0o0" for path in home.iterdir()
    }
    check_private(home)
    home.chmod(0o755)
    with pytest.raises(SettingsError, match="chmod 700"):
        serve(home)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(SettingsError, match="chmod 700"):
        init_coordinator(shared, port=1, origin=ORIGIN)


def test_an_error_of_the_database_shows_no_value(tmp_path):
    with closing(Database.in_directory(tmp_path)) as database, database.read() as connection:
        with pytest.raises(Exception, match="no such table") as caught:
            connection.exec_driver_sql("SELECT * FROM nowhere WHERE value = ?", ("SECRET-IBAN",))
        assert "SECRET" not in str(caught.value)

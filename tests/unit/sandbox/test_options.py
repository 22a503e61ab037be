"""The folder a run writes to, and the parties laid out in it."""

import socket

import pytest

from sandbox.options import clear
from sandbox.parties import bank_id, lay_out


def test_parties_have_names_folders_and_ports_of_their_own(tmp_path):
    coordinator, banks = lay_out(tmp_path, 3)
    assert [bank.party for bank in banks] == ["bank-a", "bank-b", "bank-c"] == [bank_id(n) for n in range(3)]
    everyone = [coordinator, *banks]
    assert len({party.port for party in everyone}) == 4
    assert len({party.directory for party in everyone}) == 4
    assert banks[1].directory == tmp_path / "parties" / "bank-b"
    assert banks[1].log == tmp_path / "logs" / "bank-b.log"
    assert banks[1].url == f"http://127.0.0.1:{banks[1].port}"
    assert banks[1].name == "Bank B"
    for party in everyone:
        with socket.socket() as free:
            free.bind(("127.0.0.1", party.port))


@pytest.mark.parametrize("members", [0, 13, -1])
def test_a_sandbox_has_a_sensible_size(tmp_path, members):
    with pytest.raises(ValueError, match="1 to 12"):
        lay_out(tmp_path, members)


def test_an_earlier_run_is_removed_and_nothing_else(tmp_path):
    for name in ("parties", "log"):
        (tmp_path / name / "inside").mkdir(parents=True)
    for name in ("report.html", "rejects.csv", "notes.txt"):
        (tmp_path / name).write_text("x")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_failed_start_leaves_is_no_hindrance(tmp_path):
    (tmp_path / "rejects.csv").write_text("x")
    (tmp_path / "streams").mkdir()
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        clear(tmp_path)
    assert (tmp_path / "log").exists()


def test_the_operators_file_is_not_swept_away(tmp_path):
    events = tmp_path / "streams" / "all" / "events.parquet"
    events.parent.mkdir(parents=True)
    events.write_text("x")
    with pytest.raises(ValueError, match="another --out"):
        clear(tmp_path, keep=events)
    assert events.exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        clear(tmp_path / "out")

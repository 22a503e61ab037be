"""``features compute``: one row an event under the file's and the spec's names; bad rows are named."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from member_node.features_cli import app, write_features
from member_node.streams.files import read_events
from member_node.streams.mapping import load_mapping
from scoring.features.engine import FeatureEngine
from scoring.features.spec import SpecError, parse_spec

SANDBOX = Path(__file__).parents[3] / "sandbox"
DAY = np.timedelta64(1, "D")


@pytest.fixture
def events(tmp_path):
    random = np.random.default_rng(3)
    rows = 3000
    frame = pl.DataFrame(
        {
            "TRANSACTION_ID": np.arange(rows, dtype=np.int32),
            "TX_DATETIME": np.datetime64("2018-04-01", "ms")
            + np.sort(random.choice(60 * 86_400, rows, replace=False)) * np.timedelta64(1000, "ms"),
            "CUSTOMER_ID": random.integers(0, 40, rows).astype(np.int32),
            "TERMINAL_ID": random.integers(0, 25, rows).astype(np.int32),
            "TX_AMOUNT": random.random(rows) * 100,
            "TX_FRAUD": (random.random(rows) < 0.2).astype(np.int8),
        }
    )
    frame.write_parquet(tmp_path / "events.parquet")
    return frame


def run(tmp_path, events_file, *more):
    return CliRunner().invoke(
        app,
        [
            "compute",
            *("--spec", str(SANDBOX / "features" / "handbook.toml")),
            *("--mapping", str(SANDBOX / "mappings" / "handbook.toml")),
            *("--events", str(events_file), "--out", str(tmp_path / "out.parquet"), *more),
        ],
    )


def test_windows_as_the_handbook_defines_them(tmp_path, events):
    result = run(tmp_path, tmp_path / "events.parquet")
    assert result.exit_code == 0, result.output
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out["TRANSACTION_ID"].to_list() == events["TRANSACTION_ID"].to_list()
    assert out["TX_AMOUNT"].to_list() == events["TX_AMOUNT"].to_list()
    assert out["TX_DATETIME"].cast(pl.Datetime("ms")).to_list() == events["TX_DATETIME"].to_list()
    assert not list(tmp_path.glob("*.part"))
    at = events["TX_DATETIME"].to_numpy()
    customer, terminal = events["CUSTOMER_ID"].to_numpy(), events["TERMINAL_ID"].to_numpy()
    amount, fraud = events["TX_AMOUNT"].to_numpy(), events["TX_FRAUD"].to_numpy()
    for row in range(0, len(at), 37):
        for days in (1, 7, 30):
            mine = (customer == customer[row]) & (at > at[row] - days * DAY) & (at <= at[row])
            assert out[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"][row] == mine.sum()
            assert out[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"][row] == pytest.approx(
                amount[mine].mean(), rel=1e-12
            )
            end = at[row] - 7 * DAY
            there = (terminal == terminal[row]) & (at > end - days * DAY) & (at <= end)
            risk = fraud[there].sum() / there.sum() if there.any() else 0.0
            assert out[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"][row] == there.sum()
            assert out[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"][row] == risk


def test_the_batch_size_changes_nothing(tmp_path, events):
    mapping = load_mapping(SANDBOX / "mappings" / "handbook.toml")
    spec = parse_spec((SANDBOX / "features" / "handbook.toml").read_text())
    file = read_events(tmp_path / "events.parquet", mapping)
    frames = []
    for size in (7, 1000, 5000):
        out, told = tmp_path / f"{size}.parquet", []
        write_features(file, mapping, spec, FeatureEngine(spec), out, told.append, batch_rows=size)
        assert sum(told) == events.height
        frames.append(pl.read_parquet(out))
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])


def test_bad_rows_are_named_and_left_out(tmp_path, events):
    text = events.write_csv().splitlines()
    text[5] = text[5].replace(",", ",x", 1)
    (tmp_path / "events.csv").write_text("\n".join(text))
    result = run(tmp_path, tmp_path / "events.csv")
    assert result.exit_code == 0, result.output
    assert "1 of 3000 rows left out" in result.output
    assert pl.read_parquet(tmp_path / "out.parquet").height == 2999
    rejects = pl.read_csv(tmp_path / "out.parquet.rejects.csv")
    assert rejects.rows() == [(6, 6, "TX_DATETIME", "is not a time")]


def test_an_unusable_file_or_spec_ends_with_its_reason(tmp_path, events):
    events.drop("TX_AMOUNT").write_parquet(tmp_path / "short.parquet")
    result = run(tmp_path, tmp_path / "short.parquet")
    assert result.exit_code == 2
    assert "has no column TX_AMOUNT" in result.output
    assert not (tmp_path / "out.parquet").exists()
    mapping = load_mapping(SANDBOX / "mappings" / "handbook.toml")
    spec = parse_spec(
        '[[feature]]\nname = "CUSTOMER_ID"\nentity = "customer"\naggregation = "count"\nwindow = "1d"'
    )
    file = read_events(tmp_path / "events.parquet", mapping)
    with pytest.raises(SpecError, match="has the name of a column"):
        write_features(file, mapping, spec, FeatureEngine(spec), tmp_path / "x.parquet", print)


def test_a_feature_with_the_name_of_a_column_is_refused_with_its_line(tmp_path, events):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        '[[feature]]\nname = "verdict"\nentity = "customer"\naggregation = "count"\nwindow = "1d"\n'
    )
    mapping = SANDBOX / "mappings" / "handbook.toml"
    options = {
        "spec": spec,
        "mapping": mapping,
        "events": tmp_path / "events.parquet",
        "out": tmp_path / "o.parquet",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, ["compute", *arguments])
    assert result.exit_code == 2
    assert "line 2: feature 'verdict': has the name of a column" in result.output

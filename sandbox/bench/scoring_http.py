"""The scoring pipeline over HTTP: a whole node in a process of its own, beside an empty handler in the same run."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import coordinator.setup as coordinator_setup
import member_node.setup as member_setup
from member_node.settings import load_settings
from sandbox.bench.http_load import LoadReport, http_request, run_load, serving
from sandbox.bench.load import Bench, listed, mapping_text
from sandbox.parties import HOST
from scoring.models.artefact import encode_artefact

ORIGIN = "bench.subrosa.example/log"
EVENTS_PATH, BATCH_PATH = "/bank/v1/events", "/bank/v1/events/batch"
BATCH = 50
SINGLES, BATCHES, PACED = 20_000, 4_000, 5_000
RATE = 1_000.0
# Requests under way at a time, one a connection: as of some gateways, and (FEW) as of one.
MANY, FEW = 256, 64
# The steady load is not to be measured beside the history of the full ones before it.
REST_SECONDS = 2.0
SPACING_US = 50
MODEL_FILE, STREAM = "model.bin", "stream.toml"


@dataclass(frozen=True)
class HttpReport:
    """What came back: ``plain`` of the empty handler and ``singles`` one event a request, on :data:`MANY` connections
    and on :data:`FEW`, ``batches`` of :data:`BATCH`, ``paced`` one event a request at :data:`RATE` a second."""

    plain: LoadReport
    singles: LoadReport
    plain_few: LoadReport
    singles_few: LoadReport
    batches: LoadReport
    paced: LoadReport


def measure_http(bench: Bench) -> HttpReport:
    """Start both servers in turn and put the same load on them."""
    with tempfile.TemporaryDirectory(prefix="subrosa-bench-") as folder:
        home = _prepare(bench, Path(folder))
        token = (home / "operator.token").read_text().strip()
        packed_from = 2 * SINGLES + PACED
        rows = _rows(bench, packed_from + BATCHES * BATCH)
        alone = [http_request(EVENTS_PATH, row, "application/json", token) for row in rows[:packed_from]]
        singles, paced = alone[: 2 * SINGLES], alone[2 * SINGLES :]
        packed = [
            http_request(BATCH_PATH, b"\n".join(rows[start : start + BATCH]), "application/x-ndjson", token)
            for start in range(packed_from, packed_from + BATCHES * BATCH, BATCH)
        ]
        with serving(plain_app) as port:
            run_load(port, singles[:1000])
            plain, plain_few = (run_load(port, singles[:SINGLES], each) for each in (MANY, FEW))
        with serving(node_app, str(home)) as port:
            many, few = run_load(port, singles[:SINGLES], MANY), run_load(port, singles[SINGLES:], FEW)
            time.sleep(REST_SECONDS)
            steady = run_load(port, paced, rate=RATE)
            report = HttpReport(plain, many, plain_few, few, run_load(port, packed), steady)
    for each in (report.singles, report.singles_few, report.batches, report.paced):
        if set(each.statuses) != {200}:
            raise RuntimeError(f"the node answered {dict(each.statuses)}")
    return report


def plain_app() -> Any:
    """A Starlette application with one route whose handler does nothing."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def nothing(_request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    return Starlette(routes=[Route(EVENTS_PATH, nothing, methods=["POST"])])


def node_app(directory: str) -> Any:
    """The member node of a prepared directory with its lists and model in force and its stream open."""
    from member_node.__main__ import load
    from member_node.service.lists import EntryDraft

    home = Path(directory)
    app = load(load_settings(home))
    desk = app.state.desk
    for name, kind, entity, values in listed():
        desk.lists.create(name, kind, entity, reason="bench", author="bench", may_loosen=True)
        desk.lists.add(
            name, [EntryDraft(value) for value in values], reason="bench", author="bench", may_loosen=True
        )
    model = desk.models.register((home / MODEL_FILE).read_bytes(), "ann")
    files = [home / folder / STREAM for folder in ("mappings", "features", "rules")]
    desk.stream.open(*files)
    desk.models.promote(model.version, "bob")
    return app


def _prepare(bench: Bench, folder: Path) -> Path:
    """A member's data directory with everything :func:`node_app` needs."""
    anchors = coordinator_setup.init_coordinator(folder / "chair", port=1, origin=ORIGIN)
    home = folder / "node"
    member_setup.init_member(
        home, party="bank-a", name="A", host=HOST, port=1, coordinator_url=f"http://{HOST}:1"
    )
    member_setup.trust(home, anchors.card, anchors.log_verifier_key, ORIGIN)
    for name, text in (
        ("mappings", mapping_text(bench.mapping)),
        ("features", bench.spec_text),
        ("rules", bench.rules_text),
    ):
        (home / name).mkdir()
        (home / name / STREAM).write_text(text, encoding="utf-8")
    (home / MODEL_FILE).write_bytes(encode_artefact(bench.model.artefact))
    return home


def _rows(bench: Bench, count: int) -> list[bytes]:
    """Events as JSON objects, just before now."""
    columns = {name: bench.events.column(name).to_pylist() for name in bench.mapping.entities}
    amounts = bench.events.column("amount").to_pylist()
    first = int(time.time() * 1e6) - count * SPACING_US
    places = np.arange(count) % bench.events.num_rows
    return [
        msgspec.json.encode(
            {
                "event_id": number,
                "time_us": first + number * SPACING_US,
                "amount": amounts[place],
                "channel": "card",
                **{name: values[place] for name, values in columns.items()},
            }
        )
        for number, place in enumerate(places.tolist())
    ]

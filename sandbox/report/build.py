"""Puts the report together: ``report.html`` and ``report.json`` in one folder."""

from __future__ import annotations

import dataclasses
import datetime as dt
import html
import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from sandbox.report.asked import requests_section
from sandbox.report.evidence import exactness_section, growth_section, tier_section
from sandbox.report.markup import Markup, Missing, join, paragraph, section
from sandbox.report.measured import Drawings, gap_closed, headline_section, money_section
from sandbox.report.record import RunRecord
from sandbox.report.sharing import banks_section, failure_banner
from sandbox.report.traffic import calls_asked
from sandbox.report.witnessed import audit_section, run_section, seen_section


def build_report(run: RunRecord, out: Path) -> tuple[Path, Path]:
    """Write ``report.html`` (self-contained) and ``report.json`` below ``out``; their paths."""
    out.mkdir(parents=True, exist_ok=True)
    page, data = out / "report.html", out / "report.json"
    page.write_text(render(run), encoding="utf-8")
    data.write_text(to_json(run), encoding="utf-8")
    return page, data


def render(run: RunRecord) -> str:
    """The page as text; the same record gives the same bytes."""
    drawings = Drawings()
    found = run.evaluation
    if found is None:
        measured = [section("headline", "Alone, together, pooled", paragraph(Missing(run.why("evaluation"))))]
    else:
        measured = [
            headline_section(found, drawings),
            money_section(found, run.unit, drawings),
            growth_section(found.growth, drawings),
            tier_section(found.tiers, drawings),
            exactness_section(found),
        ]
    parts = [
        *failure_banner(run),
        *measured,
        banks_section(run),
        requests_section(run),
        seen_section(run),
        audit_section(run),
        run_section(run),
    ]
    template = Template(
        resources.files("sandbox.report").joinpath("template.html").read_text(encoding="utf-8")
    )
    return template.substitute(title=html.escape(run.title), facts=_facts(run).text, body=join(parts).text)


def _facts(run: RunRecord) -> Markup:
    found = run.evaluation
    facts = [run.finished_at]
    if found is not None:
        events = sum(f.events for f in found.banks)
        days = found.last_day - found.first_day + 1
        facts += [f"{len(found.banks)} banks", f"{events:,} transactions", f"{days} days"]
    return Markup("".join(f"<li>{html.escape(fact)}</li>" for fact in facts))


def to_json(run: RunRecord) -> str:
    """The same facts for machines; ``null`` where nothing was measured, with reasons under ``not_measured``."""
    document = dataclasses.asdict(run)
    if run.evaluation is not None:
        document["evaluation"]["gap_closed"] = gap_closed(run.evaluation)
        for row, tier in zip(document["evaluation"]["tiers"], run.evaluation.tiers, strict=True):
            row["precision"] = tier.precision
    document["calls"] = (
        [dataclasses.asdict(call) for call in calls_asked(run.statuses)] if run.statuses is not None else None
    )
    parts = ("evaluation", "statuses", "audit", "timings")
    document["not_measured"] = {part: run.why(part) for part in parts if getattr(run, part) is None}
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dt.date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a report")

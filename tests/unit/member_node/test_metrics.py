"""Metrics, health and readiness: numbers checked against plain counting, broken gauges isolated."""

import asyncio

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from member_node.api.metrics import Readiness, health_router, metrics_router
from member_node.metrics import BUCKETS, NodeMetrics


def samples(metrics):
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for each in family.samples:
            found[each.name, tuple(sorted(each.labels.items()))] = each.value
    return found


def test_counters_add_up_by_their_labels():
    metrics = NodeMetrics(lambda: 100.0)
    metrics.count_events("http", {"applied": 3, "duplicate": 1})
    metrics.count_events("http", {"applied": 2})
    metrics.count_events("nats", {"applied": 7})
    metrics.count_refusals("http", {"amount-negative": 2})
    metrics.count_delivery_refused("nats", "too-large")
    metrics.count_verdicts({"allow": 5, "block": 0})
    metrics.count_rules({"large": 4, "quiet": 0}, {"broken": 1})
    metrics.set_lag("http", 90_000_000)
    metrics.set_pending("nats", 12)
    found = samples(metrics)
    assert found["subrosa_events_total", (("disposition", "applied"), ("source", "http"))] == 5
    assert found["subrosa_events_total", (("disposition", "applied"), ("source", "nats"))] == 7
    assert found["subrosa_refusals_total", (("code", "amount-negative"), ("source", "http"))] == 2
    assert found["subrosa_deliveries_refused_total", (("reason", "too-large"), ("source", "nats"))] == 1
    assert found["subrosa_verdicts_total", (("verdict", "allow"),)] == 5
    assert ("subrosa_verdicts_total", (("verdict", "block"),)) not in found
    assert found["subrosa_rule_hits_total", (("rule", "large"),)] == 4
    assert found["subrosa_rule_errors_total", (("rule", "broken"),)] == 1
    assert found["subrosa_event_lag_seconds", (("source", "http"),)] == 10
    assert found["subrosa_source_pending", (("source", "nats"),)] == 12


def test_a_histogram_counts_what_plain_comparison_counts():
    metrics = NodeMetrics()
    values = np.concatenate([np.random.default_rng(1).exponential(0.02, 1000), BUCKETS, [0.0, 100.0]])
    metrics.latency.observe("rules", values[:500])
    for each in values[500:510]:
        metrics.latency.observe("rules", float(each))
    metrics.latency.observe("rules", values[510:])
    found = samples(metrics)
    for edge in BUCKETS:
        at_most = found["subrosa_latency_seconds_bucket", (("le", f"{edge:g}"), ("stage", "rules"))]
        assert at_most == sum(1 for each in values if each <= edge)
    assert found["subrosa_latency_seconds_count", (("stage", "rules"),)] == len(values)
    assert found["subrosa_latency_seconds_sum", (("stage", "rules"),)] == pytest.approx(values.sum())


def test_gauges_are_read_when_asked_and_a_broken_one_hides_no_other():
    metrics = NodeMetrics()
    now = {"bytes": 1.0}
    metrics.watch("journal_bytes", "Bytes.", lambda: now["bytes"])
    metrics.watch("list_entries", "Entries.", lambda: {"black": 2, "white": 3}, label="list")
    metrics.watch("broken", "Never.", lambda: now["nothing"])
    assert samples(metrics)["subrosa_journal_bytes", ()] == 1
    now["bytes"] = 5.0
    found = samples(metrics)
    assert found["subrosa_journal_bytes", ()] == 5
    assert found["subrosa_list_entries", (("list", "white"),)] == 3
    assert ("subrosa_broken", ()) not in found
    assert samples(metrics)["subrosa_scrape_errors_total", ()] >= 2


def test_nodes_share_nothing():
    one, two = NodeMetrics(), NodeMetrics()
    one.count_verdicts({"allow": 1})
    assert ("subrosa_verdicts_total", (("verdict", "allow"),)) not in samples(two)


def test_the_endpoints():
    metrics = NodeMetrics()
    metrics.count_verdicts({"allow": 1})
    state = [Readiness()]
    app = FastAPI()
    app.include_router(metrics_router(metrics))
    app.include_router(health_router(lambda: state[0]))

    def get(path):
        async def ask():
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://node"
            ) as client:
                return await client.get(path)

        return asyncio.run(ask())

    shown = get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=")
    assert 'subrosa_verdicts_total{verdict="allow"} 1.0' in shown.text
    assert get("/healthz").json() == {"state": "alive"}
    assert (get("/readyz").status_code, get("/readyz").json()["state"]) == (200, "ready")
    state[0] = Readiness(degraded=["model"])
    assert get("/readyz").json() == {"state": "degraded", "faults": [], "degraded": ["model"]}
    assert get("/readyz").status_code == 200
    state[0] = Readiness(faults=["journal"], degraded=["model"])
    answer = get("/readyz")
    assert (answer.status_code, answer.json()["state"]) == (503, "not-ready")

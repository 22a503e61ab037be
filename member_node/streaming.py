"""Puts a bank's stream together on a node: stores, consortium services and engine in one :class:`StreamService`."""

from __future__ import annotations

from collections.abc import Callable

from member_node.node import MemberNode
from member_node.service.replay import StreamService
from member_node.service.scoring import Engine
from member_node.service.stream_parts import StreamParts
from member_node.storage.outcomes import OutcomeStore, StreamStore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec


def attach_stream(node: MemberNode, engine: Callable[[FeatureSpec], Engine] = FeatureEngine) -> StreamService:
    """The stream of ``node``; its outcomes become the node's local statistic. Closed with the node."""
    stream = StreamService(
        StreamParts(
            party=node.party,
            directory=node.directory,
            public_ids=node.directory_values,
            outcomes=OutcomeStore(node.database),
            stream=StreamStore(node.database),
            tags=node.lookup,
            mirror=node.index,
            contributor=node.contribution,
            asker=node.inquiry,
            policy=lambda: node.consortium.policy,
            engine=engine,
            latencies=node.latencies,
        )
    )
    node.local_statistic = stream.statistic
    node.on_stop(stream.stop)
    node.on_close(stream.close)
    return stream

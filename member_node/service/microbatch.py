"""Micro-batches: what arrives within a moment is taken as one batch by a thread of its own, in the order it arrived.

A batch has two parts, each with a thread: it is begun (computed), then finished (waits for the disk and is answered).
While one is finished the next is begun, so that the wait for the disk costs latency and no throughput; both parts see
batches in the order of their arrival.

The queue is bounded (a full one is refused at once, so that senders slow down instead of waiting in vain), waiting is
bounded (by a deadline that is looked at while the batch before is still under way), and every waiting caller gets its
own answer or the exception of its batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from governance.messages.problems import RequestError

MAX_WAIT_MS = 1.0
MAX_WEIGHT = 4_096
QUEUE_WEIGHT = 50_000
DEADLINE_SECONDS = 5.0
UNDER_WAY = 2
RETRY_AFTER_SECONDS = 1

T = TypeVar("T")
R = TypeVar("R")


class BusyError(RequestError):
    """Not taken: the queue is full, the answer would come too late, or the node is closing. Safe to send again."""

    def __init__(self, detail: str) -> None:
        super().__init__("unavailable", detail)


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    item: T
    weight: int
    arrived: float
    answer: asyncio.Future[R]


class MicroBatcher(Generic[T, R]):
    """Collects items on an event loop and has them, some at a time, begun and finished in two threads."""

    def __init__(
        self,
        begin: Callable[[Sequence[T]], Callable[[], Sequence[R | RequestError]]],
        *,
        max_wait_ms: float = MAX_WAIT_MS,
        max_weight: int = MAX_WEIGHT,
        queue_weight: int = QUEUE_WEIGHT,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """``begin`` gives what finishes the batch, which gives one result or refusal an item; what either raises is
        raised for every item of the batch.

        A batch is taken when its first item has waited ``max_wait_ms`` or its items weigh ``max_weight`` (rows); one
        that is heavier by itself is a batch of its own.
        """
        self._begin = begin
        self._max_wait = max_wait_ms / 1000
        self._max_weight = max_weight
        self._queue_weight = queue_weight
        self._deadline = deadline_seconds
        self._queue: deque[_Waiting[T, R]] = deque()
        self._weight = 0
        self._under_way: deque[list[_Waiting[T, R]]] = deque()
        self._beginning = False
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closing = False
        self._idle: asyncio.Event | None = None
        self._beginner = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="ingest-finish")

    @property
    def waiting(self) -> int:
        """The weight of what is queued."""
        return self._weight

    def submit(self, item: T, weight: int = 1) -> asyncio.Future[R]:
        """Queue an item, from the event loop's thread. Raises :class:`BusyError` where it cannot be taken.

        The future gives the item's result, or raises: the item's refusal, :class:`BusyError` after the deadline (the
        item may then have been taken all the same), or what ``take`` raised.
        """
        if self._closing:
            raise BusyError("the node is closing")
        if self._queue and self._weight + weight > self._queue_weight:
            raise BusyError("too many events are waiting")
        loop = asyncio.get_running_loop()
        waiting: _Waiting[T, R] = _Waiting(item, weight, time.perf_counter(), loop.create_future())
        self._queue.append(waiting)
        self._weight += weight
        if self._may_start:
            self._plan(loop)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._deadline / 4, self._sweep, loop)
        return waiting.answer

    async def close(self, seconds: float) -> None:
        """Take nothing more, let what is queued be answered for so long, refuse the rest, and end the thread."""
        self._closing = True
        loop = asyncio.get_running_loop()
        if self._queue or self._under_way:
            self._idle = asyncio.Event()
            if self._queue and self._may_start:
                self._start(loop)
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
            except TimeoutError:
                self._refuse([*chain(*self._under_way), *self._queue], "the node is closing")
                self._queue.clear()
                self._weight = 0
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        await asyncio.to_thread(self._beginner.shutdown)
        await asyncio.to_thread(self._finisher.shutdown)

    @property
    def _may_start(self) -> bool:
        return not self._beginning and len(self._under_way) < UNDER_WAY

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next batch now, or when its first item has waited long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = self._queue[0].arrived + self._max_wait - time.perf_counter()
        if left <= 0 or self._weight >= self._max_weight or self._closing:
            self._start(loop)
        else:
            self._timer = loop.call_later(left, self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        batch: list[_Waiting[T, R]] = []
        weight = 0
        while self._queue and (not batch or weight + self._queue[0].weight <= self._max_weight):
            each = self._queue.popleft()
            self._weight -= each.weight
            if not each.answer.done():  # its caller may have gone, or its deadline passed
                batch.append(each)
                weight += each.weight
        if not batch:
            self._go_on(loop)
            return
        self._under_way.append(batch)
        self._beginning = True
        begun = self._beginner.submit(self._begin, [each.item for each in batch])
        # From thread to thread: the loop may be busy, and the disk would wait for it.
        begun.add_done_callback(lambda done: self._begun(loop, batch, done))

    def _begun(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[_Waiting[T, R]],
        done: Future[Callable[[], Sequence[R | RequestError]]],
    ) -> None:
        """In the beginning thread."""
        # Said before the answers are, so that whoever has an answer finds the batcher free.
        loop.call_soon_threadsafe(self._may_begin, loop)
        if done.exception() is None:
            finished = self._finisher.submit(done.result())
            finished.add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._deliver, loop, batch, done)
            )
        else:
            # Behind those that were begun before it.
            self._finisher.submit(loop.call_soon_threadsafe, self._deliver, loop, batch, done)

    def _may_begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beginning = False
        self._go_on(loop)

    def _deliver(
        self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Waiting[T, R]], done: Future[Any]
    ) -> None:
        """``done``: the batch's results, or whatever failed of its two parts."""
        self._under_way.popleft()
        error = done.exception()
        if error is not None:
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
        else:
            for each, result in zip(batch, done.result(), strict=True):
                if each.answer.done():
                    continue
                if isinstance(result, RequestError):
                    each.answer.set_exception(result)
                else:
                    each.answer.set_result(result)
        self._go_on(loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._queue:
            if self._may_start:
                self._plan(loop)
        elif self._idle is not None and not self._under_way:
            self._idle.set()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse what has waited too long; the oldest stand first."""
        self._sweeper = None
        latest = time.perf_counter() - self._deadline
        late = [each for each in chain(*self._under_way) if each.arrived <= latest]
        for each in self._queue:
            if each.arrived > latest:
                break
            late.append(each)
        self._refuse(late, "the verdict did not come in time")
        if self._queue or self._under_way:
            self._sweeper = loop.call_later(self._deadline / 4, self._sweep, loop)

    def _refuse(self, waiting: Sequence[_Waiting[T, R]], detail: str) -> None:
        for each in waiting:
            if not each.answer.done():
                each.answer.set_exception(BusyError(f"{detail}; send it again, no event is applied twice"))

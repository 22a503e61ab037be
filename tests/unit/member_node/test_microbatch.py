"""Micro-batches: order, bounds, deadlines, exceptions to every caller, and an end that leaves nobody waiting."""

import asyncio
import threading

import pytest

from governance.messages.problems import RequestError
from member_node.service.microbatch import BusyError, MicroBatcher


class Taker:
    """Doubles numbers; refuses 13; waits at the gate if there is one."""

    def __init__(self, gate=None, error=None):
        self.gate = gate
        self.error = error
        self.batches = []

    def __call__(self, items):
        self.batches.append(list(items))
        if self.gate is not None:
            assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return lambda: [RequestError("malformed", "unlucky") if item == 13 else 2 * item for item in items]


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 30))


async def until(holds):
    while not holds():
        await asyncio.sleep(0.001)


def test_what_arrives_together_is_one_batch_in_its_order():
    taker = Taker()

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=20)
        answers = await asyncio.gather(*(batcher.submit(number) for number in (3, 1, 2)))
        await batcher.close(1)
        return answers

    assert run(main) == [6, 2, 4]
    assert taker.batches == [[3, 1, 2]]


def test_a_heavy_batch_does_not_wait_and_is_cut():
    taker = Taker()

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=60_000, max_weight=4)
        futures = [batcher.submit(number, weight=2) for number in range(5)]
        late = batcher.submit(9, weight=100)
        answers = await asyncio.gather(*futures, late)
        await batcher.close(1)
        return answers

    assert run(main) == [0, 2, 4, 6, 8, 18]
    assert [sorted(batch) for batch in taker.batches] == [[0, 1], [2, 3], [4], [9]]


def test_while_one_batch_is_under_way_the_next_is_collected():
    gate = threading.Event()
    taker = Taker(gate)

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=0)
        first = batcher.submit(1)
        await until(lambda: taker.batches)
        others = [batcher.submit(number) for number in (2, 3, 4)]
        gate.set()
        answers = [await first, *(await asyncio.gather(*others))]
        await batcher.close(1)
        return answers

    assert run(main) == [2, 4, 6, 8]
    assert taker.batches == [[1], [2, 3, 4]]


def test_while_one_batch_is_finished_the_next_begins_and_answers_keep_the_order():
    gate = threading.Event()
    begun, finished = [], []

    def begin(items):
        begun.append(list(items))

        def finish():
            if items == [1]:
                assert gate.wait(20)
            finished.append(list(items))
            return [2 * item for item in items]

        return finish

    async def main():
        batcher = MicroBatcher(begin, max_wait_ms=0)
        first = batcher.submit(1)
        await until(lambda: begun == [[1]])
        second = batcher.submit(2)
        await until(lambda: begun == [[1], [2]])
        third = batcher.submit(3)
        await asyncio.sleep(0.05)
        assert begun == [[1], [2]]  # two are under way: the third waits
        assert not finished
        assert not second.done()
        gate.set()
        answers = await asyncio.gather(first, second, third)
        await batcher.close(1)
        return answers

    assert run(main) == [2, 4, 6]
    assert finished == [[1], [2], [3]]


def test_a_refusal_is_its_own_callers_and_an_exception_everybodys():
    async def main(taker):
        batcher = MicroBatcher(taker)
        futures = [batcher.submit(number) for number in (1, 13, 2)]
        answers = await asyncio.gather(*futures, return_exceptions=True)
        await batcher.close(1)
        return answers

    one, refused, two = run(lambda: main(Taker()))
    assert (one, two) == (2, 4)
    assert isinstance(refused, RequestError)
    error = OSError("the disk is full")
    assert run(lambda: main(Taker(error=error))) == [error] * 3


def test_a_full_queue_is_refused_at_once():
    gate = threading.Event()
    taker = Taker(gate)

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=0, queue_weight=3)
        first = batcher.submit(1)
        await until(lambda: taker.batches)
        waiting = [batcher.submit(number) for number in (2, 3, 4)]
        assert batcher.waiting == 3
        with pytest.raises(BusyError, match="too many events"):
            batcher.submit(5)
        gate.set()
        assert await asyncio.gather(first, *waiting) == [2, 4, 6, 8]
        assert batcher.waiting == 0
        # One that is heavier than the whole queue is taken when it is the only one.
        assert await batcher.submit(6, weight=10) == 12
        await batcher.close(1)

    run(main)


def test_waiting_ends_at_the_deadline():
    gate = threading.Event()
    taker = Taker(gate)

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=0, deadline_seconds=0.1)
        under_way = batcher.submit(1)
        await until(lambda: taker.batches)
        queued = batcher.submit(2)
        for each in (under_way, queued):
            with pytest.raises(BusyError, match="did not come in time"):
                await each
        gate.set()
        assert await batcher.submit(3) == 6
        await batcher.close(1)

    run(main)
    # What had not begun was not taken after its caller had been told so.
    assert taker.batches == [[1], [3]]


def test_a_caller_that_goes_away_is_not_taken():
    gate = threading.Event()
    taker = Taker(gate)

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=0)
        first = batcher.submit(1)
        await until(lambda: taker.batches)
        gone, stays = batcher.submit(2), batcher.submit(3)
        gone.cancel()
        gate.set()
        assert await asyncio.gather(first, stays) == [2, 6]
        await batcher.close(1)

    run(main)
    assert taker.batches == [[1], [3]]


def test_closing_answers_what_waits_and_takes_nothing_more():
    taker = Taker()

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=60_000)
        waiting = [batcher.submit(number) for number in (1, 2)]
        closing = asyncio.create_task(batcher.close(10))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="closing"):
            batcher.submit(3)
        assert await asyncio.gather(*waiting) == [2, 4]
        await closing

    run(main)


def test_closing_does_not_wait_for_ever():
    gate = threading.Event()
    taker = Taker(gate)

    async def main():
        batcher = MicroBatcher(taker, max_wait_ms=0)
        stuck = batcher.submit(1)
        await until(lambda: taker.batches)
        queued = batcher.submit(2)
        closing = asyncio.create_task(batcher.close(0.05))
        for each in (stuck, queued):
            with pytest.raises(BusyError, match="closing"):
                await each
        gate.set()
        await closing

    run(main)
    assert taker.batches == [[1]]

"""Work in batches yields to reads."""

import asyncio

import pytest

from tilecache_daemon.read_priority import BUSY_S, ReadPriority


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


async def count_rounds_between(read_priority: ReadPriority, batches: int) -> list[int]:
    """How many rounds of the event loop other tasks had before each batch."""
    rounds, counted = 0, []

    async def other_tasks() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other_tasks())
    async for _ in read_priority.in_batches(range(batches), 1):
        counted.append(rounds)
        rounds = 0
    task.cancel()
    return counted


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_batches_hold_every_item_in_order(size: int) -> None:
    async def collect() -> list[int]:
        read_priority = ReadPriority(Clock().monotonic)
        batches = [batch async for batch in read_priority.in_batches(range(10), size)]
        assert max(map(len, batches)) <= size
        return [item for batch in batches for item in batch]

    assert asyncio.run(collect()) == list(range(10))


def test_without_reads_other_tasks_run_once_between_two_batches() -> None:
    rounds = asyncio.run(count_rounds_between(ReadPriority(Clock().monotonic), 20))
    assert rounds[1:] == [1] * 19


def test_a_single_batch_does_not_pause() -> None:
    read_priority = ReadPriority(Clock().monotonic)
    read_priority.note_read()
    assert asyncio.run(count_rounds_between(read_priority, 1)) == [0]


def test_beside_reads_other_tasks_run_as_often_as_a_read_takes() -> None:
    read_priority = ReadPriority(Clock().monotonic)
    read_priority.note_read()
    assert min(asyncio.run(count_rounds_between(read_priority, 3))) > 10


def test_work_does_not_pause_after_the_last_read() -> None:
    clock = Clock()
    read_priority = ReadPriority(clock.monotonic)
    read_priority.note_read()
    clock.now_s += 2 * BUSY_S
    assert asyncio.run(count_rounds_between(read_priority, 20))[1:] == [1] * 19


def test_waiting_for_idle_ends_when_no_read_has_begun_for_long_enough() -> None:
    clock = Clock()
    read_priority = ReadPriority(clock.monotonic)
    read_priority.note_read()
    clock.now_s += 0.1
    asyncio.run(asyncio.wait_for(read_priority.wait_until_idle(0.05, timeout_s=1e9), timeout=60))


def test_waiting_for_idle_ends_at_its_timeout_under_constant_reads() -> None:
    clock = Clock()

    def monotonic() -> float:
        clock.now_s += 0.01
        return clock.now_s

    read_priority = ReadPriority(monotonic)

    async def wait() -> None:
        waiting = asyncio.create_task(read_priority.wait_until_idle(1e9, timeout_s=0.5))
        while not waiting.done():
            read_priority.note_read()
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(wait(), timeout=60))

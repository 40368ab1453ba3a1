"""Work in batches yields to reads."""

import asyncio

import pytest

from tilecache_daemon.read_priority import BUSY_S, ReadPriority


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


async def count_runs_of_others(read_priority: ReadPriority, batches: int) -> list[int]:
    """How often another task ran before each batch."""
    runs, counted = 0, []

    async def other() -> None:
        nonlocal runs
        while True:
            runs += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in read_priority.in_batches(range(batches), 1):
        counted.append(runs)
        runs = 0
    task.cancel()
    return counted


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_batches_contain_every_item_in_order(size: int) -> None:
    async def collect() -> list[int]:
        read_priority = ReadPriority(Clock().monotonic)
        batches = [batch async for batch in read_priority.in_batches(range(10), size)]
        assert max(map(len, batches)) <= size
        return [item for batch in batches for item in batch]

    assert asyncio.run(collect()) == list(range(10))


def test_without_reads_other_tasks_run_once_between_batches() -> None:
    runs = asyncio.run(count_runs_of_others(ReadPriority(Clock().monotonic), 20))
    assert runs[1:] == [1] * 19


def test_a_single_batch_starts_at_once() -> None:
    read_priority = ReadPriority(Clock().monotonic)
    read_priority.note_read()
    assert asyncio.run(count_runs_of_others(read_priority, 1)) == [0]


def test_after_a_read_other_tasks_run_several_times_between_batches() -> None:
    read_priority = ReadPriority(Clock().monotonic)
    read_priority.note_read()
    assert min(asyncio.run(count_runs_of_others(read_priority, 3))) > 10


def test_pauses_end_with_the_reads() -> None:
    clock = Clock()
    read_priority = ReadPriority(clock.monotonic)
    read_priority.note_read()
    clock.now_s += 2 * BUSY_S
    assert asyncio.run(count_runs_of_others(read_priority, 20))[1:] == [1] * 19

"""Work that goes on for ever is ended."""

import asyncio

import pytest

from tilecache_daemon import tasks


async def test_a_task_ends_though_a_cancellation_was_swallowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swallowed = asyncio.Event()

    async def work() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed.is_set():
                    raise
                swallowed.set()

    monkeypatch.setattr(tasks, "CANCEL_AGAIN_S", 0.01)
    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert swallowed.is_set()
    assert task.cancelled()


async def test_what_a_task_failed_with_is_raised() -> None:
    async def work() -> None:
        raise LookupError

    task = asyncio.create_task(work())
    await asyncio.wait({task})
    with pytest.raises(LookupError):
        await tasks.end(task)


async def test_a_task_that_has_ended_is_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await tasks.end(task)
    assert not task.cancelled()

"""Tasks and threads end when they are told to."""

import asyncio
import threading

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


async def test_a_function_in_a_thread_returns_and_raises() -> None:
    def fail() -> None:
        raise LookupError

    assert await tasks.run_in_thread(lambda: 5, fail) == 5
    with pytest.raises(LookupError):
        await tasks.run_in_thread(fail, fail)


async def test_a_cancelled_call_interrupts_its_thread_and_waits_for_its_end() -> None:
    begun, interrupted, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        interrupted.wait()
        ended.set()
        raise LookupError

    call = asyncio.create_task(tasks.run_in_thread(work, interrupted.set))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    assert ended.is_set()


async def test_a_thread_that_ignores_its_interruption_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, released = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        released.wait()

    monkeypatch.setattr(tasks, "THREAD_END_TIMEOUT_S", 0.01)
    call = asyncio.create_task(tasks.run_in_thread(work, lambda: None))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    released.set()

"""Cancelling asyncio tasks, and blocking work in threads, for certain."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

CANCEL_AGAIN_S: Final = 1.0
THREAD_END_TIMEOUT_S: Final = 1.0
"""How long an interrupted thread may take to end before it is left to itself."""

T = TypeVar("T")


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels a task and returns when it has ended; raises the error that ended it, if any.

    A task that does not end is cancelled again: psycopg (3.2) may take a cancellation for a
    host that does not answer, and try the next.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def run_in_thread(function: Callable[[], T], interrupt: Callable[[], None]) -> T:
    """Runs a blocking function in a thread of its own, and returns or raises what it does.

    If the caller is cancelled, `interrupt` is called, which should make the function fail
    soon. A thread that does not end in time does not keep the process alive, as one of
    `asyncio.to_thread` would.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        outcome.set_running_or_notify_cancel()
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="interruptible", daemon=True).start()
    ended = asyncio.wrap_future(outcome)
    try:
        await asyncio.wait({ended})
    except asyncio.CancelledError:
        interrupt()
        await asyncio.wait({ended}, timeout=THREAD_END_TIMEOUT_S)
        if not ended.cancel():
            ended.exception()  # Retrieved, or asyncio would report it.
        raise
    return ended.result()

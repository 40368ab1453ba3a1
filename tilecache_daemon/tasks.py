"""The end of work that goes on for ever."""

import asyncio
import contextlib
from typing import Any, Final

CANCEL_AGAIN_S: Final = 1.0


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels a task and returns when it has ended; raises what it failed with, if it did.

    One that goes on is cancelled again: psycopg (3.2) may take a cancellation for a
    host that does not answer, and try the next.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)
    with contextlib.suppress(asyncio.CancelledError):
        await task

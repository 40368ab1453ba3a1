"""What to do when another writer was in the way."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tilecache_daemon.errors import WriteConflictError

ATTEMPTS: Final = 5

Written = TypeVar("Written")


async def retried(write: Callable[[], Awaitable[Written]]) -> Written:
    """A transaction that another writer was in the way of leaves nothing, and may be repeated."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(WriteConflictError):
            return await write()
    return await write()

"""Retries of transactions that conflict with other writers."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tilecache_daemon.errors import WriteConflictError

ATTEMPTS: Final = 5

Result = TypeVar("Result")


async def retry_on_conflict(transaction: Callable[[], Awaitable[Result]]) -> Result:
    """Runs a transaction, up to ATTEMPTS times if it fails with a WriteConflictError, which
    rolls it back completely."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(WriteConflictError):
            return await transaction()
    return await transaction()

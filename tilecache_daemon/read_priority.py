"""Read priority: long work is done in small batches and yields to reads between them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

BUSY_S: Final = 0.005
"""Reads follow each other: for this long after one the next is expected."""
PAUSE_S: Final = 0.02
"""How long work pauses then. A read takes several rounds of the event loop and wakes several
threads; work that never pauses would delay each of them."""

Item = TypeVar("Item")


class ReadPriority:
    """When the last read began, and what yields to reads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """`monotonic` gives seconds."""
        self._monotonic = monotonic
        self._read_at = -BUSY_S

    def note_read(self) -> None:
        """A read begins."""
        self._read_at = self._monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last read began."""
        return self._monotonic() - self._read_at

    async def in_batches(self, items: Sequence[Item], size: int) -> AsyncIterator[Sequence[Item]]:
        """The items in batches of `size`; yields to reads before each, unless it is the only
        one."""
        for start in range(0, len(items), size):
            if len(items) > size:
                await asyncio.sleep(PAUSE_S if self.idle_s < BUSY_S else 0)
            yield items[start : start + size]

    async def wait_until_idle(self, idle_s: float, timeout_s: float) -> None:
        """Returns when no read has begun for `idle_s`, and at the latest after `timeout_s`."""
        deadline = self._monotonic() + timeout_s
        # Polled: waking a task would cost each read more than a timer costs this one.
        while (left := idle_s - self.idle_s) > 0 and self._monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(min(left, timeout_s))

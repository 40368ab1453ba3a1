"""Reads have priority: long-running work is split into batches and yields to reads in between."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

BUSY_S: Final = 0.005
"""After a read, another is expected for this long."""
PAUSE_S: Final = 0.02
"""How long work pauses while reads are expected. A read takes several iterations of the
event loop and wakes several threads; without a pause it would queue behind the work at each."""

Item = TypeVar("Item")


class ReadPriority:
    """Tracks when the last read began."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._read_at = -BUSY_S

    def note_read(self) -> None:
        """Records that a read begins."""
        self._read_at = self._monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last read began."""
        return self._monotonic() - self._read_at

    async def in_batches(self, items: Sequence[Item], size: int) -> AsyncIterator[Sequence[Item]]:
        """Batches of up to `size` items. Yields to reads before each batch; a single batch
        starts at once."""
        for start in range(0, len(items), size):
            if len(items) > size:
                await asyncio.sleep(PAUSE_S if self.idle_s < BUSY_S else 0)
            yield items[start : start + size]

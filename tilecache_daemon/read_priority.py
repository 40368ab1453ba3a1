"""Reads come first: what takes long is done in small pieces, and gives way between them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

BUSY_S: Final = 0.005
"""For so long after a read the next is expected."""
PAUSE_S: Final = 0.02
"""What a piece of work then waits. A read takes several rounds of the event loop and
wakes as many threads: beside work that never rests it would wait for each of them."""

Item = TypeVar("Item")


class ReadPriority:
    """Knows when somebody reads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._read_at = -BUSY_S

    def note_read(self) -> None:
        """Somebody reads now."""
        self._read_at = self._monotonic()

    @property
    def idle_s(self) -> float:
        """How long ago somebody last asked for something."""
        return self._monotonic() - self._read_at

    async def in_batches(self, items: Sequence[Item], size: int) -> AsyncIterator[Sequence[Item]]:
        """So many items at a time, each after others had their turn. What is done in one
        piece rests for nobody."""
        for start in range(0, len(items), size):
            if len(items) > size:
                await asyncio.sleep(PAUSE_S if self.idle_s < BUSY_S else 0)
            yield items[start : start + size]

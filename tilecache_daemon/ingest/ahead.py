"""A concurrent `map` that works a bounded way ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

WORKERS: Final = min(8, (os.cpu_count() or 1) + 2)
_MAX_AHEAD: Final = 4 * WORKERS


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Outcome], items: Iterable[Item]
) -> Iterator[Outcome]:
    """As `map`, but concurrent: in order, with a bounded number of items in memory."""
    ahead: deque[Future[Outcome]] = deque()
    for item in items:
        ahead.append(pool.submit(function, item))
        if len(ahead) >= _MAX_AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()

"""Waiting for a condition."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
_POLL_INTERVAL_S = 0.01


def eventually(find: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """Calls `find` until its result is true, and returns it; AssertionError after
    `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not (found := find()):
        assert time.monotonic() < deadline, f"still {found!r} after {patience_s:g} s"
        time.sleep(_POLL_INTERVAL_S)
    return found

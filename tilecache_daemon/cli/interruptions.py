"""Ctrl-C during commands that work in steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Final

INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit code."""


@contextmanager
def stop_on_interrupt(stopping: Event) -> Iterator[None]:
    """The first Ctrl-C sets `stopping`, so that steps in flight are completed; the second ends the
    process."""

    def stop(*_: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous_handler = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)

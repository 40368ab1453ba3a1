"""Runs one of PostgreSQL's programs that ends by itself."""

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

_POLL_INTERVAL_S: Final = 0.05


def run_until_stopped(
    command: Sequence[str], stopping: threading.Event, timeout_s: float, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run`, but kills the program and raises InterruptedError as soon as
    `stopping` is set. `options` are those of Popen, and `text` must be among them."""
    with subprocess.Popen(command, **options) as process:  # noqa: S603
        try:
            for _ in range(round(timeout_s / _POLL_INTERVAL_S)):
                with suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(timeout=_POLL_INTERVAL_S)
                    return subprocess.CompletedProcess(command, process.returncode, output, errors)
                if stopping.is_set():
                    raise InterruptedError("it was stopped")
            raise subprocess.TimeoutExpired(command, timeout_s)
        finally:
            process.kill()

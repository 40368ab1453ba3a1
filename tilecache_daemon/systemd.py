"""Notifications to systemd: start, readiness, watchdog, stop.

The protocol is that of sd_notify(3). Without a service manager, as on a terminal,
nothing is sent.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tilecache.paths import socket_target

START_EXTENSION_S: Final = 30.0
"""How long systemd waits for the next notification of a start."""

_REPORT_INTERVAL_S: Final = 1.0
_REPORTS_PER_WATCHDOG: Final = 3
_DEFAULT_WATCHDOG_S: Final = 30.0
_MICROSECONDS: Final = 1_000_000

_logger = logging.getLogger(__name__)


def notify(**assignments: object) -> None:
    """Sends one message of assignments, such as `READY=1`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value}" for name, value in assignments.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.sendto(message.encode(), address)
        except OSError as error:
            _logger.warning("cannot notify systemd of %s: %s", message, error)


@asynccontextmanager
async def starting() -> AsyncIterator[None]:
    """Extends the start timeout while the start is in progress and the event loop runs."""

    async def extend() -> None:
        while True:
            notify(EXTEND_TIMEOUT_USEC=round(START_EXTENSION_S * _MICROSECONDS))
            await asyncio.sleep(START_EXTENSION_S / 3)

    async with _running(extend()):
        yield


@asynccontextmanager
async def serving(socket_path: Path, describe: Callable[[], str]) -> AsyncIterator[None]:
    """Sends READY, then keep-alives for the watchdog until the block ends, then STOPPING.

    Each keep-alive follows a successful health check through the daemon's own socket.
    `describe` gives the status text, one line.
    """
    notify(READY=1, STATUS=describe())
    try:
        async with _running(_report(socket_path, describe)):
            yield
    finally:
        notify(STOPPING=1, STATUS="stopping")


async def _report(socket_path: Path, describe: Callable[[], str]) -> None:
    timeout_s = _watchdog_s() / _REPORTS_PER_WATCHDOG
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(socket_target(socket_path), options) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
                notify(WATCHDOG=1, STATUS=describe())
            except grpc.aio.AioRpcError as error:
                _logger.warning("The daemon's own health check failed: %s", error.details())
            except Exception:
                _logger.exception("The state of the daemon cannot be reported to systemd")
            await asyncio.sleep(min(_REPORT_INTERVAL_S, timeout_s))


def _watchdog_s() -> float:
    return int(os.environ.get("WATCHDOG_USEC", "0")) / _MICROSECONDS or _DEFAULT_WATCHDOG_S


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

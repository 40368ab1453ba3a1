"""Committed changes to the table of tiles, whoever made them: PostgreSQL's LISTEN and NOTIFY.

Triggers notify one of (`migrations/`):

| payload | meaning |
| --- | --- |
| `WRITER ZOOM/X/Y,...` | these blocks changed, with WRITER only in access times |
| `WRITER *` | any block may have changed |
| `WRITER !TOKEN` | the marker of a transaction: its other notifications came before |

WRITER is empty, or the id of the daemon that wrote its record of accesses. A payload of another
form is treated as `*`: anybody who may connect can send one.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Final, NamedTuple, Protocol
from uuid import uuid4

import psycopg
import structlog

from tilecache.mercator import BlockKey
from tilecache_daemon.store.connections import Connection, connect, execute_promptly

CHANNEL: Final = "tilecache_changes"
RETRY_S: Final = 0.5
PROBE_INTERVAL_S: Final = 1.0
"""How often the server is probed: a connection that was dropped without a word is as silent
as one on which nothing happens."""
MARKER_TIMEOUT_S: Final = 2.0
_KEPT_CONFIRMATIONS: Final = 120

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Subscriber(Protocol):
    """What keeps copies of tiles."""

    def blocks_changed(self, blocks: Collection[BlockKey], *, own_accesses: bool) -> None:
        """These blocks have changed; with `own_accesses` only in access times that this
        daemon has written."""

    def all_changed(self) -> None:
        """Any block may have changed."""

    def subscription_changed(self, *, subscribed: bool) -> None:
        """Changes are received from now on, or no longer."""


class _Confirmation(NamedTuple):
    """By the event loop's clock: what was committed before `until` had been received at `at`."""

    until: float
    at: float


class ChangeFeed:
    """Receives notifications on a connection of its own and passes them to subscribers.

    A notification arrives after its commit, in the order of the commits. While
    the feed is not subscribed, changes are missed and no copy may be trusted.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.writer_id = uuid4().hex
        """Marks the accesses that this daemon writes."""
        self.subscribed = False
        self._subscribers: list[Subscriber] = []
        self._markers: dict[str, asyncio.Future[None]] = {}
        self._confirmations: deque[_Confirmation] = deque(maxlen=_KEPT_CONFIRMATIONS)

    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Subscribers are called in the order in which they were added."""
        self._subscribers.append(subscriber)

    def confirmed_until(self, received_by: float) -> float | None:
        """A time up to which all committed changes had been passed to the subscribers at
        `received_by`, both by the event loop's clock; None if it is not known."""
        for until, at in reversed(self._confirmations):
            if at <= received_by:
                return until
        return None

    def new_marker(self) -> str:
        """The payload of a transaction's last notification, for `wait_for_marker`."""
        token = uuid4().hex
        self._markers[token] = asyncio.get_running_loop().create_future()
        return f"{self.writer_id} !{token}"

    def discard_marker(self, marker: str) -> None:
        """Nothing will wait for it. Idempotent."""
        self._markers.pop(_token(marker), None)

    async def wait_for_marker(self, marker: str) -> None:
        """Returns when subscribers have the changes of the marker's transaction, or when the
        feed is no longer subscribed, so that they trust no copy."""
        try:
            if self.subscribed:
                await asyncio.wait_for(self._markers[_token(marker)], MARKER_TIMEOUT_S)
        except asyncio.TimeoutError:
            self._set_subscribed(subscribed=False)
        finally:
            self.discard_marker(marker)

    async def run(self) -> None:
        """Receives until cancelled; connects again after errors."""
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                log.debug("changes_not_received", cause=str(error))
            finally:
                self._set_subscribed(subscribed=False)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        async with await connect(self._dsn, "tilecache-changes") as connection:
            await execute_promptly(connection, f"LISTEN {CHANNEL}")
            self._set_subscribed(subscribed=True)
            while self.subscribed:
                probed_at = _now()
                await execute_promptly(connection)
                await self._receive_for(connection, 0)
                self._confirmations.append(_Confirmation(probed_at, _now()))
                await self._receive_for(connection, PROBE_INTERVAL_S)

    async def _receive_for(self, connection: Connection, timeout_s: float) -> None:
        """Without waiting: what has arrived already."""
        async for notification in connection.notifies(timeout=timeout_s):
            self._receive(notification.payload)

    def _receive(self, payload: str) -> None:
        writer, _, change = payload.partition(" ")
        if change.startswith("!"):
            marker = self._markers.get(change[1:])
            if marker and not marker.done():
                marker.set_result(None)
            return
        try:
            blocks = None if change == "*" else [_block_key(text) for text in change.split(",")]
        except (ValueError, TypeError):
            log.warning("unknown_change_notification", payload=payload[:100])
            blocks = None
        for subscriber in self._subscribers:
            if blocks is None:
                subscriber.all_changed()
            else:
                subscriber.blocks_changed(blocks, own_accesses=writer == self.writer_id)

    def _set_subscribed(self, *, subscribed: bool) -> None:
        if subscribed == self.subscribed:
            return
        self.subscribed = subscribed
        for subscriber in self._subscribers:
            subscriber.subscription_changed(subscribed=subscribed)
        if not subscribed:
            for marker in self._markers.values():
                if not marker.done():
                    marker.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _token(marker: str) -> str:
    return marker.partition("!")[2]


def _block_key(text: str) -> BlockKey:
    return BlockKey(*map(int, text.split("/")))

"""What changes in the table, heard from PostgreSQL, whoever changed it."""

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol
from uuid import uuid4

import psycopg
import structlog

from tilecache.mercator import BlockKey
from tilecache_daemon.store.connections import connect, execute_promptly

CHANNEL: Final = "tilecache_changes"
RETRY_S: Final = 0.5
ASK_INTERVAL_S: Final = 1.0
"""How often the server is asked whether it is there: a connection that was cut without
a word is as quiet as one on which nothing happens."""
HEARD_TIMEOUT_S: Final = 2.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Subscriber(Protocol):
    """Who caches what may change."""

    def blocks_changed(self, blocks: Iterable[BlockKey], *, own: bool) -> None:
        """These blocks have changed; `own` if only by accesses that this daemon wrote."""

    def all_changed(self) -> None:
        """Any block may have changed."""

    def hearing_changed(self, *, hearing: bool) -> None:
        """Changes are heard from now on, or no longer."""


class ChangeListener:
    """Listens on a connection of its own; whoever caches is told of every change.

    A change is heard after its commit, in the order of the commits. While
    nothing can be heard, nothing that is cached may be believed.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.writer = uuid4().hex
        """The name under which this daemon's own accesses are written."""
        self._subscriber: Subscriber | None = None
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self.hearing = False

    def subscribe(self, subscriber: Subscriber) -> None:
        """Who is to be told."""
        self._subscriber = subscriber

    def announcement(self) -> str:
        """What a transaction says last, for `heard` to wait for."""
        token = uuid4().hex
        self._awaited[token] = asyncio.get_running_loop().create_future()
        return f"{self.writer} !{token}"

    def withdraw(self, announcement: str) -> None:
        """Nobody will wait for it."""
        self._awaited.pop(announcement.partition("!")[2], None)

    async def heard(self, announcement: str) -> None:
        """Returns when the announced transaction's changes have been told, or when
        nothing is heard any more, so that nothing cached is believed."""
        token = announcement.partition("!")[2]
        try:
            if self.hearing:
                await asyncio.wait_for(self._awaited[token], HEARD_TIMEOUT_S)
        except asyncio.TimeoutError:
            self._set_hearing(hearing=False)
        finally:
            self._awaited.pop(token, None)

    async def run(self) -> None:
        """Listens for ever, until cancelled."""
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                log.debug("changes_not_heard", cause=str(error))
            finally:
                self._set_hearing(hearing=False)
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        async with await connect(self._dsn, "tilecache-changes") as connection:
            await execute_promptly(connection, f"LISTEN {CHANNEL}")
            self._set_hearing(hearing=True)
            while self.hearing:
                async for notification in connection.notifies(timeout=ASK_INTERVAL_S):
                    self._hear(notification.payload)
                await execute_promptly(connection)

    def _hear(self, payload: str) -> None:
        writer, _, what = payload.partition(" ")
        if what.startswith("!"):
            awaited = self._awaited.get(what[1:])
            if awaited and not awaited.done():
                awaited.set_result(None)
        elif self._subscriber and what == "*":
            self._subscriber.all_changed()
        elif self._subscriber:
            blocks = map(_block_key, what.split(","))
            self._subscriber.blocks_changed(blocks, own=writer == self.writer)

    def _set_hearing(self, *, hearing: bool) -> None:
        if hearing == self.hearing:
            return
        self.hearing = hearing
        if self._subscriber:
            self._subscriber.hearing_changed(hearing=hearing)
        if not hearing:
            for awaited in self._awaited.values():
                if not awaited.done():
                    awaited.set_result(None)


def _block_key(text: str) -> BlockKey:
    return BlockKey(*map(int, text.split("/")))

"""The composition root: starts everything in order and stops it in reverse."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack

import structlog

from tilecache.identity import prove_identity
from tilecache_daemon import tasks
from tilecache_daemon.cache.tile_cache import TileCache
from tilecache_daemon.clock import Clock
from tilecache_daemon.config import Config
from tilecache_daemon.errors import TileCacheError
from tilecache_daemon.models import Limits
from tilecache_daemon.observability.metrics import Sources
from tilecache_daemon.observability.observation import Observation
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc import packing
from tilecache_daemon.rpc.admin_servicer import AdminServicer
from tilecache_daemon.rpc.calls import Calls
from tilecache_daemon.rpc.server import ADMIN, STORE, Server, UnixSocket
from tilecache_daemon.rpc.store_servicer import StoreServicer
from tilecache_daemon.rpc.tcp import TlsListener
from tilecache_daemon.schema.migrator import (
    DatabaseUnreachableError,
    MigrationResult,
    apply_migrations,
    current_revision,
    pending_revisions,
)
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.service.coverage import CoverageService
from tilecache_daemon.service.eviction import EvictionService
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.service.information import InformationService
from tilecache_daemon.service.insertion import InsertionService
from tilecache_daemon.service.policy import PolicyService
from tilecache_daemon.service.purge import PurgeService
from tilecache_daemon.service.reading import ReadingService
from tilecache_daemon.service.storage import Ceiling, StorageService
from tilecache_daemon.service.uploads import UploadService
from tilecache_daemon.store.change_feed import ChangeListener
from tilecache_daemon.store.database import Database
from tilecache_daemon.store.store import Store, warm_up

log: structlog.stdlib.BoundLogger = structlog.get_logger()

DATABASE_RETRY_S = 0.5
CLOCK_CHECK_S = 5.0


class Daemon:
    """One daemon on one socket."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or Clock()
        self._closing = AsyncExitStack()
        self._limits = Limits(max_concurrent_calls=config.max_concurrent_calls)
        self._database: Database | None = None

    @property
    def condition(self) -> str:
        """How the daemon does, in a line for people."""
        if self._database is None:
            return "starting"
        if not self._database.available:
            return "PostgreSQL does not answer; serving what is in memory"
        if not self._clock.trusted:
            return f"serving; the clock is not trusted: {self._clock.reason}"
        return "serving"

    async def start(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Returns when the daemon serves; `say` is told what it waits for.

        Raises IdentityProofError, ListenError, EmbeddedPostgresError or
        MigrationError; what was started by then is stopped.
        """
        try:
            await self._start(say)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops in the reverse order of the start: not ready, calls drained,
        accesses written, connections closed. Idempotent."""
        await self._closing.aclose()

    async def _start(self, say: Callable[[str], None]) -> None:
        config, closing = self._config, self._closing
        prove_identity()
        observation = Observation(config, self._clock)
        closing.push_async_callback(asyncio.to_thread, observation.stop)
        navigation_socket, admin_socket = self._claim_sockets()
        embedded = self._embedded_postgres()
        if embedded:
            say("starting PostgreSQL")
            config = config.model_copy(update={"dsn": await asyncio.to_thread(embedded.start)})
        migration = await self._migrate(config, say)

        database = self._database = await self._open_database(config)
        changes = ChangeListener(config.dsn or "")
        store = Store(database, changes)
        read_priority = ReadPriority(self._clock.monotonic)
        cache = TileCache(store, changes, packing, read_priority, config.cache_max_bytes)
        async with store.connection() as queries:
            if seen := await queries.database.read_latest_time_seen():
                self._clock.observe(seen)
        accesses = AccessLog(
            store,
            cache,
            self._clock,
            interval_s=config.access_flush_interval_s,
            recent_s=config.access_recent_s,
        )
        closing.push_async_callback(self._flush, accesses)
        freshness = FreshnessService(store, self._clock)
        eviction = EvictionService(store, accesses, self._clock)
        ceiling = Ceiling(
            store, eviction, config.max_used_bytes, evict_on_insert=config.evict_on_insert
        )
        storage = StorageService(store, ceiling)
        reading = ReadingService(cache, accesses, self._limits)
        information = InformationService(
            store,
            cache,
            self._clock,
            accesses,
            self._limits,
            migration.to_revision or "",
            config.tiles_directory,
        )
        store_servicer = StoreServicer(
            information,
            InsertionService(store, freshness, ceiling, self._clock, read_priority),
            reading,
            CoverageService(store, self._limits),
            UploadService(store, self._clock),
            self._limits,
            read_priority,
        )
        admin_servicer = AdminServicer(
            storage,
            eviction,
            PurgeService(store, self._clock),
            PolicyService(store, freshness, self._clock),
            freshness,
            self._limits,
            observation.expose_metrics,
        )
        calls = Calls(
            self._limits,
            read_priority,
            observation.observers,
            stall_timeout_s=config.stream_stall_timeout_s,
        )
        servers = [
            Server(navigation_socket, {STORE: store_servicer}, calls, self._limits),
            Server(
                admin_socket, {STORE: store_servicer, ADMIN: admin_servicer}, calls, self._limits
            ),
        ]
        if config.tcp_address:
            ground = TlsListener(config)
            servers.append(Server(ground, {STORE: store_servicer}, calls, self._limits))

        async def set_ready(ready: bool) -> None:
            for server in servers:
                await server.set_ready(ready=ready)

        async def follow_database(available: bool) -> None:
            await set_ready(available)
            if embedded and not available:
                await asyncio.to_thread(embedded.restart_if_dead)

        database.on_change(follow_database)
        for work in (changes.run(), accesses.run(), storage.run(), self._keep_labels(freshness)):
            self._run(work)
        about = information.describe()
        observation.start(
            Sources(about, migration, self._clock, database, cache, accesses, calls),
            storage,
            eviction,
        )
        for server in servers:
            await server.start()
            closing.push_async_callback(server.stop, config.drain_timeout_s)
        await set_ready(True)
        closing.push_async_callback(set_ready, False)
        log.info("serving", socket=str(config.socket_path), schema_revision=migration.to_revision)

    def _claim_sockets(self) -> tuple[UnixSocket, UnixSocket]:
        config = self._config
        sockets = (
            UnixSocket(config.socket_path, config.socket_mode, config.socket_group),
            UnixSocket(
                config.admin_socket_path, config.admin_socket_mode, config.admin_socket_group
            ),
        )
        for unix_socket in sockets:
            unix_socket.claim()
            self._closing.callback(unix_socket.release)
        return sockets

    def _embedded_postgres(self) -> EmbeddedPostgres | None:
        if self._config.dsn is not None:
            return None
        embedded = EmbeddedPostgres(self._config.state_directory)
        self._closing.push_async_callback(asyncio.to_thread, embedded.stop)
        return embedded

    async def _migrate(self, config: Config, say: Callable[[str], None]) -> MigrationResult:
        say("waiting for the database")
        deadline = self._clock.monotonic() + config.database_wait_s
        while True:
            try:
                if pending_revisions(await asyncio.to_thread(current_revision, config.dsn or "")):
                    say("migrating the schema")
                return await asyncio.to_thread(apply_migrations, config)
            except DatabaseUnreachableError:
                if self._clock.monotonic() >= deadline:
                    raise
                await asyncio.sleep(DATABASE_RETRY_S)

    async def _open_database(self, config: Config) -> Database:
        database = Database(
            config.dsn or "",
            min_size=config.pool_min_size,
            max_size=config.pool_max_size,
            timeout_s=config.pool_timeout_s,
            statement_timeout_s=config.statement_timeout_s,
            warm_up=warm_up,
        )
        self._closing.push_async_callback(database.close)
        await database.open()
        return database

    async def _flush(self, accesses: AccessLog) -> None:
        try:
            await accesses.flush()
        except Exception:
            log.exception("accesses_lost", count=accesses.pending_count)

    async def _keep_labels(self, freshness: FreshnessService) -> None:
        """Re-evaluates at the start, daily, and what was labelled in doubt of the clock."""
        evaluated_at = self._clock.monotonic()
        while True:
            age_s = self._clock.monotonic() - evaluated_at
            settled = freshness.used_untrusted_clock and self._clock.trusted
            if freshness.due or settled or age_s >= self._config.reevaluate_interval_s:
                evaluated_at = self._clock.monotonic()
                try:
                    async for _ in freshness.reevaluate():
                        pass
                except TileCacheError as error:
                    log.warning("labels_not_evaluated", cause=str(error))
            await asyncio.sleep(CLOCK_CHECK_S)

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        self._closing.push_async_callback(tasks.end, asyncio.create_task(coroutine))

"""The composition root: starts the daemon's parts in order and stops them in reverse.

The gRPC health service reports ready while PostgreSQL answers and the database monitor is
running: without it nobody notices that PostgreSQL goes away or is back. No other background
task is needed to answer calls.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import structlog

from tilecache.identity import prove_identity
from tilecache_daemon import assembly, tasks
from tilecache_daemon.assembly import Sockets, StoreSide
from tilecache_daemon.clock import Clock
from tilecache_daemon.config import Config
from tilecache_daemon.observability.metrics import Sources
from tilecache_daemon.observability.observation import Observation
from tilecache_daemon.postgres.embedded import EmbeddedPostgres
from tilecache_daemon.postgres.memory import available_memory_bytes, memory_settings
from tilecache_daemon.rpc.server import Server
from tilecache_daemon.schema.migrator import (
    DatabaseUnreachableError,
    Interruption,
    MigrationResult,
    apply_migrations,
    check_database,
    pending_revisions,
)
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.store.database import Database
from tilecache_daemon.supervisor import SupervisedTask, Supervisor, Work

log: structlog.stdlib.BoundLogger = structlog.get_logger()

DATABASE_RETRY_S: Final = 0.5
POSTGRES_CHECK_S: Final = 0.5
POSTGRES_UNRESPONSIVE_S: Final = 120.0
"""A server of the daemon's own that has not answered for so long is killed and started again.
Its recovery after a crash takes less (`EmbeddedPostgres.start_timeout_s`)."""
MIGRATING: Final = "migrating the schema"


class Daemon:
    """One daemon on one socket."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or Clock()
        self._supervisor = Supervisor(self._clock.monotonic)
        self._closing = AsyncExitStack()
        self._database: Database | None = None

    @property
    def condition(self) -> str:
        """The state of the daemon in one line, for people."""
        if self._database is None:
            return "starting"
        notes = ["serving"]
        if not self._database.available:
            notes = ["PostgreSQL does not answer; serving what is in memory"]
        if not self._clock.trusted:
            notes.append(f"the clock is not trusted: {self._clock.reason}")
        notes += [task.describe() for task in self._supervisor.tasks if not task.healthy]
        return "; ".join(notes)

    async def start(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Returns when the daemon serves; `report` is called with each step that may take long.

        Raises ConfigError, IdentityProofError, ListenError, EmbeddedPostgresError,
        MigrationError or TileCacheError; everything that was started by then is stopped.
        """
        try:
            await self._start(report)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops in the reverse order of the start: not ready, calls drained,
        accesses written, connections closed. Idempotent."""
        await self._closing.aclose()

    async def _start(self, report: Callable[[str], None]) -> None:
        prove_identity()
        observation = Observation(self._config, self._clock)
        self._closing.push_async_callback(asyncio.to_thread, observation.stop)
        sockets = self._claim_sockets()
        config = await self._start_postgres(report)
        migration = await self._migrate(config, report)

        base = assembly.build_foundation(config, self._clock)
        tiles = assembly.build_store_side(base)
        services = assembly.build_services(base, tiles, migration.to_revision or "")
        server_side = assembly.build_server_side(base, services, sockets, observation)

        monitor = await self._open_store(tiles)
        sources = Sources(
            services.information.describe(),
            migration,
            self._clock,
            tiles.database,
            tiles.cache,
            tiles.accesses,
            server_side.calls,
            self._supervisor,
        )
        observation.start(sources, services.storage, services.eviction)
        for name, work in assembly.background_tasks(base, tiles, services, observation):
            self._run(name, work)
        await self._serve(server_side.servers, tiles.database, monitor)
        # First: draining does not wait for streams that stay open.
        self._closing.push_async_callback(services.watching.end)
        log.info("serving", socket=str(config.socket_path), schema_revision=migration.to_revision)

    def _claim_sockets(self) -> Sockets:
        sockets = assembly.build_sockets(self._config)
        for unix_socket in (sockets.navigation, sockets.admin):
            unix_socket.claim()
            self._closing.callback(unix_socket.release)
        return sockets

    async def _start_postgres(self, report: Callable[[str], None]) -> Config:
        """Starts the daemon's own PostgreSQL if no address is configured; the configuration
        with the address."""
        if self._config.dsn is not None:
            return self._config
        report("starting PostgreSQL")
        settings = memory_settings(available_memory_bytes()) | self._config.postgres_settings
        postgres = EmbeddedPostgres(self._config.state_directory, settings=settings)
        # This also ends a start that is cancelled.
        self._closing.push_async_callback(asyncio.to_thread, postgres.stop)
        dsn = await asyncio.to_thread(postgres.start)
        self._run("postgres-restart", partial(self._keep_running, postgres))
        return self._config.model_copy(update={"dsn": dsn})

    async def _migrate(self, config: Config, report: Callable[[str], None]) -> MigrationResult:
        """If it is cancelled, nothing is migrated from then on."""
        report("waiting for the database")
        interruption = Interruption()
        read_revision = partial(check_database, config.dsn or "", config.pool_max_size)
        loop = asyncio.get_running_loop()

        def report_progress(done: str) -> None:
            loop.call_soon_threadsafe(report, f"{MIGRATING}: {done}")

        migrate = partial(
            apply_migrations,
            config,
            interruption=interruption,
            report_progress=report_progress,
        )
        deadline = self._clock.monotonic() + config.database_wait_s
        while True:
            try:
                revision = await tasks.run_in_thread(read_revision, interruption.request)
                if pending_revisions(revision):
                    report(MIGRATING)
                return await tasks.run_in_thread(migrate, interruption.request)
            except DatabaseUnreachableError:
                if self._clock.monotonic() >= deadline:
                    raise
                await asyncio.sleep(DATABASE_RETRY_S)

    async def _open_store(self, tiles: StoreSide) -> SupervisedTask:
        """Opens the pool, starts its monitor, which is returned, and reads what the database
        knows of the time."""
        self._closing.push_async_callback(tiles.database.close)
        await tiles.database.open()
        self._database = tiles.database
        monitor = self._run("database-monitor", tiles.database.monitor)
        async with tiles.store.connection() as queries:
            latest_plausible = self._clock.latest_plausible
            if seen := await queries.database.read_latest_time_seen(latest_plausible):
                self._clock.observe(seen)
            if await queries.database.is_time_implausible(latest_plausible):
                log.warning("implausible_times_ignored", later_than=latest_plausible.isoformat())
        self._closing.push_async_callback(_flush, tiles.accesses)
        return monitor

    async def _serve(
        self, servers: list[Server], database: Database, monitor: SupervisedTask
    ) -> None:
        """Starts the servers, and keeps the health that they report up to date."""
        changed = asyncio.Event()
        self._supervisor.on_change(changed.set)
        database.on_change(changed.set)

        async def set_ready(ready: bool) -> None:
            for server in servers:
                await server.set_ready(ready=ready)

        async def publish_health() -> None:
            while True:
                changed.clear()
                await set_ready(database.available and monitor.running)
                await changed.wait()

        for server in servers:
            await server.start()
            self._closing.push_async_callback(server.stop, self._config.drain_timeout_s)
        self._closing.push_async_callback(set_ready, False)
        await set_ready(database.available)
        self._run("health", publish_health)
        for name, server in zip(("socket", "admin-socket"), servers, strict=False):
            self._run(name, server.keep_reachable)

    async def _keep_running(self, postgres: EmbeddedPostgres) -> None:
        """Restarts the daemon's own PostgreSQL whenever it has ended or no longer responds,
        until cancelled."""
        answered_at = self._clock.monotonic()
        while True:
            await asyncio.sleep(POSTGRES_CHECK_S)
            now = self._clock.monotonic()
            if self._database is None or self._database.available:
                answered_at = now
            if not postgres.is_running():
                await asyncio.to_thread(postgres.restart_if_dead)
            elif now - answered_at > POSTGRES_UNRESPONSIVE_S:
                log.error("postgres_unresponsive", silent_s=round(now - answered_at))
                answered_at = now
                await asyncio.to_thread(postgres.restart)

    def _run(self, name: str, work: Work) -> SupervisedTask:
        task = self._supervisor.start(name, work)
        self._closing.push_async_callback(task.stop)
        return task


async def _flush(accesses: AccessLog) -> None:
    try:
        await accesses.flush()
    except Exception:
        log.exception("accesses_lost", count=accesses.pending_count)

"""The parts of the daemon and how they depend on each other.

Nothing is started or opened here; `daemon.py` does that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from tilecache_daemon.cache.tile_cache import TileCache
from tilecache_daemon.clock import Clock
from tilecache_daemon.config import Config
from tilecache_daemon.models import Limits
from tilecache_daemon.observability.observation import Observation
from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.rpc import packing
from tilecache_daemon.rpc.admin_servicer import AdminServicer
from tilecache_daemon.rpc.calls import Calls
from tilecache_daemon.rpc.server import ADMIN, STORE, Server, UnixSocket
from tilecache_daemon.rpc.store_servicer import StoreServicer
from tilecache_daemon.rpc.tcp import TlsListener
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.service.block_digests import BlockDigestService
from tilecache_daemon.service.corrections import CorrectionService
from tilecache_daemon.service.coverage import CoverageService
from tilecache_daemon.service.eviction import EvictionService
from tilecache_daemon.service.expiry import ExpiryService
from tilecache_daemon.service.flights import FlightService
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.service.information import InformationService
from tilecache_daemon.service.insertion import InsertionService
from tilecache_daemon.service.pins import PinService
from tilecache_daemon.service.policy import PolicyService
from tilecache_daemon.service.purge import PurgeService
from tilecache_daemon.service.reading import ReadingService
from tilecache_daemon.service.storage import Ceiling, StorageService
from tilecache_daemon.service.uploads import UploadService
from tilecache_daemon.service.watching import WatchService
from tilecache_daemon.store.change_feed import ChangeFeed
from tilecache_daemon.store.database import Database
from tilecache_daemon.store.store import Store, warm_up
from tilecache_daemon.supervisor import Work


@dataclass(frozen=True)
class Foundation:
    """What the other parts have in common."""

    config: Config
    """With the address of the database, also where that is the daemon's own."""
    clock: Clock
    limits: Limits
    read_priority: ReadPriority


@dataclass(frozen=True)
class StoreSide:
    """The tiles, in PostgreSQL and in memory."""

    database: Database
    changes: ChangeFeed
    store: Store
    cache: TileCache
    accesses: AccessLog


@dataclass(frozen=True)
class Services:
    """The use cases."""

    information: InformationService
    reading: ReadingService
    coverage: CoverageService
    digests: BlockDigestService
    expiry: ExpiryService
    insertion: InsertionService
    uploads: UploadService
    storage: StorageService
    eviction: EvictionService
    purge: PurgeService
    corrections: CorrectionService
    pins: PinService
    flights: FlightService
    policy: PolicyService
    freshness: FreshnessService
    watching: WatchService


@dataclass(frozen=True)
class Sockets:
    """The Unix sockets, claimed before anything else is started."""

    navigation: UnixSocket
    admin: UnixSocket


@dataclass(frozen=True)
class ServerSide:
    """The gRPC servers: one for each socket, and one for TCP where it is configured."""

    calls: Calls
    servers: list[Server]


def build_foundation(config: Config, clock: Clock) -> Foundation:
    return Foundation(
        config=config,
        clock=clock,
        limits=Limits(max_concurrent_calls=config.max_concurrent_calls),
        read_priority=ReadPriority(clock.monotonic),
    )


def build_sockets(config: Config) -> Sockets:
    return Sockets(
        navigation=UnixSocket(config.socket_path, config.socket_mode, config.socket_group),
        admin=UnixSocket(
            config.admin_socket_path, config.admin_socket_mode, config.admin_socket_group
        ),
    )


def build_store_side(base: Foundation) -> StoreSide:
    config, dsn = base.config, base.config.dsn or ""
    database = Database(
        dsn,
        min_size=config.pool_min_size,
        max_size=config.pool_max_size,
        timeout_s=config.pool_timeout_s,
        statement_timeout_s=config.statement_timeout_s,
        warm_up=warm_up,
    )
    changes = ChangeFeed(dsn)
    store = Store(database, changes)
    cache = TileCache(store, changes, packing, base.read_priority, config.cache_max_bytes)
    accesses = AccessLog(
        store,
        cache,
        base.clock,
        interval_s=config.access_flush_interval_s,
        recent_s=config.access_recent_s,
    )
    return StoreSide(database, changes, store, cache, accesses)


def build_services(base: Foundation, tiles: StoreSide, schema_revision: str) -> Services:
    config, clock, limits, store = base.config, base.clock, base.limits, tiles.store
    freshness = FreshnessService(store, clock)
    eviction = EvictionService(store, tiles.accesses, clock)
    ceiling = Ceiling(
        store, eviction, config.max_used_bytes, evict_on_insert=config.evict_on_insert
    )
    coverage = CoverageService(store, limits)
    return Services(
        information=InformationService(
            store,
            tiles.cache,
            clock,
            tiles.accesses,
            limits,
            schema_revision,
            config.tiles_directory,
        ),
        reading=ReadingService(store, tiles.cache, tiles.accesses, limits),
        coverage=coverage,
        digests=BlockDigestService(store, base.read_priority),
        expiry=ExpiryService(store, clock),
        insertion=InsertionService(store, freshness, ceiling, clock, base.read_priority),
        uploads=UploadService(store, clock),
        storage=StorageService(store, ceiling),
        eviction=eviction,
        purge=PurgeService(store, clock),
        corrections=CorrectionService(store, freshness, clock),
        pins=PinService(store, coverage, ceiling, clock),
        flights=FlightService(store),
        policy=PolicyService(store, freshness, clock),
        freshness=freshness,
        watching=WatchService(
            store, tiles.changes, tiles.cache, packing, base.read_priority, config.watch_limit_bytes
        ),
    )


def build_server_side(
    base: Foundation, services: Services, sockets: Sockets, observation: Observation
) -> ServerSide:
    config, limits = base.config, base.limits
    store_servicer = StoreServicer(
        services.information,
        services.insertion,
        services.reading,
        services.coverage,
        services.digests,
        services.expiry,
        services.uploads,
        services.flights,
        services.watching,
        limits,
        base.read_priority,
    )
    admin_servicer = AdminServicer(
        services.storage,
        services.eviction,
        services.purge,
        services.corrections,
        services.pins,
        services.flights,
        services.policy,
        services.freshness,
        limits,
        observation.expose_metrics,
    )
    calls = Calls(
        limits,
        base.read_priority,
        observation.observers,
        stall_timeout_s=config.stream_stall_timeout_s,
    )
    for_peers = {STORE: store_servicer}
    for_administrators = {STORE: store_servicer, ADMIN: admin_servicer}
    servers = [
        Server(sockets.navigation, for_peers, calls, limits),
        Server(sockets.admin, for_administrators, calls, limits),
    ]
    if config.tcp_address:
        servers.append(Server(TlsListener(config), for_peers, calls, limits))
    return ServerSide(calls, servers)


def background_tasks(
    base: Foundation, tiles: StoreSide, services: Services, observation: Observation
) -> Iterator[tuple[str, Work]]:
    """The tasks that run while the daemon serves, by their names in logs and metrics.

    Two more depend on what `daemon.py` starts: the database monitor, and the restart of the
    daemon's own PostgreSQL.
    """
    yield "change-feed", tiles.changes.run
    yield "block-loading", tiles.cache.run
    yield "watch-publisher", services.watching.run
    yield "access-log", tiles.accesses.run
    yield "usage-summary", services.storage.run
    yield "freshness", partial(services.freshness.run, base.config.reevaluate_interval_s)
    if observation.listener:
        yield "metrics-listener", observation.listener.run

"""Information about the daemon, for `GetServerInfo`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from tilecache.identity import TILE_NAMESPACE_UUID
from tilecache_daemon import __version__
from tilecache_daemon.cache.tile_cache import CacheStatus, TileCache
from tilecache_daemon.clock import Clock
from tilecache_daemon.models import Limits
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.store.store import Store

CONTRACT_VERSION: Final = "1.5.0"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Versions, limits and the current state."""

    contract_version: str
    daemon_version: str
    schema_revision: str
    namespace_uuid: str
    limits: Limits
    clock_trusted: bool
    clock_time: datetime
    clock_reason: str
    access_loss_bound_s: float
    database_available: bool
    tiles_directory: str
    cache: CacheStatus


class InformationService:
    """Collects the server's information."""

    def __init__(
        self,
        store: Store,
        cache: TileCache,
        clock: Clock,
        accesses: AccessLog,
        limits: Limits,
        schema_revision: str,
        tiles_directory: Path | None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._accesses = accesses
        self._limits = limits
        self._schema_revision = schema_revision
        self._tiles_directory = str(tiles_directory or "")

    def describe(self) -> ServerInfo:
        """The current information. Does not use the database."""
        return ServerInfo(
            CONTRACT_VERSION,
            __version__,
            self._schema_revision,
            str(TILE_NAMESPACE_UUID),
            self._limits,
            self._clock.trusted,
            self._clock.now(),
            self._clock.reason,
            self._accesses.loss_bound_s,
            self._store.available,
            self._tiles_directory,
            self._cache.status,
        )

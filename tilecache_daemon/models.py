"""What the store speaks of. UUIDs are canonical lower-case text."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Final, NamedTuple

_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
UNIX_SECONDS_AT_2000: Final = int(_POSTGRES_EPOCH.timestamp())
"""What a `google.protobuf.Timestamp` counts until PostgreSQL begins to."""


def micros_of(moment: datetime) -> int:
    """Microseconds since 2000, which is how PostgreSQL sends and takes a time."""
    return (moment - _POSTGRES_EPOCH) // _MICROSECOND


def moment_of(micros: int) -> datetime:
    """The other way round; raises OverflowError outside the years 1 to 9999."""
    return _POSTGRES_EPOCH + micros * _MICROSECOND


class FreshnessLabel(str, Enum):
    """How fresh a tile is; from best to worst."""

    FRESH = "fresh"
    DOWNGRADED = "downgraded"
    STALE_WARN = "stale_warn"
    STALE_REJECT = "stale_reject"
    REJECTED = "rejected"

    # Enum's own is written in Python, and each tile of a batch is looked up by its label.
    __hash__ = str.__hash__


USABLE_LABELS: Final = frozenset(
    label.value
    for label in FreshnessLabel
    if label not in (FreshnessLabel.STALE_REJECT, FreshnessLabel.REJECTED)
)
"""What a query gives unless it asks for others."""


class TileKey(NamedTuple):
    """A cell, its source in canonical text, and the flight that made the tile."""

    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None


class NewTile(NamedTuple):
    """A tile to be stored, valid and with everything derived."""

    tile_uuid: str
    location_hash: str
    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None
    latitude: float
    longitude: float
    tile_size_meters: float
    tile_size_pixels: int
    file_path: str
    content_sha256: str
    disk_bytes: int
    captured_us: int
    """Microseconds since 2000, as `Tile` has it."""
    quality_metadata: str | None
    """JSON text."""

    @property
    def captured_at(self) -> datetime:
        return moment_of(self.captured_us)


class Tile(NamedTuple):
    """A stored tile, with its columns in the order of the query catalogue."""

    tile_uuid: str
    location_hash: str
    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None
    latitude: float
    longitude: float
    tile_size_meters: float
    tile_size_pixels: int
    file_path: str
    content_sha256: str | None
    disk_bytes: int | None
    captured_us: int
    """Times are microseconds since 2000, which is what PostgreSQL sends."""
    created_us: int
    accessed_us: int | None
    uploaded_us: int | None
    freshness_label: str
    quality_metadata: str | None
    """JSON text."""

    @property
    def captured_at(self) -> datetime:
        return moment_of(self.captured_us)

    @property
    def created_at(self) -> datetime:
        return moment_of(self.created_us)

    @property
    def accessed_at(self) -> datetime | None:
        return None if self.accessed_us is None else moment_of(self.accessed_us)


class OnConflict(Enum):
    """What to do when another content is stored under the same key."""

    FAIL = "fail"
    KEEP_EXISTING = "keep_existing"
    REPLACE_IF_NEWER = "replace_if_newer"


class InsertOutcome(Enum):
    """What became of a tile that was accepted."""

    INSERTED = "inserted"
    DOWNGRADED = "downgraded"
    ALREADY_PRESENT = "already_present"
    KEPT_EXISTING = "kept_existing"
    REPLACED = "replaced"

    __hash__ = object.__hash__  # as above


class TileSelection(Enum):
    """Which tiles of a cell are wanted."""

    ALL = "all"
    BEST_PER_CELL = "best_per_cell"


@dataclass(frozen=True, slots=True)
class TileFilter:
    """Which tiles of a region are wanted. Empty sources or labels: all of them."""

    sources: frozenset[str] = frozenset()
    flight_id: str | None = None
    captured_after: datetime | None = None
    labels: frozenset[str] = USABLE_LABELS
    selection: TileSelection = TileSelection.ALL
    limit: int = 0


class MarkOutcome(Enum):
    """What became of the mark that a tile was uploaded."""

    MARKED = "marked"
    ALREADY_MARKED = "already_marked"
    NOT_FOUND = "not_found"
    CONTENT_DIFFERS = "content_differs"
    NOT_UPLOADABLE = "not_uploadable"


class EvictionReason(Enum):
    """Why a tile's row went while its file may still be there."""

    EVICTED = "evicted"
    EVICTED_ON_INSERT = "evicted_on_insert"
    DELETED = "deleted"
    REPLACED = "replaced"


class Eviction(NamedTuple):
    """A tile whose row is gone and whose file is to be removed."""

    id: int
    tile_uuid: str
    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None
    file_path: str
    content_sha256: str | None
    disk_bytes: int | None
    evicted_at: datetime
    accessed_at: datetime | None
    reason: str


class Purge(NamedTuple):
    """Which tiles are to be deleted; None stands for any."""

    sources: list[str] | None
    captured_before: datetime | None
    flight_id: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on requests and answers, published by `GetServerInfo`."""

    max_batch_tiles: int = 10_000
    max_request_items: int = 4_096
    max_message_bytes: int = 8 * 1024 * 1024
    max_region_cells: int = 4_194_304
    max_answer_tiles: int = 1_000_000
    max_concurrent_calls: int = 64

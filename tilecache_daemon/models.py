"""Tiles and requests as values. UUIDs are canonical lower-case text."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Final, NamedTuple

from tilecache.mercator import BoundingBox

_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
UNIX_SECONDS_AT_2000: Final = int(_POSTGRES_EPOCH.timestamp())
"""PostgreSQL's epoch in Unix time, which `google.protobuf.Timestamp` counts."""


def micros_of(moment: datetime) -> int:
    """Microseconds since 2000: PostgreSQL's binary format of a time."""
    return (moment - _POSTGRES_EPOCH) // _MICROSECOND


FIRST_MICROS: Final = micros_of(datetime.min.replace(tzinfo=timezone.utc))
LAST_MICROS: Final = micros_of(datetime.max.replace(tzinfo=timezone.utc))
"""The calendar of Python and of `google.protobuf.Timestamp`: the years 1 to 9999."""


def moment_of(micros: int) -> datetime:
    """The inverse of `micros_of`. PostgreSQL knows earlier and later times, and infinite ones:
    for those the nearest time of the calendar."""
    return _POSTGRES_EPOCH + min(max(micros, FIRST_MICROS), LAST_MICROS) * _MICROSECOND


class FreshnessLabel(str, Enum):
    """How fresh a tile is, ordered from best to worst."""

    FRESH = "fresh"
    DOWNGRADED = "downgraded"
    STALE_WARN = "stale_warn"
    STALE_REJECT = "stale_reject"
    REJECTED = "rejected"

    # Enum's hash is a Python function, which is slow for a lookup per tile.
    __hash__ = str.__hash__


USABLE_LABELS: Final = frozenset(
    label.value
    for label in FreshnessLabel
    if label not in (FreshnessLabel.STALE_REJECT, FreshnessLabel.REJECTED)
)
"""The labels that a query selects by default."""


class TileKey(NamedTuple):
    """A tile's natural key: its cell, source (canonical text) and flight, if any."""

    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None


class NewTile(NamedTuple):
    """A tile to be stored: validated, with all derived fields filled in."""

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
    """Microseconds since 2000, as `uploaded_us`."""
    quality_metadata: str | None
    """JSON text."""
    uploaded_us: int | None = None
    """None: it was not uploaded."""

    @property
    def captured_at(self) -> datetime:
        return moment_of(self.captured_us)

    @property
    def uploaded_at(self) -> datetime | None:
        return None if self.uploaded_us is None else moment_of(self.uploaded_us)


class Tile(NamedTuple):
    """A stored tile; fields are in the order of `sql.TILE_COLUMNS`."""

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
    """All times are microseconds since 2000."""
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
    """How to resolve a conflict with different content under the same key."""

    FAIL = "fail"
    KEEP_EXISTING = "keep_existing"
    REPLACE_IF_NEWER = "replace_if_newer"
    CONVERGE = "converge"


class InsertOutcome(Enum):
    """The outcome of an insert that was not refused."""

    INSERTED = "inserted"
    DOWNGRADED = "downgraded"
    ALREADY_PRESENT = "already_present"
    KEPT_EXISTING = "kept_existing"
    REPLACED = "replaced"

    __hash__ = object.__hash__  # as in FreshnessLabel


class TileSelection(Enum):
    """Which tiles of a cell a query returns."""

    ALL = "all"
    BEST_PER_CELL = "best_per_cell"


@dataclass(frozen=True, slots=True)
class TileFilter:
    """Which tiles of a region a query returns. No sources means any source, a limit of 0 no
    limit."""

    sources: frozenset[str] = frozenset()
    flight_id: str | None = None
    captured_after: datetime | None = None
    labels: frozenset[str] = USABLE_LABELS
    selection: TileSelection = TileSelection.ALL
    limit: int = 0


class ListFilter(NamedTuple):
    """Which tiles a list without a region has. None is no restriction."""

    zooms: list[int] | None
    sources: list[str] | None
    flight_id: str | None
    captured_after: datetime | None
    captured_before: datetime | None
    labels: list[str] | None
    pending_upload: bool
    """Only those that wait for upload."""


class MarkOutcome(Enum):
    """The outcome of marking a tile as uploaded."""

    MARKED = "marked"
    ALREADY_MARKED = "already_marked"
    NOT_FOUND = "not_found"
    CONTENT_DIFFERS = "content_differs"
    NOT_UPLOADABLE = "not_uploadable"


class TileUpdate(NamedTuple):
    """What to correct of a tile. None stays as it is."""

    tile_uuid: str
    content_sha256: str
    captured_at: datetime | None
    file_path: str | None
    quality_metadata: str | None
    """JSON text."""


class UpdateOutcome(Enum):
    """The outcome of a correction."""

    UPDATED = "updated"
    UNCHANGED = "unchanged"
    NOT_FOUND = "not_found"
    CONTENT_DIFFERS = "content_differs"
    FILE_PENDING_REMOVAL = "file_pending_removal"


class EvictionReason(Enum):
    """Why a tile's row was deleted; its file may still exist."""

    EVICTED = "evicted"
    EVICTED_ON_INSERT = "evicted_on_insert"
    DELETED = "deleted"
    REPLACED = "replaced"


class Eviction(NamedTuple):
    """A tile whose row was deleted and whose file is to be removed."""

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
    """Which tiles to delete. None is no restriction."""

    sources: list[str] | None
    captured_before: datetime | None
    flight_id: str | None


class ExpectedFile(NamedTuple):
    """The file that a tile must still have to be deleted."""

    file_path: str
    content_sha256: str
    """Empty if it is unknown."""


class NewPin(NamedTuple):
    """An area that is to be pinned at some zooms, until a time if there is one."""

    name: str
    region: bytes
    """In the form of its writer, which is not read."""
    zooms: tuple[int, ...]
    expires_at: datetime | None


class Pin(NamedTuple):
    """A pin, and the tiles that it holds; none if it has ended."""

    name: str
    region: bytes
    zooms: list[int]
    cell_count: int
    created_at: datetime
    expires_at: datetime | None
    ended: bool
    tile_count: int
    used_bytes: int


class NewFlight(NamedTuple):
    """The name and times of a flight."""

    flight_id: str
    name: str
    started_at: datetime | None
    ended_at: datetime | None


class Flight(NamedTuple):
    """A flight, and the tiles that carry it."""

    flight_id: str
    name: str
    started_at: datetime | None
    ended_at: datetime | None
    recorded: bool
    """Whether its name and times were set; else only tiles tell of it."""
    tile_count: int
    used_bytes: int
    pending_count: int
    """Tiles that wait for upload."""
    pending_bytes: int
    first_captured_at: datetime | None
    last_captured_at: datetime | None
    bounds: BoundingBox | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on requests and answers, published by `GetServerInfo`."""

    max_batch_tiles: int = 10_000
    max_request_items: int = 4_096
    max_message_bytes: int = 8 * 1024 * 1024
    max_region_cells: int = 4_194_304
    max_answer_tiles: int = 1_000_000
    max_concurrent_calls: int = 64
    max_page_size: int = 1_000
    max_disk_bytes: int = 1 << 32
    """So that the sum over billions of tiles is far from overflowing."""
    max_tile_size_meters: int = 40_075_017
    """The Earth's circumference, the edge of the only cell of zoom 0."""
    max_tile_size_pixels: int = 65_536
    max_file_path_bytes: int = 512
    max_quality_bytes: int = 2_048
    max_sector_name_characters: int = 100
    max_age_months: int = 1_200
    max_radius_meters: int = 20_015_087
    """Half the Earth's circumference."""
    max_goal_bytes: int = 1 << 62
    max_watch_streams: int = 32
    max_watched_areas: int = 64
    max_watched_blocks: int = 1_024
    """A million cells: as many tiles as an answer holds at most."""
    max_region_points: int = 20_000
    max_half_width_meters: int = 1_000_000
    max_pin_name_characters: int = 100
    max_sector_points: int = 1_000
    max_flight_name_characters: int = 100


DEFAULT_LIMITS: Final = Limits()

"""One method a query: parameters in, rows to models."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg import AsyncCursor, errors
from psycopg.rows import args_row

from tilecache_daemon.database import Connection, Database
from tilecache_daemon.freshness import (
    FreshnessAction,
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorClassification,
)
from tilecache_daemon.mercator import BoundingBox, CellRectangle
from tilecache_daemon.models import NewTile, Tile
from tilecache_daemon.sql import load_queries

_SQL: Final = load_queries("tiles", "freshness", "database")
_POLICY_LOCK: Final = 0x7469_6C65_706F  # "tilepo": any number that nothing else locks


class LabelledTile(NamedTuple):
    """A tile to be stored and the label that it gets."""

    tile: NewTile
    label: str


class UploadState(NamedTuple):
    """What a tile was before it was marked as uploaded."""

    source: str
    content_sha256: str | None
    uploaded_at: datetime | None


class PendingUpload(NamedTuple):
    """A tile that waits for upload, and its place among its captures."""

    tile: Tile
    id: int


class RelabelProgress(NamedTuple):
    """How far a batch of re-evaluation came. `last_id` is None at the end."""

    last_id: int | None
    evaluated: int
    relabelled: int


class Store:
    """Opens `Queries` on the database's connections."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def available(self) -> bool:
        """Whether PostgreSQL answered when it was last asked."""
        return self._database.available

    @asynccontextmanager
    async def connection(self) -> "AsyncIterator[Queries]":
        """Queries that commit one by one. Raises TileCacheErrors."""
        async with self._database.connection() as connection:
            yield Queries(connection)

    @asynccontextmanager
    async def transaction(self) -> "AsyncIterator[Queries]":
        """Queries that commit together, or not at all. Raises TileCacheErrors."""
        async with self._database.transaction() as connection:
            yield Queries(connection)


class Queries:
    """The statements of the catalogue on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find_tiles(self, tile_uuids: Sequence[str]) -> dict[str, Tile]:
        """The tiles that are there, by id."""
        tiles = await self._tiles("find_tiles", {"tile_uuids": list(tile_uuids)})
        return {tile.tile_uuid: tile for tile in tiles}

    async def lock_tiles(self, tile_uuids: Sequence[str]) -> dict[str, Tile]:
        """As `find_tiles`; the tiles stay as they are until the transaction ends."""
        tiles = await self._tiles("lock_tiles", {"tile_uuids": list(tile_uuids)})
        return {tile.tile_uuid: tile for tile in tiles}

    async def read_region(self, zoom: int, cells: Sequence[CellRectangle]) -> list[Tile]:
        """All tiles of a zoom in some cells."""
        return await self._tiles("read_region", _region(zoom, cells))

    async def read_cell_labels(
        self, zoom: int, cells: Sequence[CellRectangle]
    ) -> list[tuple[int, int, str]]:
        """(y, x, label) for each label that occurs in each covered cell."""
        return await self._rows("read_cell_labels", _region(zoom, cells))

    async def copy_tiles(self, tiles: Iterable[LabelledTile], created_at: datetime) -> bool:
        """Stores new tiles in bulk. False, and nothing stored, if one is there already."""
        try:
            async with self._connection.transaction():
                cursor = self._connection.cursor()
                async with cursor.copy(_SQL["copy_tiles"].encode()) as copy:
                    await copy.write(_copy_lines(tiles, created_at))
        except errors.UniqueViolation:
            return False
        return True

    async def insert_tiles(self, tiles: Sequence[LabelledTile], created_at: datetime) -> set[str]:
        """Stores those tiles that are not there yet; gives their ids."""
        columns: dict[str, Any] = {
            name: list(column)
            for name, column in zip(
                NewTile._fields, zip(*(entry.tile for entry in tiles), strict=True), strict=True
            )
        }
        columns |= {"freshness_label": [entry.label for entry in tiles], "created_at": created_at}
        return {row[0] for row in await self._rows("insert_tiles", columns)}

    async def replace_tile(self, tile: NewTile, label: str) -> None:
        """Gives a stored tile another content, which waits for upload anew."""
        await self._execute("replace_tile", tile._asdict() | {"freshness_label": label})

    async def write_accesses(self, accesses: Mapping[str, datetime], recent: timedelta) -> set[str]:
        """Writes accesses, the earliest first. Gives the ids that another writer holds
        at the moment; an access within `recent` of a written one is left out."""
        parameters = {
            "tile_uuids": list(accesses),
            "accessed_at": list(accesses.values()),
            "recent": recent,
        }
        return {row[0] for row in await self._rows("write_accesses", parameters)}

    async def list_pending_uploads(
        self, after: tuple[datetime, int], flight_id: str | None, limit: int
    ) -> list[PendingUpload]:
        """Onboard tiles that wait for upload, oldest capture first, from a place on."""
        rows = await self._rows(
            "list_pending_uploads",
            {
                "after_captured_at": after[0],
                "after_id": after[1],
                "flight_id": flight_id,
                "limit": limit,
            },
        )
        return [PendingUpload(Tile(*row[:-1]), row[-1]) for row in rows]

    async def mark_uploaded(
        self, contents: Sequence[tuple[str, str]], now: datetime
    ) -> dict[str, UploadState]:
        """Marks (tile_uuid, content_sha256) as uploaded where that is the tile's
        content; gives what each tile was before."""
        parameters = {
            "tile_uuids": [tile_uuid for tile_uuid, _ in contents],
            "content_sha256": [sha256 for _, sha256 in contents],
            "now": now,
        }
        rows = await self._rows("mark_uploaded", parameters)
        return {row[0]: UploadState(*row[1:]) for row in rows}

    async def hold_policy(self) -> FreshnessPolicy:
        """The sectors and rules, which stay as they are until the transaction ends."""
        await self._execute("hold_policy", {"key": _POLICY_LOCK})
        return await self.read_policy()

    async def read_policy(self) -> FreshnessPolicy:
        """The sectors and rules in force."""
        sectors = [_sector(row) for row in await self._rows("list_sectors")]
        rules = [
            FreshnessRule(SectorClassification(row[0]), row[1], FreshnessAction(row[2]))
            for row in await self._rows("list_rules")
        ]
        return FreshnessPolicy(tuple(sectors), tuple(rules))

    async def relabel_tiles(
        self, after_id: int, limit: int, now: datetime, *, clock_trusted: bool
    ) -> RelabelProgress:
        """Brings the labels of the next tiles, by row id, up to date."""
        parameters = {
            "after_id": after_id,
            "limit": limit,
            "now": now,
            "clock_trusted": clock_trusted,
        }
        return RelabelProgress(*(await self._rows("relabel_tiles", parameters))[0])

    async def read_schema_revision(self) -> str:
        """The revision of the schema."""
        return str((await self._rows("schema_revision"))[0][0])

    async def read_latest_time_seen(self) -> datetime | None:
        """The latest moment that the database has recorded as past."""
        latest: datetime | None = (await self._rows("latest_time_seen"))[0][0]
        return latest

    async def _execute(self, name: str, parameters: Mapping[str, Any]) -> None:
        await self._connection.execute(_SQL[name].encode(), parameters)

    async def _rows(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        cursor = await self._connection.execute(_SQL[name].encode(), parameters)
        return await cursor.fetchall()

    async def _tiles(self, name: str, parameters: Mapping[str, Any]) -> list[Tile]:
        async with AsyncCursor(self._connection, row_factory=args_row(Tile)) as cursor:
            await cursor.execute(_SQL[name].encode(), parameters, binary=True)
            return await cursor.fetchall()


def _region(zoom: int, cells: Sequence[CellRectangle]) -> dict[str, Any]:
    columns = zip(CellRectangle._fields, zip(*cells, strict=True), strict=True)
    return {"zoom": zoom} | {name: list(column) for name, column in columns}


def _sector(row: tuple[Any, ...]) -> Sector:
    name, classification, *box, created_at = row
    bounding_box = None if None in box else BoundingBox(*box)
    return Sector(name, SectorClassification(classification), bounding_box, created_at)


def _copy_lines(tiles: Iterable[LabelledTile], created_at: datetime) -> str:
    """The text format of COPY. Only a path and JSON can hold what it escapes."""
    created = created_at.isoformat()
    return "".join(
        f"{t.tile_uuid}\t{t.location_hash}\t{t.zoom}\t{t.x}\t{t.y}\t{t.source}\t"
        f"{t.flight_id or _NULL}\t{t.latitude!r}\t{t.longitude!r}\t{t.tile_size_meters!r}\t"
        f"{t.tile_size_pixels}\t{_escape(t.file_path)}\t{t.content_sha256}\t{t.disk_bytes}\t"
        f"{t.captured_at.isoformat()}\t{_escape(t.quality_metadata)}\t{label}\t{created}\n"
        for t, label in tiles
    )


_NULL: Final = r"\N"


def _escape(text: str | None) -> str:
    if text is None:
        return _NULL
    if "\\" in text:
        text = text.replace("\\", r"\\")
    return text

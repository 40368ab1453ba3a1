"""Those who do the same work beside the daemon."""

import asyncio
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import grpc
import psycopg

from tests.benchmarks.tiles import Record
from tilecache.identity import location_hash_text, tile_uuid_text

COLUMNS: Final = (
    "tile_uuid::text, location_hash::text, zoom, x, y, source, flight_id::text, latitude,"
    " longitude, tile_size_meters, tile_size_pixels, file_path, content_sha256, disk_bytes,"
    " captured_at, created_at, accessed_at, uploaded_at, freshness_status,"
    " tile_quality_metadata"
)
"""Ids cast in SQL, which is the faster way to read them."""

COPY: Final = """
    COPY tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,
                tile_size_meters, tile_size_pixels, file_path, content_sha256, disk_bytes,
                captured_at, freshness_status, created_at)
    FROM STDIN (FORMAT binary)
"""
COPY_TYPES: Final = (
    *("uuid", "uuid", "int4", "int4", "int4", "text", "float8", "float8", "float8", "int4"),
    *("text", "text", "int8", "timestamptz", "text", "timestamptz"),
)


class PsycopgPeer:
    """The library in the caller's process: prepared statements, binary results."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)

    def query_box(self, zoom: int, x: int, y: int, edge: int) -> list[tuple[Any, ...]]:
        return self.connection.execute(
            f"SELECT {COLUMNS} FROM tiles WHERE zoom = %s AND x BETWEEN %s AND %s"
            " AND y BETWEEN %s AND %s AND freshness_status NOT IN ('rejected', 'stale_reject')",
            (zoom, x, x + edge - 1, y, y + edge - 1),
            binary=True,
        ).fetchall()

    def lookup(self, tile_uuids: Sequence[str]) -> list[tuple[Any, ...] | None]:
        rows = self.connection.execute(
            f"SELECT {COLUMNS} FROM tiles WHERE tile_uuid = ANY(%s::uuid[])",
            (list(tile_uuids),),
            binary=True,
        ).fetchall()
        by_id = {row[0]: row for row in rows}
        return [by_id.get(tile_uuid) for tile_uuid in tile_uuids]

    def copy(self, records: Iterable[Record], now: datetime) -> None:
        """Stores records as one binary COPY, deriving the same ids."""
        with (
            self.connection.transaction(),
            self.connection.cursor().copy(COPY) as copy,
        ):
            copy.set_types(COPY_TYPES)
            for r in records:
                tile_uuid = tile_uuid_text(r.zoom, r.x, r.y, "googlemaps", None)
                location_hash = location_hash_text(r.zoom, r.x, r.y)
                copy.write_row(
                    (
                        UUID(tile_uuid),
                        UUID(location_hash),
                        *(r.zoom, r.x, r.y, "googlemaps", r.latitude, r.longitude),
                        *(r.edge_meters, 256, r.file_path, r.content_sha256, r.disk_bytes),
                        *(r.captured_at, "fresh", now),
                    )
                )


class SqlitePeer:
    """SQLite in the caller's process."""

    def __init__(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self.connection = sqlite3.connect(":memory:")
        self.connection.execute(
            "CREATE TABLE tiles (tile_uuid, location_hash, zoom, x, y, source, flight_id,"
            " latitude, longitude, tile_size_meters, tile_size_pixels, file_path,"
            " content_sha256, disk_bytes, captured_at, created_at, accessed_at, uploaded_at,"
            " freshness_status, tile_quality_metadata)"
        )
        marks = ", ".join("?" * 20)
        self.connection.executemany(f"INSERT INTO tiles VALUES ({marks})", rows)
        self.connection.execute("CREATE INDEX by_cell ON tiles (zoom, x, y)")

    def query_box(self, zoom: int, x: int, y: int, edge: int) -> list[tuple[Any, ...]]:
        return self.connection.execute(
            "SELECT * FROM tiles WHERE zoom = ? AND x BETWEEN ? AND ? AND y BETWEEN ? AND ?",
            (zoom, x, x + edge - 1, y, y + edge - 1),
        ).fetchall()


async def serve_echo(socket_path: str, answer_bytes: int) -> None:
    """An empty call on the same kind of server: answers so many bytes."""
    answer = bytes(answer_bytes)

    async def call(_: bytes, __: Any) -> bytes:
        return answer

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("echo.Echo", {"Call": handler}),)
    )
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve_echo(sys.argv[1], int(sys.argv[2])))

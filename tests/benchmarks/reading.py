"""Figures of reading: boxes, many ids, one id."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.benchmarks.measure import Ratio, alternate, percentile, quotients, seconds, timed
from tests.benchmarks.peers import PsycopgPeer, SqlitePeer
from tests.benchmarks.stage import Stage, resident_bytes, settle
from tests.benchmarks.tiles import ZOOM, X, Y
from tests.benchmarks.writing import importing
from tests.daemon_process import DaemonProcess
from tests.tiles import cell_region
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.identity import tile_uuid_text
from tilecache.v1.tile_metadata_store_pb2 import (
    GetServerInfoRequest,
    GetTileRequest,
    LookupTilesRequest,
    LookupTilesResponse,
    QueryTilesRequest,
    QueryTilesResponse,
    TileMetadata,
    TileRef,
)

EDGE = 447
BOX = 100
ROUNDS = 15
TIMEOUT_S = 300.0


def query_box(client: TileCacheClient, x: int, y: int, edge: int = BOX) -> list[QueryTilesResponse]:
    """A box of tiles, decoded: each tile's fields can be read."""
    request = QueryTilesRequest(zoom=ZOOM, region=cell_region(x, x + edge - 1, y, y + edge - 1))
    return list(client.store.QueryTiles(request, timeout=TIMEOUT_S))


def count(answers: Iterable[QueryTilesResponse]) -> int:
    """How many tiles some answers hold."""
    return sum(len(answer.tiles) for answer in answers)


def tiles_of(answers: Iterable[QueryTilesResponse]) -> list[TileMetadata]:
    """Their tiles."""
    return [tile for answer in answers for tile in answer.tiles]


def lookup(client: TileCacheClient, tile_uuids: Iterable[str]) -> LookupTilesResponse:
    """Many ids at once, decoded."""
    request = LookupTilesRequest()
    for tile_uuid in tile_uuids:
        request.tiles.add().tile_uuid = tile_uuid
    answer: LookupTilesResponse = client.store.LookupTiles(request, timeout=TIMEOUT_S)
    return answer


def warm(client: TileCacheClient, read: Callable[[], object]) -> None:
    """Repeats a read until all of it is answered from the cache."""

    def misses_of_a_read() -> int:
        before = client.store.GetServerInfo(GetServerInfoRequest()).cache.misses
        read()
        return int(client.store.GetServerInfo(GetServerInfoRequest()).cache.misses - before)

    eventually(lambda: misses_of_a_read() == 0)


def check_same(tiles: Iterable[TileMetadata], rows: Iterable[Sequence[Any]]) -> int:
    """That both sides read the same fields; how many tiles they are."""
    ours = {tile.tile_uuid: fields_of(tile) for tile in tiles}
    theirs = {row[0]: tuple(row[1:5]) + tuple(row[7:14]) for row in rows}
    assert ours == theirs, "the two sides do not read the same"
    return len(ours)


def fields_of(tile: TileMetadata) -> tuple[Any, ...]:
    return (
        *(tile.location_hash, tile.key.zoom, tile.key.x, tile.key.y),
        *(tile.latitude, tile.longitude, tile.tile_size_meters, tile.tile_size_pixels),
        *(tile.file_path, tile.content_sha256, tile.disk_bytes),
    )


def measure_reading(stage: Stage, database: str) -> list[Ratio]:
    """Everything that is read of 200,000 tiles."""
    peer = PsycopgPeer(database)
    with stage.daemon(database) as daemon:
        client = daemon.client
        return [
            _cold_box(client, peer),
            _warm_box(client, peer),
            _lookup(client, peer),
            *_one_tile(stage, daemon),
        ]


def _cold_box(client: TileCacheClient, peer: PsycopgPeer) -> Ratio:
    # Boxes that lie apart; PostgreSQL has read each once, the daemon none.
    corners = [(X + 110 * i, Y + 110 * j) for i in range(4) for j in range(4)]
    ours, theirs = [], []
    for x, y in corners:
        edge = BOX if max(x - X, y - Y) + BOX <= EDGE else EDGE - max(x - X, y - Y)
        rows = peer.query_box(ZOOM, x, y, edge)
        theirs.append(seconds(peer.query_box, ZOOM, x, y, edge))
        taken, answers = timed(query_box, client, x, y, edge)
        ours.append(taken)
        check_same(tiles_of(answers), rows)
    return Ratio(
        "query10k_cold_over_psycopg",
        "a box of 10,000 tiles, first time asked: the daemon's time over psycopg's",
        *(1.5, False, quotients(ours, theirs)),
        parts={"daemon": ours, "psycopg": theirs},
    )


def _warm_box(client: TileCacheClient, peer: PsycopgPeer) -> Ratio:
    x, y = X + 150, Y + 150
    rows = peer.query_box(ZOOM, x, y, BOX)
    assert check_same(tiles_of(query_box(client, x, y)), rows) == BOX * BOX
    warm(client, lambda: query_box(client, x, y))
    sqlite = SqlitePeer(rows_for_sqlite(rows))
    theirs, ours, in_process = alternate(
        ROUNDS,
        lambda: peer.query_box(ZOOM, x, y, BOX),
        lambda: query_box(client, x, y),
        lambda: sqlite.query_box(ZOOM, x, y, BOX),
        warm_up=2,
    )
    return Ratio(
        "query10k_psycopg_over_daemon",
        "a box of 10,000 of 200,000 tiles, warm: psycopg's time over the daemon's",
        *(3.0, True, quotients(theirs, ours)),
        parts={"daemon": ours, "psycopg": theirs, "SQLite in process": in_process},
    )


def rows_for_sqlite(rows: Iterable[Sequence[Any]]) -> Iterable[tuple[Any, ...]]:
    """Times as text, which is how SQLite keeps them."""
    for row in rows:
        yield (*row[:14], *(moment and str(moment) for moment in row[14:18]), *row[18:])


def _lookup(client: TileCacheClient, peer: PsycopgPeer) -> Ratio:
    chance = random.Random(4)
    cells = chance.sample([(X + i, Y + j) for i in range(BOX * 4) for j in range(BOX * 4)], 1_000)
    ids = [tile_uuid_text(ZOOM, x, y, "googlemaps", None) for x, y in cells]
    warm(client, lambda: lookup(client, ids))
    rows = [row for row in peer.lookup(ids) if row]
    assert check_same([found.tile for found in lookup(client, ids).results], rows) == len(ids)
    theirs, ours = alternate(
        ROUNDS * 2, lambda: peer.lookup(ids), lambda: lookup(client, ids), warm_up=3
    )
    return Ratio(
        "lookup1000_psycopg_over_daemon",
        "1,000 random ids at once, warm: psycopg's time over the daemon's",
        *(2.0, True, quotients(theirs, ours)),
        parts={"daemon": ours, "psycopg": theirs},
    )


def _one_tile(stage: Stage, daemon: DaemonProcess) -> list[Ratio]:
    request = GetTileRequest(
        tile=TileRef(tile_uuid=tile_uuid_text(ZOOM, X + 7, Y + 7, "googlemaps", None))
    )
    encoded = request.SerializeToString()
    get = daemon.client.store.GetTile
    answer_bytes = get(request).ByteSize()
    with stage.echo(answer_bytes) as echo:

        def many_gets() -> list[float]:
            return [seconds(lambda: get(request, timeout=TIMEOUT_S)) for _ in range(500)]

        def many_echoes() -> list[float]:
            return [seconds(lambda: echo(encoded, timeout=TIMEOUT_S)) for _ in range(500)]

        many_gets(), many_echoes()
        rounds = [(many_gets(), many_echoes()) for _ in range(11)]
    gets = [percentile(ours, 50) for ours, _ in rounds]
    echoes = [percentile(theirs, 50) for _, theirs in rounds]
    idle = [percentile(ours, 99) for ours, _ in rounds]
    with importing(stage, daemon):
        busy = [percentile(many_gets(), 99) for _ in range(7)]
    quiet = sorted(idle)[len(idle) // 2]
    return [
        Ratio(
            "get_p50_over_echo",
            "one tile by id, warm: over an empty call with the same message sizes",
            *(1.25, False, quotients(gets, echoes)),
            parts={"daemon": gets, "empty call": echoes},
        ),
        Ratio(
            "get_p99_under_import_over_idle",
            "one tile by id, the slowest of a hundred: while an import runs over idle",
            *(5.0, False, [value / quiet for value in busy]),
            parts={"importing": busy, "idle": idle},
        ),
    ]


def measure_size(stage: Stage, small: str, large: str) -> list[Ratio]:
    """What a million tiles cost beside ten thousand."""
    with stage.daemon(small) as few, stage.daemon(large) as many:
        before = settle(many.pid)
        held = 0
        for x in range(0, 1_000, 250):
            for y in range(0, 1_000, 250):
                held += count(query_box(many.client, X + x, Y + y, 250))
        assert held == 1_000_000
        grown = settle(many.pid) - before
        assert count(query_box(few.client, X, Y)) == BOX * BOX
        warm(few.client, lambda: query_box(few.client, X, Y))
        warm(many.client, lambda: query_box(many.client, X + 300, Y + 300))
        theirs, ours = alternate(
            ROUNDS,
            lambda: query_box(few.client, X, Y),
            lambda: query_box(many.client, X + 300, Y + 300),
            warm_up=2,
        )
        return [
            Ratio(
                "query10k_1m_over_10k",
                "the warm box with 1,000,000 tiles stored, over 10,000 stored",
                *(1.3, False, quotients(ours, theirs)),
                parts={"1,000,000": ours, "10,000": theirs},
            ),
            Ratio(
                "cache_bytes_per_tile",
                "resident memory that 1,000,000 cached tiles add, per tile",
                *(600.0, False, [grown / held]),
            ),
        ]


def measure_rest(stage: Stage, database: str) -> list[Ratio]:
    """What the daemon holds in memory when nothing is asked."""
    held = []
    for _ in range(3):
        with stage.daemon(database) as daemon:
            settle(daemon.pid)
            held.append(resident_bytes(daemon.pid) / 1024**2)
    return [
        Ratio(
            "rss_idle_mib",
            "resident memory of the idle daemon, without PostgreSQL, in MiB",
            *(120.0, False, held),
        )
    ]

"""A caller that has the client's wheel and nothing else of this project.

    python call_daemon.py SOCKET ADMIN_SOCKET COLUMN

Calls a running daemon, on cells of zoom 18 from column COLUMN on, and prints as JSON how the calls
went. It keeps to Python 3.8.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tilecache.client import ADMIN_SERVICE, TileCacheClient
from tilecache.errors import CallError
from tilecache.identity import derive_location_hash, derive_tile_id, prove_identity
from tilecache.v1 import tile_cache_admin_pb2 as admin_pb
from tilecache.v1 import tile_metadata_store_pb2 as store_pb
from tilecache.v1.tile_identity_pb2 import TILE_SOURCE_GOOGLEMAPS, TileKey

TIMEOUT_S = 60
ZOOM, ROW = 18, 95_000


def main(socket_path: str, admin_socket_path: str, column: int) -> None:
    prove_identity()
    with TileCacheClient(socket_path) as client, TileCacheClient(admin_socket_path) as admin:
        client.wait_until_ready(TIMEOUT_S)
        report = {
            "serving": client.is_serving(),
            "missing service": waiting_in_vain(client),
            "identity": identities(client, column),
            "stored": stored(client, column),
            "replica": held(client, column),
            "refused insert": refusal(lambda: insert(client, tile(-1))),
            "refused query": refusal(lambda: query(client, store_pb.Region())),
            "missing tile": refusal(lambda: get(client, column + 99)),
            "store": outcomes(client.store, store_pb),
            "admin": outcomes(admin.admin, admin_pb),
        }
    print(json.dumps(report))


def waiting_in_vain(client: TileCacheClient) -> str:
    try:
        client.wait_until_ready(timeout_s=2, service=ADMIN_SERVICE)
    except CallError as error:
        return str(error)
    return "the store's socket serves the administrator"


def identities(client: TileCacheClient, column: int) -> bool:
    """Whether daemon and client derive the same."""
    request = store_pb.DeriveTileIdentityRequest(keys=[key(column)])
    (derived,) = client.store.DeriveTileIdentity(request, timeout=TIMEOUT_S).identities
    cell = (ZOOM, column, ROW)
    return bool(
        derived.tile_uuid == str(derive_tile_id(*cell, "googlemaps", None))
        and derived.location_hash == str(derive_location_hash(*cell))
    )


def stored(client: TileCacheClient, column: int) -> dict[str, object]:
    """What streams in and out."""
    batches = [
        store_pb.BulkInsertTilesRequest(tiles=[tile(column + 2 * batch + part) for part in (0, 1)])
        for batch in range(3)
    ]
    answers = client.store.BulkInsertTiles(iter(batches), timeout=TIMEOUT_S)
    inserted = [answer.inserted_count for answer in answers]
    cells = store_pb.CellRange(x_from=column, x_to=column + 9, y_from=ROW, y_to=ROW)
    found = query(client, store_pb.Region(cell_range=cells))
    return {"inserted": inserted, "found": sorted(found.key.x - column for found in found)}


def held(client: TileCacheClient, column: int) -> dict[str, object]:
    """What a replica holds of the same tiles, and whether it is up to date."""
    cells = store_pb.CellRange(x_from=column, x_to=column + 9, y_from=ROW, y_to=ROW)
    area = store_pb.WatchedArea(zoom=ZOOM, region=store_pb.Region(cell_range=cells))
    with client.replica() as replica:
        replica.follow_areas([area])
        replica.wait_until_synced(TIMEOUT_S)
        window = replica.cells(ZOOM, column, column + 9, ROW, ROW)
        return {
            "found": sorted(found.key.x - column for found in window),
            "up to date": window.complete and window.age_s < TIMEOUT_S and not window.degraded,
        }


def refusal(call: Any) -> dict[str, object]:
    """The error that a call ends with."""
    try:
        call()
    except CallError as error:
        return {
            "code": error.code.name,
            "reason": error.reason,
            "fields": [violation.field for violation in error.violations],
        }
    return {}


def outcomes(stub: Any, module: Any) -> dict[str, str]:
    """Each call of a service with an empty request: `answered`, or the reason of its refusal."""
    (service,) = module.DESCRIPTOR.services_by_name.values()
    return {method.name: outcome(stub, method, module) for method in service.methods}


def outcome(stub: Any, method: Any, module: Any) -> str:
    request = getattr(module, method.input_type.name)()
    call = getattr(stub, method.name)
    try:
        if method.name in ("BulkInsertTiles", "WatchTiles"):
            list(call(iter([request]), timeout=TIMEOUT_S))
        else:
            answer = call(request, timeout=TIMEOUT_S)
            if hasattr(answer, "cancel"):
                list(answer)
    except CallError as error:
        return error.reason or str(error)
    return "answered"


def insert(client: TileCacheClient, metadata: store_pb.TileMetadata) -> None:
    client.store.InsertTile(store_pb.InsertTileRequest(tile=metadata), timeout=TIMEOUT_S)


def get(client: TileCacheClient, column: int) -> None:
    request = store_pb.GetTileRequest(tile=store_pb.TileRef(key=key(column)))
    client.store.GetTile(request, timeout=TIMEOUT_S)


def query(client: TileCacheClient, region: store_pb.Region) -> list[store_pb.TileMetadata]:
    request = store_pb.QueryTilesRequest(zoom=ZOOM, region=region)
    answers = client.store.QueryTiles(request, timeout=TIMEOUT_S)
    return [tile for answer in answers for tile in answer.tiles]


def key(column: int) -> TileKey:
    return TileKey(zoom=ZOOM, x=column, y=ROW, source=TILE_SOURCE_GOOGLEMAPS)


def tile(column: int) -> store_pb.TileMetadata:
    return store_pb.TileMetadata(
        key=key(column),
        file_path=f"{ZOOM}/{column}/{ROW}.jpg",
        content_sha256="ab" * 32,
        disk_bytes=20_480,
        captured_at=Timestamp(seconds=1_748_779_200),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""A peer that none of us wrote: the daemon called from Node's @grpc/grpc-js."""

import json
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest

from tests.daemon_process import DaemonProcess
from tilecache.identity import GOOGLEMAPS
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub
from tilecache_daemon import TILE_NAMESPACE_UUID, derive_tile_id

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOOGLE_PROTOS = files("google.rpc") / ".." / ".."
TIMEOUT_S = 60

ZOOM, X, Y = 18, 1000, 2000
TILE = {
    "key": {"zoom": ZOOM, "x": X, "y": Y, "source": "TILE_SOURCE_GOOGLEMAPS"},
    "filePath": "18/1000/2000.jpg",
    "contentSha256": "a" * 64,
    "diskBytes": 20_000,
    "capturedAt": {"seconds": 1_748_779_200},
}
SECOND_TILE = {
    "key": {"zoom": ZOOM, "x": X + 10, "y": Y, "source": "TILE_SOURCE_GOOGLEMAPS"},
    "filePath": "18/1010/2000.jpg",
    "contentSha256": "b" * 64,
    "diskBytes": 20_000,
    "capturedAt": {"seconds": 1_748_779_200},
}
"""In the same block as the first one, which is therefore sent as a change."""

Peer = Callable[..., dict[str, Any]]


@pytest.fixture
def peer(packages: Path, daemon: DaemonProcess) -> Peer:
    """Has the peer run a command against the daemon; gives what it learned."""

    def run(command: str, **settings: object) -> dict[str, Any]:
        answer = subprocess.run(
            command_line(packages, daemon, command, settings),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        learned: dict[str, Any] = json.loads(answer.stdout)
        return learned

    return run


def test_health_is_read(peer: Peer) -> None:
    assert peer("health") == {"status": "SERVING"}


def test_the_store_is_called_by_reflection_alone(peer: Peer) -> None:
    learned = peer("reflection")

    assert {"tilecache.v1.TileMetadataStore", "grpc.health.v1.Health"} <= set(learned["services"])
    assert learned["info"]["namespace_uuid"] == str(TILE_NAMESPACE_UUID)


def test_an_insert_is_found_by_a_query(peer: Peer) -> None:
    inserted = peer("insert", request={"tile": TILE})
    cells = {"xFrom": X - 1, "xTo": X + 1, "yFrom": Y - 1, "yTo": Y + 1}

    found = peer("query", request={"zoom": ZOOM, "region": {"cellRange": cells}})

    assert inserted["outcome"] == "INSERT_OUTCOME_INSERTED"
    assert inserted["tile"]["tileUuid"] == str(derive_tile_id(ZOOM, X, Y, GOOGLEMAPS, None))
    assert found["tiles"] == [inserted["tile"]]


def test_an_errors_details_are_read(peer: Peer) -> None:
    refused = TILE | {"contentSha256": "no hash"}

    learned = peer("error", request={"tile": refused})

    assert learned["code"] == "INVALID_ARGUMENT"
    info = learned["details"]["ErrorInfo"]
    assert (info["domain"], info["reason"]) == ("tilecache", "INVALID_REQUEST")
    (violation,) = learned["details"]["BadRequest"]["fieldViolations"]
    assert violation["field"] == "tile.content_sha256"


def test_node_is_served_whatever_authority_it_sends(peer: Peer, daemon: DaemonProcess) -> None:
    for authority in (None, "localhost", percent_encoded(daemon.socket_path)):
        assert peer("info", authority=authority)["namespaceUuid"] == str(TILE_NAMESPACE_UUID)


@pytest.mark.parametrize("authority", [None, "localhost"], ids=["the encoded path", "localhost"])
def test_grpcs_core_is_served_whatever_authority_it_sends(
    daemon: DaemonProcess, authority: str | None
) -> None:
    # Without an authority of the caller's, gRPC's core sends the percent-encoded path.
    options = [("grpc.default_authority", authority)] if authority else []
    with grpc.insecure_channel(f"unix:{daemon.socket_path}", options=options) as channel:
        info = TileMetadataStoreStub(channel).GetServerInfo(GetServerInfoRequest(), timeout=60)

    assert info.namespace_uuid == str(TILE_NAMESPACE_UUID)


def test_an_area_is_followed(packages: Path, daemon: DaemonProcess, peer: Peer) -> None:
    cells = {"xFrom": X - 40, "xTo": X + 40, "yFrom": Y, "yTo": Y}
    first = peer("insert", request={"tile": TILE})["tile"]
    line = command_line(packages, daemon, "follow", {"zoom": ZOOM, "cells": cells})
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as follower:

        def wait_for(*contents: str) -> dict[str, Any]:
            """The first state in which it holds tiles with these contents, and no others."""
            assert follower.stdout is not None
            for state in map(json.loads, follower.stdout):
                if state["synced"] and {tile["contentSha256"] for tile in state["tiles"]} == set(
                    contents
                ):
                    return dict(state)
            raise AssertionError("the follower has ended")

        synced = wait_for("a" * 64)
        peer("insert", request={"tile": SECOND_TILE})
        wait_for("a" * 64, "b" * 64)
        delete = DeleteTilesRequest(tile_uuids=[first["tileUuid"]])
        list(daemon.admin_client.admin.DeleteTiles(delete, timeout=TIMEOUT_S))
        removed = wait_for("b" * 64)

        follower.communicate(timeout=TIMEOUT_S)

    assert follower.returncode == 0
    assert [tile["tileUuid"] for tile in synced["tiles"]] == [first["tileUuid"]]
    assert not removed["degraded"]
    assert 0 <= removed["ageS"] < TIMEOUT_S


def command_line(
    packages: Path, daemon: DaemonProcess, command: str, settings: dict[str, object]
) -> list[str | Path]:
    settings |= {
        "socket": str(daemon.socket_path),
        "protos": str(ROOT / "protos"),
        "googleProtos": str(GOOGLE_PROTOS),
    }
    return ["node", packages / "peer.mjs", command, json.dumps(settings)]


def percent_encoded(path: Path) -> str:
    return quote(str(path), safe="")

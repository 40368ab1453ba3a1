"""The TCP listener for peers on the ground: access, and the errors of an invalid setup."""

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tests.certificates import LOOPBACK, Authority, Identity
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.tiles import Block, key_name, tile
from tilecache.client import STORE_SERVICE
from tilecache.v1 import tile_cache_admin_pb2 as admin_pb
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache.v1.tile_cache_admin_pb2_grpc import TileCacheAdminStub
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

ALLOWED_DNS = "provider.ground.example"
ALLOWED_URI = "spiffe://ground.example/provider"
ALLOWED_COMMON_NAME = "provider"
TIMEOUT_S = 60
EXIT_USAGE = 2
EXIT_FAILED = 5


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def shared_daemon(shared_database: str, authority: Authority, port: int) -> Iterator[DaemonProcess]:
    with tempfile.TemporaryDirectory(prefix="tilecache-") as name:
        directory = Path(name)
        settings = tls_settings(directory, authority) | {"tcp_address": f"{LOOPBACK}:{port}"}
        with DaemonProcess(directory, dsn=shared_database, **settings) as process:
            yield process


def tls_settings(directory: Path, authority: Authority) -> dict[str, object]:
    server = authority.issue("tilecache", addresses=[LOOPBACK])
    certificate, key = server.write(directory, "server")
    client_ca, _ = authority.identity.write(directory, "ca")
    return {
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_client_ca": client_ca,
        "tls_allowed_names": f"{ALLOWED_DNS},{ALLOWED_URI}, {ALLOWED_COMMON_NAME}",
    }


@pytest.fixture
def connect(
    shared_daemon: DaemonProcess, authority: Authority, port: int
) -> Iterator[Callable[[Identity | None], grpc.Channel]]:
    """Opens channels with or without a client certificate."""
    channels = []

    def open_channel(identity: Identity | None) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            authority.identity.certificate_pem,
            identity.key_pem if identity else None,
            identity.certificate_pem if identity else None,
        )
        channels.append(grpc.secure_channel(f"{LOOPBACK}:{port}", credentials))
        return channels[-1]

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture
def allowed(
    connect: Callable[[Identity | None], grpc.Channel], authority: Authority
) -> grpc.Channel:
    return connect(authority.issue(dns=[ALLOWED_DNS]))


def get_server_info(channel: grpc.Channel) -> pb.GetServerInfoResponse:
    answer: pb.GetServerInfoResponse = TileMetadataStoreStub(channel).GetServerInfo(
        pb.GetServerInfoRequest(), timeout=TIMEOUT_S
    )
    return answer


def test_an_allowed_peer_can_store_and_read(allowed: grpc.Channel, block: Block) -> None:
    store = TileMetadataStoreStub(allowed)
    key = block.key()
    batch = pb.BulkInsertTilesRequest(tiles=[tile(key)])
    (answer,) = store.BulkInsertTiles(iter([batch]), timeout=TIMEOUT_S)
    assert answer.inserted_count == 1
    chunks = store.QueryTiles(pb.QueryTilesRequest(zoom=key.zoom, region=block.region))
    assert [key_name(found.key) for chunk in chunks for found in chunk.tiles] == [key_name(key)]
    health = health_pb2_grpc.HealthStub(allowed)
    check = health.Check(health_pb2.HealthCheckRequest(service=STORE_SERVICE), timeout=TIMEOUT_S)
    assert check.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "names",
    [
        {"dns": ["other.example", ALLOWED_DNS]},
        {"uris": [ALLOWED_URI]},
        {"common_name": ALLOWED_COMMON_NAME},
        {"common_name": "other", "dns": [ALLOWED_DNS]},
    ],
)
def test_one_allowed_name_is_enough(
    connect: Callable[[Identity | None], grpc.Channel], authority: Authority, names: dict[str, Any]
) -> None:
    assert get_server_info(connect(authority.issue(**names))).database_available


REFUSED_NAMES = [
    {"dns": ["other.example"]},
    {"uris": ["spiffe://ground.example/other"]},
    {"common_name": "other"},
    {"dns": [f"x.{ALLOWED_DNS}"]},
    {"dns": ["*.ground.example"]},
    # The common name does not count beside better ones.
    {"common_name": ALLOWED_COMMON_NAME, "dns": ["other.example"]},
    {},
]

CALLS: dict[str, Callable[[grpc.Channel], Any]] = {
    "unary": get_server_info,
    "stream": lambda channel: list(
        TileMetadataStoreStub(channel).QueryTiles(pb.QueryTilesRequest(), timeout=TIMEOUT_S)
    ),
    "duplex": lambda channel: list(
        TileMetadataStoreStub(channel).BulkInsertTiles(
            iter([pb.BulkInsertTilesRequest()]), timeout=TIMEOUT_S
        )
    ),
    "health": lambda channel: health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
    ),
    "watch": lambda channel: next(
        health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
    ),
}


@pytest.mark.parametrize("names", REFUSED_NAMES, ids=str)
def test_a_peer_without_an_allowed_name_is_refused(
    connect: Callable[[Identity | None], grpc.Channel], authority: Authority, names: dict[str, Any]
) -> None:
    assert_refused(connect(authority.issue(**names)), get_server_info)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_of_a_peer_without_an_allowed_name_is_refused(
    connect: Callable[[Identity | None], grpc.Channel],
    authority: Authority,
    call: Callable[[grpc.Channel], Any],
) -> None:
    assert_refused(connect(authority.issue(dns=["other.example"])), call)


def assert_refused(channel: grpc.Channel, call: Callable[[grpc.Channel], Any]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("PEER_NOT_ALLOWED", "tilecache")


def test_the_admin_service_is_not_served(allowed: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        TileCacheAdminStub(allowed).GetStorageUsage(
            admin_pb.GetStorageUsageRequest(), timeout=TIMEOUT_S
        )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def assert_unreachable(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        get_server_info(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_authority_is_refused(
    connect: Callable[[Identity | None], grpc.Channel],
) -> None:
    assert_unreachable(connect(Authority().issue(dns=[ALLOWED_DNS])))


def test_an_expired_certificate_is_refused(
    connect: Callable[[Identity | None], grpc.Channel], authority: Authority
) -> None:
    assert_unreachable(connect(authority.issue(dns=[ALLOWED_DNS], expired=True)))


def test_a_peer_without_a_certificate_is_refused(
    connect: Callable[[Identity | None], grpc.Channel],
) -> None:
    assert_unreachable(connect(None))


def test_plaintext_is_refused(shared_daemon: DaemonProcess, port: int) -> None:
    with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
        assert_unreachable(channel)


def test_refused_handshakes_do_not_break_the_log(
    connect: Callable[[Identity | None], grpc.Channel], shared_daemon: DaemonProcess
) -> None:
    assert_unreachable(connect(None))
    for line in shared_daemon.log.splitlines():
        assert json.loads(line)["kind"]


@pytest.mark.parametrize(
    "missing", ["tls_certificate", "tls_key", "tls_client_ca", "tls_allowed_names"]
)
def test_a_start_fails_without_all_tls_settings(
    short_directory: Path, authority: Authority, missing: str
) -> None:
    settings = tls_settings(short_directory, authority) | {"tcp_address": f"{LOOPBACK}:1"}
    finished = run_tilecache("serve", **settings | {missing: None})
    assert finished.returncode == EXIT_USAGE
    assert f"{missing}: " in finished.stderr


@pytest.mark.parametrize("address", ["4770", "localhost:", "localhost:0", "localhost:http", ":1"])
def test_a_start_fails_with_an_invalid_address(address: str) -> None:
    finished = run_tilecache("serve", tcp_address=address)
    assert finished.returncode == EXIT_USAGE
    assert "tcp_address: " in finished.stderr


class BadFiles:
    """Makes one file unusable; returns the setting that must be reported."""

    @staticmethod
    def key_open_to_all(settings: dict[str, Any]) -> str:
        settings["tls_key"].chmod(0o644)
        return "tls_key: "

    @staticmethod
    def missing_key(settings: dict[str, Any]) -> str:
        settings["tls_key"].unlink()
        return "tls_key: "

    @staticmethod
    def anothers_key(settings: dict[str, Any]) -> str:
        settings["tls_key"].write_bytes(Authority().identity.key_pem)
        return "tls_certificate: "

    @staticmethod
    def empty_authority(settings: dict[str, Any]) -> str:
        settings["tls_client_ca"].write_text("")
        return "tls_client_ca: "


@pytest.mark.parametrize(
    "spoil",
    [
        BadFiles.key_open_to_all,
        BadFiles.missing_key,
        BadFiles.anothers_key,
        BadFiles.empty_authority,
    ],
)
def test_an_invalid_tls_file_is_reported(
    short_directory: Path,
    database: str,
    authority: Authority,
    spoil: Callable[[dict[str, Any]], str],
) -> None:
    settings = tls_settings(short_directory, authority)
    named = spoil(settings)
    finished = run_tilecache(
        "serve",
        dsn=database,
        socket_path=short_directory / "s",
        admin_socket_path=short_directory / "a",
        tcp_address=f"{LOOPBACK}:1",
        **settings,
    )
    assert finished.returncode == EXIT_FAILED
    assert f"tilecache: {named}" in finished.stderr


def test_an_address_in_use_is_reported(
    short_directory: Path, database: str, authority: Authority
) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        finished = run_tilecache(
            "serve",
            dsn=database,
            socket_path=short_directory / "s",
            admin_socket_path=short_directory / "a",
            tcp_address=f"{LOOPBACK}:{taken.getsockname()[1]}",
            **tls_settings(short_directory, authority),
        )
    assert finished.returncode == EXIT_FAILED
    assert "tilecache: tcp_address: " in finished.stderr

"""The admin socket: the services of each socket, and access to them."""

import grp
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.admin import read_usage
from tests.daemon_process import DaemonProcess
from tests.tiles import Block, insert, tile
from tilecache.client import ADMIN_SERVICE, STORE_SERVICE
from tilecache.v1 import tile_cache_admin_pb2
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest

ADMIN_METHODS = list(tile_cache_admin_pb2.DESCRIPTOR.services_by_name["TileCacheAdmin"].methods)


def channel(socket_path: Path) -> grpc.Channel:
    return grpc.insecure_channel(
        f"unix:{socket_path}", options=[("grpc.default_authority", "localhost")]
    )


def call(socket_path: Path, method: MethodDescriptor) -> Any:
    """Calls a method with an empty request."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    with channel(socket_path) as connection:
        stub = connection.unary_stream(path)
        return list(stub(GetMessageClass(method.input_type)().SerializeToString(), timeout=60))


@pytest.mark.parametrize("method", ADMIN_METHODS, ids=lambda method: method.name)
def test_the_navigation_socket_does_not_serve_the_admin_service(
    shared_daemon: DaemonProcess, method: MethodDescriptor
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        call(shared_daemon.socket_path, method)

    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ADMIN_METHODS, ids=lambda method: method.name)
def test_the_admin_socket_serves_all_admin_calls(
    shared_daemon: DaemonProcess, method: MethodDescriptor
) -> None:
    """An empty request is answered, or refused as invalid."""
    try:
        call(shared_daemon.admin_socket_path, method)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017


def test_the_admin_socket_serves_the_store(shared_daemon: DaemonProcess, block: Block) -> None:
    insert(shared_daemon.admin_client, tile(block.key()))

    info = shared_daemon.admin_client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)

    assert info.database_available


@pytest.mark.parametrize(
    ("socket_name", "services"),
    [("socket_path", {STORE_SERVICE}), ("admin_socket_path", {STORE_SERVICE, ADMIN_SERVICE})],
)
def test_reflection_and_health_cover_the_services_of_each_socket(
    shared_daemon: DaemonProcess, socket_name: str, services: set[str]
) -> None:
    with channel(getattr(shared_daemon, socket_name)) as connection:
        reflected = set(ProtoReflectionDescriptorDatabase(connection).get_services())
        health = health_pb2_grpc.HealthStub(connection)

        assert {name for name in reflected if name.startswith("tilecache.")} == services
        for service in services:
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_on_the_navigation_socket_excludes_the_admin_service(
    shared_daemon: DaemonProcess,
) -> None:
    with channel(shared_daemon.socket_path) as connection, pytest.raises(grpc.RpcError) as refusal:
        health_pb2_grpc.HealthStub(connection).Check(
            health_pb2.HealthCheckRequest(service=ADMIN_SERVICE), timeout=60
        )

    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_by_default_only_the_daemons_user_can_open_the_admin_socket(
    shared_daemon: DaemonProcess,
) -> None:
    assert mode(shared_daemon.admin_socket_path) == 0o600
    assert mode(shared_daemon.socket_path) == 0o660


def test_mode_and_group_are_set_per_socket(database: str, short_directory: Path) -> None:
    other = os.getgroups()[-1] if os.geteuid() else 1
    with DaemonProcess(
        short_directory,
        dsn=database,
        socket_mode="0666",
        admin_socket_mode="0620",
        admin_socket_group=grp.getgrgid(other).gr_name,
    ) as daemon:
        assert (mode(daemon.socket_path), mode(daemon.admin_socket_path)) == (0o666, 0o620)
        assert daemon.admin_socket_path.stat().st_gid == other
        assert daemon.socket_path.stat().st_gid == os.getegid()


def test_a_second_daemon_does_not_take_an_admin_socket_in_use(
    daemon: DaemonProcess, database: str, tmp_path: Path
) -> None:
    second = DaemonProcess(tmp_path, dsn=database)
    environment = second._environment | {
        "TILECACHE_ADMIN_SOCKET_PATH": str(daemon.admin_socket_path),
        "TILECACHE_SOCKET_PATH": str(daemon.socket_path.with_name("second.sock")),
    }
    ended = subprocess.run(
        second.command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    second.close()

    assert ended.returncode == 5
    assert f"{daemon.admin_socket_path}: in use by another daemon" in ended.stderr
    assert not daemon.socket_path.with_name("second.sock").exists()
    read_usage(daemon.admin_client)


def test_the_admin_socket_of_a_dead_daemon_is_taken_over(daemon: DaemonProcess) -> None:
    daemon.kill()
    assert daemon.admin_socket_path.is_socket()

    daemon.start()

    read_usage(daemon.admin_client)


def test_both_sockets_are_removed_by_a_graceful_shutdown(daemon: DaemonProcess) -> None:
    assert daemon.signal(signal.SIGTERM) == 0

    assert not daemon.socket_path.exists()
    assert not daemon.admin_socket_path.exists()

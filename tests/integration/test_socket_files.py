"""The daemon's socket files: lost, taken by others, and with unusual names."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.scraping import scrape
from tests.waiting import eventually
from tilecache.client import ADMIN_SERVICE, STORE_SERVICE, TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest

METRICS = "metrics.sock"


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[DaemonProcess]:
    """A daemon whose sockets are alone in their directory."""
    directory = short_directory / "run"
    directory.mkdir()
    process = DaemonProcess(directory, dsn=database, metrics_address=directory / METRICS)
    process.log_path = short_directory / "daemon.log"
    with process:
        yield process


def remove_sockets(directory: Path) -> None:
    for path in directory.glob("*.sock"):
        path.unlink()


def remove_files(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def await_service(path: Path, service: str) -> None:
    """Waits until a new connection is answered."""
    with TileCacheClient(path) as client:
        client.wait_until_ready(timeout_s=30, service=service)


@pytest.mark.parametrize("remove", [remove_sockets, remove_files, shutil.rmtree])
def test_lost_sockets_are_created_again(
    remove: Callable[[Path], None], daemon: DaemonProcess
) -> None:
    daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)

    remove(daemon.socket_path.parent)

    await_service(daemon.socket_path, STORE_SERVICE)
    await_service(daemon.admin_socket_path, ADMIN_SERVICE)
    metrics = daemon.socket_path.with_name(METRICS)
    eventually(metrics.exists)
    assert scrape(metrics).value("grpc_server_started_total", grpc_method="GetServerInfo") == 1
    daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)
    assert daemon.log.count("socket_lost") == 3
    assert daemon.stop() == 0
    assert not list(daemon.socket_path.parent.glob("*.sock"))


@pytest.mark.parametrize("name", ["tilecache.sock", METRICS])
def test_a_socket_that_another_program_has_put_there_is_left(
    name: str, daemon: DaemonProcess
) -> None:
    path = daemon.socket_path.with_name(name)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        eventually(lambda: f"{path}: in use by another program" in daemon.log)

        daemon.stop()

        assert path.is_socket()
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))


@pytest.mark.parametrize("name", ["100%", "%t", "a b", "#1?x", "ü"])
def test_any_name_is_a_path(name: str, database: str, short_directory: Path) -> None:
    directory = short_directory / name
    directory.mkdir()
    with DaemonProcess(directory, dsn=database) as daemon:
        assert daemon.client.is_serving()
        status = run_tilecache("status", socket_path=daemon.socket_path)
        assert status.returncode == 0, status.stderr
        assert "health check failed" not in daemon.log

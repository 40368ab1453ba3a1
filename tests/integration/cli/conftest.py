"""Commands run against the module's daemon, and tiles for them."""

import subprocess
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.daemon_process import DaemonProcess, run_tilecache
from tests.integration.cli.pairs import Pair, empty, running_pair
from tests.terminal import answer_tilecache
from tests.tiles import ONBOARD, Block, bulk_insert, tile
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(shared_daemon: DaemonProcess) -> Run:
    """Runs a command without a terminal."""

    def run(*arguments: object, prefix: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
        return run_tilecache(
            *arguments,
            prefix=prefix,
            socket_path=shared_daemon.socket_path,
            admin_socket_path=shared_daemon.admin_socket_path,
        )

    return run


@pytest.fixture
def answer(shared_daemon: DaemonProcess) -> Run:
    """Runs a command on a terminal; the first argument is typed as the answer."""

    def answer(text: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return answer_tilecache(text, *arguments, admin_socket_path=shared_daemon.admin_socket_path)

    return answer


@pytest.fixture
def keys(admin: TileCacheClient, block: Block) -> list[TileKey]:
    """Ten tiles of 100 kB, the least recently used first. An eleventh one waits for upload."""
    keys = list(block.keys(10))
    tiles = [tile(key, disk_bytes=100_000) for key in keys]
    tiles.append(tile(block.key(0, 1, ONBOARD), disk_bytes=50_000))
    (answer,) = bulk_insert(admin, tiles)
    assert answer.inserted_count == 11
    return keys


@pytest.fixture(scope="module")
def module_pair(shared_database: str, second_database: str) -> Iterator[Pair]:
    """Two daemons, shared by the tests of a module."""
    with running_pair(shared_database, second_database) as pair:
        yield pair


@pytest.fixture
def pair(module_pair: Pair, shared_database: str, second_database: str) -> Pair:
    """The module's two daemons, both empty."""
    empty(shared_database, second_database)
    return module_pair

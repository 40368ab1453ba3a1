"""`tilecache sync` that is interrupted, and run again."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.daemon_process import TILECACHE, daemon_environment
from tests.integration.cli.pairs import (
    Pair,
    digests,
    store_with_files,
    stored,
    summary_of,
    sync,
)
from tests.tiles import Block, bulk_insert, insert, tile, tile_key, tile_uuid
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata
from tilecache_daemon.sync.peer import Peer, PeerError

COUNT = 12_000


def many(content: str = "picture", **fields: Any) -> Iterator[list[TileMetadata]]:
    """Tiles of 12 blocks, in batches."""
    for row in range(0, 96, 32):
        yield [
            tile(tile_key(16, 4_096 + x, 4_096 + row + y), content, **fields)
            for x in range(125)
            for y in range(32)
        ]


def starts(pair: Pair, *options: object) -> "subprocess.Popen[str]":
    """Starts the command on the daemon that fetches."""
    return subprocess.Popen(
        [TILECACHE, "sync", "--from", pair.there.socket_path, *map(str, options)],
        env=daemon_environment(socket_path=pair.here.socket_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_tiles(pair: Pair, running: "subprocess.Popen[str]") -> None:
    """Returns when some tiles are stored."""
    while not digests(pair.here.client):
        assert running.poll() is None, "it must not end before it is interrupted"


INTERRUPTIONS: dict[str, tuple[Callable[[Pair, "subprocess.Popen[str]"], object], int]] = {
    "the command is killed": (lambda _, run: run.kill(), -signal.SIGKILL),
    "the command is interrupted": (lambda _, run: run.send_signal(signal.SIGINT), 130),
    "the other daemon is killed": (lambda pair, _: pair.there.kill(), 3),
}


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_a_run_that_was_interrupted_is_repeated(pair: Pair, name: str) -> None:
    interrupt, exit_code = INTERRUPTIONS[name]
    bulk_insert(pair.there.client, *many())
    with starts(pair) as running:
        wait_for_tiles(pair, running)
        interrupt(pair, running)
        running.communicate(timeout=60)
    assert running.returncode == exit_code
    if exit_code == 3:
        pair.there.start()
    left = len(stored(pair.here.client))
    assert 0 < left < COUNT

    again = sync(pair.here, pair.there, "--json")

    assert again.returncode == 0, again.stderr
    assert summary_of(again)["inserted_count"] == COUNT - left
    assert pair.equal


def test_a_run_survives_a_restart_of_its_own_daemon(pair: Pair) -> None:
    bulk_insert(pair.there.client, *many())
    with starts(pair, "--json") as running:
        wait_for_tiles(pair, running)
        pair.here.kill()
        pair.here.start()
        output, errors = running.communicate(timeout=120)

    assert running.returncode == 0, output + errors
    assert pair.equal


def test_a_daemon_that_restarts_is_waited_for_where_that_is_wanted(
    pair: Pair, block: Block
) -> None:
    insert(pair.here.client, tile(block.key()))
    patient, impatient = Peer(pair.here.client, restart_timeout_s=60), Peer(pair.here.client)
    for peer in (patient, impatient):
        peer.describe_server()
    pair.here.kill()
    with pytest.raises(PeerError):
        impatient.look_up([tile_uuid(block.key())])
    pair.here.launch()

    (found,) = patient.look_up([tile_uuid(block.key())])

    assert found is not None


def test_a_killed_run_that_copies_files_is_repeated(pair: Pair) -> None:
    keys = [tile_key(16, 9_000 + x, 9_000 + y) for x in range(50) for y in range(60)]
    store_with_files(pair.there.client, pair.there_tiles, keys)
    with starts(pair, "--copy-from", pair.there_tiles) as running:
        wait_for_tiles(pair, running)
        running.kill()
        running.communicate(timeout=60)
    assert 0 < len(stored(pair.here.client)) < len(keys)

    again = sync(pair.here, pair.there, "--copy-from", pair.there_tiles)

    assert again.returncode == 0, again.stderr
    assert pair.equal
    paths = {each.file_path for each in stored(pair.here.client).values()}
    files = {
        path.relative_to(pair.here_tiles).as_posix()
        for path in (pair.here_tiles / "16").rglob("*")
        if path.is_file()
    }
    assert files == paths, "no unfinished file is left"
    for path in paths:
        assert (pair.here_tiles / path).read_bytes() == (pair.there_tiles / path).read_bytes()

"""The digests of blocks, in real C# under mono, beside the Python ones."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.csharp.mono import CLIENT, compile_program, run_program
from tilecache.block_digests import digest_block, digest_tile, tile_record
from tilecache.v1 import block_digest_pb2

SCHEME = block_digest_pb2.DESCRIPTOR.GetOptions().Extensions[block_digest_pb2.block_digest]


class DigestedTile(NamedTuple):
    """What is digested of a tile."""

    tile_uuid: str
    content_sha256: str
    captured_at: Timestamp


Blocks = Sequence[Sequence[DigestedTile]]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core and its driver, compiled."""
    cores = (CLIENT / f"{name}.cs" for name in ("BlockDigestCore", "TileIdentityCore"))
    source = Path(__file__).with_name("BlockDigestDriver.cs")
    return compile_program(tmp_path_factory.mktemp("csharp"), *cores, source)


def test_the_locked_vectors_are_met(driver: Path) -> None:
    blocks = [
        [DigestedTile(tile.tile_uuid, tile.content_sha256, tile.captured_at) for tile in each.tiles]
        for each in SCHEME.vectors
    ]
    locked = [
        digest
        for vector in SCHEME.vectors
        for digest in (*(tile.digest for tile in vector.tiles), vector.digest)
    ]

    assert digests_in_csharp(driver, blocks) == locked


def test_random_blocks_have_the_same_digests_in_both_languages(driver: Path) -> None:
    source = random.Random(17)
    blocks = [[random_tile(source) for _ in range(source.randrange(50))] for _ in range(50)]

    assert digests_in_csharp(driver, blocks) == list(digests_in_python(blocks))


def digests_in_csharp(driver: Path, blocks: Blocks) -> list[str]:
    lines = []
    for tiles in blocks:
        for tile_uuid, content, captured_at in tiles:
            time = f"{captured_at.seconds} {captured_at.nanos}"
            lines.append(f"tile {tile_uuid} {content or '-'} {time}")
        lines.append("block")
    answer = run_program(driver, lines=lines)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def digests_in_python(blocks: Blocks) -> Iterator[str]:
    for tiles in blocks:
        records = [tile_record(*tile) for tile in tiles]
        yield from (digest_tile(record).hex() for record in records)
        yield digest_block(records).hex()


def random_tile(source: random.Random) -> DigestedTile:
    known = f"{source.getrandbits(256):064x}"
    content = source.choice([known, known, "", known.upper(), known[:63]])
    seconds = source.randrange(-62_135_596_800, 253_402_300_800)
    captured_at = Timestamp(seconds=seconds, nanos=source.randrange(1_000_000_000))
    return DigestedTile(str(UUID(int=source.getrandbits(128))), content, captured_at)

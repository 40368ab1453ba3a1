"""protos/generate.py --check, on copies of protos/ in which one thing is changed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wheels import CHECKOUT

pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")

PROTO = Path("tilecache/v1/tile_metadata_store.proto")
STUBS = Path("python/tilecache")

CHANGES = {
    "a field": (PROTO, "string file_path = 8;", "string file_path = 88;"),
    "a comment": (PROTO, "// Returns one tile.", "// Returns a single tile."),
    "a constant of the scheme": (
        Path("tilecache/v1/tile_identity.proto"),
        '"5b8d0c2e-',
        '"5b8d0c2f-',
    ),
    "a status message": (
        Path("tilecache/status/v1/error_details.proto"),
        "string reason = 1;",
        "string reason = 11;",
    ),
    "a message's descriptor": (STUBS / "v1/tile_metadata_store_pb2.py", "file_path", "file_pith"),
    "a call's path": (STUBS / "v1/tile_metadata_store_pb2_grpc.py", "/GetTile'", "/GetTiles'"),
    "a call's kind": (
        STUBS / "v1/tile_metadata_store_pb2_grpc.py",
        "self.GetTile = channel.unary_unary(",
        "self.GetTile = channel.unary_stream(",
    ),
    "a type": (STUBS / "v1/tile_identity_pb2.pyi", "class TileKey(", "class Key("),
}
"""What is changed: the file, the text in it, and what that becomes."""


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    return shutil.copytree(
        CHECKOUT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("__pycache__")
    )


def check(protos: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, protos / "generate.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_stubs_match_the_proto_files(protos: Path) -> None:
    checked = check(protos)

    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_either_side_is_found(protos: Path, change: tuple[Path, str, str]) -> None:
    path, old, new = change
    text = (protos / path).read_text()
    assert old in text
    (protos / path).write_text(text.replace(old, new))

    checked = check(protos)

    assert checked.returncode == 1
    assert f"{path.stem.removesuffix('_grpc').removesuffix('_pb2')}_pb2" in checked.stderr


def test_a_stub_too_many_and_one_too_few_are_found(protos: Path) -> None:
    folder = protos / STUBS / "v1"
    (folder / "tile_identity_pb2.py").rename(folder / "old_pb2.py")

    checked = check(protos)

    assert checked.returncode == 1
    assert "old_pb2.py" in checked.stderr
    assert "tile_identity_pb2.py" in checked.stderr

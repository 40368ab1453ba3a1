"""buf: the .proto files meet its rules and break nothing that was released."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RELEASED = ROOT / "protos" / "contract.binpb"
STORE = "tile_metadata_store.proto"

BREAKING_CHANGES = {
    "a field's number": (STORE, "string tile_uuid = 1;", "string tile_uuid = 51;"),
    "a field's type": (STORE, "optional int64 disk_bytes", "optional int32 disk_bytes"),
    "a field's name": (STORE, "string file_path = 8;", "string path = 8;"),
    "a call": (STORE, "  rpc TouchTiles(TouchTilesRequest) returns (TouchTilesResponse);\n", ""),
    "an enum's value": (STORE, "FRESHNESS_LABEL_STALE_WARN = 2", "FRESHNESS_LABEL_STALE = 2"),
    "C#'s namespace": (STORE, '"TileCache.V1"', '"TileCache.V2"'),
}
"""What is changed: the file, the text in it, and what that becomes."""


def test_the_protos_meet_bufs_rules(packages: Path) -> None:
    lint = run_buf(packages, ROOT, "lint")

    assert lint.returncode == 0, lint.stdout


def test_nothing_that_was_released_is_broken(packages: Path) -> None:
    breaking = run_buf(packages, ROOT, "breaking", "--against", RELEASED)

    assert breaking.returncode == 0, breaking.stdout


@pytest.mark.parametrize("change", BREAKING_CHANGES.values(), ids=BREAKING_CHANGES)
def test_a_breaking_change_is_caught(
    packages: Path, tmp_path: Path, change: tuple[str, str, str]
) -> None:
    name, old, new = change
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    protos = shutil.copytree(ROOT / "protos" / "tilecache", tmp_path / "protos" / "tilecache")
    changed = protos / "v1" / name
    text = changed.read_text()
    assert old in text
    changed.write_text(text.replace(old, new, 1))

    breaking = run_buf(packages, tmp_path, "breaking", "--against", RELEASED)

    assert breaking.returncode != 0
    assert name in breaking.stdout


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (HERE / "package-lock.json").read_text()


def run_buf(
    packages: Path, folder: Path, *arguments: str | Path
) -> "subprocess.CompletedProcess[str]":
    (buf,) = packages.glob("node_modules/@bufbuild/buf-linux-*/bin/buf")
    return subprocess.run(
        [buf, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

"""Without room, unpacking stops at the first image and leaves nothing half written."""

from pathlib import Path

import pytest

from tests.small_disk import small_disk
from tilecache_daemon.ingest.unpacking import NoRoomError, UnpackDirectory

__all__ = ["small_disk"]


@pytest.mark.parametrize(
    ("small_disk", "why"),
    [("size=64k", "no room: No space left"), ("size=1m,nr_inodes=8", "no inodes left")],
    indirect=["small_disk"],
)
def test_a_full_disk_stops_unpacking_at_the_first_image(small_disk: Path, why: str) -> None:
    unpacking = UnpackDirectory(small_disk)
    written: list[Path] = []

    def write_all() -> None:
        for row in range(100):
            written.append(unpacking.write(f"7/1/{row}.png", "ab" * 32, bytes(8192))[0])

    with pytest.raises(NoRoomError, match=why) as first:
        write_all()
    with pytest.raises(NoRoomError) as later:
        unpacking.write("7/2/0.png", "ab" * 32, b"small")

    assert str(later.value) == str(first.value)
    assert f"7/1/{len(written)}.png" in str(first.value)
    assert {path for path in small_disk.rglob("*") if path.is_file()} == set(written)
    unpacking.close()


@pytest.mark.parametrize("small_disk", ["size=64k,nr_inodes=20"], indirect=True)
def test_room_is_asked_for_beside_what_is_unpacked_already(small_disk: Path) -> None:
    unpacking = UnpackDirectory(small_disk)
    with pytest.raises(NoRoomError, match="--max-zoom"):
        unpacking.check_room(100_000, 1)
    with pytest.raises(NoRoomError, match="--max-zoom"):
        unpacking.check_room(1, 50)
    unpacking.write("7/1/0.png", "ab" * 32, bytes(40_000))
    unpacking.check_room(60_000, 2)
    unpacking.close()

"""Images are stored under their paths: verified, never overwriting, and never outside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from tests.small_disk import small_disk
from tilecache_daemon.ingest.image_store import ImageStore, StoreError, StoreFullError

__all__ = ["small_disk"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "tiles"
    path.mkdir()
    return path


@pytest.fixture
def store(root: Path) -> Iterator[ImageStore]:
    with closing(ImageStore(root)) as opened:
        yield opened


def digest(image: bytes) -> str:
    return sha256(image).hexdigest()


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_an_image_is_stored_once(store: ImageStore, root: Path) -> None:
    stored = [store.store("7/1/2.png", digest(b"image"), b"image") for _ in range(2)]
    store.make_durable()

    assert [(each.file_path, each.is_new) for each in stored] == [
        ("7/1/2.png", True),
        ("7/1/2.png", False),
    ]
    assert files(root) == {"7/1/2.png": b"image"}


def test_other_content_is_never_overwritten(store: ImageStore, root: Path) -> None:
    (root / "7").mkdir()
    (root / "7/2.png").write_bytes(b"other")
    stored = store.store("7/2.png", digest(b"image"), b"image")

    assert stored[:2] == (f"7/2.{digest(b'image')[:16]}.png", True)
    assert files(root) == {"7/2.png": b"other", stored.file_path: b"image"}
    assert store.store("7/2.png", digest(b"image"), b"image")[:2] == (stored.file_path, False)

    (root / stored.file_path).write_bytes(b"third")
    with pytest.raises(StoreError, match="different content"):
        store.store("7/2.png", digest(b"image"), b"image")
    assert files(root) == {"7/2.png": b"other", stored.file_path: b"third"}


def test_content_that_its_hash_does_not_name_is_refused(store: ImageStore, root: Path) -> None:
    with pytest.raises(StoreError, match="hash"):
        store.store("7/2.png", digest(b"other"), b"image")
    assert files(root) == {}


@pytest.mark.parametrize(
    "path", ["../a.png", "/etc/a.png", "7/../../a.png", "7//a.png", "", ".", "7/\0.png", "7/\udc80"]
)
def test_a_path_that_leads_outside_is_refused(path: str, store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        store.store(path, digest(b"image"), b"image")
    assert files(tmp_path) == {}


def test_a_symbolic_link_is_not_followed(store: ImageStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "7").symlink_to(outside)
    (root / "a.png").symlink_to(outside / "a.png")

    with pytest.raises(StoreError, match="symbolic link"):
        store.store("7/a.png", digest(b"image"), b"image")
    stored = store.store("a.png", digest(b"image"), b"image")

    assert stored.file_path != "a.png"
    assert files(outside) == {}


def test_many_threads_store_the_same_paths(store: ImageStore, root: Path) -> None:
    images = [bytes([number % 3]) * 1000 for number in range(300)]

    def write(number: int) -> str:
        image = images[number]
        return store.store(f"7/{number % 5}.png", digest(image), image).file_path

    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(write, range(len(images))))

    held = files(root)
    assert {path: images[number] for number, path in enumerate(paths)} == held
    assert len(held) == 15


def test_one_process_at_a_time_adds_files(store: ImageStore, root: Path) -> None:
    with pytest.raises(StoreError, match="another process"):
        ImageStore(root)


@pytest.mark.parametrize("call", ["link", "unlink"])
def test_what_a_killed_process_has_left_is_removed(call: str, root: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from hashlib import sha256\n"
        "from pathlib import Path\n"
        "from tilecache_daemon.ingest import image_store\n"
        f"image_store.os.{call} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store = image_store.ImageStore(Path(sys.argv[1]))\n"
        "store.store('7/a.png', sha256(b'image').hexdigest(), b'image')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, root], check=False)
    assert killed.returncode == -9
    assert any(name.endswith(".part") for name in files(root))

    with closing(ImageStore(root)) as store:
        store.store("7/a.png", digest(b"image"), b"image")
    assert files(root) == {"7/a.png": b"image"}


@pytest.mark.parametrize("small_disk", ["size=64k"], indirect=True)
def test_a_full_disk_ends_it_at_the_first_image(small_disk: Path) -> None:
    image = os.urandom(8192)
    stored = []

    def store_all(store: ImageStore) -> None:
        for number in range(100):
            stored.append(store.store(f"7/{number}.png", digest(image), image).file_path)

    with closing(ImageStore(small_disk)) as store:
        with pytest.raises(StoreFullError, match="no room: No space left"):
            store_all(store)
        with pytest.raises(StoreFullError):
            store.store("8/small.png", digest(b"small"), b"small")

    assert files(small_disk) == dict.fromkeys(stored, image)


def test_the_last_user_of_a_new_image_removes_it_unless_one_keeps_it(
    store: ImageStore, root: Path
) -> None:
    (root / "b.png").write_bytes(b"other")
    (root / "e.png").write_bytes(b"image")
    arguments = digest(b"image"), b"image"
    paths = [store.store(f"{name}.png", *arguments).file_path for name in "abcde"]
    for path in paths[2:]:
        store.store(path, *arguments)
    for path in paths:
        store.undo(path)
    assert {"c.png", "d.png", "e.png"} <= set(files(root))
    assert {"a.png", paths[1]} & set(files(root)) == set()
    store.undo("c.png")
    store.keep("d.png")
    store.undo("e.png")

    assert files(root) == {"b.png": b"other", "d.png": b"image", "e.png": b"image"}

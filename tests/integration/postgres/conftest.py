"""Servers for the tests of the embedded PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tilecache_daemon.postgres.embedded import EmbeddedPostgres

NO_FSYNC = {"fsync": "off"}  # Only a power failure would lose data.

NewServer = Callable[..., EmbeddedPostgres]


@pytest.fixture
def new_server(open_directory: Path) -> Iterator[NewServer]:
    """Creates servers, in `open_directory` by default, and stops them at the end."""
    with ExitStack() as stack:

        def make(directory: Path = open_directory, **settings: str) -> EmbeddedPostgres:
            server = EmbeddedPostgres(directory, settings={**NO_FSYNC, **settings})
            stack.callback(server.stop)
            return server

        yield make

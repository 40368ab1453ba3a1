"""Fixtures of the integration tests."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.admin import empty_database
from tests.daemon_process import DaemonProcess
from tests.tiles import Block
from tilecache.client import TileCacheClient


@pytest.fixture
def client(shared_daemon: DaemonProcess) -> TileCacheClient:
    """A client of the module's daemon."""
    return shared_daemon.client


@pytest.fixture
def admin(shared_daemon: DaemonProcess, sql: psycopg.Connection[Any]) -> TileCacheClient:
    """A client on the admin socket of the module's daemon, with an empty database."""
    empty_database(sql)
    return shared_daemon.admin_client


@pytest.fixture
def block() -> Block:
    """Cells that no other test uses."""
    return Block()


@pytest.fixture
def sql(shared_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the module's database."""
    with psycopg.connect(shared_database, autocommit=True) as connection:
        yield connection

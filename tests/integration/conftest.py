"""Fixtures of the integration tests."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

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
    sql.execute(
        "TRUNCATE tiles, tile_evictions, flights, sector_classifications, tile_pins, "
        "tile_pin_blocks"
    )
    sql.execute(
        "UPDATE tile_freshness_rules SET (max_age_months, action) = (old.months, old.action) "
        "FROM (VALUES ('active_conflict', 6, 'reject'), ('stable_rear', 12, 'downgrade')) "
        "AS old (classification, months, action) "
        "WHERE tile_freshness_rules.classification = old.classification"
    )
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

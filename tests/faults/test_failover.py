"""A primary fails and its standby takes over.

With synchronous replication, the standby confirms every commit before it is acknowledged,
so that a failover loses nothing acknowledged.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.faults.daemons import Daemon
from tests.faults.load import Load, open_channel, status_details
from tests.faults.servers import ForeignPostgres, frozen
from tests.tiles import Block, tile
from tests.waiting import eventually
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_ALREADY_PRESENT,
    INSERT_OUTCOME_INSERTED,
    InsertTileRequest,
)
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub


class Pair:
    """A primary and its standby, on separate Unix sockets."""

    def __init__(self, directory: Path) -> None:
        self.primary = ForeignPostgres(directory / "a", synchronous_standby_names="*")
        self.standby = ForeignPostgres(directory / "b")
        self._directory = directory

    @property
    def dsn(self) -> str:
        """An address that connects to whichever server is the primary."""
        hosts = [conninfo_to_dict(server.dsn)["host"] for server in (self.primary, self.standby)]
        return make_conninfo(
            self.primary.dsn, host=",".join(map(str, hosts)), target_session_attrs="read-write"
        )

    def start(self) -> None:
        """Creates the standby from a copy of the primary; waits until it replicates."""
        alone = ForeignPostgres(self._directory / "a")
        alone.start()
        alone.stop()
        # With owners and modes. The data directory of a stopped server is a valid backup.
        subprocess.run(["cp", "-a", self._directory / "a", self._directory / "b"], check=True)
        signal_file = self._directory / "b" / "postgres" / "data" / "standby.signal"
        shutil.copy(signal_file.with_name("PG_VERSION"), signal_file)
        self.primary.start()
        self.standby.settings["primary_conninfo"] = self.primary.dsn
        self.standby.start()
        eventually(self._is_replicated)

    def stop(self) -> None:
        """Stops both servers."""
        self.standby.stop()
        self.primary.stop()

    def promote_standby(self) -> None:
        """Promotes the standby, as a failover manager such as Patroni does."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    def _is_replicated(self) -> bool:
        query = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
        with psycopg.connect(self.primary.dsn) as connection:
            return connection.execute(query).rowcount == 1


@pytest.fixture
def pair(open_directory: Path) -> Iterator[Pair]:
    servers = Pair(open_directory)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.mark.parametrize("failure", ["killed", "frozen"])
def test_a_failover_loses_nothing_acknowledged(
    failure: str, pair: Pair, short_directory: Path
) -> None:
    with (
        Daemon(short_directory, dsn=pair.dsn) as daemon,
        Load(daemon.socket_path) as load,
    ):
        if failure == "killed":
            os.kill(pair.primary.pid, signal.SIGKILL)
            fail_over(pair, load)
        else:
            with frozen(pair.primary.pid):
                fail_over(pair, load)


def test_a_write_that_the_standby_has_not_confirmed_is_not_acknowledged(
    pair: Pair, short_directory: Path
) -> None:
    """A commit that waits for the standby fails after a timeout, and can be retried."""
    message = InsertTileRequest(tile=tile(Block().key()))
    with (
        Daemon(short_directory, dsn=pair.dsn, statement_timeout_s=1) as daemon,
        open_channel(daemon.socket_path) as channel,
    ):
        stub = TileMetadataStoreStub(channel)
        pair.standby.stop_for_a_while()
        with pytest.raises(grpc.RpcError) as refusal:
            stub.InsertTile(message)
        assert status_details(refusal.value) == ("DATABASE_UNAVAILABLE", True)
        pair.standby.start_again()
        stored = eventually(lambda: stub.InsertTile(message))
        assert stored.outcome in (INSERT_OUTCOME_INSERTED, INSERT_OUTCOME_ALREADY_PRESENT)


def fail_over(pair: Pair, load: Load) -> None:
    load.wait_until_refused("bulk", "insert")
    load.wait_until_degraded()
    pair.promote_standby()
    load.wait_until_all_succeed()
    assert load.refused("navigate") == Counter()
    load.verify(pair.standby.dsn)

"""Two daemons that start at the same time, on the same database or on the same socket."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from tests.faults.daemons import Daemon
from tests.faults.load import ROWS, Load
from tests.faults.scale import ROUNDS
from tests.waiting import eventually
from tilecache.v1.tile_metadata_store_pb2 import GetServerInfoRequest
from tilecache_daemon.cli.output import ExitCode


@contextmanager
def launched(*daemons: Daemon) -> Iterator[None]:
    """Starts all daemons at the same time, and ends them after the block."""
    with ExitStack() as closing:
        for daemon in daemons:
            closing.callback(daemon.close)
        for daemon in daemons:
            daemon.launch()
        yield


def test_two_daemons_on_one_empty_database_migrate_it_once(
    empty_database: str, short_directory: Path
) -> None:
    daemons = []
    for name in ("a", "b"):
        directory = short_directory / name
        directory.mkdir()
        daemons.append(Daemon(directory, dsn=empty_database))
    with launched(*daemons):
        for daemon in daemons:
            daemon.wait_until_ready()
        migrations = [daemon.log.count("schema_migrated") for daemon in daemons]
        assert sorted(migrations) == [0, 1], "one migrates, the other waits"
        with psycopg.connect(empty_database) as connection:
            (row,) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        first, second = daemons
        with (
            Load(first.socket_path) as load,
            Load(second.socket_path, first_y=60_000) as other,
        ):
            assert row == (
                first.client.store.GetServerInfo(GetServerInfoRequest()).schema_revision,
            )
            load.wait_until_all_succeed()
            other.wait_until_all_succeed()
            load.verify(empty_database)
            other.verify(empty_database)


def test_of_two_daemons_on_one_socket_one_serves_and_the_other_fails(
    database: str, short_directory: Path
) -> None:
    for number_of_round in range(ROUNDS):
        daemons = [Daemon(short_directory, dsn=database) for _ in range(2)]
        for number, daemon in enumerate(daemons):
            daemon.log_path = short_directory / f"{number}.log"
        with launched(*daemons):
            eventually(lambda daemons=daemons: any(daemon.ended for daemon in daemons))
            loser, winner = sorted(daemons, key=lambda daemon: not daemon.ended)
            assert loser.wait_until_ended() == ExitCode.FAILED
            assert f"{loser.socket_path}: in use by another daemon" in loser.log
            winner.wait_until_ready()
            with Load(winner.socket_path, first_y=number_of_round * ROWS) as load:
                load.wait_until_all_succeed()
            assert winner.stop() == 0
        for daemon in daemons:
            daemon.log_path.unlink()

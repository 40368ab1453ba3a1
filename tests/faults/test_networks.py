"""A network between the daemon and PostgreSQL that loses connections without a word."""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.daemon_process import DaemonProcess
from tests.faults.daemons import Daemon
from tests.faults.load import open_channel
from tests.faults.servers import ForeignPostgres
from tests.tiles import NOW, Block, insert, tile, waiting_for_locks
from tests.waiting import eventually
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_REPLACED,
    InsertTileRequest,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER as REPLACE,
)
from tilecache.v1.tile_metadata_store_pb2_grpc import TileMetadataStoreStub

_ESTABLISHED, _KEEPALIVE_TIMER = "01", "02"


class Network:
    """A network namespace that is connected to this machine, and drops what it is told to."""

    def __init__(self, number: int) -> None:
        """`number` tells apart those that exist at once."""
        self._name = f"tilecache-{number}"
        self._link = f"tc{number}"
        addresses = IPv4Address("198.18.0.0") + 4 * (number % 16_384)
        self.address = str(addresses + 1)
        """Of this machine in the network."""
        self._guest = str(addresses + 2)

    def open(self) -> None:
        inside = ("-n", self._name)
        run_ip("netns", "add", self._name)
        run_ip("link", "add", self._link, "type", "veth", "peer", "inside", "netns", self._name)
        run_ip("address", "add", f"{self.address}/30", "dev", self._link)
        run_ip("link", "set", self._link, "up")
        run_ip(*inside, "address", "add", f"{self._guest}/30", "dev", "inside")
        run_ip(*inside, "link", "set", "inside", "up")
        # The rules that drop packets come before the one that delivers them.
        run_ip(*inside, "rule", "add", "pref", "2", "lookup", "local")
        run_ip(*inside, "rule", "delete", "pref", "0")

    def close(self) -> None:
        # Connections that cannot be closed keep the namespace alive for a while.
        run_ip("link", "delete", self._link)
        run_ip("netns", "delete", self._name)

    def enter(self, daemon: DaemonProcess) -> None:
        """Has a daemon start in the network."""
        daemon.command = ("ip", "netns", "exec", self._name, *daemon.command)

    def drop(self, ports: Collection[int]) -> None:
        """Drops all packets from and to these TCP ports of the daemon, from now on."""
        for port in map(str, ports):
            for side in ("sport", "dport"):
                rule = ("pref", "1", "ipproto", "tcp", side, port, "blackhole")
                run_ip("-n", self._name, "rule", "add", *rule)


class Connection(NamedTuple):
    """A TCP connection of a process's network."""

    local_port: int
    is_established: bool
    keepalive_timer: bool


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def connections(pid: int) -> list[Connection]:
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return [
        Connection(
            int(local.rpartition(":")[2], 16),
            state == _ESTABLISHED,
            timer.startswith(f"{_KEEPALIVE_TIMER}:"),
        )
        for _, local, _, state, _, timer, *_ in fields
    ]


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("only root can make a network namespace, with iproute2")
    made = Network(os.getpid())
    try:
        made.open()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a network namespace cannot be made here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def dsn(foreign: ForeignPostgres, network: Network) -> str:
    """The address of a server in the network."""
    foreign.stop()
    foreign.settings |= {"listen_addresses": network.address}
    with (foreign.data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {network.address}/30 trust\n")
    foreign.start()
    return make_conninfo(foreign.dsn, host=network.address)


def ports_of_pool(dsn: str) -> set[int]:
    """The daemon's ports of the sessions of its pool."""
    query = "SELECT client_port FROM pg_stat_activity WHERE application_name = 'tilecache'"
    with psycopg.connect(dsn) as connection:
        return {port for (port,) in connection.execute(query)}


def test_idle_connections_that_a_firewall_forgets_are_replaced(
    foreign: ForeignPostgres, network: Network, dsn: str, short_directory: Path
) -> None:
    keepalives = "keepalives_idle=1 keepalives_interval=1 keepalives_count=1"
    # A connection that was in use when the network lost it is cut after two statement timeouts.
    daemon = Daemon(
        short_directory, dsn=f"{dsn} {keepalives}", pool_min_size=4, statement_timeout_s=2.0
    )
    network.enter(daemon)
    with daemon, open_channel(daemon.socket_path, ("grpc.enable_retries", 0)) as channel:
        ports = eventually(lambda: len(found := ports_of_pool(foreign.dsn)) == 4 and found)
        assert isinstance(ports, set)
        network.drop(ports)
        eventually(
            lambda: (
                not any(
                    connection.is_established and connection.local_port in ports
                    for connection in connections(daemon.pid)
                )
            )
        )
        store = TileMetadataStoreStub(channel)
        for key in Block().keys(8):
            store.InsertTile(InsertTileRequest(tile=tile(key)), timeout=10)
        assert "database_lost" not in daemon.log


def test_idle_connections_send_keepalives(
    foreign: ForeignPostgres, network: Network, dsn: str, short_directory: Path
) -> None:
    daemon = Daemon(short_directory, dsn=dsn)
    network.enter(daemon)
    with daemon:
        ports = ports_of_pool(foreign.dsn)
        assert ports

        def all_have_timers() -> bool:
            found = [entry for entry in connections(daemon.pid) if entry.local_port in ports]
            return len(found) == len(ports) and all(entry.keepalive_timer for entry in found)

        eventually(all_have_timers)


def test_a_session_that_the_network_loses_in_a_write_releases_its_locks(
    foreign: ForeignPostgres,
    network: Network,
    dsn: str,
    short_directory: Path,
    open_directory: Path,
) -> None:
    """Else a replacement through another daemon would wait for the statement timeout."""
    block = Block()
    lost = Daemon(short_directory, dsn=dsn)
    network.enter(lost)
    (open_directory / "other").mkdir()
    with (
        lost,
        DaemonProcess(open_directory / "other", dsn=foreign.dsn) as other,
        ThreadPoolExecutor() as threads,
        psycopg.connect(foreign.dsn) as blocker,
    ):
        insert(other.client, tile(block.key(0)))
        blocker.execute("LOCK TABLE tiles IN SHARE MODE")
        threads.submit(insert, lost.client, tile(block.key(1)))
        eventually(lambda: waiting_for_locks(foreign.dsn) == 1)
        network.drop(ports_of_pool(foreign.dsn) - {-1})
        blocker.rollback()
        newer = InsertTileRequest(
            tile=tile(block.key(0), "newer", captured_at=NOW), on_conflict=REPLACE
        )
        answer = other.client.store.InsertTile(newer, timeout=25)
        assert answer.outcome == INSERT_OUTCOME_REPLACED
        lost.kill()

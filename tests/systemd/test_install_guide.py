"""docs/install.md, followed command by command on a machine that has only its packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.administrator import Administrator
from tests.systemd.conftest import MakeMachine
from tests.systemd.machine import Machine
from tests.systemd.service import Service
from tests.tiles import Block, by_key, insert, tile
from tests.waiting import eventually
from tilecache.v1.tile_metadata_store_pb2 import GetTileRequest

OUTAGE = "PostgreSQL does not answer; serving what is in memory"
SYSTEM_POSTGRES = "postgresql.service"
LOCAL = ("/etc", "/opt", "/run", "/usr/local", "/var/lib")


@pytest.fixture
def machine(make_machine: MakeMachine) -> Iterator[Machine]:
    if not Path("/usr/bin/pg_ctlcluster").exists():
        pytest.skip("the guide's last part needs the system's PostgreSQL (postgresql-common)")
    with make_machine() as machine:
        yield machine


def test_the_guide_holds_from_a_bare_machine_to_a_bare_machine(machine: Machine) -> None:
    administrator, service, block = Administrator(machine), Service(machine), Block()

    def has_its_tile() -> bool:
        with service.client() as client:
            answer = client.store.GetTile(GetTileRequest(tile=by_key(block.key())), timeout=60)
            return bool(answer.tile.key == block.key())

    administrator.follow("Packages")
    administrator.follow("Install")
    assert "serving" in administrator.follow("Check")

    machine.run("useradd", "--system", "navigation")
    assert "ready" in administrator.follow("Let the navigation process in")
    assert "tilecache-admin" in machine.run("stat", "--format=%G", service.admin_socket)

    with service.client() as client:
        insert(client, tile(block.key()))
    administrator.follow("Back up")
    administrator.follow("Restore")
    assert has_its_tile()

    administrator.follow("Upgrade")
    assert has_its_tile()

    administrator.follow("Go back to an older version")
    assert not service.is_active
    service.control("start")
    assert has_its_tile()

    administrator.follow("Use the system's PostgreSQL")
    assert has_its_tile()
    assert len(service.processes) == 1
    assert_an_outage_is_sat_out(service)

    administrator.follow("Uninstall")
    left = machine.run(
        "find", "/etc", "/opt", "/run", "/usr/local", "/var/lib", "-name", "*tilecache*"
    )
    assert left == ""


def assert_an_outage_is_sat_out(service: Service) -> None:
    before = service.restart_count, service.daemon
    service.machine.run("sh", "-c", "systemctl stop 'postgresql@*'")
    eventually(lambda: service.status == OUTAGE)
    service.machine.run("systemctl", "restart", SYSTEM_POSTGRES)
    eventually(lambda: service.status == "serving")
    assert (service.restart_count, service.daemon) == before

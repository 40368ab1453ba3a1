"""`tilecache sync` with a daemon on the ground, over TCP with mutual TLS."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import LOOPBACK, Authority
from tests.daemon_process import run_tilecache
from tests.integration.cli.pairs import Pair, running_pair, stored
from tests.tiles import NOW, ONBOARD, Block, bulk_insert, insert, random_flight, tile, tile_uuid

AIRCRAFT = "aircraft.example"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def address() -> str:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return f"{LOOPBACK}:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def pair(
    shared_database: str,
    second_database: str,
    authority: Authority,
    address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """The second daemon is the ground's."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = authority.issue("ground", addresses=[LOOPBACK]).write(folder, "server")
    client_ca, _ = authority.identity.write(folder, "ca")
    with running_pair(
        shared_database,
        second_database,
        tcp_address=address,
        tls_certificate=certificate,
        tls_key=key,
        tls_client_ca=client_ca,
        tls_allowed_names=AIRCRAFT,
    ) as pair:
        yield pair


def tls_options(authority: Authority, folder: Path, name: str) -> list[object]:
    certificate, key = authority.issue(dns=[name]).write(folder, "client")
    ca, _ = authority.identity.write(folder, "authority")
    return ["--tls-ca", ca, "--tls-certificate", certificate, "--tls-key", key]


def test_both_sides_end_with_the_same_tiles(
    pair: Pair, authority: Authority, address: str, tmp_path: Path, block: Block
) -> None:
    flight = random_flight()
    made = [block.key(column, source=ONBOARD, flight_id=flight) for column in range(10)]
    bulk_insert(pair.here.client, [tile(key) for key in made])
    bulk_insert(pair.there.client, [tile(key, captured_at=NOW) for key in block.keys(10, 3)])
    insert(pair.here.client, tile(block.key(0, 0)))
    options = tls_options(authority, tmp_path, AIRCRAFT)

    run = run_tilecache(
        *("sync", "--from", address, "--push-uploads", *options),
        socket_path=pair.here.socket_path,
    )

    assert run.returncode == 0, run.stderr
    assert pair.equal
    assert len(stored(pair.here.client)) == 40
    for side in (pair.here, pair.there):
        assert stored(side.client, pending_upload=True) == {}
    assert set(stored(pair.there.client, flight_id=flight)) == set(map(tile_uuid, made))


def test_a_name_that_is_not_on_the_allow_list_is_refused(
    pair: Pair, authority: Authority, address: str, tmp_path: Path
) -> None:
    options = tls_options(authority, tmp_path, "stranger.example")

    run = run_tilecache("sync", "--from", address, *options, socket_path=pair.here.socket_path)

    assert run.returncode == 4
    assert f"{address}: stranger.example is not on the allow list" in run.stderr


def test_a_certificate_of_another_authority_is_not_trusted(
    pair: Pair, address: str, tmp_path: Path
) -> None:
    options = tls_options(Authority("Somebody else"), tmp_path, AIRCRAFT)

    run = run_tilecache("sync", "--from", address, *options, socket_path=pair.here.socket_path)

    assert run.returncode == 3
    assert address in run.stderr

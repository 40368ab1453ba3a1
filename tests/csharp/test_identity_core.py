"""The C# peers' derivation, in real C# under mono, beside the Python one."""

import random
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from tests.csharp.mono import CLIENT, compile_program, run_program
from tests.csharp.scheme import (
    CHANGED_LETTERS,
    PROTOS,
    Scheme,
    read_scheme,
    write_changed_proto,
)
from tilecache.identity import GOOGLEMAPS, MAX_ZOOM, ONBOARD_INGEST
from tilecache_daemon import derive_location_hash, derive_tile_id

CORE = CLIENT / "TileIdentityCore.cs"
DRIVER = Path(__file__).with_name("Driver.cs")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core and its driver, compiled."""
    return compile_program(tmp_path_factory.mktemp("csharp"), CORE, DRIVER)


def test_the_locked_vectors_are_met(driver: Path, tmp_path: Path) -> None:
    answer = derive(driver, read_scheme(PROTOS, tmp_path), [])

    assert answer.returncode == 0, answer.stderr


def test_a_thousand_keys_have_the_same_identity_in_both_languages(
    driver: Path, tmp_path: Path
) -> None:
    keys = [random_key(random.Random(seed)) for seed in range(1_000)]

    answer = derive(driver, read_scheme(PROTOS, tmp_path), keys)

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [
        f"{derive_tile_id(*key)} {derive_location_hash(*key[:3])}" for key in keys
    ]


@pytest.mark.parametrize(
    "key",
    [(-1, 0, 0), (23, 0, 0), (3, 8, 0), (3, 0, -1)],
    ids=["zoom below", "zoom above", "x", "y"],
)
def test_a_cell_that_does_not_exist_is_refused(
    driver: Path, tmp_path: Path, key: tuple[int, int, int]
) -> None:
    answer = derive(driver, read_scheme(PROTOS, tmp_path), [(*key, GOOGLEMAPS, None)])

    assert answer.returncode != 0
    assert "is not within" in answer.stderr


@pytest.mark.parametrize("change", CHANGED_LETTERS.values(), ids=CHANGED_LETTERS)
def test_one_changed_letter_is_caught(
    driver: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    scheme = read_scheme(write_changed_proto(tmp_path / "protos", *change), tmp_path)

    answer = derive(driver, scheme, [])

    assert answer.returncode != 0
    assert "System.InvalidOperationException" in answer.stderr


def derive(
    driver: Path, scheme: Scheme, keys: list[tuple[int, int, int, str, UUID | None]]
) -> "subprocess.CompletedProcess[str]":
    options = scheme.options
    lines = [
        *(f"tile {vector.name} {vector.uuid}" for vector in options.tile_vectors),
        *(f"location {vector.name} {vector.uuid}" for vector in options.location_vectors),
        *(f"key {zoom} {x} {y} {source} {flight or '-'}" for zoom, x, y, source, flight in keys),
    ]
    return run_program(
        driver,
        options.namespace_uuid,
        options.tile_name_template,
        options.location_name_template,
        options.no_flight_uuid,
        ",".join(scheme.sources),
        lines=lines,
    )


def random_key(source: random.Random) -> tuple[int, int, int, str, UUID | None]:
    zoom = source.randint(0, MAX_ZOOM)
    x, y = source.randrange(1 << zoom), source.randrange(1 << zoom)
    flight = source.choice([None, UUID(int=source.getrandbits(128))])
    return zoom, x, y, source.choice([GOOGLEMAPS, ONBOARD_INGEST]), flight

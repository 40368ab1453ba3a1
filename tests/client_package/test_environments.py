"""The client's wheel alone in its callers' environments, calling a running daemon."""

import json
import re
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from tests.client_package.environments import Environment, Version, find_pythons
from tests.daemon_process import DaemonProcess
from tests.tiles import Block
from tests.wheels import build_client

PROGRAM = Path(__file__).with_name("call_daemon.py")
OLDEST_PYTHON: Version = (3, 8)
NUMPY_1_PYTHONS: tuple[Version, Version] = ((3, 9), (3, 12))
CALLERS_OWN = {"numpy": "1.26", "protobuf": "4.25", "grpcio": "1.62"}
MOST_MB = 40
# protobuf 4.25's own, which it raises on Python 3.12.
KNOWN_WARNING = "ignore:Type google._upb:DeprecationWarning"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_client(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def pythons() -> dict[Version, Path]:
    """Those that the client admits."""
    return {version: path for version, path in find_pythons().items() if version >= OLDEST_PYTHON}


def test_the_oldest_versions_on_the_oldest_python(
    wheel: Path,
    pythons: dict[Version, Path],
    shared_daemon: DaemonProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = Environment(pythons[min(pythons)], tmp_path / "venv")
    environment.install_or_skip(*(f"{name}=={floor}" for name, floor in floors().items()))

    environment.install(wheel)

    versions = environment.versions()
    assert {name: versions[name].rpartition(".")[0] for name in floors()} == floors()
    assert_calls_succeed(environment, shared_daemon)
    show_weight(environment, capsys)


def test_the_newest_versions_on_the_newest_python(
    wheel: Path,
    pythons: dict[Version, Path],
    shared_daemon: DaemonProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = Environment(pythons[max(pythons)], tmp_path / "venv")

    environment.install(wheel)

    assert_calls_succeed(environment, shared_daemon)
    show_weight(environment, capsys)


def test_nothing_that_a_caller_has_is_moved(
    wheel: Path,
    pythons: dict[Version, Path],
    shared_daemon: DaemonProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, last = NUMPY_1_PYTHONS
    fitting = [path for version, path in pythons.items() if first <= version <= last]
    if not fitting:
        pytest.skip("numpy 1.26 takes a Python from 3.9 to 3.12, and there is none here")
    environment = Environment(fitting[0], tmp_path / "venv")
    environment.install_or_skip(*(f"{name}=={version}.*" for name, version in CALLERS_OWN.items()))
    before = environment.versions()

    environment.install(wheel)

    after = environment.versions()
    assert after.pop("tilecache-client")
    assert after == before
    assert_calls_succeed(environment, shared_daemon)
    show_weight(environment, capsys)


def floors() -> dict[str, str]:
    """The lowest version of each package that the client admits."""
    found = [re.match(r"([\w-]+).*>=([\d.]+)", line) for line in requires("tilecache-client") or ()]
    return {match[1]: match[2] for match in found if match}


def assert_calls_succeed(environment: Environment, daemon: DaemonProcess) -> None:
    """That a program in this environment calls the daemon, without a warning."""
    arguments = (daemon.socket_path, daemon.admin_socket_path, str(Block().x))
    report: dict[str, Any] = json.loads(
        environment.run("-Werror", f"-W{KNOWN_WARNING}", PROGRAM, *arguments)
    )

    assert report["serving"]
    assert "TileCacheAdmin" in report["missing service"]
    assert "SERVICE_UNKNOWN" in report["missing service"]
    assert report["identity"]
    assert report["stored"] == {"inserted": [2, 2, 2], "found": [0, 1, 2, 3, 4, 5]}
    assert report["replica"] == {"found": [0, 1, 2, 3, 4, 5], "up to date": True}
    invalid = {"code": "INVALID_ARGUMENT", "reason": "INVALID_REQUEST"}
    assert report["refused insert"] == invalid | {"fields": ["tile.key.x"]}
    assert report["refused query"] == invalid | {"fields": ["region"]}
    missing = {"code": "NOT_FOUND", "reason": "TILE_NOT_FOUND", "fields": []}
    assert report["missing tile"] == missing
    outcomes = report["store"] | report["admin"]
    assert set(outcomes.values()) == {"answered", "INVALID_REQUEST"}, outcomes


def show_weight(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what the client and its packages weigh, which is little."""
    weights = environment.weights_mb()
    weights.pop("numpy", None)
    version = environment.run("--version").strip()
    parts = ", ".join(f"{name} {weight:.1f}" for name, weight in sorted(weights.items()))
    with capsys.disabled():
        # Not to stdout, which the workers of pytest-xdist do not pass on.
        print(f"\n{version}: {sum(weights.values()):.1f} MB ({parts})", file=sys.stderr)
    assert sum(weights.values()) < MOST_MB

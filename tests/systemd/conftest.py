"""Machines with the daemon installed according to the guide."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.systemd.administrator import WHEELS, Administrator
from tests.systemd.machine import Machine, find_obstacle
from tests.systemd.service import Service
from tests.wheels import build_client, build_daemon, run

SYSTEM_PYTHON = "/usr/bin/python3"

MakeMachine = Callable[[], AbstractContextManager[Machine]]


@pytest.fixture(scope="session")
def make_machine(tmp_path_factory: pytest.TempPathFactory) -> MakeMachine:
    """Creates machines with the wheels and their dependencies."""
    if obstacle := find_obstacle() or _find_python_obstacle():
        pytest.skip(obstacle)
    wheels = tmp_path_factory.mktemp("wheels")
    client, daemon = build_client(wheels), build_daemon(wheels)
    pip = (sys.executable, "-m", "pip", "--python", SYSTEM_PYTHON)
    run(*pip, "download", "-qd", wheels, client, f"{daemon}[embedded]")
    return lambda: Machine({wheels: WHEELS})


@pytest.fixture(scope="session")
def installed_service(make_machine: MakeMachine) -> Iterator[Service]:
    """The service after the guide's installation, shared by all tests."""
    with make_machine() as machine:
        administrator = Administrator(machine)
        administrator.follow("Packages")
        administrator.follow("Install")
        yield Service(machine)


@pytest.fixture
def service(installed_service: Service) -> Service:
    """The service, running."""
    installed_service.control("start")
    return installed_service


def _find_python_obstacle() -> str | None:
    trial = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))"],
        capture_output=True,
        check=False,
    )
    return f"{SYSTEM_PYTHON} is no Python 3.10 with venv" if trial.returncode else None

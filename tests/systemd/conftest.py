"""Machines with the daemon installed according to the guide."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.systemd.administrator import WHEELS, Administrator
from tests.systemd.guide import CHECKOUT
from tests.systemd.machine import Machine, find_obstacle
from tests.systemd.service import Service

SYSTEM_PYTHON = "/usr/bin/python3"

MakeMachine = Callable[[], AbstractContextManager[Machine]]


@pytest.fixture(scope="session")
def make_machine(tmp_path_factory: pytest.TempPathFactory) -> MakeMachine:
    """Creates machines with the wheel and its dependencies."""
    if obstacle := find_obstacle() or _find_python_obstacle():
        pytest.skip(obstacle)
    wheels = tmp_path_factory.mktemp("wheels")
    _run("-m", "build", "--wheel", "--outdir", wheels, CHECKOUT)
    (wheel,) = wheels.glob("*.whl")
    _run("-m", "pip", "--python", SYSTEM_PYTHON, "download", "-qd", wheels, f"{wheel}[embedded]")
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


def _run(*arguments: str | Path) -> None:
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr

"""docs/network.md, followed command by command on the machine that docs/install.md leaves."""

from collections.abc import Iterator

import pytest

from tests.systemd.administrator import WORKPLACE, Administrator
from tests.systemd.guide import NETWORK, read_blocks
from tests.systemd.service import Service
from tilecache_daemon.service.information import CONTRACT_VERSION

HOSTS = "127.0.0.1 localhost aircraft.example\n"
FROM_PYTHON = "Call it from Python"


@pytest.fixture
def administrator(service: Service) -> Iterator[Administrator]:
    service.machine.write("/etc/hosts", HOSTS)
    administrator = Administrator(service.machine, NETWORK)
    yield administrator
    # The service is another test's, too.
    administrator.follow("Switch it off")


def test_the_guide_leads_from_certificates_to_a_call_and_back(
    service: Service, administrator: Administrator
) -> None:
    administrator.follow("Make the certificates")
    administrator.follow("Set up the daemon")

    assert "Verify return code: 0 (ok)" in administrator.follow("When a call fails")
    assert call_from_python(service) == f"contract {CONTRACT_VERSION}\n"


def call_from_python(service: Service) -> str:
    (program,) = read_blocks(NETWORK, "python")[FROM_PYTHON]
    service.machine.write(f"{WORKPLACE}/call.py", program)
    run = f"cd {WORKPLACE} && /opt/tilecache/bin/python call.py"
    return service.machine.run("sh", "-c", run)

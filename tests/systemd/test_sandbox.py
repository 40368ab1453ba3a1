"""The unit's sandbox, tried from inside, and rated by systemd."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.service import NAME, Service, read_status

UNIT = f"/etc/systemd/system/{NAME}"
PROBE_UNIT = "tilecache-probe.service"
RUN_PROBE = """\
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStart=
ExecStart=/opt/tilecache/bin/python /opt/probe.py
"""
MAX_EXPOSURE = 0.5


@pytest.fixture(scope="module")
def probed(installed_service: Service) -> Any:
    """The results of the probe, run in place of the daemon in its unit."""
    machine = installed_service.machine
    installed_service.control("start")
    machine.write("/opt/probe.py", Path(__file__).with_name("probe.py").read_text())
    machine.write("/tmp/seen-by-all", "")
    machine.run("mkdir", "--mode=777", "/srv/open")
    machine.run("cp", UNIT, f"/etc/systemd/system/{PROBE_UNIT}")
    machine.write(f"/etc/systemd/system/{PROBE_UNIT}.d/probe.conf", RUN_PROBE)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", PROBE_UNIT)
    journal = machine.run("journalctl", f"--unit={PROBE_UNIT}", "--output=cat")
    (answer,) = re.findall(r"^{.*}$", journal, re.MULTILINE)
    return json.loads(answer)


def test_it_can_write_only_to_its_own_directories(probed: dict[str, Any]) -> None:
    assert set(probed["written to its own"].values()) == {"done"}
    assert "done" not in probed["written outside"].values()


def test_it_has_no_network(probed: dict[str, Any]) -> None:
    assert probed["internet socket"] != "done"
    assert probed["network interfaces"] == ["lo"]


def test_it_does_not_see_other_users(probed: dict[str, Any]) -> None:
    assert probed["processes of others"] == []
    assert probed["home of root"] == "PermissionError"
    assert probed["shared /tmp"] == []
    assert probed["kernel settings"] is False


@pytest.mark.parametrize(
    "attempt", ["become root", "make a setuid program", "new user namespace", "writable code"]
)
def test_it_gains_no_privilege(probed: dict[str, Any], attempt: str) -> None:
    assert probed[attempt] in ("PermissionError", "Operation not permitted")


def test_the_daemon_and_its_postgresql_are_confined_in_fact(service: Service) -> None:
    processes = service.processes

    assert len(processes) > 1
    for pid in processes:
        status = read_status(pid)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)


def test_its_exposure_is_half_a_point_at_most(service: Service) -> None:
    report = service.machine.run("systemd-analyze", "security", "--offline=yes", UNIT)

    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert float(exposure) <= MAX_EXPOSURE


@pytest.mark.parametrize("drop_in", ["postgresql.conf", "socket-groups.conf"])
def test_a_drop_in_leaves_its_exposure_low(service: Service, drop_in: str) -> None:
    files = "/opt/tilecache/share/tilecache/systemd"
    joined = f"/tmp/{drop_in}.service"
    service.machine.run("sh", "-c", f"cat {files}/{NAME} {files}/{NAME}.d/{drop_in} > {joined}")

    report = service.machine.run("systemd-analyze", "security", "--offline=yes", joined)

    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert float(exposure) <= MAX_EXPOSURE


def test_systemd_finds_nothing_wrong_with_the_unit(service: Service) -> None:
    verified = service.machine.attempt("systemd-analyze", "verify", UNIT)

    assert verified.returncode == 0
    assert verified.stdout + verified.stderr == ""

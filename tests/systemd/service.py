"""The daemon's unit on a test machine, observed and called from outside."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.systemd.machine import Machine
from tests.waiting import eventually
from tilecache.client import TileCacheClient

NAME = "tilecache-daemon.service"
DROP_INS = f"/etc/systemd/system/{NAME}.d"
READY_TIMEOUT_S = 60.0


class Service:
    """Process ids are those of the host."""

    socket = "/run/tilecache/tilecache.sock"
    admin_socket = "/run/tilecache/admin.sock"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.machine.run("systemctl", "show", NAME, f"--property={name}", "--value").strip()

    @property
    def is_active(self) -> bool:
        return self.show("ActiveState") == "active"

    @property
    def status(self) -> str:
        """The latest status text of the daemon."""
        return self.show("StatusText")

    @property
    def restart_count(self) -> int:
        return int(self.show("NRestarts"))

    @property
    def processes(self) -> set[int]:
        """All of its processes."""
        group = self.show("ControlGroup")
        if not group:
            return set()
        members = self.machine.path(f"/sys/fs/cgroup{group}/cgroup.procs")
        return set(map(int, members.read_text().split()))

    @property
    def daemon(self) -> int:
        """The daemon's process; the others are its PostgreSQL's."""
        inside = self.show("MainPID")
        (pid,) = (pid for pid in self.processes if _inner_pid(pid) == inside)
        return pid

    def control(self, verb: str) -> None:
        """Runs `systemctl start`, `stop` or `restart`, and waits for it."""
        self.machine.run("systemctl", verb, NAME)

    @contextmanager
    def client(self) -> Iterator[TileCacheClient]:
        """A client on the host, connected to the daemon's socket."""
        with TileCacheClient(self.machine.path(self.socket)) as client:
            client.wait_until_ready(READY_TIMEOUT_S)
            yield client

    @contextmanager
    def drop_in(self, text: str, verb: str = "restart") -> Iterator[None]:
        """Installs a drop-in for the duration of the block, and restarts (`verb`) the service."""
        file = f"{DROP_INS}/test.conf"
        self.machine.write(file, text)
        self._reload(verb)
        try:
            yield
        finally:
            self.machine.path(file).unlink()
            self._reload("restart")

    def await_restart(self, count_before: int) -> None:
        """Waits until systemd has restarted the unit and it serves."""
        eventually(lambda: self.restart_count > count_before and self.is_active)

    def _reload(self, verb: str) -> None:
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "reset-failed", NAME)
        self.control(verb)


def send(signal_number: signal.Signals, processes: set[int]) -> None:
    """Sends a signal to each process that still exists."""
    for pid in processes:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


def _inner_pid(pid: int) -> str:
    """The process id inside the machine."""
    fields = dict(line.split(":\t", 1) for line in read_status(pid).splitlines())
    return fields["NSpid"].split()[-1]


def read_status(pid: int) -> str:
    """The contents of /proc/PID/status."""
    return Path(f"/proc/{pid}/status").read_text()

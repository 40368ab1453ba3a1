"""Runs the commands of a guide on a machine."""

from pathlib import Path

import pytest

from tests.systemd.guide import INSTALL, read_blocks
from tests.systemd.machine import Machine

WORKPLACE = "/srv/work"
WHEELS = "/srv/wheels"

PIP_CONFIGURATION = f"""\
[global]
no-index = true
find-links = {WHEELS}
disable-pip-version-check = true
"""

APT_GET = """\
#!/bin/sh
# There is no network: what is to be installed must be there. PostgreSQL's package makes
# a cluster and starts it.
set -eu
[ "$1" = install ] || exit 0
dpkg-query --show "$3"
if [ "$3" = postgresql ]; then
  rm -rf /etc/postgresql /var/lib/postgresql/*
  for version in /usr/lib/postgresql/*; do :; done
  pg_createcluster "${version##*/}" main
  systemctl daemon-reload
  systemctl start postgresql
fi
"""

SUDO = """\
#!/bin/sh
# The administrator is root already.
if [ "$1" = -u ]; then
  user=$2
  shift 2
  exec runuser --user "$user" -- "$@"
fi
exec "$@"
"""


class Administrator:
    """Works in a directory that has the wheels, without a network."""

    def __init__(self, machine: Machine, guide: Path = INSTALL) -> None:
        self._machine = machine
        self._commands = read_blocks(guide)
        machine.write("/etc/pip.conf", PIP_CONFIGURATION)
        machine.write("/usr/local/bin/apt-get", APT_GET, 0o755)
        machine.write("/usr/local/bin/sudo", SUDO, 0o755)
        machine.run("sh", "-c", f"mkdir -p {WORKPLACE}; ln -sf {WHEELS}/tilecache_* {WORKPLACE}")

    def follow(self, section: str) -> str:
        """Runs the commands under a heading; returns their output."""
        return "".join(self._run(block) for block in self._commands[section])

    def _run(self, block: str) -> str:
        ran = self._machine.attempt("sh", "-euc", f"cd {WORKPLACE}\n{block}")
        if ran.returncode != 0:
            journal = self._machine.run("journalctl", "--no-pager", "--output=cat", "--lines=50")
            pytest.fail(f"{block}\n{ran.stdout}{ran.stderr}\nThe journal:\n{journal}")
        return ran.stdout

"""The default places of the daemon's sockets and data.

Users' own directories are those of the XDG base directory specification. A user without a home
directory has those of the system.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

SYSTEM_RUNTIME_DIRECTORY: Final = Path("/run/tilecache")
SYSTEM_STATE_DIRECTORY: Final = Path("/var/lib/tilecache")
SOCKET_NAME: Final = "tilecache.sock"
ADMIN_SOCKET_NAME: Final = "admin.sock"


def runtime_directory() -> Path:
    """The directory of the sockets: the system's for root, else the user's own.

    RUNTIME_DIRECTORY, which systemd sets for a unit, overrides both.
    """
    given = os.environ.get("RUNTIME_DIRECTORY")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME_DIRECTORY
    return _user_directory("XDG_RUNTIME_DIR") or _directory_at_home() or SYSTEM_RUNTIME_DIRECTORY


def state_directory() -> Path:
    """The directory of an embedded PostgreSQL's data: the system's for root, else the user's own.

    STATE_DIRECTORY, which systemd sets for a unit, overrides both.
    """
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIRECTORY
    return _user_directory("XDG_STATE_HOME") or _directory_at_home() or SYSTEM_STATE_DIRECTORY


def default_socket_path(name: str = SOCKET_NAME) -> Path:
    """The socket of the user's own daemon if it exists, else the system's."""
    own = runtime_directory() / name
    return own if own.exists() else SYSTEM_RUNTIME_DIRECTORY / name


def socket_target(path: Path | str) -> str:
    """gRPC's target for a socket. It is a URI: a `%` in the path, for example, is escaped."""
    return f"unix:{quote(os.fsencode(path))}"


def _directory_at_home() -> Path | None:
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user without a passwd entry
        return None
    return home / ".local" / "state" / "tilecache"


def _user_directory(variable: str) -> Path | None:
    base = Path(os.environ.get(variable, ""))
    # The specification has relative paths ignored.
    return base / "tilecache" if base.is_absolute() else None

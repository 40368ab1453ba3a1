"""Where the daemon and its clients meet when nobody says otherwise."""

import os
from pathlib import Path
from typing import Final

import platformdirs

SYSTEM_RUNTIME_DIRECTORY: Final = Path("/run/tilecache")
SYSTEM_STATE_DIRECTORY: Final = Path("/var/lib/tilecache")
SOCKET_NAME: Final = "tilecache.sock"
ADMIN_SOCKET_NAME: Final = "admin.sock"


def runtime_directory() -> Path:
    """Where the sockets lie: the system's for root, else the user's own.

    A systemd unit's RuntimeDirectory= goes before both.
    """
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME_DIRECTORY
    if os.environ.get("XDG_RUNTIME_DIR"):
        return platformdirs.user_runtime_path("tilecache")
    return state_directory()


def state_directory() -> Path:
    """Where an embedded PostgreSQL keeps its data: the system's for root, else the user's own.

    A systemd unit's StateDirectory= goes before both.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIRECTORY
    return platformdirs.user_state_path("tilecache")


def default_socket_path(name: str = SOCKET_NAME) -> Path:
    """The user's own daemon's if that is there, else the system's."""
    own = runtime_directory() / name
    return own if own.exists() else SYSTEM_RUNTIME_DIRECTORY / name

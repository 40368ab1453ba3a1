"""Where the sockets and the data are by default."""

import os
import pwd
from pathlib import Path

import pytest

from tilecache.paths import default_socket_path, runtime_directory, state_directory

VARIABLES = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")
ROOT, USER = 0, 1000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: USER)


def test_root_has_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ROOT)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")

    assert runtime_directory() == Path("/run/tilecache")
    assert state_directory() == Path("/var/lib/tilecache")


def test_a_users_are_those_of_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_STATE_HOME", "/data/state")

    assert runtime_directory() == Path("/run/user/1000/tilecache")
    assert state_directory() == Path("/data/state/tilecache")


def test_a_user_without_them_has_directories_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative/is/ignored")

    assert state_directory() == tmp_path / ".local/state/tilecache"
    assert runtime_directory() == state_directory()


def test_a_user_without_a_home_has_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", find_nobody)

    assert runtime_directory() == Path("/run/tilecache")
    assert state_directory() == Path("/var/lib/tilecache")
    assert default_socket_path() == Path("/run/tilecache/tilecache.sock")


@pytest.mark.parametrize("user", [ROOT, USER])
def test_systemds_go_before_all_others(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/unit")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/unit")

    assert runtime_directory() == Path("/run/unit")
    assert state_directory() == Path("/var/lib/unit")


def test_a_users_own_socket_goes_before_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    own = tmp_path / "tilecache" / "tilecache.sock"

    assert default_socket_path() == Path("/run/tilecache/tilecache.sock")

    own.parent.mkdir()
    own.touch()
    assert default_socket_path() == own

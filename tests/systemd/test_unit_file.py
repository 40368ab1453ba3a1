"""The unit and the configuration file agree with the code."""

import re
import sys
from pathlib import Path

import pytest

from tests.systemd.guide import CHECKOUT
from tilecache_daemon import systemd
from tilecache_daemon.config import Config
from tilecache_daemon.postgres import process as postgres_process

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = CHECKOUT / "systemd"
UNIT = FILES / "tilecache-daemon.service"
SETTINGS = FILES / "tilecache.toml"
LISTENER_COUNT = 3


def unit_seconds(name: str) -> float:
    (value,) = re.findall(rf"^{name}=(\d+)$", UNIT.read_text(), re.MULTILINE)
    return float(value)


def documented_settings() -> dict[str, object]:
    """The settings in the file, all uncommented."""
    return tomllib.loads(re.sub(r"^#(?=\w+ = )", "", SETTINGS.read_text(), flags=re.MULTILINE))


def test_exactly_the_settings_are_documented() -> None:
    assert set(documented_settings()) == set(Config.model_fields)


def test_the_documented_defaults_are_those_in_the_unit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/tilecache")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/tilecache")
    defaults = Config().describe()
    documented = documented_settings()

    for name, default in defaults.items():
        if default is not None:
            assert documented[name] == default, name


def test_a_stop_has_time_to_drain_and_to_end_postgresql() -> None:
    drain_s = LISTENER_COUNT * Config().drain_timeout_s
    postgres_s = sum(timeout_s or 0 for _, timeout_s in postgres_process._STOP_SIGNALS)

    assert unit_seconds("TimeoutStopSec") > drain_s + postgres_s


def test_a_start_extends_its_timeout_in_time() -> None:
    assert unit_seconds("TimeoutStartSec") >= systemd.START_EXTENSION_S


def test_the_directory_of_the_drop_ins_is_that_of_the_unit() -> None:
    assert {path.parent for path in FILES.rglob("*.conf")} == {FILES, Path(f"{UNIT}.d")}

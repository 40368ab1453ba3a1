"""`tilecache serve`, and the help of all commands."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.daemon_process import (
    TILECACHE,
    DaemonProcess,
    daemon_environment,
    run_tilecache,
)
from tilecache_daemon import __version__

COMMANDS = ["serve", "migrate", "status", "derive", "get", "query", "import", "coverage"]


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    shown = run_tilecache("--help")
    assert shown.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in shown.stdout
    for code in range(6):
        assert f"{code} " in shown.stdout.partition("Exit codes:")[2]
    assert run_tilecache("-h").stdout == shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_on_its_options(command: str) -> None:
    shown = run_tilecache(command, "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"Usage: tilecache {command} ")
    usage, _, options = shown.stdout.partition("Options:" if command != "migrate" else "Commands:")
    assert len(usage.split()) > 8
    assert all(len(line.split()) > 1 for line in options.splitlines() if line.startswith("  -"))


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("derive", "tilecache derive 18 154321 95812"),
        ("get", "tilecache get 17f7ac7e-6c25-5050-a7cd-b6578cd5f323"),
        ("query", "tilecache query --bbox"),
    ],
)
def test_help_shows_examples(command: str, example: str) -> None:
    assert example in run_tilecache(command, "--help").stdout


def test_the_version_is_printed() -> None:
    assert run_tilecache("--version").stdout == f"tilecache, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["dance"], ["derive", "1"], ["get"], ["status", "--yes"]])
def test_wrong_usage_exits_with_2_and_names_help(arguments: list[str]) -> None:
    refused = run_tilecache(*arguments)
    assert refused.returncode == 2
    assert re.search(r"^Try 'tilecache.* (-h|--help)' for help\.$", refused.stderr, re.MULTILINE)
    assert "Error: " in refused.stderr


def test_on_a_terminal_serve_prints_its_socket_and_the_next_steps(
    database: str, short_directory: Path
) -> None:
    path = short_directory / "tilecache.sock"
    settings = {"socket_path": path, "admin_socket_path": short_directory / "admin.sock"}
    terminal, inner = pty.openpty()
    with (
        os.fdopen(terminal, encoding="utf-8") as shown,
        subprocess.Popen(
            [TILECACHE, "serve"],
            env=daemon_environment(dsn=database, **settings),
            stdout=inner,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        os.close(inner)
        try:
            first, second, third = (shown.readline().strip() for _ in range(3))
        finally:
            process.terminate()
        assert process.wait(60) == 0
    assert first == f"Listening on {path}"
    assert second.startswith("Next steps")
    assert third == f"tilecache status --socket {path}"


def test_a_stop_is_logged(daemon: DaemonProcess) -> None:
    assert daemon.stop() == 0
    assert '"stopped"' in daemon.log


def test_the_log_is_json_lines_without_a_terminal(daemon: DaemonProcess) -> None:
    lines = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    assert "serving" in [line["kind"] for line in lines]
    assert {"level", "timestamp", "logger", "kind", "kv"} <= set(lines[0])


def test_the_effective_settings_are_printed_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "tilecache.toml"
    file.write_text('pool_max_size = 11\ndsn = "host=db password=hunter2"\n')
    file.chmod(0o600)
    shown = run_tilecache(
        *("serve", "--print-config", "--config", file, "--log-level", "error"), pool_min_size=3
    )
    assert shown.returncode == 0
    assert "hunter2" not in shown.stdout
    settings = json.loads(shown.stdout)
    assert (settings["pool_max_size"], settings["pool_min_size"]) == (11, 3)
    assert settings["log_level"] == "error"
    assert settings["socket_mode"] == "0660"
    assert "host=db" in settings["dsn"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "/nonexistent/tilecache.toml"], "/nonexistent/tilecache.toml"),
        (["--dsn", "no dsn"], "dsn: "),
        (["--socket", "/" + "x" * 120], "socket_path: "),
        (["--log-level", "loud"], "--log-level"),
    ],
)
def test_a_bad_setting_exits_with_2_and_is_named(arguments: list[str], named: str) -> None:
    refused = run_tilecache("serve", *arguments)
    assert refused.returncode == 2
    assert named in refused.stderr
    assert "Traceback" not in refused.stderr

"""The precedence of the sources of settings, and the errors for bad ones."""

import os
from pathlib import Path

import pytest

from tilecache_daemon import config
from tilecache_daemon.config import (
    MAX_SOCKET_PATH_BYTES,
    Config,
    ConfigError,
    load_config,
    redact,
    split_address,
)

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("TILECACHE_") or name == "DB_URL":
            monkeypatch.delenv(name)
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "none.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tilecache.toml"
    path.write_text('pool_max_size = 11\nlog_level = "warning"\ndsn = "dbname=from_file"\n')
    return path


def test_the_defaults_need_nothing() -> None:
    settings = load_config()
    assert settings.dsn is None
    assert settings.pool_max_size == 8
    assert settings.socket_mode == 0o660
    assert settings.socket_path.name == "tilecache.sock"


def test_a_file_overrides_the_defaults(file: Path) -> None:
    settings = load_config(file)
    assert (settings.pool_max_size, settings.log_level) == (11, "warning")
    assert settings.dsn == "dbname=from_file"


def test_the_environment_overrides_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILECACHE_POOL_MAX_SIZE", "12")
    settings = load_config(file)
    assert (settings.pool_max_size, settings.log_level) == (12, "warning")


def test_a_flag_overrides_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILECACHE_POOL_MAX_SIZE", "12")
    assert load_config(file, {"pool_max_size": 13}).pool_max_size == 13


def test_a_flag_that_is_not_given_overrides_nothing(file: Path) -> None:
    assert load_config(file, {"pool_max_size": None}).pool_max_size == 11


def test_the_file_may_be_named_in_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILECACHE_CONFIG", str(file))
    assert load_config().pool_max_size == 11


def test_the_system_file_is_read_if_it_exists(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SYSTEM_CONFIG", file)
    assert load_config().pool_max_size == 11


def test_db_url_is_the_address_of_last_resort(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql://db/from_db_url")
    assert load_config().dsn == "postgresql://db/from_db_url"
    assert load_config(file).dsn == "dbname=from_file"
    monkeypatch.setenv("TILECACHE_DSN", "dbname=from_environment")
    assert load_config().dsn == "dbname=from_environment"
    assert load_config(flags={"dsn": "dbname=from_flag"}).dsn == "dbname=from_flag"


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILECACHE_DSN", "")
    monkeypatch.setenv("DB_URL", "")
    assert load_config().dsn is None


@pytest.mark.parametrize("text", ["0600", "600", "0o600"])
def test_a_mode_as_text_is_octal(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TILECACHE_SOCKET_MODE", text)
    assert load_config().socket_mode == 0o600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pool_max_size", "many"),
        ("pool_max_size", "0"),
        ("pool_timeout_s", "-1"),
        ("socket_mode", "0999"),
        ("socket_mode", "1777"),
        ("log_level", "loud"),
        ("access_flush_interval_s", "0"),
        ("max_concurrent_calls", "0"),
        ("dsn", "not a connection string"),
        ("socket_path", "/" + "x" * MAX_SOCKET_PATH_BYTES),
        ("metrics_address", "/" + "x" * MAX_SOCKET_PATH_BYTES),
        ("metrics_address", "9464"),
        ("metrics_address", "localhost:http"),
        ("tcp_address", "/run/tilecache/ground.sock"),
        ("tcp_address", "localhost:65536"),
        ("statement_timeout_s", "nan"),
        ("statement_timeout_s", "inf"),
        ("statement_timeout_s", "0.0001"),  # for PostgreSQL 0, which is no timeout
        ("max_used_bytes", str(1 << 63)),
        ("postgres_settings", '{"work_mem": ""}'),
        ("socket_group", "no-such-group"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TILECACHE_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"^{name}: "):
        load_config()


@pytest.mark.parametrize(
    "settings",
    [
        {"pool_min_size": 5, "pool_max_size": 4},
        {"socket_path": "/run/one.sock", "admin_socket_path": "/run/one.sock"},
        {"socket_path": "/run/one.sock", "metrics_address": "/run/one.sock"},
        {"admin_socket_path": "/run/one.sock", "metrics_address": "/run/one.sock"},
    ],
)
def test_settings_that_exclude_each_other_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(flags=settings)
    assert all(name in str(caught.value) for name in settings)


def test_a_consequence_of_a_bad_setting_is_not_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(flags={"socket_path": "/" + "x" * 200})
    assert "admin_socket_path" not in str(caught.value)


def test_the_admin_socket_is_beside_the_other_unless_it_is_named() -> None:
    moved = load_config(flags={"socket_path": "/srv/tiles.sock"})
    assert moved.admin_socket_path == Path("/srv/admin.sock")
    named = {"socket_path": "/srv/tiles.sock", "admin_socket_path": "/run/a.sock"}
    assert load_config(flags=named).admin_socket_path == Path("/run/a.sock")


def test_all_bad_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILECACHE_POOL_MAX_SIZE", "many")
    with pytest.raises(
        ConfigError, match=r"(?s)log_level: .*pool_max_size: |pool_max_size: .*log_"
    ):
        load_config(flags={"log_level": "loud"})


def test_an_unknown_setting_is_named(file: Path) -> None:
    file.write_text("pool_maxsize = 3\n")
    with pytest.raises(ConfigError, match="pool_maxsize"):
        load_config(file)


@pytest.mark.parametrize("content", ["pool_max_size =", "\0", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(file: Path, content: str | bytes) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=str(file)):
        load_config(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=f"{missing}: no such file"):
        load_config(missing)


def test_the_longest_socket_path_is_accepted() -> None:
    longest = Path("/" + "x" * (MAX_SOCKET_PATH_BYTES - 1))
    assert load_config(flags={"socket_path": longest}).socket_path == longest


def test_a_socket_path_is_measured_in_bytes() -> None:
    with pytest.raises(ConfigError, match=f"a socket path has at most {MAX_SOCKET_PATH_BYTES}"):
        load_config(flags={"socket_path": Path("/" + "ü" * 60)})


def test_a_relative_socket_path_is_made_absolute() -> None:
    assert load_config(flags={"socket_path": Path("here.sock")}).socket_path == Path.cwd() / (
        "here.sock"
    )


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://operator:{SECRET}@db.example/tiles?sslmode=require",
        f"host=db.example user=operator password={SECRET} sslpassword={SECRET}",
    ],
)
def test_passwords_are_redacted(dsn: str) -> None:
    described = load_config(flags={"dsn": dsn}).describe()
    assert SECRET not in str(described)
    assert "db.example" in described["dsn"]
    assert "operator" in described["dsn"]
    assert SECRET not in redact(dsn)


@pytest.mark.parametrize(
    "dsn",
    [
        f"password='{SECRET}",
        f"postgresql://operator:{SECRET}%zz@db/tiles",
        f"host=db passwort={SECRET}",
        SECRET,
    ],
)
def test_an_error_does_not_show_the_password(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("DB_URL", dsn)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_settings_are_immutable() -> None:
    settings = Config()
    with pytest.raises(ValueError, match="frozen"):
        settings.pool_max_size = 3


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:1", ("::1", 1)), ("db:65535", ("db", 65535))],
)
def test_an_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_nothing_listens_on_a_network_by_default() -> None:
    settings = load_config()
    assert (settings.tcp_address, settings.metrics_address, settings.otlp_endpoint) == (None,) * 3


def test_allowed_names_are_a_list_in_a_file_and_comma_separated_in_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('tls_allowed_names = ["a.example", "spiffe://b"]\n')
    assert load_config(file).tls_allowed_names == ("a.example", "spiffe://b")
    monkeypatch.setenv("TILECACHE_TLS_ALLOWED_NAMES", "c.example, spiffe://d")
    assert load_config(file).tls_allowed_names == ("c.example", "spiffe://d")


@pytest.mark.parametrize(
    "missing", ["tls_certificate", "tls_key", "tls_client_ca", "tls_allowed_names"]
)
def test_tcp_needs_all_of_mutual_tls(missing: str) -> None:
    whole = {
        "tcp_address": "localhost:1",
        "tls_certificate": Path("/c"),
        "tls_key": Path("/k"),
        "tls_client_ca": Path("/a"),
        "tls_allowed_names": ["name"],
    }
    assert load_config(flags=whole).tcp_address
    with pytest.raises(ConfigError, match=f"^{missing}: "):
        load_config(flags={name: value for name, value in whole.items() if name != missing})

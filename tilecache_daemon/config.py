"""The daemon's settings. Flags override the environment, which overrides the file.

The file is TOML: `--config`, else `$TILECACHE_CONFIG`, else
/etc/tilecache/tilecache.toml if it exists. In the environment a setting is
`TILECACHE_` and its name in capitals. `DB_URL` is the database's address if neither
flags, environment nor file have a `dsn`.
"""

import grp
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tilecache.paths import (
    ADMIN_SOCKET_NAME,
    SOCKET_NAME,
    runtime_directory,
    state_directory,
)

SYSTEM_CONFIG: Final = Path("/etc/tilecache/tilecache.toml")
MAX_SOCKET_PATH_BYTES: Final = 106
"""The size of a path in `sockaddr_un` (unix(7)), without the terminating zero and the dot that the
name begins with until the socket is ready."""

MAX_SECONDS: Final = 2_147_483
"""PostgreSQL's largest timeout, which has 32 bits for milliseconds."""

_SECRETS: Final = frozenset({"password", "sslpassword"})


class ConfigError(Exception):
    """An invalid setting. The message names it."""


def _octal(value: object) -> object:
    return int(value, 8) if isinstance(value, str) else value


def _split(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


Mode = Annotated[int, BeforeValidator(_octal), Field(ge=0, le=0o777)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)]
"""In the environment: separated by commas."""
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Timeout = Annotated[float, Field(ge=0.001, le=MAX_SECONDS)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


PostgresSetting = Literal[
    "shared_buffers",
    "effective_cache_size",
    "maintenance_work_mem",
    "work_mem",
    "max_wal_size",
    "checkpoint_timeout",
]


class Config(BaseSettings):
    """All settings. Immutable."""

    model_config = SettingsConfigDict(
        env_prefix="TILECACHE_", frozen=True, extra="forbid", validate_default=True
    )

    dsn: str | None = None
    """libpq connection string or URL. Without one, the daemon runs its own PostgreSQL.

    Put a password into a file that `passfile` names.
    """
    state_directory: Path = Field(default_factory=state_directory)
    """Where the daemon's own PostgreSQL stores its data."""
    postgres_settings: dict[PostgresSetting, Name] = Field(default_factory=dict)
    """Memory and checkpoint settings of the daemon's own PostgreSQL, in the place of those that
    follow the machine's memory. In the environment: a JSON object."""
    tiles_directory: Path | None = None
    """Where the image files are stored. Only reported to clients, never opened."""

    socket_path: Path = Field(default_factory=lambda: runtime_directory() / SOCKET_NAME)
    socket_mode: Mode = 0o660
    """In a file: an octal string, for example "0660"."""
    socket_group: str | None = None

    admin_socket_path: Path = Field(
        default_factory=lambda settings: settings.get("socket_path", Path(SOCKET_NAME)).with_name(
            ADMIN_SOCKET_NAME
        )
    )
    """The admin socket, the only one that serves TileCacheAdmin. Default: beside `socket_path`."""
    admin_socket_mode: Mode = 0o600
    admin_socket_group: str | None = None

    max_used_bytes: Bytes = 0
    """The ceiling for the size of all tiles' files together. 0: none."""
    evict_on_insert: bool = False
    """Whether an insert beyond the ceiling evicts tiles instead of being refused."""

    pool_min_size: int = Field(default=2, ge=1, le=100)
    pool_max_size: int = Field(default=8, ge=1, le=100)
    pool_timeout_s: Timeout = 2.0
    """How long a call waits for a free connection."""
    statement_timeout_s: Timeout = 30.0
    """The time limit of a query whose caller sets no deadline."""
    database_wait_s: Seconds = 60.0
    """How long a start waits for a database that does not answer."""
    migration_lock_timeout_s: Timeout = 60.0
    """How long a start waits for another process that migrates the database."""

    cache_max_bytes: Bytes = 128 * 1024 * 1024
    """The maximum size of the cache. 0: no cache."""
    watch_max_bytes: Bytes = 32 * 1024 * 1024
    """The maximum memory of what has changed in watched blocks, as a part of `cache_max_bytes`, at
    most half of it. A block that is not in it is sent whole when it changes."""
    access_flush_interval_s: Timeout = 5.0
    """How often recorded accesses are written. A crash loses the unwritten ones."""
    access_recent_s: Seconds = 60.0
    """An access is not written if one of the same tile was written within this time."""
    reevaluate_interval_s: Timeout = 86_400.0
    """How often the freshness labels of stored tiles are re-evaluated."""

    tcp_address: str | None = None
    """`host:port` to listen on for peers on the ground, always with mutual TLS. Default: off."""
    tls_certificate: Path | None = None
    """The server's certificate and its chain, in PEM."""
    tls_key: Path | None = None
    """The certificate's private key, in PEM."""
    tls_client_ca: Path | None = None
    """The certificates of the authorities that sign client certificates, in PEM."""
    tls_allowed_names: Names = ()
    """The clients that may call: a DNS or URI name in the certificate, else its common name."""

    metrics_address: str | None = None
    """`host:port` or the path of a Unix socket, for Prometheus. Default: off."""
    otlp_endpoint: str | None = None
    """The OTLP endpoint for OpenTelemetry traces. Default: off. Needs the extra `otel`."""

    max_concurrent_calls: int = Field(default=64, ge=1)
    stream_stall_timeout_s: Timeout = 60.0
    """A stream whose client neither sends nor receives for this long is ended."""
    drain_timeout_s: Seconds = 10.0
    """How long running calls may continue after a request to stop."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"

    @field_validator("socket_path", "admin_socket_path")
    @classmethod
    def _check_socket_path(cls, path: Path) -> Path:
        length = len(os.fsencode(path.absolute()))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"{path} has {length} bytes; a socket path has at most {MAX_SOCKET_PATH_BYTES}"
            )
        return path.absolute()

    @field_validator("tcp_address", "metrics_address")
    @classmethod
    def _check_address(cls, address: str | None, field: ValidationInfo) -> str | None:
        if not address:
            return None
        if field.field_name == "metrics_address" and address.startswith("/"):
            cls._check_socket_path(Path(address))
        else:
            split_address(address)
        return address

    @field_validator("tls_certificate", "tls_key", "tls_client_ca", "tls_allowed_names")
    @classmethod
    def _require_for_tcp(cls, value: object, field: ValidationInfo) -> object:
        if field.data.get("tcp_address") and not value:
            raise ValueError("required by tcp_address, which is served only with mutual TLS")
        return value

    @field_validator("dsn")
    @classmethod
    def _check_dsn(cls, dsn: str | None) -> str | None:
        if not dsn:
            return None
        try:
            conninfo_to_dict(dsn)
        except Exception:
            # libpq's message quotes the string, including the password.
            raise ValueError("not a libpq connection string or URL") from None
        return dsn

    @field_validator("socket_group", "admin_socket_group")
    @classmethod
    def _check_group(cls, name: str | None) -> str | None:
        if not name:
            return None
        try:
            grp.getgrnam(name)
        except KeyError:
            raise ValueError(f"{name!r}: no such group") from None
        return name

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        if self.pool_min_size > self.pool_max_size:
            raise ValueError(
                f"pool_min_size ({self.pool_min_size}) must not be greater than "
                f"pool_max_size ({self.pool_max_size})"
            )
        taken: dict[str, str] = {}
        for name in ("socket_path", "admin_socket_path", "tcp_address", "metrics_address"):
            address = str(getattr(self, name) or "")
            if address and (other := taken.setdefault(address, name)) != name:
                raise ValueError(f"{name} and {other} must not both be {address}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, file

    @property
    def watch_limit_bytes(self) -> int:
        """`watch_max_bytes`, so far as it leaves half of the cache to tiles. Without a cache it
        takes nothing from it."""
        most = self.cache_max_bytes // 2 or self.watch_max_bytes
        return min(self.watch_max_bytes, most)

    def describe(self) -> dict[str, Any]:
        """All settings as JSON values, with passwords redacted."""
        settings = self.model_dump(mode="json")
        if self.dsn:
            settings["dsn"] = redact(self.dsn)
        for name in ("socket_mode", "admin_socket_mode"):
            settings[name] = f"{getattr(self, name):04o}"
        return settings


def load_config(file: Path | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """The effective settings; raises ConfigError, which names the setting or the file."""
    file = file or _config_file()

    class FileConfig(Config):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        if file is not None and not file.is_file():
            raise ConfigError(f"{file}: no such file")
        overrides: dict[str, Any] = {k: v for k, v in (flags or {}).items() if v is not None}
        config = FileConfig(**overrides)
        if file is not None:
            _check_file_mode(file, TomlConfigSettingsSource(FileConfig).toml_data.get("dsn"))
        if config.dsn is None and (address := os.environ.get("DB_URL")):
            config = FileConfig(**overrides | {"dsn": address})
    except ValidationError as error:
        problems = (
            ": ".join(map(str, (*problem["loc"], problem["msg"].removeprefix("Value error, "))))
            for problem in error.errors()
            if problem["type"] != "default_factory_not_called"  # a consequence of another one
        )
        raise ConfigError("; ".join(problems)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error
    return config


def redact(dsn: str) -> str:
    """A connection string without its secrets."""
    parameters: dict[str, Any] = conninfo_to_dict(dsn)
    for name in _SECRETS:
        if name in parameters:
            parameters[name] = "***"
    return make_conninfo(**parameters)


def contains_password(dsn: str) -> bool:
    """Whether a connection string contains a secret; True if it cannot be parsed."""
    try:
        return not _SECRETS.isdisjoint(conninfo_to_dict(dsn))
    except ProgrammingError:
        return True


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, IPv6 in brackets; raises ValueError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def is_open_to_all(file: Path) -> bool:
    """Whether every user of the machine may read a file."""
    return bool(file.stat().st_mode & stat.S_IROTH)


def _check_file_mode(file: Path, dsn: str | None) -> None:
    if dsn and contains_password(dsn) and is_open_to_all(file):
        raise ConfigError(
            f"{file}: dsn contains a password, but all users may read it: run chmod o= {file}, "
            "or name a passfile in dsn instead"
        )


def _config_file() -> Path | None:
    if named := os.environ.get("TILECACHE_CONFIG"):
        return Path(named)
    return SYSTEM_CONFIG if SYSTEM_CONFIG.is_file() else None

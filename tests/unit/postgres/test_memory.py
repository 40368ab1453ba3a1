"""PostgreSQL's memory settings follow the memory that there is."""

from pathlib import Path
from typing import get_args

import pytest

from tilecache_daemon.config import PostgresSetting
from tilecache_daemon.postgres.memory import (
    _control_group_limits,
    available_memory_bytes,
    memory_settings,
)

GIB = 1024**3


@pytest.mark.parametrize(
    ("memory_gib", "shared_buffers", "max_wal_size"),
    [
        (1, "48MB", "1024MB"),
        (4, "64MB", "1024MB"),
        (32, "512MB", "2048MB"),
        (512, "1024MB", "2048MB"),
    ],
)
def test_settings_grow_with_the_memory_within_bounds(
    memory_gib: int, shared_buffers: str, max_wal_size: str
) -> None:
    settings = memory_settings(memory_gib * GIB)
    assert settings["shared_buffers"] == shared_buffers
    assert settings["max_wal_size"] == max_wal_size
    assert set(settings) == set(get_args(PostgresSetting)), "what a configuration may set"


def test_the_lowest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    membership, root = tmp_path / "membership", tmp_path / "cgroup"
    group = root / "system.slice" / "daemon.service"
    group.mkdir(parents=True)
    membership.write_text("12:pids:/elsewhere\n0::/system.slice/daemon.service\n")
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1073741824\n")
    assert _control_group_limits(membership, root) == [GIB]


def test_without_control_groups_the_machines_memory_counts(tmp_path: Path) -> None:
    assert _control_group_limits(tmp_path / "none", tmp_path) == []
    assert available_memory_bytes() > 0

"""PostgreSQL's memory settings follow the memory that there is."""

from pathlib import Path
from typing import get_args

import pytest

from tilecache_daemon.config import PostgresSetting
from tilecache_daemon.postgres import memory
from tilecache_daemon.postgres.memory import (
    _control_group_limits,
    available_memory_bytes,
    memory_settings,
)

GIB = 1024**3


@pytest.mark.parametrize(
    ("memory_gib", "sizes_mb"),
    [
        (1, (48, 256, 64, 4, 1024)),
        (4, (64, 1024, 64, 4, 1024)),
        (16, (256, 4096, 256, 16, 2048)),
        (32, (512, 8192, 512, 32, 2048)),
        (512, (1024, 32_768, 512, 32, 2048)),
    ],
)
def test_settings_grow_with_the_memory_within_bounds(
    memory_gib: int, sizes_mb: tuple[int, ...]
) -> None:
    *names, checkpoint_timeout = get_args(PostgresSetting)
    expected = {name: f"{size}MB" for name, size in zip(names, sizes_mb, strict=True)}
    assert memory_settings(memory_gib * GIB) == expected | {checkpoint_timeout: "15min"}


def test_the_lowest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    membership, root = tmp_path / "membership", tmp_path / "cgroup"
    group = root / "system.slice" / "daemon.service"
    group.mkdir(parents=True)
    membership.write_text("12:pids:/elsewhere\n0::/system.slice/daemon.service\n")
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1073741824\n")
    (root.parent / "memory.max").write_text("1\n")  # of no control group
    assert _control_group_limits(membership, root) == [GIB]


def test_without_control_groups_the_machines_memory_counts(tmp_path: Path) -> None:
    assert _control_group_limits(tmp_path / "none", tmp_path) == []
    assert available_memory_bytes() > 0


def test_a_limit_below_the_machines_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_control_group_limits", lambda *_: [1024 * GIB, 3])
    assert available_memory_bytes() == 3

"""PostgreSQL's memory settings follow the memory that there is."""

from pathlib import Path
from typing import get_args

import pytest

from tilecache_daemon.config import Config, PostgresSetting
from tilecache_daemon.postgres import memory
from tilecache_daemon.postgres.memory import (
    _control_group_limits,
    available_memory_bytes,
    memory_settings,
)

GIB = 1024**3
MIB = 1024**2
INSTALL = Path(__file__).parents[3] / "docs" / "install.md"


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


@pytest.mark.parametrize("memory_gib", [4, 8, 16, 32, 64])
def test_the_server_leaves_the_memory_to_others(memory_gib: int) -> None:
    size = {
        name: int(value.removesuffix("MB")) * MIB
        for name, value in memory_settings(memory_gib * GIB).items()
        if value.endswith("MB")
    }
    autovacuum_workers = 3
    pool_max_size = Config.model_fields["pool_max_size"].default
    most = (
        size["shared_buffers"]
        + size["maintenance_work_mem"] * autovacuum_workers
        + size["work_mem"] * pool_max_size
    )
    assert most <= memory_gib * GIB / 10


def test_the_document_has_the_settings_of_each_machine() -> None:
    rows = [line.strip("| ").split(" | ") for line in INSTALL.read_text().splitlines()]
    header = next(row for row in rows if row[0] == "memory")
    for memory_gib in (4, 8, 16, 32, 64):
        documented = next(row for row in rows if row[0] == f"{memory_gib} GB")
        names = [name.strip("`") for name in header[1:]]
        assert dict(zip(names, documented[1:], strict=True)) == memory_settings(memory_gib * GIB)


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

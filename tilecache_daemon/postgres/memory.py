"""Settings of the daemon's own PostgreSQL that follow the machine's memory."""

import os
from pathlib import Path
from typing import Final

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB


def memory_settings(memory_bytes: int) -> dict[str, str]:
    """Settings for a machine or a control group with this much memory.

    An edge computer shares its memory with the picture matching, so PostgreSQL takes a
    small part. Fewer checkpoints write fewer full pages to flash; the write-ahead log stays
    small enough to be recovered within a start's time limit.
    """

    def share(divisor: int, least: int, most: int) -> str:
        return f"{min(max(memory_bytes // divisor, least), most) // _MIB}MB"

    return {
        "shared_buffers": share(64, 48 * _MIB, _GIB),
        "effective_cache_size": share(4, 256 * _MIB, 32 * _GIB),
        "maintenance_work_mem": share(64, 64 * _MIB, 512 * _MIB),
        "work_mem": share(1024, 4 * _MIB, 32 * _MIB),
        "max_wal_size": share(8, _GIB, 2 * _GIB),
        "checkpoint_timeout": "15min",
    }


def available_memory_bytes() -> int:
    """The machine's memory, or the limit of this process's control group (v2) if that is less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(
        [physical, *_control_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    )


def _control_group_limits(membership: Path, root: Path) -> list[int]:
    """The limits of a process's control group and those above it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        hierarchy, _, path = line.partition("::")
        if hierarchy != "0":
            continue
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            try:
                text = (directory / "memory.max").read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                limits.append(int(text))
    return limits

"""How much memory is free, on a GPU or in this process's share of the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

# cgroup version 2 and 1: where groups are, the limit, what is in use, and how much of that is cached files.
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on ``device`` now; for the CPU as `free_ram` has it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_ram()


def free_ram(root: Path = Path("/")) -> int:
    """Bytes of RAM that can be taken without swapping, within the limits of the process's control groups.

    A container's limit is one of those: what the machine has free is of no use beyond it. Files that are
    only cached count as free.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are; where they are not, all RAM counts as free.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = meminfo.read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    free = int(values["MemAvailable"].split()[0]) * 1024
    for group, files in _groups(root):
        free = min(free, _left(group, *files))
    return free


def _groups(root: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """The process's control groups with their ancestors, each of which may have a limit."""
    listing = root / "proc/self/cgroup"
    lines = listing.read_text().splitlines() if listing.exists() else []
    found = []
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0":
            mount, *files = _V2
        elif "memory" in controllers.split(","):
            mount, *files = _V1
        else:
            continue
        group = Path(name.lstrip("/"))
        # In a container the name may be the host's: then only the mount itself, its root, exists.
        found += [(root / mount / part, (files[0], files[1], files[2])) for part in (group, *group.parents)]
    return found


def _left(group: Path, limit_file: str, used_file: str, cached_key: str) -> int:
    try:
        limit = (group / limit_file).read_text().strip()
        if limit == "max":
            return sys.maxsize
        used = int((group / used_file).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # no such group or no such file: the root group of version 2 has none
        return sys.maxsize
    return max(0, int(limit) - used + int(stat.get(cached_key, 0)))

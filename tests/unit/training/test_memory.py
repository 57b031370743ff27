"""Free memory, as the machine and the process's control groups have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.memory import free_bytes, free_ram

MIB = 2**20


def machine(root: Path, groups: str, files: dict[str, str], available: int = 100 * MIB) -> Path:
    found = {
        "proc/meminfo": f"MemTotal: 999 kB\nMemAvailable: {available // 1024} kB\n",
        "proc/self/cgroup": groups,
        **files,
    }
    for name, text in found.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v2(group: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup/{group}memory.max": limit + "\n",
        f"sys/fs/cgroup/{group}memory.current": f"{used}\n",
        f"sys/fs/cgroup/{group}memory.stat": f"anon 1\ninactive_file {cached}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 100 * MIB),
        (v2("a/b/", "max", 10), 100 * MIB),
        (v2("a/b/", str(50 * MIB), 20 * MIB), 30 * MIB),
        (v2("a/b/", str(50 * MIB), 20 * MIB, 5 * MIB), 35 * MIB),
        (v2("a/b/", str(50 * MIB), 0) | v2("a/", str(8 * MIB), 7 * MIB), 1 * MIB),
        (v2("", str(40 * MIB), 30 * MIB), 10 * MIB),
        (v2("a/", str(40 * MIB), 50 * MIB), 0),
    ],
)
def test_limits_of_the_group_and_its_ancestors_count(tmp_path, files, expected):
    assert free_ram(machine(tmp_path, "0::/a/b\n", files)) == expected


def test_first_version_of_control_groups(tmp_path):
    files = {
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{60 * MIB}\n",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{40 * MIB}\n",
        "sys/fs/cgroup/memory/x/memory.stat": f"cache 3\ntotal_inactive_file {MIB}\n",
    }
    groups = "4:cpu:/y\n3:memory:/x\n0::/\n"
    assert free_ram(machine(tmp_path, groups, files)) == 21 * MIB


def test_this_machine_has_some(tmp_path):
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
    assert free_ram(tmp_path) > free_ram() // 2, "without /proc, all the RAM there is"

"""The environment that results depend on: versions, hardware, source, and limits of cores and memory."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import psutil

_GROUPS = Path("/sys/fs/cgroup")
"""Control groups of the system."""


def environment() -> dict[str, Any]:
    """Versions, hardware, source and command line as JSON data, without the machine's name."""
    import torch  # not needed to count cores

    packages = ("transformers", "accelerate", "tokenizers")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **_source(Path(__file__).resolve().parents[2]),
        "command": sys.argv,
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _source(root: Path) -> dict[str, Any]:
    """Commit of the source tree and whether files have changed; None for both outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    # Without this check an installed copy would report a repository that contains its environment.
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            changes = git("status", "--porcelain", "--untracked-files=no")
            return {"commit": git("rev-parse", "HEAD"), "changed": bool(changes)}
    return {"commit": None, "changed": None}


def num_cores() -> int:
    """CPU cores that this process may use: of the machine, or of its control group's limit, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(math.ceil(limit) for limit in cores_in_groups(_GROUPS, _own_groups()))])


def free_memory() -> int:
    """Bytes that this process can allocate: of the machine, or below the limit of its control group (a container or a
    batch job). Cached files count as free."""
    return min([psutil.virtual_memory().available, *free_in_groups(_GROUPS, _own_groups())])


def cores_in_groups(root: Path, groups: Iterable[str]) -> list[float]:
    """Limits of CPU time, in cores, of the named control groups (version 1 or 2)."""
    found = []
    for group in groups:
        with suppress(OSError, ValueError):  # missing, or "max" for no limit
            quota, period = map(int, (root / group / "cpu.max").read_text().split())
            found.append(quota / period)
        with suppress(OSError, ValueError):
            folder = root / "cpu" / group
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            found += [quota / period] if quota > 0 else []
    return found


def free_in_groups(root: Path, groups: Iterable[str]) -> list[int]:
    """Bytes left below each limit of the named control groups (version 1 or 2)."""
    files = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    found = []
    for group, (version, limit, used, kept) in product(groups, files):
        folder = root / version / group
        with suppress(OSError, ValueError):  # missing, or "max" for no limit
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            use = int((folder / used).read_text()) - int(statistics.get(kept, 0))
            found.append(int((folder / limit).read_text()) - use)
    return found


def _own_groups() -> set[str]:
    groups = {""}  # a container sees its own group as the root
    with suppress(OSError):
        groups |= {line.split(":", 2)[2].lstrip("/") for line in Path("/proc/self/cgroup").read_text().splitlines()}
    return groups

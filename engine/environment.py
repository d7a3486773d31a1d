"""What a result depends on besides its configuration."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions, hardware, source and command line, as JSON can hold them; the machine is not named."""
    packages = ("torch", "transformers", "accelerate", "tokenizers")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **_source(Path(__file__).resolve().parents[1]),
        "command": sys.argv,
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _source(root: Path) -> dict[str, Any]:
    """Commit of the source tree and whether it was changed since; None for both outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    # Without the first check an installed copy would report whatever repository its environment happens to lie in.
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            changes = git("status", "--porcelain", "--untracked-files=no")
            return {"commit": git("rev-parse", "HEAD"), "changed": bool(changes)}
    return {"commit": None, "changed": None}


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

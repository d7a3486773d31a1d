"""Whole trainings by one process and by two."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
_TRAINING = (
    "configs/pretrain/mlm_mini.yaml", "train.phases=[{batch_size: 64, sequence_length: 128}]", "train.log_every=1",
    "train.save_every=100%", "train.evaluate_every=100%", "train.evaluate_examples=64", "run.threads=1",
    "run.device=cpu", "tracking.wandb=off",
)  # fmt: skip


def two_beside_one(folder: Path, rounds: int, steps: int, about: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of whole runs, one process and two by turns: the same steps of the same size."""
    _run(["-m", "pretrain.prepare", *_TRAINING, f"run.data_dir={folder}"])
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            run = folder / "runs" / "pretrain" / f"{processes}-{turn}"
            places = [f"run.name={run.name}", f"run.dir={folder}/runs", f"run.data_dir={folder}"]
            launch = several if processes > 1 else []
            _run([*launch, "-m", "pretrain", *_TRAINING, *places, f"train.steps={steps}"])
            lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            # The first steps meet cold caches and allocators, which a long run does once.
            speed = [row["tokens_per_second"] for row in lines if "tokens_per_second" in row][steps // 5 :]
            speeds[processes].append(statistics.harmonic_mean(speed))
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    efficiency, physical = statistics.median(ratios) / 2, about["physical_cores"]
    units = "; the system reports one physical core for both" * (physical < 2 <= about["cores"])
    units += "; both share one core" * (about["cores"] < 2)
    print(
        f"\ntokens/s of one process {statistics.median(speeds[1]):,.0f}, of two {statistics.median(speeds[2]):,.0f}: "
        f"efficiency {efficiency:.0%} (rounds {min(ratios) / 2:.0%} to {max(ratios) / 2:.0%}){units}",
        flush=True,
    )
    return {"tokens_per_second": speeds, "ratios": ratios, "efficiency": efficiency, "steps": steps}


def _run(arguments: list[str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}")


def physical_cores() -> int:
    """Cores this process may use that share no units with each other, as far as the system tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    with suppress(OSError):
        return len({Path(topology.format(core)).read_text(encoding="utf-8").strip() for core in allowed})
    return min(len(allowed), psutil.cpu_count(logical=False) or 1)

"""Runs of the command side by side, as many as the machine has room for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from engine.environment import num_cores


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """What it is called in what is printed."""
    arguments: tuple[str, ...]
    """Of ``python -m <module>``."""
    log: Path
    """Where its output goes."""
    module: str = "finetune"
    """The command: a package of ours."""


def places(side_by_side: int | None) -> list[dict[str, str]]:
    """The environment of each place where a job can run: a GPU each, or an equal share of the CPU's cores.

    On a CPU a job takes one core: small batches do not fill two, and several runs on one core each get more done
    than one run on all of them.
    """
    gpus, cores = torch.cuda.device_count(), num_cores()
    number = side_by_side or gpus or cores
    if gpus:
        # Of those that this process was given, by number or by name; torch counts no others.
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = given.split(",") if given else [*map(str, range(gpus))]
        return [{"CUDA_VISIBLE_DEVICES": names[place % gpus].strip()} for place in range(number)]
    return [{"OMP_NUM_THREADS": str(max(1, cores // number))}] * number


def run_jobs(jobs: Sequence[Job], side_by_side: int | None = None) -> list[str]:
    """Run all, a line for each that ends; returns what went wrong, with the end of each failed one's log."""
    if not jobs:
        return []
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    around = places(side_by_side)
    for place in around:
        free.put(place)

    def run(job: Job) -> tuple[Job, int]:
        place = free.get()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        # What every run would find out for itself, that no key is there, need be said once only.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **place}
        with job.log.open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", job.module, *job.arguments]
            status = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        free.put(place)
        return job, status

    print(f"{len(jobs)} runs, {min(len(around), len(jobs))} side by side", flush=True)
    failed, began = [], time.monotonic()
    with ThreadPoolExecutor(len(around)) as pool:
        try:
            for done, future in enumerate(as_completed([pool.submit(run, job) for job in jobs]), 1):
                job, status = future.result()
                left = (time.monotonic() - began) / done * (len(jobs) - done) / 60
                said = "done" if status == 0 else f"FAILED with status {status}"
                print(f"{done}/{len(jobs)} {job.name}: {said}, about {left:.1f} min left", flush=True)
                if status:
                    failed.append(job)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # those that run were interrupted, too, and save themselves
            raise
    return [f"{job.name} failed ({job.log}):\n{_end(job.log)}" for job in failed]


def _end(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-5:])

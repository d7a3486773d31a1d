"""Runs of the command side by side, as many as the machine has room for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bertillery.run.directory import StoppedError, StopSignal
from bertillery.system.entry import PARENT
from bertillery.system.environment import num_cores

_LOOK = 0.05
"""Seconds between two looks at what runs."""


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


@dataclass(frozen=True)
class _Running:
    job: Job
    place: dict[str, str]
    process: subprocess.Popen[bytes]


def run_jobs(jobs: Sequence[Job], side_by_side: int | None = None) -> list[str]:
    """Run all, a line for each that ends; returns what went wrong, with the end of each failed one's log.

    Asked to stop by a signal, it has those that run save themselves, waits for them and raises ``StoppedError``. They
    do so, too, where this process is ended in any other way.
    """
    if not jobs:
        return []
    around = places(side_by_side)
    free, waiting, running = deque(around), deque(jobs), list[_Running]()
    print(f"{len(jobs)} runs, {min(len(around), len(jobs))} side by side", flush=True)
    failed, done, began, told = [], 0, time.monotonic(), False
    with StopSignal() as signal:
        try:
            while running or (waiting and not signal.requested):
                while waiting and free and not signal.requested:
                    running.append(_start(waiting.popleft(), free.popleft()))
                if signal.requested and not told:
                    print(f"{signal.requested}: waiting for {len(running)} runs to save themselves", flush=True)
                    for each in running:
                        each.process.terminate()
                    told = True
                ended = [each for each in running if each.process.poll() is not None]
                for each in ended:
                    running.remove(each)
                    free.append(each.place)
                    done += 1
                    status = each.process.returncode
                    left = (time.monotonic() - began) / done * (len(jobs) - done) / 60
                    said = "done" if status == 0 else "stopped" if told else f"FAILED with status {status}"
                    print(f"{done}/{len(jobs)} {each.job.name}: {said}, about {left:.1f} min left", flush=True)
                    if status:
                        failed.append(each.job)
                if not ended:
                    time.sleep(_LOOK)
        finally:
            for each in running:  # a second Ctrl-C
                each.process.kill()
                each.process.wait()
    if signal.requested:
        raise StoppedError(signal.requested)
    return [f"{job.name} failed ({job.log}):\n{_end(job.log)}" for job in failed]


def _start(job: Job, place: dict[str, str]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    # What every run would find out for itself, that no key is there, need be said once only.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **place, PARENT: str(os.getpid())}
    with job.log.open("a", encoding="utf-8") as log:  # another process may be at this run, and write there
        command = [sys.executable, "-m", job.module, *job.arguments]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    return _Running(job, place, process)


def _end(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-5:])

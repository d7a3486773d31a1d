"""Runs of a stage in processes of their own, as many side by side as the machine has room for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import distill.config
import finetune.config
import pretrain.config
from bertillery.config.layers import read_values
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import Stage, StageConfig
from bertillery.system.entry import PARENT, StoppedError, StopSignal
from bertillery.system.environment import num_cores
from distill.stage import TaskAgnostic
from distill.task_stage import TaskSpecific
from finetune.config import FinetuneConfig
from finetune.data.splits import open_task, row_inputs
from finetune.stage import Finetuning, finetuning
from finetune.task import TaskSection
from pretrain.stage import Pretraining

_POLL = 0.05
"""Seconds between two looks at the running processes."""


@dataclass(frozen=True)
class Command:
    """The command of a stage, ``python -m <module>``, and what its arguments stand for."""

    module: str
    load: Callable[[Sequence[str]], StageConfig]
    stage: Callable[[Any], Stage]


def command_of(arguments: Sequence[str]) -> Command:
    """The stage that the arguments configure: a teacher means distillation, a task without one means fine-tuning.

    Raises what ``read_values`` raises.
    """
    values, _ = read_values(arguments)
    if "teacher" in values:
        return Command("distill", distill.config.load_config, _distillation)
    if values.keys() & {"task", *TaskSection.model_fields}:  # fine-tuning says where keys of a task belong
        return Command("finetune", finetune.config.load_config, finetuning)
    return Command("pretrain", pretrain.config.load_config, Pretraining)


def _distillation(config: Any) -> Stage:
    agnostic = isinstance(config, distill.config.TaskAgnosticConfig)
    return TaskAgnostic(config) if agnostic else TaskSpecific(config)


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """Its name in printed lines."""
    arguments: tuple[str, ...]
    """Of ``python -m <module>``."""
    log: Path
    """Where its output goes."""
    module: str = "finetune"


def job(stage: Stage, arguments: Sequence[str], module: str = "finetune") -> Job:
    """The run of a stage, with its log beside the run's folder."""
    return Job(stage.name, tuple(arguments), stage.path.with_name(f"{stage.path.name}.log"), module)


def read_rows(config: FinetuneConfig) -> dict[str, Fingerprint]:
    """Fingerprints of the rows of the task; raises ``InputError`` if a required split is missing."""
    task = open_task(config.task, config.run.data_dir)
    for name in ["train", *config.task.validation]:
        task.split(name)
    return row_inputs(task)


def print_changes(stage: Finetuning, rows: dict[str, Fingerprint]) -> None:
    """Print a note if the rows or models of a finished run have changed since."""
    print("".join(f"{line}\n" for line in stage.changes(rows | stage.models())), end="")


def places(side_by_side: int | None) -> list[dict[str, str]]:
    """The environment variables of each place where a job can run: one GPU, or an equal share of the CPU's cores.

    On a CPU a job has one core by default: small batches do not fill two, and several runs on one core each get more
    done than one run on all of them.
    """
    gpus, cores = torch.cuda.device_count(), num_cores()
    number = side_by_side or gpus or cores
    if gpus:
        # CUDA_VISIBLE_DEVICES may hold numbers or names; torch counts only the devices in it.
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
    """Run all jobs and print a line when one ends; returns a message for each that failed, with the end of its log.

    On SIGTERM or SIGINT it tells the running jobs to save themselves, waits for them and raises ``StoppedError``. The
    jobs also save themselves if this process ends in any other way.
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
                    time.sleep(_POLL)
        finally:
            for each in running:  # a second Ctrl-C
                each.process.kill()
                each.process.wait()
    if signal.requested:
        raise StoppedError(signal.requested)
    return [f"{job.name} failed ({job.log}):\n{_end(job.log)}" for job in failed]


def _start(job: Job, place: dict[str, str]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **place, PARENT: str(os.getpid())}
    command = [sys.executable, "-m", job.module, *job.arguments]
    with job.log.open("a", encoding="utf-8") as log:  # appended to: another process may run this job and log here
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    return _Running(job, place, process)


def _end(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-5:])

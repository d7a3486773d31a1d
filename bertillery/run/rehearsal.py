"""``--dry-run``: a run up to its first step, a few steps timed in memory, and what the run will cost.

Nothing of the run is written. The prepared corpus and rows stay in ``run.data_dir``, where the run itself uses them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate.state import AcceleratorState

from bertillery.engine.loader import Cursor
from bertillery.engine.meter import memory_gib
from bertillery.engine.schedule import Phase
from bertillery.run.stage import Stage
from bertillery.run.trainer import Trainer

_ENOUGH = 5.0
"""Seconds of timed steps after which no further one is timed."""
_MOST = 4
"""Steps of a phase that are run at most; the first is not counted where there are more."""


@dataclass(frozen=True)
class Timed:
    """Steps of a phase that were run, with batches cut to one micro-batch of each process."""

    steps: int
    seconds: float
    examples: int
    tokens: int
    flops: float


@dataclass(frozen=True)
class PhaseCost:
    """What the remaining steps of a phase will take."""

    steps: int
    seconds: float
    tokens: float
    flops: float

    @classmethod
    def of(cls, phase: Phase, steps: int, timed: Timed) -> PhaseCost:
        """Timed steps, scaled to ``steps`` of the phase by their examples, or by tokens where the batch is counted in
        them. A ramp counts with the mean of its first and last batch."""
        batch = (phase.first + phase.last) / 2
        share = steps * batch / (timed.tokens if phase.in_tokens else timed.examples)
        return cls(steps, share * timed.seconds, share * timed.tokens, share * timed.flops)


def rehearse(stages: Iterable[Stage]) -> int:
    """Prepare the first stage that is not finished, time a few of its steps, and print what it will take; returns the
    exit status. Stages after it need its result and are only named."""
    waiting = [stage for stage in stages if not stage.open(is_main=False).finished]
    if not waiting:
        print("dry run: the run is finished; nothing is left to do", flush=True)
        return 0
    stage, *later = waiting
    trainer = stage.rehearsal()
    stage.say(f"\n{stage.banner(trainer)}\n")
    lines = _report(stage, trainer)
    if later:
        lines.append(f"then        {', '.join(str(each.path) for each in later)}, on this run's result: not estimated")
    stage.say("\n".join(["dry run: nothing of the run was written", "", *lines]))
    AcceleratorState._reset_state()
    return 0


def _report(stage: Stage, trainer: Trainer) -> list[str]:
    section, schedule = stage.config.train, trainer.schedule
    begun = trainer.step
    left = f", {schedule.total - begun:,} left" if begun else ""
    lines = [f"steps       {schedule.total:,}{left}"]
    costs = []
    for phase, first, steps in remaining(section.phases, schedule.total, begun):
        timed = _time_steps(trainer, phase, first)
        costs.append(cost := PhaseCost.of(section.phases[phase], steps, timed))
        speed = timed.tokens / timed.seconds
        each = duration(cost.seconds / steps)
        lines.append(f"            {steps:,} of {section.phases[phase]}: {each} a step, {speed:,.0f} tokens/s")
    evaluations = sum(schedule.due(step, schedule.evaluate) for step in range(begun + 1, schedule.total + 1))
    evaluating = evaluations * trainer.held_out.seconds(trainer.accelerator, trainer.objective)
    training, tokens = sum(cost.seconds for cost in costs), sum(cost.tokens for cost in costs)
    memory, where = memory_gib(trainer.accelerator.device), trainer.accelerator.device.type
    weights = sum(parameter.nbytes for parameter in trainer.objective.parameters())
    saved = weights + _moments(trainer.optimizer)
    best = 1 if section.export == "best" else 0
    return [
        *lines,
        f"tokens      {tokens:,.0f}, {sum(cost.flops for cost in costs) / 1e15:,.3g} PFLOP",
        f"time        {duration(training)} training, {duration(evaluating)} in {evaluations:,} evaluations",
        "            not counted: start, checkpoints, the report, and other work on this machine",
        f"memory      {memory:.2f} GiB of {where} at most in this process, of which weights, gradients and optimizer "
        f"{(weights + saved) / 2**30:.2f}",
        f"disk        {(section.keep + best) * saved / 2**20:,.0f} MiB in {section.keep + best} checkpoints, about "
        f"{weights / 2**20:,.0f} MiB in the export",
    ]


def remaining(phases: Sequence[Phase], total: int, begun: int) -> Iterator[tuple[int, int, int]]:
    """Phases with steps after the first ``begun``: index, first such step, and their number."""
    whole, before, end = sum(phase.share for phase in phases), 0.0, 0
    for index, phase in enumerate(phases):
        before += phase.share
        first, end = max(end, begun), round(before / whole * total)
        if end > first:
            yield index, first, end - first


def cut(phase: Phase, tokens: int, processes: int) -> Phase:
    """The phase with constant batches of at most ``tokens`` and at least an example for each process."""
    length = phase.sequence_length
    if phase.in_tokens:
        return phase.model_copy(
            update={"batch_tokens": max(min(phase.last, tokens), processes * length), "batch_from": None}
        )
    fitting = max(processes, tokens // length)
    return phase.model_copy(update={"batch_size": min(phase.last, fitting), "batch_from": None})


def _time_steps(trainer: Trainer, phase: int, first: int) -> Timed:
    """Run a few steps of the phase from its first step on, in memory."""
    processes = trainer.accelerator.num_processes
    whole, place = trainer.section, (trainer.step, trainer.cursor)
    tokens = trainer.micro_batch_tokens * processes
    phases = [cut(each, tokens, processes) for each in whole.phases]
    trainer.section = whole.model_copy(update={"phases": phases, "workers": 0})
    if phase != trainer.cursor.phase:
        trainer.cursor = Cursor(phase, trainer.cursor.epoch)
    trainer.step = first
    runs: list[Timed] = []
    since = time.perf_counter()
    # Learning rate 0: a step that is timed must not diverge. All processes stop after the same step.
    for info in trainer.steps(lambda step: 0.0, lambda: sum(run.seconds for run in runs) > _ENOUGH):
        _wait_for(trainer.accelerator.device)
        now = time.perf_counter()
        runs.append(Timed(1, now - since, info.num_examples, info.num_tokens, info.flops * processes))
        if len(runs) == _MOST or info.stop:
            break
        since = time.perf_counter()
    trainer.section, (trainer.step, trainer.cursor) = whole, place
    counted = runs[1:] or runs  # the first step also warms up
    return Timed(*(sum(getattr(run, name) for run in counted) for name in Timed.__dataclass_fields__))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _moments(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state in this process."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def duration(seconds: float) -> str:
    """A length of time in two significant parts of everyday units, such as ``2 h 5 min``."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    hours, days = divmod(minutes, 60), divmod(round(seconds / 3600), 24)
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours[0]} h {hours[1]} min" if hours[0] < 48 else f"{days[0]:,} days {days[1]} h"

"""A whole training: resume, then the loop with what happens now and then, in the order log, save, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from engine.checkpoint import checkpoint_name, load_checkpoint, prune_checkpoints, save_checkpoint
from engine.evaluate import HeldOut
from engine.loop import StepInfo, always, training_steps
from engine.meter import Meter, Progress
from engine.micro_batch import largest_micro_batch
from engine.optim import OptimSection, learning_rate
from engine.order import Cursor, Steps, load
from engine.resume import HELD_OUT, check_everywhere, held_out_numbers, newest_checkpoint
from engine.rhythm import Rhythm, TrainSection
from engine.run import RunDirectory, StopSignal
from engine.sharding import assemble
from engine.tracking import Tracker


@dataclass(frozen=True)
class Fit:
    """How a training ended."""

    step: int
    """Of the weights that leave the run."""
    stopped_by: str | None
    """Name of the signal that ended it early."""
    held_out: dict[str, float]
    """The evaluation of the weights that leave the run."""
    tokens_per_second: float


class Trainer:
    """Holds the parts of one training together; :meth:`run` is the whole of it."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        run: RunDirectory,
        config: str,
        section: TrainSection,
        optim: OptimSection,
        rhythm: Rhythm,
        seed: int,
        sources: list[Any],
        held_out: HeldOut,
    ) -> None:
        self.accelerator, self.objective, self.optimizer = accelerator, objective, optimizer
        self.run_directory, self.config, self.section, self.optim = run, config, section, optim
        self.rhythm, self.seed, self.sources, self.held_out = rhythm, seed, sources, held_out
        given = section.micro_batch_tokens
        if given == "auto":
            given = largest_micro_batch(accelerator, objective, optimizer, sources=sources, phases=section.phases)
        self.micro_batch_tokens = held_out.micro_batch_tokens = given
        self.step, self.cursor = 0, Cursor()
        self.evaluations: dict[int, dict[str, float]] = {}
        """Held-out numbers by step."""

    def resume(self) -> int:
        """Load the newest whole checkpoint, where there is one; returns the step it is from, alike in all processes."""
        path = newest_checkpoint(self.accelerator, self.run_directory.checkpoints)
        if path is not None:
            state = self._load(path)
            self.step, self.cursor = state["step"], Cursor(**state["cursor"])
            self.evaluations = held_out_numbers(self.accelerator, self.run_directory.metrics_file, self.step)
        return self.step

    def run(self, tracker: Tracker) -> Fit:
        """Train to the end, or until a signal asks to stop."""
        with (
            StopSignal() as signal,
            Progress(self.rhythm.total, self.step, self.accelerator.is_main_process) as progress,
        ):
            meter, stopped = Meter(self.accelerator, self._plain), False
            if self.step and self.rhythm.due(self.step, self.rhythm.evaluate) and self.step not in self.evaluations:
                with meter.paused():
                    self._evaluate(tracker, progress)  # stopped between saving and evaluating
            rate = learning_rate(self.optim, self.rhythm.total)
            asked = (lambda: signal.requested is not None), self._acted_on
            steps = [] if self._out_of_patience else self.steps(rate, *asked)
            for info in steps:
                self.step, self.cursor = info.step, info.cursor
                meter.add(info)
                progress.advance(info)
                stopped = info.stop and info.step < self.rhythm.total
                if self.rhythm.due(info.step, self.rhythm.log) or stopped:
                    values = meter.read(info)
                    tracker.log(info.step, values)
                    progress.show(values)
                evaluation_due = self.rhythm.due(info.step, self.rhythm.evaluate) and not stopped
                if self.rhythm.due(info.step, self.rhythm.save) or evaluation_due or stopped:
                    with meter.paused():
                        self._save()
                        if evaluation_due:
                            self._evaluate(tracker, progress)
                if stopped or (evaluation_due and self._out_of_patience):
                    break
            if stopped:
                return Fit(self.step, signal.requested or "signal", {}, meter.overall)
            step = self._choose(progress)
            return Fit(step, None, self.evaluations[step], meter.overall)

    @property
    def best(self) -> int:
        """Step of the best evaluation so far, the earliest of equals."""
        return max(self.evaluations, key=lambda step: (self.held_out.score(self.evaluations[step]), -step))

    @property
    def _out_of_patience(self) -> bool:
        if self.section.patience is None or not self.evaluations:
            return False
        best = self.best
        return sum(step > best for step in self.evaluations) >= self.section.patience

    def _choose(self, progress: Progress) -> int:
        """Leave the weights to be exported in the objective; returns the step that they are from."""
        if self.section.export == "last" or self.best == self.step:
            return self.step
        self._load(self.run_directory.checkpoints / checkpoint_name(self.best))
        progress.note(f"the best evaluation was that of step {self.best:,}: its weights are taken")
        return self.best

    def assembled(self) -> Any:
        """The objective, in the main process with whole weights, to be exported; all processes call it at the end."""
        assemble(self._plain, is_main=self.accelerator.is_main_process)
        return self._plain

    @property
    def _plain(self) -> Any:
        return self.accelerator.unwrap_model(self.objective)

    @property
    def workers(self) -> int:
        """Processes that prepare batches ahead, beside each that trains."""
        if self.section.workers is not None:
            return self.section.workers
        return 4 if self._on_gpu else 0

    @property
    def _on_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda"

    def _acted_on(self, step: int) -> bool:
        """Whether a step is logged, saved or evaluated; any, on a device that the host does not run ahead of."""
        every = self.rhythm.log, self.rhythm.save, self.rhythm.evaluate
        return self.accelerator.device.type in _IN_STEP or any(self.rhythm.due(step, steps) for steps in every)

    def steps(
        self, rate: Callable[[int], float], stop_requested: Callable[[], bool], certain: Callable[[int], bool] = always
    ) -> Iterator[StepInfo]:
        """The updates from where the training stands; ``rate`` is the learning rate of each, counted from 0."""
        steps = Steps(
            self.sources,
            self.section.phases,
            total_steps=self.rhythm.total,
            seed=self.seed,
            micro_batch_tokens=self.micro_batch_tokens,
            num_ranks=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            start=(self.step, self.cursor),
        )
        self.objective.train()
        return training_steps(
            self.accelerator,
            self.objective,
            self.optimizer,
            load(steps, start=self.step, num_workers=self.workers, pin_memory=self._on_gpu),
            learning_rate=rate,
            max_gradient_norm=self.optim.max_gradient_norm,
            clipping=self.optim.clipping,
            loss_reduction=self.optim.loss_reduction,
            seed=self.seed,
            stop_requested=stop_requested,
            certain=certain,
        )

    def _load(self, path: Path) -> dict[str, Any]:
        check_everywhere(self.accelerator, path)
        return load_checkpoint(path, model=self._plain, optimizer=self.optimizer)

    def _save(self) -> None:
        folder, is_main = self.run_directory.checkpoints, self.accelerator.is_main_process
        saved = save_checkpoint(
            folder,
            step=self.step,
            model=self._plain,
            optimizer=self.optimizer,
            state={
                "step": self.step,
                "cursor": asdict(self.cursor),
                "seed": self.seed,
                "total_steps": self.rhythm.total,
            },
            config=self.config,
            is_main=is_main,
        )
        if is_main:
            best = checkpoint_name(self.best) if self.evaluations else None
            prune_checkpoints(folder, saved=saved.name, keep=self.section.keep, best=best)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, tracker: Tracker, progress: Progress) -> None:
        values = self.held_out.evaluate(self.accelerator, self.objective)
        self.evaluations[self.step] = values
        named = {f"{HELD_OUT}{name}": value for name, value in values.items()}
        tracker.log(self.step, named)
        progress.note(f"step {self.step:,}: held-out " + "  ".join(f"{n} {v:.4g}" for n, v in values.items()))


_IN_STEP = ("cpu",)
"""Devices that have always finished what the host has asked for."""

"""A whole training: resume, then run the loop, and log, evaluate and save at the intervals of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from bertillery.config.section import InputError
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Cursor, Steps, load
from bertillery.engine.loop import DivergedError, StepInfo, training_steps
from bertillery.engine.meter import Meter, Progress
from bertillery.engine.micro_batch import largest_micro_batch
from bertillery.engine.objective import whole_loss
from bertillery.engine.optim import OptimSection, learning_rate
from bertillery.engine.schedule import Schedule, TrainSection
from bertillery.engine.sharding import assemble
from bertillery.run.checkpoint import (
    HELD_OUT,
    check_everywhere,
    checkpoint_name,
    defect,
    held_out_numbers,
    latest_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_state,
    save_checkpoint,
)
from bertillery.run.directory import RunDirectory
from bertillery.run.inputs import Fingerprint, Inputs, as_json, differences, from_json, refuse
from bertillery.run.tracking import Tracker
from bertillery.system.entry import StopSignal


@dataclass(frozen=True)
class Fit:
    """How a training ended."""

    step: int
    """Step of the weights to export."""
    stopped_by: str | None
    """Name of the signal that ended it early."""
    held_out: dict[str, float]
    """Evaluation of the weights to export."""
    tokens_per_second: float
    tokens: int | None = None
    """Tokens trained on, up to the last step; ``None`` if a part of the run did not count them."""
    note: str = ""
    """Why the weights are not those of the best evaluation, if these were asked for and are lost."""

    def results(self) -> dict[str, Any]:
        """What every stage writes to ``finished.json``."""
        counted = {} if self.tokens is None else {"tokens": self.tokens}
        return {"steps": self.step, **counted, "held_out": self.held_out, "tokens_per_second": self.tokens_per_second}


class Trainer:
    """Everything one training consists of; :meth:`run` trains."""

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
        schedule: Schedule,
        seed: int,
        sources: list[Any],
        held_out: HeldOut,
        inputs: Inputs = MappingProxyType({}),
    ) -> None:
        """``inputs`` are recorded in checkpoints, and a checkpoint with other inputs is refused."""
        self.accelerator, self.objective, self.optimizer = accelerator, objective, optimizer
        self.run_directory, self.config, self.section, self.optim = run, config, section, optim
        self.schedule, self.seed, self.sources, self.held_out = schedule, seed, sources, held_out
        self.inputs = inputs
        given = section.micro_batch_tokens
        if given == "auto":
            given = largest_micro_batch(accelerator, objective, optimizer, sources=sources, phases=section.phases)
        self.micro_batch_tokens = held_out.micro_batch_tokens = given
        self.step, self.cursor = 0, Cursor()
        self.evaluations: dict[int, dict[str, float]] = {}
        """Held-out numbers by step."""
        self.made_from: dict[str, Fingerprint] = {}
        """Inputs recorded in the loaded checkpoint."""
        self.interval: dict[str, Any] | None = None
        """Sums since metrics were last logged (:meth:`bertillery.engine.meter.Meter.state`)."""

    def resume(self) -> int:
        """Load the newest complete checkpoint, if there is one, and return its step, the same in all processes."""
        path = newest_checkpoint(self.accelerator, self.run_directory.checkpoints)
        if path is not None:
            state = self._load(path)
            self.step, self.cursor, self.interval = state["step"], Cursor(**state["cursor"]), state.get("interval")
            if "evaluations" in state:
                self.evaluations = {int(step): values for step, values in state["evaluations"].items()}
            else:  # checkpoints of older versions
                self.evaluations = held_out_numbers(self.accelerator, self.run_directory.metrics_file, self.step)
        return self.step

    def take(self, which: Literal["best", "last"] | int) -> Fit:
        """Load the weights of a checkpoint, without training: the one of the best evaluation, the newest, or that of a
        step. ``InputError`` where there is none."""
        self.resume()
        step = {"last": self.step, "best": self.best if self.evaluations else self.step}.get(str(which), which)
        path = self.run_directory.checkpoints / checkpoint_name(int(step))
        if found := defect(path):
            there = sorted(int(each.name.removeprefix("step-")) for each in path.parent.glob("step-*[0-9]"))
            steps = ", ".join(f"{each:,}" for each in there) or "none"
            raise InputError(
                f"{path}: no such checkpoint, or a damaged one ({found}); there are those of steps {steps}"
            )
        meter = Meter(self.accelerator, self._plain, self._load(path).get("interval"))
        held_out = self.evaluations.get(int(step)) or self.held_out.evaluate(self.accelerator, self.objective)
        if not self.held_out.shown:
            self.held_out.look_at(self.accelerator, self.objective)
        return Fit(int(step), None, held_out, meter.overall, meter.trained_tokens)

    def run(self, tracker: Tracker, evaluated: Callable[[], None] = lambda: None) -> Fit:
        """Train to the end, until patience runs out, or until a signal asks to stop; all processes call ``evaluated``
        after each evaluation."""
        with (
            StopSignal() as signal,
            Progress(self.schedule.total, self.step, self.accelerator.is_main_process) as progress,
        ):
            earlier = self.interval or ({} if self.step else None)  # older checkpoints have none
            meter, stopped = Meter(self.accelerator, self._plain, earlier), False
            if self.step and self.schedule.due(self.step, self.schedule.evaluate) and self.step not in self.evaluations:
                with meter.paused():
                    self._evaluate(tracker, progress, meter)  # older versions saved before they evaluated
            rate = learning_rate(self.optim, self.schedule.total)
            steps = self.steps(rate, lambda: signal.requested is not None, self._acted_on)
            for info in [] if self._out_of_patience else self._naming_checkpoint(steps):
                self.step, self.cursor = info.step, info.cursor
                tracker.repeated = frozenset(filter(None, [whole_loss(info.terms[0][0])]))
                meter.add(info)
                progress.advance(info)
                stopped = info.stop and info.step < self.schedule.total
                if self.schedule.due(info.step, self.schedule.log):
                    values = meter.read(info)
                    tracker.log(info.step, values)
                    progress.show(tracker.distinct(values))
                evaluation_due = self.schedule.due(info.step, self.schedule.evaluate) and not stopped
                if self.schedule.due(info.step, self.schedule.save) or evaluation_due or stopped:
                    with meter.paused():
                        if evaluation_due:
                            self._evaluate(tracker, progress, meter)
                            evaluated()
                        self._save(tracker, meter)
                if stopped or (evaluation_due and self._out_of_patience):
                    break
            if stopped:
                return Fit(self.step, signal.requested or "signal", {}, meter.overall, meter.trained_tokens)
            self._prune(checkpoint_name(self.step))  # a kill may have come between the last save and its pruning
            step, note = self._choose(progress)
            if not self.held_out.shown:
                self.held_out.look_at(self.accelerator, self.objective)
            return Fit(step, None, self.evaluations[step], meter.overall, meter.trained_tokens, note)

    def _naming_checkpoint(self, steps: Iterator[StepInfo]) -> Iterator[StepInfo]:
        """The steps; ``DivergedError`` also names the newest checkpoint."""
        try:
            yield from steps
        except DivergedError as error:
            newest = latest_checkpoint(self.run_directory.checkpoints)
            known = f"The newest complete checkpoint is {newest}" if newest else "There is no checkpoint yet"
            raise DivergedError(f"{error}. {known}.") from None

    @property
    def best(self) -> int:
        """Step of the best evaluation so far, the earliest of equals."""
        return self._ranked[0]

    @property
    def _ranked(self) -> list[int]:
        """Steps of all evaluations, best first, the earliest of equals first."""
        return sorted(self.evaluations, key=lambda step: (-self.held_out.score(self.evaluations[step]), step))

    @property
    def _out_of_patience(self) -> bool:
        return self.section.patience is not None and self._without_best >= self.section.patience

    @property
    def _without_best(self) -> int:
        """The number of evaluations since the best one."""
        return sum(step > self.best for step in self.evaluations) if self.evaluations else 0

    def _choose(self, progress: Progress) -> tuple[int, str]:
        """Load the weights to export into the objective; returns their step, and a note if the best ones are lost."""
        if self.section.export == "last" or self.best == self.step:
            return self.step, ""
        found: list[Any] = [*self._best_whole()] if self.accelerator.is_main_process else [0, ""]
        chosen, defect_of_best = broadcast_object_list(found)
        if chosen != self.step:
            self._load(self.run_directory.checkpoints / checkpoint_name(chosen))
        if chosen == self.best:
            progress.note(f"the best evaluation was that of step {self.best:,}: its weights are taken")
            return chosen, ""
        note = (
            f"train.export=best: the best evaluation was that of step {self.best:,}, but its checkpoint in "
            f"{self.run_directory.checkpoints} is damaged ({defect_of_best}); the weights are those of step "
            f"{chosen:,}, the best available"
        )
        progress.note(f"WARNING: {note}")
        return chosen, note

    def _best_whole(self) -> tuple[int, str]:
        """The best step whose weights are available, and what is wrong with the checkpoint of the very best."""
        defects: list[str] = []
        for step in self._ranked:
            found = None if step == self.step else defect(self.run_directory.checkpoints / checkpoint_name(step))
            if found is None:
                return step, "".join(defects[:1])
            defects.append(found)
        return self.step, "".join(defects[:1])

    def assembled(self) -> Any:
        """The objective for the export, with whole weights in the main process. All processes call it at the end."""
        assemble(self._plain, is_main=self.accelerator.is_main_process)
        return self._plain

    @property
    def _plain(self) -> Any:
        return self.accelerator.unwrap_model(self.objective)

    @property
    def workers(self) -> int:
        """Data loading processes of each training process."""
        if self.section.workers is not None:
            return self.section.workers
        return 4 if self.accelerator.device.type == "cuda" else 0

    def _acted_on(self, step: int) -> bool:
        """Whether a step is logged, saved or evaluated; always true where the device computes in step with the host."""
        every = self.schedule.log, self.schedule.save, self.schedule.evaluate
        return self.accelerator.device.type in _IN_STEP or any(self.schedule.due(step, steps) for steps in every)

    def steps(
        self,
        rate: Callable[[int], float],
        stop_requested: Callable[[], bool],
        certain: Callable[[int], bool] = lambda step: True,
    ) -> Iterator[StepInfo]:
        """The remaining updates; ``rate`` gives the learning rate of each, counted from 0."""
        steps = Steps(
            self.sources,
            self.section.phases,
            total_steps=self.schedule.total,
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
            load(steps, start=self.step, num_workers=self.workers, pin_memory=self.accelerator.device.type == "cuda"),
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
        self.made_from = from_json(read_state(path).get("inputs", {}))
        refuse(path, differences(self.made_from, self.inputs, certain=True))
        return load_checkpoint(path, model=self._plain, optimizer=self.optimizer)

    def _save(self, tracker: Tracker, meter: Meter) -> None:
        tracker.sync()  # a resumed run does not write the rows before this step again
        interval = meter.state()
        best = None
        if self.evaluations:
            best = {"step": self.best, "score": self.held_out.score(self.evaluations[self.best])}
        saved = save_checkpoint(
            self.run_directory.checkpoints,
            step=self.step,
            model=self._plain,
            optimizer=self.optimizer,
            state={
                "step": self.step,
                "cursor": asdict(self.cursor),
                "seed": self.seed,
                "total_steps": self.schedule.total,
                "inputs": as_json(self.inputs),
                "interval": interval,
                "evaluations": self.evaluations,
                "best": best,
            },
            config=self.config,
            is_main=self.accelerator.is_main_process,
        )
        self._prune(saved.name)

    def _prune(self, saved: str) -> None:
        if self.accelerator.is_main_process:
            best = checkpoint_name(self.best) if self.evaluations else None
            prune_checkpoints(self.run_directory.checkpoints, saved=saved, keep=self.section.keep, best=best)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, tracker: Tracker, progress: Progress, meter: Meter) -> None:
        values = self.held_out.evaluate(self.accelerator, self.objective)
        if not self.held_out.shown:
            self.held_out.look_at(self.accelerator, self.objective)
        self.evaluations[self.step] = values
        tracker.define({f"{HELD_OUT}{name}": better for name, better in self.held_out.better().items()})
        named = {f"{HELD_OUT}{name}": value for name, value in values.items()}
        tracker.log(self.step, named | meter.trained)
        if self._without_best == (self.section.patience or _PLATEAU):
            since = f"step {self.step:,}: no evaluation has been better than that of step {self.best:,}"
            tracker.alert("plateau", since, "warning")
        progress.note(
            f"step {self.step:,}: held-out " + "  ".join(f"{n} {v:.4g}" for n, v in tracker.distinct(values).items())
        )


_PLATEAU = 5
"""Evaluations without a new best that are told of, where there is no ``train.patience``."""
_IN_STEP = ("cpu",)
"""Devices that finish each operation before the host goes on."""

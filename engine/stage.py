"""What pretraining, fine-tuning and distillation have in common: the life of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from accelerate.state import AcceleratorState
from pydantic import model_validator

from engine.compiled import compile_layers
from engine.config import ConfigError, Section, dump
from engine.environment import environment
from engine.evaluate import HeldOut
from engine.fit import Fit, Trainer
from engine.keyed import key
from engine.names import check_path_name
from engine.objective import Objective, Source
from engine.optim import OptimSection, build_optimizer, learning_rate
from engine.phase import EpochSize, steps_per_epoch
from engine.rhythm import Rhythm, TrainSection
from engine.run import RunDirectory, RunSection, start_accelerator
from engine.sharding import prepared
from engine.tracking import Tracker, TrackingSection


class StageConfig(Section):
    """The sections that every stage has."""

    run: RunSection = RunSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _sharding_combines(self) -> StageConfig:
        if self.run.sharding != "none" and self.run.compile:
            raise ValueError(
                f"run.compile=true was never tried with run.sharding={self.run.sharding}; give one of them"
            )
        if self.run.sharding != "none" and self.train.micro_batch_tokens == "auto":
            raise ValueError(
                f"train.micro_batch_tokens=auto tries passes in each process by itself, and with run.sharding="
                f"{self.run.sharding} no process can make one without the others; give a number of tokens"
            )
        return self

    def named(self, otherwise: str) -> Self:
        """The configuration with a name for its run: ``otherwise`` where none is given, ``ConfigError`` if that is no
        name of a folder."""
        if self.run.name is not None:
            return self
        try:
            name = check_path_name(otherwise)
        except ValueError as error:
            raise ConfigError(f"run.name: it would be {otherwise!r}, but {error}; give run.name=...") from None
        return self.model_copy(update={"run": self.run.model_copy(update={"name": name})})


@dataclass(frozen=True)
class Parts:
    """What a stage gives to be trained."""

    sources: list[Source]
    """One for each phase of training; one and the same for phases of one sequence length."""
    epoch_size: Callable[[Any], EpochSize]
    """What an epoch of a source holds; asked only where a duration is given in epochs."""
    objective: Callable[[], Objective]
    """Builds what is trained, after torch's generator was seeded."""
    held_out: HeldOut


class Stage(ABC):
    """One run, from its configuration to its report.

    A subclass says what is trained (``prepare``), what to show before (``plan``) and what to make of it after
    (``report``, ``ending``). How a run resumes, stops on a signal, is recorded and finished is the same for all.
    """

    folder: ClassVar[str]
    """Below ``run.dir``."""

    def __init__(self, config: StageConfig) -> None:
        assert config.run.name is not None
        self.config, self.name, self.text = config, config.run.name, dump(config)
        self.path = config.run.dir / self.folder / self.name

    @abstractmethod
    def prepare(self) -> Parts:
        """Read the data and open the model; every problem that can be known is raised here, before the first step."""

    @abstractmethod
    def plan(self, trainer: Trainer) -> str:
        """What is about to be trained on what, with an example."""

    @abstractmethod
    def report(self, trainer: Trainer, ended: Fit, tracker: Tracker) -> dict[str, Any]:
        """Export and measure; what it returns is kept in ``finished.json``. All processes call it."""

    @abstractmethod
    def ending(self, results: dict[str, Any]) -> str:
        """What was produced, where, and what to type next."""

    def recorded(self) -> dict[str, Any]:
        """Facts about the data, to be recorded beside the configuration."""
        return {}

    def run(self) -> int:
        """Prepare, train, report; a finished run is only reported. Returns the exit status."""
        # What the run directory refuses, it refuses before anything is computed; it is made when training can begin.
        directory = self.directory = self.open(is_main=False)
        if directory.finished:
            print(f"{self.path} is finished and left alone; for another run give run.name=..., or delete the folder.\n")
            print(self.ending(directory.results))
            return 0
        trainer = self.start()
        accelerator = self.accelerator
        with directory.held() if accelerator.is_main_process else nullcontext():
            self.open(is_main=accelerator.is_main_process)
            accelerator.wait_for_everyone()
            status = self._train(trainer)
        AcceleratorState._reset_state()  # another stage may follow in these processes, in another precision
        return status

    def _train(self, trainer: Trainer) -> int:
        accelerator, resumed = self.accelerator, trainer.resume()
        begins = f"resuming at step {resumed:,}" if resumed else "starting"
        made = f"made by {trainer.workers} processes" if trainer.workers else "made between the steps"
        share = f"at most {trainer.micro_batch_tokens:,} tokens at a time, batches {made}"
        self.say(f"\n{self.plan(trainer)}\n\n{begins}, {trainer.rhythm.total:,} steps; {share}\n")
        tracker = Tracker(
            self.config.tracking,
            self.path,
            name=self.name,
            config={**self.config.model_dump(mode="json"), "environment": environment(), **self.recorded()},
            is_main=accelerator.is_main_process,
            resume_step=resumed or None,
        )
        ended, status = None, 1
        try:
            ended = trainer.run(tracker)
            status = 0 if ended.stopped_by is None else 128 + {"SIGINT": 2}.get(ended.stopped_by, 15)
            if ended.stopped_by:
                self.say(f"{ended.stopped_by}: saved step {ended.step:,} and left; type the same command to go on.")
            else:
                results = self.report(trainer, ended, tracker)
                if accelerator.is_main_process:
                    self.directory.finish(results)
                    print(self.ending(results))
            accelerator.wait_for_everyone()
        finally:
            tracker.close(status, preempted=ended is not None and ended.stopped_by is not None)
        return status

    def open(self, *, is_main: bool) -> RunDirectory:
        """The run's folder; ``ConfigError`` if it belongs to something else. Only the main process makes it."""
        return RunDirectory.open(self.path, self.text, schema=type(self.config), is_main=is_main)

    def start(self) -> Trainer:
        """All that a training consists of, ready for its first step; nothing is written."""
        self.accelerator = start_accelerator(self.config.run)
        return self._trainer(self.prepare())

    def say(self, text: str) -> None:
        """Print, on the main process."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def _trainer(self, parts: Parts) -> Trainer:
        config, accelerator = self.config, self.accelerator
        phases = config.train.phases
        rhythm = Rhythm.of(config.train, lambda: steps_per_epoch(phases, [*map(parts.epoch_size, parts.sources)]))
        learning_rate(config.optim, rhythm.total)  # raises for a warm-up that does not fit
        for number, phase in enumerate(phases):
            phase.check_processes(accelerator.num_processes, f"train.phases.{number}: ")
        torch.manual_seed(int(key(config.run.seed, 0) >> 1))
        objective = parts.objective()
        if config.run.compile:
            compile_layers(objective)
        return Trainer(
            accelerator,
            prepared(accelerator, objective, config.run.sharding),
            build_optimizer(config.optim, objective),
            run=RunDirectory(self.path),
            config=self.text,
            section=config.train,
            optim=config.optim,
            rhythm=rhythm,
            seed=config.run.seed,
            sources=parts.sources,
            held_out=parts.held_out,
        )

"""What pretraining, fine-tuning and distillation have in common: the life of a run."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel, ConfigDict, model_validator
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError, Section, dump
from bertillery.config.types import check_path_name
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.objective import Objective, Source
from bertillery.engine.optim import OptimSection, build_optimizer, learning_rate
from bertillery.engine.rng import key
from bertillery.engine.schedule import EpochSize, Schedule, TrainSection, steps_per_epoch
from bertillery.engine.sharding import prepared
from bertillery.run.device import RunSection, compile_layers, start_accelerator
from bertillery.run.directory import FINISHED_REMEDY, RunDirectory
from bertillery.run.inputs import Fingerprint, Inputs, differences, refuse, tokenizer_input
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.trainer import Fit, Trainer
from bertillery.system.environment import environment
from bertillery.system.files import check_writable, remove
from bertillery.system.records import checked

logger = logging.getLogger(__name__)


@contextmanager
def beside(what: str) -> Iterator[None]:
    """Make what is only shown beside a result: where that fails it is a warning that names it, and nothing else."""
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be made: %s: %s; the result is whole without", what, type(error).__name__, error)


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


class Results(BaseModel):
    """What a stage reads of its ``finished.json``; it may hold more."""

    model_config = ConfigDict(extra="allow")

    table: str
    note: str = ""


class Stage(ABC):
    """One run, from its configuration to its report.

    A subclass says what is trained (``prepare``), what to show before (``banner``) and what to make of it after
    (``report``, ``ending``). How a run resumes, stops on a signal, is recorded and finished is the same for all.
    """

    folder: ClassVar[str]
    """Below ``run.dir``."""
    results_schema: ClassVar[type[Results]] = Results
    tokenizer: PreTrainedTokenizerBase
    """Set by ``prepare``; when training begins it becomes the one that is kept in the run's folder."""

    def __init__(self, config: StageConfig) -> None:
        assert config.run.name is not None
        self.config, self.name, self.text = config, config.run.name, dump(config)
        self.path = config.run.dir / self.folder / self.name
        self.inputs: dict[str, Fingerprint] = {}
        """What the run is made from, as it becomes known (:meth:`pin`)."""
        self.pinned: dict[str, Fingerprint] = {}
        """What it was begun with, if it is resumed."""
        self.trained = False
        """Whether only the export remains to be made."""

    @abstractmethod
    def prepare(self) -> Parts:
        """Read the data and open the model; every problem that can be known is raised here, before the first step."""

    @abstractmethod
    def banner(self, trainer: Trainer) -> str:
        """What is about to be trained on what, with an example."""

    @abstractmethod
    def current(self) -> dict[str, Fingerprint]:
        """What a run of this configuration would be made from now, as far as that is known without a model, an
        accelerator or anything that takes long to make."""

    @abstractmethod
    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Export, and whatever other programs read; what it returns is kept in ``finished.json``. All processes call
        it."""

    @abstractmethod
    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Add to the ``results`` what is only shown beside them, each in a :func:`beside` block: baselines, pictures,
        the card. The main process calls it, when the run is finished."""

    @abstractmethod
    def ending(self, results: dict[str, Any]) -> str:
        """What was produced, where, and what to type next."""

    def recorded(self) -> dict[str, Any]:
        """Facts about the data, to be recorded beside the configuration."""
        return {}

    def results(self) -> dict[str, Any]:
        """What the finished run was finished with; ``InputError`` where that is damaged, or not this stage's."""
        file, found = self.path / "finished.json", RunDirectory(self.path).results
        return checked(file, found, self.results_schema, remedy=FINISHED_REMEDY).model_dump(exclude_unset=True)

    def run(self) -> int:
        """Prepare, train, report; a finished run is only reported, or exported again. Returns the exit status."""
        # What the run directory refuses, it refuses before anything is computed; it is made when training can begin.
        directory = self.directory = self.open(is_main=False)
        missing = self.defect() if directory.finished else None
        if directory.finished and not missing:
            directory.clear()
            left = f"{self.path} is finished and left alone; for another run give run.name=..., or delete the folder."
            print("\n\n".join(filter(None, [left, "\n".join(self.changes())])), flush=True)
            self._tell(self.results())
            return 0
        if missing:
            self._check_can_export(missing)
        check_writable(self.path)
        self.pinned = directory.pins.read() if directory.begun else {}
        self.trained = directory.trained
        trainer = self.start()
        accelerator = self.accelerator
        with directory.held() if accelerator.is_main_process else nullcontext():
            self.open(is_main=accelerator.is_main_process)
            accelerator.wait_for_everyone()
            status = self._train(trainer)
        AcceleratorState._reset_state()  # another stage may follow in these processes, in another precision
        return status

    def defect(self) -> str | None:
        """What is missing of what the finished run left, or damaged, or None."""
        return RunDirectory(self.path).export_defect()

    def changes(self, now: Inputs | None = None) -> list[str]:
        """Lines that say how what this finished run was made from differs from what it would be made from now, which is
        looked up unless it is given."""
        try:
            before = RunDirectory(self.path).pins.read()
            found_now = self.current() if now is None else now
            found = differences(before, found_now, certain=False)
        except (InputError, OSError) as error:
            return [f"Whether what this run was made from is still the same cannot be told: {error}"]
        if not before:
            return ["This run has no record of what it was made from: whether that has changed cannot be told."]
        if not found:
            return []
        known = differences(before, found_now, certain=True)
        return [
            f"NOTE: {self.path} {'is' if known else 'may be'} a result of other inputs than there are now:",
            *(f"  - {each}" for each in found),
            "For a run on what is there now give run.name=<new>, or delete the folder.",
        ]

    def pin(self, find: Callable[[], dict[str, Fingerprint]]) -> None:
        """Note what the run is made from. All processes call it, and the main one finds it.

        Raises ``InputError`` where the run was begun with something else, so it is called as soon as that can be known.
        """
        (found,) = broadcast_object_list([find() if self.accelerator.is_main_process else {}])
        self.inputs.update(found)
        refuse(self.path, differences(self.pinned, found, certain=True))

    def _check_can_export(self, missing: str) -> None:
        """Say that a finished run is exported again; ``InputError`` where nothing is left to do that from."""
        directory = self.directory
        if not directory.begun:
            raise InputError(
                f"{self.path} is finished, but {missing}, and there is no checkpoint to export again; give "
                "run.name=<new>, or delete the folder to train anew"
            )
        print(f"{self.path} is finished, but {missing}: it is exported again from its checkpoint.\n", flush=True)

    def _record(self, resumed: int, made_from: Inputs) -> None:
        """Pin a run that has not been, and take its own tokenizer from then on."""
        pins = self.directory.pins
        if resumed and not self.pinned and not made_from:
            self.say(
                "This run has no record of what it was made from: nothing is compared, and it is recorded from now on."
            )
        if self.accelerator.is_main_process:
            if not (resumed and pins.file.exists() and pins.tokenizer.exists()):
                pins.write(self.inputs, self.tokenizer)
            self.tokenizer = pins.open_tokenizer(self.inputs)

    def _train(self, trainer: Trainer) -> int:
        accelerator, resumed = self.accelerator, trainer.resume()
        self._record(resumed, trainer.made_from)
        begins = f"resuming at step {resumed:,}" if resumed else "starting"
        made = f"made by {trainer.workers} processes" if trainer.workers else "made between the steps"
        share = f"at most {trainer.micro_batch_tokens:,} tokens at a time, batches {made}"
        self.say(f"\n{self.banner(trainer)}\n\n{begins}, {trainer.schedule.total:,} steps; {share}\n")
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
                self._finish(trainer, ended, tracker)
            accelerator.wait_for_everyone()
        finally:
            tracker.close(status, preempted=ended is not None and ended.stopped_by is not None)
        return status

    def _finish(self, trainer: Trainer, ended: Fit, tracker: Tracker) -> None:
        """The result first; then what is shown beside it, which never costs it."""
        damaged = self.directory.export.with_name("export.damaged")
        lost = self.directory.finished and self.directory.export.exists() and self.directory.export_defect()
        if self.accelerator.is_main_process and lost:
            remove(damaged)
            self.directory.export.rename(damaged)
            self.say(f"what was in export/ is kept in {damaged}")
        results = self.result(trainer, ended)
        if self.accelerator.is_main_process:
            results |= {"note": ended.note} if ended.note else {}
            results["exported"] = self.directory.exported()
            self.directory.finish(results)
            self.show(trainer, ended, tracker, results)
            with beside("finished.json with what is shown"):
                self.directory.finish(results)
            with beside("the summary of the run"):
                self._tell(results)

    def _tell(self, results: dict[str, Any]) -> None:
        print(self.ending(results))
        if "note" in results:
            print(f"\nWARNING: {results['note']}")

    def open(self, *, is_main: bool) -> RunDirectory:
        """The run's folder; ``ConfigError`` if it belongs to something else. Only the main process makes it."""
        return RunDirectory.open(self.path, self.text, schema=type(self.config), is_main=is_main)

    def start(self) -> Trainer:
        """All that a training consists of, ready for its first step; nothing is written."""
        self.accelerator = start_accelerator(self.config.run)
        # The other processes may see another folder, or none.
        self.pinned, self.trained = broadcast_object_list([self.pinned, self.trained])
        parts = self.prepare()
        self.pin(lambda: tokenizer_input(self.tokenizer))
        return self._trainer(parts)

    def say(self, text: str) -> None:
        """Print, on the main process."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def _trainer(self, parts: Parts) -> Trainer:
        config, accelerator = self.config, self.accelerator
        phases = config.train.phases
        schedule = Schedule.of(config.train, lambda: steps_per_epoch(phases, [*map(parts.epoch_size, parts.sources)]))
        learning_rate(config.optim, schedule.total)  # raises for a warm-up that does not fit
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
            schedule=schedule,
            seed=config.run.seed,
            sources=parts.sources,
            held_out=parts.held_out,
            inputs={name: found for name, found in self.inputs.items() if found.exact},
        )

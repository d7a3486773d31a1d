"""The course of a run, shared by pretraining, fine-tuning and distillation."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel, ConfigDict, model_validator
from transformers import PreTrainedTokenizerBase

from bertillery.config.layers import dump
from bertillery.config.section import ConfigError, InputError, Section
from bertillery.config.types import check_path_name
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loop import DivergedError
from bertillery.engine.objective import Objective, Source
from bertillery.engine.optim import OptimSection, build_optimizer, learning_rate
from bertillery.engine.rng import key
from bertillery.engine.schedule import EpochSize, Schedule, TrainSection, steps_per_epoch
from bertillery.engine.sharding import prepared
from bertillery.models.layers.prepare import prepare_layers
from bertillery.run.checkpoint import checkpoint_name
from bertillery.run.device import RunSection, compile_layers, start_accelerator
from bertillery.run.directory import FINISHED_REMEDY, RunDirectory
from bertillery.run.inputs import Fingerprint, Inputs, differences, model_inputs, refuse, tokenizer_input
from bertillery.run.lineage import Artifact, model_artifact, used_artifacts
from bertillery.run.starts import note_start
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.trainer import Fit, Trainer
from bertillery.run.views import Listing
from bertillery.system.environment import environment
from bertillery.system.files import check_writable, remove
from bertillery.system.records import checked

logger = logging.getLogger(__name__)
_REDRAWN_AFTER = 20.0
"""Seconds between two drawings of the curves while a run trains."""


@contextmanager
def beside(what: str) -> Iterator[None]:
    """Make something that is only shown beside a result: a failure is a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("%s failed: %s: %s; the result is complete without it", what, type(error).__name__, error)


class StageConfig(Section):
    """Sections of every stage."""

    run: RunSection = RunSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _sharding_combines(self) -> StageConfig:
        if self.run.sharding != "none" and self.run.compile:
            raise ValueError(
                f"run.compile=true has not been tested with run.sharding={self.run.sharding}; give one of them"
            )
        if self.run.sharding != "none" and self.train.micro_batch_tokens == "auto":
            raise ValueError(
                "train.micro_batch_tokens=auto runs passes in each process alone, which run.sharding="
                f"{self.run.sharding} does not allow; give a number of tokens"
            )
        return self

    def named(self, otherwise: str) -> Self:
        """The configuration with ``otherwise`` as the run's name if it has none; ``ConfigError`` if that is not a valid
        name."""
        if self.run.name is not None:
            return self
        try:
            name = check_path_name(otherwise)
        except ValueError as error:
            raise ConfigError(f"run.name: by default it is {otherwise!r}, but {error}; give run.name=...") from None
        return self.model_copy(update={"run": self.run.model_copy(update={"name": name})})


@dataclass(frozen=True)
class Parts:
    """What a stage trains."""

    sources: list[Source]
    """One for each phase; phases of one sequence length share the same object."""
    epoch_size: Callable[[Any], EpochSize]
    """Size of a source's epoch; called only for durations in epochs."""
    objective: Callable[[], Objective]
    """Builds the objective; torch's generator is seeded before the call."""
    held_out: HeldOut


class Results(BaseModel):
    """Fields of ``finished.json`` that a stage reads; others are allowed."""

    model_config = ConfigDict(extra="allow")

    table: str
    note: str = ""


class Stage(ABC):
    """One run, from its configuration to its report.

    A subclass defines what is trained (``prepare``), what is printed before (``banner``), the export (``result``) and
    the report (``show``, ``ending``). Resuming, signals and records are the same for all stages.
    """

    folder: ClassVar[str]
    """Folder of the stage's runs, below ``run.dir``."""
    job: ClassVar[str]
    """What the stage is called where runs are listed."""
    makes: ClassVar[str]
    """What its models are called there: ``pretrained``, ``fine-tuned``, ``student``."""
    axis: ClassVar[Literal["tokens", "examples"]] = "tokens"
    """What curves of such runs are compared over."""
    results_schema: ClassVar[type[Results]] = Results
    tokenizer: PreTrainedTokenizerBase
    """Set by ``prepare``; replaced by the copy in the run's folder when training begins."""

    def __init__(self, config: StageConfig) -> None:
        assert config.run.name is not None
        self.config, self.name, self.text = config, config.run.name, dump(config)
        self.path = config.run.dir / self.folder / self.name
        self.inputs: dict[str, Fingerprint] = {}
        """Inputs of the run found so far (:meth:`pin`)."""
        self.model_paths: dict[str, str | None] = {}
        """Folders, or names on the Hub, of the inputs that are models."""
        self.folders: dict[str, Path] = {}
        """Folders of other inputs, such as the corpus."""
        self.pinned: dict[str, Fingerprint] = {}
        """Inputs that a resumed run was started with."""
        self.trained = False
        """Whether only the export remains."""

    @abstractmethod
    def prepare(self) -> Parts:
        """Read the data and open the model; raises every problem that can be known before the first step."""

    @abstractmethod
    def banner(self, trainer: Trainer) -> str:
        """What is trained on what data, with an example."""

    @abstractmethod
    def current(self) -> dict[str, Fingerprint]:
        """Inputs that a run of this configuration would have now, as far as they can be found quickly, without a model
        or an accelerator."""

    @abstractmethod
    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Export and write what other programs read; returns the content of ``finished.json``. All processes call
        it."""

    @abstractmethod
    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Add baselines, pictures and the card to ``results``, each in a :func:`beside` block. The main process calls
        it after the run is finished."""

    @abstractmethod
    def ending(self, results: dict[str, Any]) -> str:
        """The run's results, where they are, and the next command to type."""

    @abstractmethod
    def draw(self, trainer: Trainer) -> None:
        """Draw the curves of the run so far into ``curves.png``."""

    def show_curves(self, trainer: Trainer, tracker: Tracker, step: int) -> None:
        """Draw them, and show them where runs are tracked."""
        picture = self.path / "curves.png"
        with beside(f"the picture {picture}"):
            self.draw(trainer)
            tracker.image("curves", picture, step)

    def recorded(self) -> dict[str, Any]:
        """Facts about the data to record beside the configuration."""
        return {}

    @property
    @abstractmethod
    def subject(self) -> tuple[str, str]:
        """What is learned, and by what model: runs of one subject are a group."""

    def listing(self) -> Listing:
        """How the run is listed among others."""
        task, model = self.subject
        precision = self.accelerator.mixed_precision.replace("no", "fp32")
        tags = dict.fromkeys([self.makes, task, model, self.accelerator.device.type, precision])
        return Listing(self.name, f"{task}/{model}", self.job, tuple(tags), self.axis)

    def results(self) -> dict[str, Any]:
        """Results of the finished run; ``InputError`` if they are damaged or another stage's."""
        file, found = self.path / "finished.json", RunDirectory(self.path).results
        return checked(file, found, self.results_schema, remedy=FINISHED_REMEDY).model_dump(exclude_unset=True)

    def run(self) -> int:
        """Prepare, train and report, and return the exit status. A finished run is reported, or exported again."""
        # Checked before anything is computed, and created only when training can begin.
        directory = self.directory = self.open(is_main=False)
        missing = self.defect() if directory.finished else None
        if directory.finished and not missing:
            directory.clear()
            left = f"{self.path} is finished; for another run give run.name=..., or delete the folder."
            print("\n\n".join(filter(None, [left, "\n".join(self.changes())])), flush=True)
            self._tell(self.results())
            return 0
        if missing:
            self._check_can_export(missing)
        self.config.tracking.check()
        check_writable(self.path)
        self.pinned = directory.pins.read() if directory.begun else {}
        self.trained = directory.trained
        trainer = self.start()
        accelerator = self.accelerator
        with directory.held() if accelerator.is_main_process else nullcontext():
            self.open(is_main=accelerator.is_main_process)
            accelerator.wait_for_everyone()
            status = self._train(trainer)
        AcceleratorState._reset_state()  # the next stage in these processes may use another precision
        return status

    def export_checkpoint(
        self, which: Literal["best", "last"] | int, folder: Path | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Export the weights of one of the run's checkpoints to ``<folder>/export``, by default
        ``exports/step-<n>/export`` of the run, which stays as it is otherwise. Returns the folder, and what
        :meth:`result` says.

        Raises ``InputError`` for a run without that checkpoint, and where the run's inputs are not what they were.
        """
        directory = self.directory = self.open(is_main=False)
        if not directory.begun:
            raise InputError(f"{self.path}: it has no checkpoint to export; train it first, with the same command")
        check_writable(folder or self.path)
        self.pinned, self.trained = directory.pins.read(), directory.trained
        trainer = self.start()
        ended = trainer.take(which)
        if directory.pins.tokenizer.exists():
            self.tokenizer = directory.pins.open_tokenizer(self.inputs)
        folder = folder or self.path / "exports" / checkpoint_name(ended.step)
        directory.export = folder / "export"
        folder.mkdir(parents=True, exist_ok=True)
        return folder, {**self.result(trainer, ended), "steps": ended.step}

    def defect(self) -> str | None:
        """What is missing or damaged in the finished run's export, or None."""
        return RunDirectory(self.path).export_defect()

    def changes(self, now: Inputs | None = None) -> list[str]:
        """Lines on how the inputs of this finished run differ from those of ``now``, by default :meth:`current`."""
        try:
            before = RunDirectory(self.path).pins.read()
            found_now = self.current() if now is None else now
            found = differences(before, found_now, certain=False)
        except (InputError, OSError) as error:
            return [f"Whether this run's inputs have changed is unknown: {error}"]
        if not before:
            return ["This run has no record of its inputs: whether they have changed is unknown."]
        if not found:
            return []
        known = differences(before, found_now, certain=True)
        return [
            f"NOTE: {self.path} {'is' if known else 'may be'} the result of other inputs than the present ones:",
            *(f"  - {each}" for each in found),
            "For a run on the present inputs give run.name=<new>, or delete the folder.",
        ]

    def pin(self, find: Callable[[], dict[str, Fingerprint]]) -> None:
        """Add the inputs that the main process finds. All processes call it, as early as the inputs can be known.

        Raises ``InputError`` if the run was started with others.
        """
        (found,) = broadcast_object_list([find() if self.accelerator.is_main_process else {}])
        self.inputs.update(found)
        refuse(self.path, differences(self.pinned, found, certain=True))

    def _check_can_export(self, missing: str) -> None:
        """Announce that a finished run is exported again; ``InputError`` if it has no checkpoint."""
        directory = self.directory
        if not directory.begun:
            raise InputError(
                f"{self.path} is finished, but {missing}, and it has no checkpoint to export again; give "
                "run.name=<new>, or delete the folder to train anew"
            )
        print(f"{self.path} is finished, but {missing}: it is exported again from its checkpoint.\n", flush=True)

    def _record(self, resumed: int, made_from: Inputs) -> None:
        """Record the inputs of a new run, and use the recorded tokenizer from now on."""
        pins = self.directory.pins
        if resumed and not self.pinned and not made_from:
            self.say("This run has no record of its inputs: they are not compared, and are recorded from now on.")
        if self.accelerator.is_main_process:
            if not (resumed and pins.file.exists() and pins.tokenizer.exists()):
                pins.write(self.inputs, self.tokenizer)
            self.tokenizer = pins.open_tokenizer(self.inputs)

    def _train(self, trainer: Trainer) -> int:
        accelerator, resumed = self.accelerator, trainer.resume()
        self._record(resumed, trainer.made_from)
        begins = f"resuming at step {resumed:,}" if resumed else "starting"
        loading = f"{trainer.workers} processes" if trainer.workers else "main process"
        size = f"micro-batches of at most {trainer.micro_batch_tokens:,} tokens; data loading: {loading}"
        self.say(f"\n{self.banner(trainer)}\n\n{begins}, {trainer.schedule.total:,} steps; {size}\n")
        if accelerator.is_main_process:
            note_start(
                self.path, step=resumed, processes=accelerator.num_processes, device=accelerator.device.type,
                precision=accelerator.mixed_precision, environment=environment(), data=self.recorded(),
            )  # fmt: skip
        tracker = Tracker(
            self.config.tracking,
            self.path,
            listing=self.listing(),
            config={**self.config.model_dump(mode="json"), "environment": environment(), **self.recorded()},
            is_main=accelerator.is_main_process,
            resume_step=resumed or None,
        )
        with beside("the artifacts that the run is made from"):
            tracker.used(self._used() if tracker.shows else ())
        ended, status = None, 1
        try:
            ended = trainer.run(tracker, self._redrawing(trainer))
            status = 0 if ended.stopped_by is None else 128 + {"SIGINT": 2}.get(ended.stopped_by, 15)
            if ended.stopped_by:
                self.say(f"{ended.stopped_by}: saved step {ended.step:,} and stopped; type the same command to resume.")
                tracker.alert("preempted", f"{ended.stopped_by}: step {ended.step:,} is saved", "warning")
            else:
                self._finish(trainer, ended, tracker)
            accelerator.wait_for_everyone()
        except DivergedError as error:
            tracker.alert("diverged", str(error), "error")
            raise
        finally:
            tracker.close(status, preempted=ended is not None and ended.stopped_by is not None)
        return status

    def _used(self) -> list[Artifact]:
        models = {name: path for name, path in self.model_paths.items() if path is not None}
        own = {} if models else {"tokenizer": self.directory.pins.tokenizer}  # else it comes with the model
        return used_artifacts(self.inputs, models=models, folders={**own, **self.folders}, about=self.subject[0])

    def _redrawing(self, trainer: Trainer) -> Callable[[], None]:
        """A function that draws the curves so far, unless they have just been drawn: drawing takes about a second."""
        drawn = time.monotonic()

        def redraw() -> None:
            nonlocal drawn
            if self.accelerator.is_main_process and time.monotonic() - drawn >= _REDRAWN_AFTER:
                with beside(f"the picture {self.path / 'curves.png'}"):
                    self.draw(trainer)
                drawn = time.monotonic()

        return redraw

    def _finish(self, trainer: Trainer, ended: Fit, tracker: Tracker) -> None:
        """Write the result first, then what is shown beside it."""
        damaged = self.directory.export.with_name("export.damaged")
        lost = self.directory.finished and self.directory.export.exists() and self.directory.export_defect()
        if self.accelerator.is_main_process and lost:
            remove(damaged)
            self.directory.export.rename(damaged)
            self.say(f"the damaged export is kept in {damaged}")
        results = self.result(trainer, ended)
        if self.accelerator.is_main_process:
            results |= {"note": ended.note} if ended.note else {}
            results["exported"] = self.directory.exported()
            self.directory.finish(results)
            self.show(trainer, ended, tracker, results)
            self._show_end(trainer, ended, tracker)
            with beside("finished.json with what is shown"):
                self.directory.finish(results)
            with beside("the summary of the run"):
                self._tell(results)

    def _show_end(self, trainer: Trainer, ended: Fit, tracker: Tracker) -> None:
        """Show the export as an artifact, and that the run has ended."""
        if not tracker.shows:
            return
        with beside("the artifact of the export"):
            export = str(self.directory.export)
            tracker.made(model_artifact(export, model_inputs(export=export)["export"], self.makes))
        tracker.histogram("held_out/lengths", trainer.held_out.rows["length"].tolist(), ended.step)
        tracker.alert("finished", f"{self.name}: {ended.step:,} steps, {ended.tokens_per_second:,.0f} tokens/s")

    def _tell(self, results: dict[str, Any]) -> None:
        print(self.ending(results))
        if "note" in results:
            print(f"\nWARNING: {results['note']}")

    def open(self, *, is_main: bool) -> RunDirectory:
        """The run's folder, made by the main process; ``ConfigError`` if it belongs to something else."""
        return RunDirectory.open(self.path, self.text, schema=type(self.config), is_main=is_main)

    def start(self) -> Trainer:
        """Everything a training consists of, ready for the first step; writes nothing."""
        self.accelerator = start_accelerator(self.config.run)
        # Other machines may not see the main process's folder.
        self.pinned, self.trained = broadcast_object_list([self.pinned, self.trained])
        parts = self.prepare()
        self.pin(lambda: tokenizer_input(self.tokenizer))
        return self._trainer(parts)

    def rehearsal(self) -> Trainer:
        """A training that is ready for its next step, from the newest checkpoint where there is one; for a dry run,
        which writes nothing of the run."""
        directory = self.directory = self.open(is_main=False)
        check_writable(self.path)
        self.pinned = directory.pins.read() if directory.begun else {}
        self.trained = directory.trained
        trainer = self.start()
        trainer.resume()
        return trainer

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
        prepare_layers(objective)
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

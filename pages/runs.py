"""Runs, comparisons and evaluations in context as they lie on disk, read for a report; nothing here loads a model."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bertillery.config.section import InputError
from bertillery.report.card import shortened
from bertillery.run.directory import FINISHED_REMEDY
from bertillery.run.inputs import Fingerprint, Pins
from bertillery.run.starts import Start, read_starts
from bertillery.run.tracking import read_rows
from bertillery.system.invocation import command_line
from bertillery.system.records import read_json, read_yaml

_NOT_RUNS = {"export", "checkpoints", "tokenizer", "wandb", "predictions", "tables"}
"""Folders without runs, which may hold files of the same names."""
_REMEDY = "leave this run out, or run it again"
_STAGES = ("pretrain", "embed", "finetune", "distill")


class Finished(BaseModel):
    """What a report reads of ``finished.json``; others are left out."""

    model_config = ConfigDict(extra="ignore")

    steps: int | None = None
    tokens: int | None = None
    held_out: dict[str, float] = {}
    """Values of a run without a task, or of a filtered ranking."""
    baselines: dict[str, Any] = {}
    """Of held-out values, or of a task by validation split, baseline and metric."""
    scores: dict[str, dict[str, float]] = {}
    """Of a task, by split and metric."""
    warnings: dict[str, str] = {}
    chosen: dict[str, float] = {}
    perplexity: dict[str, float] = {}
    tokens_per_second: float | None = None
    exported: dict[str, Any] = {}
    fill_mask: str = ""
    samples: str = ""
    note: str = ""


@dataclass(frozen=True)
class Run:
    """One run."""

    path: Path
    config: dict[str, Any]
    finished: Finished | None
    """None before its end."""
    inputs: dict[str, Fingerprint]
    starts: list[Start]

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run in a folder; ``InputError`` if its files are damaged."""
        config = read_yaml(path / "config.yaml", dict[str, Any], remedy=_REMEDY)
        file = path / "finished.json"
        finished = read_json(file, Finished, remedy=FINISHED_REMEDY) if file.exists() else None
        return cls(path, config, finished, Pins(path).read(), read_starts(path))

    def section(self, name: str) -> dict[str, Any]:
        """A section of the configuration, empty if there is none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def stage(self) -> str:
        """``pretrain``, ``embed``, ``finetune`` or ``distill``, by what is configured."""
        if "teacher" in self.config:
            return "distill"
        return "finetune" if "task" in self.config else "embed" if "graph" in self.config else "pretrain"

    @property
    def name(self) -> str:
        """As it is configured, else of its folder, which may have been copied under another name."""
        named = str(self.section("run").get("name") or "")
        return named if named and self.path.name == Path(named).name else self.path.name

    @property
    def group(self) -> str:
        """The name without the seed: of a task also without the task."""
        parts = [part for part in self.name.split("/") if not part.startswith("seed-")] or [self.name]
        name = "/".join(parts[1:] if self.task and len(parts) > 1 and parts[0] == self.task else parts)
        return f"{name}, distilled" if self.stage == "distill" and self.task else name

    @property
    def task(self) -> str:
        """Name of the task, or nothing."""
        return str(self.section("task").get("name") or "")

    @property
    def about(self) -> str:
        """What was learned: a task, or the objective."""
        objective = str(self.section("objective").get("type") or "")
        if self.stage == "embed":
            return "TransE"
        return " by ".join(filter(None, (self.task, objective if self.stage == "distill" else ""))) or objective

    @property
    def started_from(self) -> str:
        """The model before, in few words."""
        model, teacher = self.section("model"), self.section("teacher").get("from")
        start = model.get("from") or model.get("name")
        start = "random weights" if model.get("weights") == "random" or model.get("start") == "random" else start
        parts = [str(start)] if start else []
        return shortened("; ".join([*parts, *([f"teacher {teacher}"] if teacher else [])])) or "random weights"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """``metrics.jsonl``."""
        return read_rows(self.path / "metrics.jsonl")

    def points(self, name: str) -> list[tuple[float, float]]:
        """Step and value of a metric."""
        return [(float(row["step"]), float(row[name])) for row in self.rows if name in row]

    @property
    def steps(self) -> int:
        """The last one of the record."""
        return self.finished.steps or 0 if self.finished else max((row["step"] for row in self.rows), default=0)

    @property
    def command(self) -> str:
        """The command that started it first, or one that runs its configuration."""
        if not self.starts:
            module = {"embed": "knowledge"}.get(self.stage, self.stage)
            return shortened(f"python -m {module} {self.path / 'config.yaml'}")
        program, *arguments = map(str, self.starts[0].environment.get("command") or [self.stage])
        path = Path(program)
        module = path.parent.name if path.name == "__main__.py" else f"{path.parent.name}.{path.stem}"
        return shortened(f"python -m {module} {shlex.join(arguments)}")

    @property
    def data(self) -> str:
        """What it read, as configured."""
        task, data = self.section("task"), self.section("data")
        if task:
            hub, files = task.get("hub"), task.get("files")
            named = hub.get("dataset") if isinstance(hub, dict) else None
            given = files.values() if isinstance(files, dict) else ()
            listed = distinct(str(file) for each in given for file in (each if isinstance(each, list) else [each]))
            return shortened(str(named or listed or task.get("documentation") or self.task))
        paths = data.get("path") or self.section("graph").get("path") or []
        return shortened(", ".join(map(str, paths if isinstance(paths, list) else [paths])))


class Outcomes(BaseModel):
    """What a report reads of an evaluation in context."""

    model_config = ConfigDict(extra="ignore")

    task: str
    model: str
    floors: dict[str, float]
    outcomes: list[dict[str, Any]]


class Compared(BaseModel):
    """What a report reads of a comparison of models."""

    model_config = ConfigDict(extra="ignore")

    models: list[dict[str, Any]]
    speeds: list[dict[str, Any]]
    device: str = ""
    threads: int | None = None


@dataclass
class Found:
    """Everything below some folders."""

    runs: list[Run] = field(default_factory=list)
    contexts: list[Outcomes] = field(default_factory=list)
    comparisons: list[Compared] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why something that is there is not shown."""

    @property
    def tasks(self) -> dict[str, list[Run]]:
        """Runs of each task."""
        names = dict.fromkeys(run.task for run in self.runs if run.task)
        return {name: [run for run in self.runs if run.task == name] for name in names}


def find(folders: Sequence[Path]) -> Found:
    """Read what lies in folders and below; what is damaged is left out, and said.

    Raises ``InputError`` for a folder that does not exist, and where nothing is found.
    """
    found = Found()
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"runs: {folder}: no such folder; give folders of runs, or one that holds them, such as runs"
            )
    for path in dict.fromkeys(each.resolve() for folder in folders for each in _below(folder)):
        shown = Path(os.path.relpath(path))
        try:
            _read(found, shown if not str(shown).startswith("..") else path)
        except InputError as error:
            found.left_out.append(shortened(str(error)))
    if not (found.runs or found.contexts or found.comparisons):
        listing = ", ".join(map(str, folders))
        why = f" ({found.left_out[0]})" if found.left_out else ""
        raise InputError(
            f"runs: {listing}: no run, comparison or evaluation in context there{why}; give folders that hold some: "
            + command_line("report", RUNS="runs/pretrain/bert_docs runs/finetune")
        )
    found.runs.sort(key=lambda run: (_STAGES.index(run.stage), run.task, run.name))
    return found


def _below(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files or "results.json" in files:
            yield Path(path)
            folders.clear()
        kept = (name for name in folders if name not in _NOT_RUNS and not name.endswith((".partial", ".old")))
        folders[:] = sorted(kept)


def _read(found: Found, path: Path) -> None:
    if (path / "config.yaml").is_file():
        found.runs.append(Run.read(path))
        return
    file = path / "results.json"
    keys = read_json(file, dict[str, Any], remedy=_REMEDY).keys()
    if {"outcomes", "floors"} <= keys:
        found.contexts.append(read_json(file, Outcomes, remedy=_REMEDY))
    elif {"models", "speeds"} <= keys:
        found.comparisons.append(read_json(file, Compared, remedy=_REMEDY))


def distinct(values: Iterable[str]) -> str:
    """Different values, with commas."""
    return ", ".join(dict.fromkeys(value for value in values if value))

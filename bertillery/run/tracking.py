"""Metrics of a run: one JSON line per step in ``metrics.jsonl``, shown in Weights & Biases or in trackio.

The file is the record, W&B and trackio are views of it, which can neither stop nor delay training. Without a key, or if
its server does not answer within seconds, W&B records offline under ``<run>/wandb``; that can be uploaded later with

    wandb sync --yes <run>/wandb/offline-run-*

A resumed run keeps its id, so that its parts become one W&B run (``wandb sync`` uploads them in the order of their
start). A resumed run replaces the steps that it repeats in ``metrics.jsonl``; W&B keeps the first values.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Name
from bertillery.run.views import Level, Listing, Mode, TrackioView, View, WandbView, wandb_mode
from bertillery.system.files import write_text, writing
from bertillery.system.invocation import installing
from bertillery.system.printable import first_line

if TYPE_CHECKING:
    from bertillery.run.lineage import Artifact  # loads transformers, which reading metrics does not need

logger = logging.getLogger(__name__)


class TrackingSection(Section):
    """Tracking besides ``metrics.jsonl``."""

    project: Name = "bertillery"
    """Project in W&B or trackio."""
    to: Literal["wandb", "trackio"] = "wandb"
    """Where runs are shown: in W&B, or with ``trackio show`` in a web page on this machine, without an account."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """``auto``: as WANDB_MODE or ``wandb offline`` say, else online with an API key and offline without. ``off`` is off
    for trackio, too."""

    def check(self) -> None:
        """``ConfigError`` for a tracker that is not installed."""
        if self.to == "trackio" and self.wandb != "off" and importlib.util.find_spec("trackio") is None:
            raise ConfigError(
                "tracking.to: given 'trackio', which is not installed; install it with "
                f"{installing('trackio', 'trackio')}, or leave the key out"
            )


def read_rows(metrics_file: Path) -> list[dict[str, Any]]:
    """The recorded rows: a step and numbers by name. A missing file has none.

    Skips an incomplete last line, left by a crash or a full disk, and other damaged lines with a warning.
    """
    text = metrics_file.read_text(encoding="utf-8", errors="replace") if metrics_file.exists() else ""
    rows = [_row(line) for line in text.splitlines()]
    damaged = [number for number, row in enumerate(rows[:-1], 1) if row is None]
    if damaged:
        logger.warning("%s: %d damaged lines are skipped, the first is line %d", metrics_file, len(damaged), damaged[0])
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
    return row if numbers and isinstance(row.get("step"), int) and 0 <= row["step"] < 2**63 else None


def read_series(metrics_file: Path) -> dict[str, list[tuple[int, float]]]:
    """Recorded metrics by name: (step, value) in the order of recording."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(metrics_file):
        for name, value in row.items():
            series.setdefault(name, []).append((row["step"], value))
    return series


class Tracker:
    """Records the metrics of a run, in the main process only."""

    def __init__(
        self,
        section: TrackingSection,
        run_dir: Path,
        *,
        listing: Listing,
        config: Mapping[str, Any],
        is_main: bool,
        resume_step: int | None = None,
    ) -> None:
        """Open the run's file and its view.

        Deletes rows after ``resume_step``, which will be written again, or all rows without one.
        """
        self.repeated: frozenset[str] = frozenset()
        """Terms that are the same number as ``loss``, which nobody is shown twice."""
        self._axis, self._defined = listing.axis, set[str]()
        self._path = run_dir / "metrics.jsonl"
        self._file: IO[str] | None = None
        self._view: View | None = None
        if is_main:
            _cut(self._path, resume_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._start(section, run_dir, listing, config)

    @property
    def mode(self) -> Mode:
        """The mode in use; trackio is always offline."""
        return "off" if self._view is None else getattr(self._view, "mode", "offline")

    @property
    def shows(self) -> bool:
        """Whether there is a view, so that what is only shown there is worth computing."""
        return self._view is not None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step; steps may repeat with other metrics, but must not decrease."""
        if self._file is not None:
            with writing(self._path):
                self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n")
                self._file.flush()
        self._guard(lambda view: view.log(self.distinct(metrics), step))

    def distinct(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics without a term that is the loss under another name."""
        return {name: value for name, value in metrics.items() if not self._repeats(name, metrics)}

    def _repeats(self, name: str, metrics: Mapping[str, Any]) -> bool:
        place, slash, term = name.rpartition("/")
        return term in self.repeated and f"{place}{slash}loss" in metrics

    def define(self, better: Mapping[str, Literal["lower", "higher"]]) -> None:
        """Say which values of metrics are better; the view then keeps the best one of each. May be said again."""
        for name, direction in better.items():
            if name in self._defined or self._repeats(name, better):
                continue
            self._defined.add(name)
            self._guard(lambda view, name=name, direction=direction: view.define(name, self._axis, direction))

    def sync(self) -> None:
        """Flush the record to disk."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of the whole run, such as the scores of its result."""
        self._guard(lambda view: view.summary(values, step))

    def image(self, name: str, path: Path, step: int) -> None:
        """Show an image file."""
        self._beside(f"the picture {name}", lambda view: view.image(name, path, step))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show rows with the same keys: texts, numbers, and paths of pictures."""
        if rows:
            self._beside(f"the table {name}", lambda view: view.table(name, rows, step))

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Show how numbers are distributed."""
        self._beside(f"the histogram {name}", lambda view: view.histogram(name, values, step))

    def confusion(self, labels: Sequence[int], predictions: Sequence[int], names: Sequence[str], step: int) -> None:
        """Show how often each class, by its number, was taken for each class."""
        self._beside("the confusion matrix", lambda view: view.confusion(labels, predictions, names, step))

    def used(self, artifacts: Iterable[Artifact]) -> None:
        """Show what the run is made from."""
        for each in artifacts if self.shows else ():
            self._beside(f"the artifact {each.name}", lambda view, each=each: view.artifact(each, used=True))

    def made(self, artifact: Artifact) -> None:
        """Show what the run has made."""
        self._beside(f"the artifact {artifact.name}", lambda view: view.artifact(artifact, used=False))

    def alert(self, title: str, text: str, level: Level = "info") -> None:
        """Tell whoever watches."""
        self._beside(f"the alert {title!r}", lambda view: view.alert(title, text, level))

    def close(self, exit_code: int = 0, preempted: bool = False) -> None:
        """Close the record; ``preempted`` says that the run will be resumed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._guard(lambda view: view.finish(exit_code, preempted=preempted))
        self._view = None

    def _guard(self, action: Callable[[View], Any]) -> None:
        """Run an action of the view; an error ends the view, not the training."""
        if self._view is None:
            return
        try:
            action(self._view)
        except Exception as error:
            self._warn(self._view.name, error)

    def _beside(self, what: str, action: Callable[[View], Any]) -> None:
        """Run an action of the view without which the rest is as it was."""
        if self._view is None:
            return
        try:
            action(self._view)
        except Exception as error:
            logger.warning("%s does not show %s: %s", self._view.name, what, first_line(error))

    def _warn(self, name: str, error: Exception) -> None:
        logger.warning("%s failed and is switched off; metrics.jsonl is still written: %s", name, first_line(error))
        self._view = None

    def _start(self, section: TrackingSection, run_dir: Path, listing: Listing, config: Mapping[str, Any]) -> None:
        name = section.to
        try:
            view = _open(section, run_dir)
            if view is not None:
                name = view.name
                view.start(listing, config)
                self._view = view
        except Exception as error:
            self._warn(name, error)
        if listing.axis is not None:
            self._guard(lambda view: [view.define(part, listing.axis, None) for part in ("train/*", "held_out/*")])


def _open(section: TrackingSection, run_dir: Path) -> View | None:
    """The view that the section asks for, not yet started; loading W&B takes half a second."""
    if section.wandb == "off":
        return None
    if section.to == "trackio":
        return TrackioView(section.project)
    mode = wandb_mode(section.wandb)
    return None if mode == "off" else WandbView(run_dir, section.project, mode)


def _cut(path: Path, last_step: int | None) -> None:
    """Delete the rows after a step, and damaged ones."""
    kept = [row for row in read_rows(path) if last_step is not None and row["step"] <= last_step]
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))

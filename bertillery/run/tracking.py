"""Metrics of a run: one JSON line per step in ``metrics.jsonl``, and optionally Weights & Biases.

The file is the record. W&B can neither stop nor delay training: without a key, or if its server does not answer within
seconds, the run is recorded offline under ``<run>/wandb`` and can be uploaded later with

    wandb sync --yes <run>/wandb/offline-run-*

A resumed run keeps its id, so that its parts become one W&B run (``wandb sync`` uploads them in the order of their
start). A resumed run replaces the steps that it repeats in ``metrics.jsonl``; W&B keeps the first values.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from bertillery.config.section import Section
from bertillery.config.types import Name
from bertillery.system.files import write_text, writing

logger = logging.getLogger(__name__)

_INIT_SECONDS = 5
_FINISH_SECONDS = 30
"""The rest stays on disk for ``wandb sync``."""


class TrackingSection(Section):
    """Tracking besides ``metrics.jsonl``."""

    project: Name = "bertillery"
    """W&B project."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """``auto``: as WANDB_MODE or ``wandb offline`` say, else online with an API key and offline without."""


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
        name: str,
        config: Mapping[str, Any],
        is_main: bool,
        resume_step: int | None = None,
    ) -> None:
        """Open the run's file and its W&B run.

        Deletes rows after ``resume_step``, which will be written again, or all rows without one.
        """
        self.mode: Literal["online", "offline", "off"] = "off"
        """The mode in use."""
        self._path = run_dir / "metrics.jsonl"
        self._file: IO[str] | None = None
        self._run: Any = None
        if is_main:
            _cut(self._path, resume_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._guard(lambda: self._start_wandb(section, run_dir, name=name, config=dict(config)))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step; steps may repeat with other metrics, but must not decrease."""
        if self._file is not None:
            with writing(self._path):
                self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n")
                self._file.flush()
        self._guard(lambda: self._run and self._run.log(dict(metrics), step=step))

    def sync(self) -> None:
        """Flush the record to disk."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set final values in W&B's overview of the run."""
        self._guard(lambda: self._run and self._run.summary.update(dict(values)))

    def image(self, name: str, path: Path, step: int) -> None:
        """Show an image file in W&B."""

        def log_image() -> None:
            import wandb

            self._run.log({name: wandb.Image(str(path))}, step=step)

        self._guard(lambda: self._run and log_image())

    def table(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        """Show rows with the same keys as a W&B table."""

        def log_table() -> None:
            import wandb

            cells: Any = [[*row.values()] for row in rows]
            self._run.log({name: wandb.Table(columns=[*rows[0]], data=cells)}, step=step)

        self._guard(lambda: self._run and rows and log_table())

    def close(self, exit_code: int = 0, preempted: bool = False) -> None:
        """Close the record; ``preempted`` tells W&B that the run will be resumed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if preempted:
            self._guard(lambda: self._run and self._run.mark_preempting())
        self._guard(lambda: self._run and self._run.finish(exit_code=exit_code))
        self._run = None

    def _guard(self, action: Callable[[], Any]) -> None:
        """Run an action of W&B; an error ends W&B tracking, not the training."""
        try:
            action()
        except Exception as error:
            logger.warning("W&B failed and is switched off; metrics.jsonl is still written: %s", _first_line(error))
            self._run, self.mode = None, "off"

    def _start_wandb(self, section: TrackingSection, run_dir: Path, **described: Any) -> None:
        if section.wandb == "off":
            return
        import wandb  # takes half a second

        self.mode = _mode(section.wandb)
        if self.mode == "off":
            return
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex[:8])

        def start(mode: Literal["online", "offline"]) -> Any:
            return wandb.init(
                project=section.project,
                dir=run_dir,
                mode=mode,
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                allow_val_change=True,
                settings=wandb.Settings(silent=True, init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS),
                **described,
            )

        if self.mode == "online":
            try:
                self._run = start("online")
                return
            except Exception as error:
                logger.warning("W&B does not work online, recording offline: %s", _first_line(error))
                self.mode = "offline"
                wandb.teardown()  # else its service keeps the id
        self._run = start("offline")


def _mode(wanted: Literal["auto", "online", "offline"]) -> Literal["online", "offline", "off"]:
    """The mode; ``wandb.init`` without a key would ask for one on a terminal, and fail elsewhere."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    mode = settings.mode if wanted == "auto" else wanted
    if mode == "disabled":
        return "off"
    if mode != "online":
        return "offline"
    if settings.api_key or settings.identity_token_file or _netrc_has(urlsplit(settings.base_url).hostname or ""):
        return "online"
    level = logging.WARNING if wanted == "online" else logging.INFO
    logger.log(level, "no W&B key (WANDB_API_KEY or `wandb login`): recording offline")
    return "offline"


def _netrc_has(host: str) -> bool:
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return file.is_file() and netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _cut(path: Path, last_step: int | None) -> None:
    """Delete the rows after a step, and damaged ones."""
    kept = [row for row in read_rows(path) if last_step is not None and row["step"] <= last_step]
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))

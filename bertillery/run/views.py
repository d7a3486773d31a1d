"""Where a run's record is watched: Weights & Biases, or trackio's dashboard on this machine.

Both have the same calls, with two differences: W&B knows axes, best values and a summary, and draws a confusion matrix
itself. What a view cannot show it leaves out. A view may raise anything; :class:`bertillery.run.tracking.Tracker` keeps
errors from the training.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import math
import netrc
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from bertillery.system.files import write_text
from bertillery.system.printable import first_line

if TYPE_CHECKING:
    from bertillery.run.lineage import Artifact  # loads transformers, which reading metrics does not need

logger = logging.getLogger(__name__)

Level = Literal["info", "warning", "error"]
Mode = Literal["online", "offline", "off"]
_INIT_SECONDS = 5
_FINISH_SECONDS = 30
"""The rest stays on disk for ``wandb sync``."""
_CELL = 2000
"""Most characters of a text in a table."""


@dataclass(frozen=True)
class Listing:
    """How a run is listed among others."""

    name: str
    group: str | None = None
    """Task and model: runs that differ in a seed or a setting."""
    job_type: str | None = None
    """The stage."""
    tags: tuple[str, ...] = ()
    axis: Literal["tokens", "examples"] | None = None
    """What curves of such runs are drawn over; by default the step."""


class View(ABC):
    """A run in a tracker. ``module`` is the tracker's package, ``run`` its run."""

    name: str
    module: Any
    run: Any

    @abstractmethod
    def start(self, listing: Listing, config: Mapping[str, Any]) -> None:
        """Begin the run, or continue it."""

    def define(self, name: str, axis: str | None, best: Literal["lower", "higher"] | None) -> None:  # noqa: B027
        """Say what a metric (or all that begin alike, as ``train/*``) is drawn over and which of its values is best."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        self.run.log(dict(metrics), step=step)

    @abstractmethod
    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of the whole run."""

    def image(self, name: str, path: Path, step: int) -> None:
        """A picture."""
        self.run.log({name: self.module.Image(str(path))}, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Rows with the same keys: texts, numbers, and paths of pictures."""
        cells = [[self._cell(value) for value in row.values()] for row in rows]
        self.run.log({name: self.module.Table(columns=[*rows[0]], data=cells)}, step=step)

    def _cell(self, value: Any) -> Any:
        if isinstance(value, Path):
            return self.module.Image(str(value))
        return value if isinstance(value, int | float) else str(value)[:_CELL]

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """How numbers are distributed."""
        self.run.log({name: self.module.Histogram(values)}, step=step)

    @abstractmethod
    def confusion(self, labels: Sequence[int], predictions: Sequence[int], names: Sequence[str], step: int) -> None:
        """How often each class was taken for each class."""

    def artifact(self, made: Artifact, *, used: bool) -> None:
        """An input of the run (``used``), or a result."""
        about = {"sha256": made.fingerprint.sha256, "what": made.fingerprint.what}
        found = self.module.Artifact(made.name, type=made.type, metadata=about)
        for name, file in made.references.items():
            found.add_reference(file.as_uri(), name=name, checksum=made.checksums)
        with TemporaryDirectory() as folder:
            fingerprint = Path(folder) / "fingerprint.json"
            fingerprint.write_text(json.dumps(about), encoding="utf-8")
            for name, file in {fingerprint.name: fingerprint, **made.files}.items():
                found.add_file(str(file), name=name)
            self._send(found, [made.alias] if made.alias else [], used=used)

    @abstractmethod
    def _send(self, found: Any, aliases: list[str], *, used: bool) -> None: ...

    @abstractmethod
    def alert(self, title: str, text: str, level: Level) -> None:
        """A message to whoever watches."""

    @abstractmethod
    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """End the run; a preempted one will be continued."""


class WandbView(View):
    """A run in W&B: online, or offline under ``<run>/wandb``, from where ``wandb sync`` uploads it."""

    name = "W&B"

    def __init__(self, run_dir: Path, project: str, mode: Literal["online", "offline"]) -> None:
        self.module, self.run_dir, self.project = importlib.import_module("wandb"), run_dir, project
        self.mode: Mode = mode

    def start(self, listing: Listing, config: Mapping[str, Any]) -> None:
        """Without an answer of the server the run goes offline."""
        if self.mode == "online":
            try:
                self.run = self._init(listing, config)
                return
            except Exception as error:
                logger.warning("W&B does not work online, recording offline: %s", first_line(error))
                self.mode = "offline"
                self.module.teardown()  # else its service keeps the id
        self.run = self._init(listing, config)

    def _init(self, listing: Listing, config: Mapping[str, Any]) -> Any:
        id_file = self.run_dir / "wandb_id"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex[:8])
        settings = self.module.Settings(silent=True, init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS)
        return self.module.init(
            project=self.project,
            dir=self.run_dir,
            mode=self.mode,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            allow_val_change=True,
            settings=settings,
            name=listing.name[-128:],
            group=listing.group and listing.group[:128],
            job_type=listing.job_type,
            tags=[tag[:64] for tag in listing.tags],
            config=dict(config),
        )

    def define(self, name: str, axis: str | None, best: Literal["lower", "higher"] | None) -> None:
        """The best value stands in the summary as ``<name>.min`` or ``<name>.max``."""
        kept = {"lower": "min,last", "higher": "max,last"}
        self.run.define_metric(name, step_metric=axis, summary=kept[best] if best else None)

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """As columns of the table of runs; a sweep also wants to see its ``score`` logged."""
        self.run.summary.update(dict(values))
        if "score" in values:
            self.run.log({"score": values["score"]}, step=step)

    def histogram(self, name: str, values: Sequence[float], step: int) -> None:
        """Of the finite numbers."""
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            super().histogram(name, finite, step)

    def confusion(self, labels: Sequence[int], predictions: Sequence[int], names: Sequence[str], step: int) -> None:
        """W&B's own chart."""
        chart = self.module.plot.confusion_matrix(
            y_true=[*labels], preds=[*predictions], class_names=[*names], title="confusion matrix"
        )
        self.run.log({"confusion": chart}, step=step)

    def _send(self, found: Any, aliases: list[str], *, used: bool) -> None:
        """``use_artifact`` waits for the server, and refuses to work offline; this is the call behind it."""
        if used:
            self.run._log_artifact(found, aliases=aliases, is_user_created=True, use_after_commit=True)
        else:
            self.run.log_artifact(found, aliases=aliases)

    def alert(self, title: str, text: str, level: Level) -> None:
        """By mail or Slack, as the user set it there."""
        self.run.alert(title, text, level={"info": "INFO", "warning": "WARN", "error": "ERROR"}[level])

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """A preempted run is marked as such."""
        if preempted:
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)


class TrackioView(View):
    """A run in trackio's database on this machine; ``trackio show`` opens the dashboard."""

    name = "trackio"

    def __init__(self, project: str) -> None:
        self.module, self.project = importlib.import_module("trackio"), project

    def start(self, listing: Listing, config: Mapping[str, Any]) -> None:
        """The run goes by its name and stage: two stages may have runs of one name."""
        name = f"{listing.name} ({listing.job_type})" if listing.job_type else listing.name
        more = {"job_type": listing.job_type, "tags": ", ".join(listing.tags)}
        with redirect_stdout(io.StringIO()):  # instructions that docs/tracking.md gives
            self.run = self.module.init(
                project=self.project, name=name, group=listing.group, config={**config, **more}, resume="allow"
            )

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """As metrics of the last step."""
        self.run.log(dict(values), step=step)

    def confusion(self, labels: Sequence[int], predictions: Sequence[int], names: Sequence[str], step: int) -> None:
        """As a table with a row for each class."""
        counts = [[0] * len(names) for _ in names]
        for label, prediction in zip(labels, predictions, strict=True):
            counts[label][prediction] += 1
        rows = [{"label": name, **dict(zip(names, row, strict=True))} for name, row in zip(names, counts, strict=True)]
        self.table("confusion", rows, step)

    def _send(self, found: Any, aliases: list[str], *, used: bool) -> None:
        """What another run made is used, not made again; it is known by an alias that is its fingerprint."""
        version = found.metadata["sha256"][:16]
        if used:
            with suppress(ValueError):  # nobody has made it
                self.run.use_artifact(f"{found.name}:{version}")
                return
        logged = self.run.log_artifact(found, aliases=[*aliases, version])
        if used:
            self.run.use_artifact(logged)

    def alert(self, title: str, text: str, level: Level) -> None:
        """In the dashboard."""
        levels = self.module.AlertLevel
        with redirect_stdout(io.StringIO()):
            self.run.alert(title, text, {"info": levels.INFO, "warning": levels.WARN, "error": levels.ERROR}[level])

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """Write what is left."""
        with redirect_stdout(io.StringIO()):
            self.module.finish()


def wandb_mode(wanted: Literal["auto", "online", "offline"]) -> Mode:
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

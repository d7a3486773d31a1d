"""What became of the trials of a search: the ledger, a table of the best, and a picture of all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from engine.files import write_text
from engine.markdown import markdown_table
from engine.plot import figure, plain, save
from finetune.space import Range, Space


@dataclass(frozen=True)
class Trial:
    """A line of the ledger: a trial that is finished."""

    trial: int
    settings: dict[str, Any]
    metric: str
    score: float
    path: str

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts the best to the front, the earlier of equals first."""
        return (math.inf if math.isnan(self.score) else -self.score, self.trial)


_TRIAL = TypeAdapter(Trial)


def read_ledger(file: Path) -> dict[int, Trial]:
    """Finished trials by number; a line that a crash left torn is passed over: the trial's own folder tells."""
    found = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            entry = _TRIAL.validate_python(json.loads(line))
        except (ValueError, RecursionError):
            continue
        found[entry.trial] = entry
    return found


def write_ledger(file: Path, trials: dict[int, Trial]) -> None:
    """Replace the ledger: a JSON line for each trial, in their order."""
    lines = [json.dumps(asdict(trials[number])) for number in sorted(trials)]
    write_text(file, "".join(f"{line}\n" for line in lines))


def trials_table(trials: Sequence[Trial], shown: int = 10) -> str:
    """The best trials with their settings, as a Markdown table."""
    best = sorted(trials, key=lambda trial: trial.rank)[:shown]
    settings = list(best[0].settings)
    rows = [["trial", best[0].metric, *settings]]
    for trial in best:
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in trial.settings.values()]
        rows.append([str(trial.trial), f"{100 * trial.score:.2f}", *values])
    return markdown_table(rows)


def plot_trials(trials: Sequence[Trial], space: Space, picture: Path, title: str) -> None:
    """The score of every trial against each setting; the best one is marked."""
    axes = figure(len(space.settings), title)
    best = min(trials, key=lambda trial: trial.rank)
    for axis, (key, values) in zip(axes, space.settings.items(), strict=True):

        def place(trial: Trial, key: str = key, values: Any = values) -> float:
            value = trial.settings[key]
            return value if isinstance(values, Range) else values.index(value)

        scores, over_edges = [trial.score for trial in trials], {"clip_on": False, "zorder": 3}
        axis.plot([place(trial) for trial in trials], scores, "o", alpha=0.5, **over_edges)
        axis.plot(
            place(best), best.score, "*", color="tab:red", markersize=12, label=f"trial {best.trial}", **over_edges
        )
        if isinstance(values, Range):
            axis.set(xlim=(values.low, values.high), xscale="log" if values.distribution == "log_uniform" else "linear")
        else:
            axis.set_xticks(range(len(values)), [plain(str(value)) for value in values])
            axis.set_xlim(-0.5, len(values) - 0.5)
        axis.set(xlabel=plain(key), ylabel=best.metric.replace("_", " "))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(axes, picture)

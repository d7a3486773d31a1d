"""What several seeds of some tasks reached: a table, and a picture of every seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from engine.files import write_text
from engine.markdown import code, escaped, markdown_table
from engine.plot import figure, plain, save
from engine.records import read_json
from engine.stage import beside

GLUE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
"""The benchmark's tasks, by the names of their configurations: the published mean is over these and no others."""


class Summary(BaseModel):
    """What ``table.json`` says of a task."""

    scores: dict[str, Annotated[dict[str, Annotated[list[float], Field(min_length=1)]], Field(min_length=1)]] = Field(
        min_length=1
    )
    """Of each seed, by validation split and metric."""
    ensemble: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, dict[str, float]]]
    """By validation split, baseline and metric."""
    warnings: list[str]
    runs: list[str] = Field(min_length=1)
    """Folders of the seeds that are finished."""
    best: str
    """One of them."""

    @model_validator(mode="after")
    def _splits_have_baselines(self) -> Summary:
        if not self.scores.keys() <= self.baselines.keys():
            raise ValueError("baselines are missing of a split that has scores")
        return self


def read_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``table.json`` in the folder says, by task; nothing where there is none. ``InputError`` if it is damaged."""
    file = folder / "table.json"
    if not file.exists():
        return {}
    remedy = "delete it: the command that wrote it makes it again of the runs that are finished"
    found = read_json(file, dict[str, Summary], remedy=remedy)
    return {task: summary.model_dump() for task, summary in found.items()}


def write_table(summaries: dict[str, dict[str, Any]], folder: Path, start: str) -> str:
    """Write ``table.md``, ``table.json`` and ``seeds.png`` to the folder; returns what to print."""
    baselines = list(
        dict.fromkeys(name for each in summaries.values() for found in each["baselines"].values() for name in found)
    )
    rows = [["task", "metric", "seeds", "median", "mean", "std", "best", "ensemble", *baselines]]
    for task, summary in summaries.items():
        for split, found in summary["scores"].items():
            label = f"{task} {split.removeprefix('validation').lstrip('_')}".strip()
            for metric, values in found.items():
                spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
                base = [summary["baselines"][split].get(name, {}).get(metric) for name in baselines]
                ensemble = summary["ensemble"].get(split, {}).get(metric)
                numbers = [np.median(values), np.mean(values), spread, max(values), ensemble, *base]
                cells = ["-" if x is None or np.isnan(x) else f"{100 * x:.2f}" for x in numbers]
                rows.append([label, metric, str(len(values)), *cells])
    glue = {task: _average(summary) for task, summary in summaries.items() if task in GLUE}
    if len(glue) > 1:
        rows.append(["mean of GLUE", "", "", f"{100 * np.mean([*glue.values()]):.2f}", *[""] * (len(rows[0]) - 4)])
    notes = [f"mean of GLUE: {', '.join(glue)} ({len(glue)} of its {len(GLUE)} tasks)."] if len(glue) > 1 else []
    notes += [escaped(note) for task, summary in summaries.items() for note in _warnings(task, summary)]
    table = markdown_table(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", "\n\n".join([code(start), table, *notes]) + "\n")
    write_text(folder / "table.json", json.dumps(summaries, indent=1))
    with beside(f"the picture {folder / 'seeds.png'}"):
        _plot(summaries, folder / "seeds.png", start)
    best = "\n".join(f"  {task}: {summary['best']}/export" for task, summary in summaries.items())
    return "\n\n".join([f"\n{table}", *notes, f"best of the seeds\n{best}", f"table and plot in {folder}"])


def _average(summary: dict[str, Any]) -> float:
    """Mean over validation splits and metrics, as GLUE averages within a task, of the medians over the seeds."""
    return float(np.mean([np.median(values) for found in summary["scores"].values() for values in found.values()]))


def _warnings(task: str, summary: dict[str, Any]) -> list[str]:
    """A note for each thing that is wrong, with the number of models that it is true of."""
    counted = Counter(summary["warnings"]).most_common()
    return [f"{task}: {number} of {len(summary['runs'])} models: {warning}." for warning, number in counted]


def _plot(summaries: dict[str, dict[str, Any]], picture: Path, title: str) -> None:
    """Every seed a point, beside the baselines."""
    axes = figure(1, title, panel=(4.0 + 0.8 * len(summaries), 4.0))
    for place, summary in enumerate(summaries.values()):
        split, found = next(iter(summary["scores"].items()))
        metric, values = next(iter(found.items()))
        axes[0].plot([place] * len(values), values, "o", color="tab:blue", alpha=0.6, label="seeds" * (not place))
        for (name, baseline), style in zip(summary["baselines"][split].items(), "_x+", strict=False):
            if metric in baseline:
                axes[0].plot(place, baseline[metric], style, color="grey", label=name * (not place))
    axes[0].set_xticks(range(len(summaries)), [*map(plain, summaries)], rotation=30, ha="right")
    axes[0].grid(alpha=0.3, axis="y")
    axes[0].legend(fontsize=8)
    save(axes, picture)

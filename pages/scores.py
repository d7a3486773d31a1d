"""The scores of a task in one table: medians with their spread over seeds, baselines, and what others published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median, stdev

from pydantic import BaseModel, ConfigDict

from bertillery.system.records import read_yaml
from pages.blocks import Table
from pages.runs import Run

PUBLISHED = Path(__file__).parent / "published.yaml"
"""Scores that others published."""
_SCORE = 100.0


class Published(BaseModel):
    """A model that others measured."""

    model_config = ConfigDict(extra="forbid")

    model: str
    source: str
    part: str
    """Which part of the data."""
    scores: dict[str, dict[str, float]]
    """In per cent, by task and metric."""


def read_published() -> list[Published]:
    """The file of published scores; ``InputError`` where it is damaged."""
    return read_yaml(PUBLISHED, list[Published], remedy="restore the file")


def task_tables(task: str, runs: Sequence[Run], published: Sequence[Published]) -> Iterator[Table]:
    """A table for each split of a task with a score."""
    done = [run for run in runs if run.finished is not None and run.finished.scores]
    splits = dict.fromkeys(split for run in done for split in (run.finished.scores if run.finished else ()))
    for split in splits:
        rows = [["model", "metric", "seeds", "median", "mean", "std", "lowest", "highest"]]
        rows += [row for group in _groups(done).values() for row in _rows(group, split)]
        rows += _baselines(done, split)
        ours = len(rows)
        metrics = dict.fromkeys(row[1] for row in rows[1:])
        for each in published:
            scores = each.scores.get(task, {})
            name = f"{each.model}, published ({each.source}; {each.part})"
            keys = [key for shown in metrics if (key := shown.replace(" ", "_")) in scores]
            rows += [_row(name, key, "", [scores[key]]) for key in keys]
        note = "Scores in per cent." + " Rows in italics are others' and were not measured here." * (len(rows) > ours)
        for run in done:
            if run.finished and split in run.finished.warnings:
                note += f" {run.name}: {run.finished.warnings[split]}."
        yield Table(f"{task}, {split.replace('_', ' ')}", rows, frozenset(range(ours, len(rows))), note)


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    names = dict.fromkeys(run.group for run in runs)
    return {name: [run for run in runs if run.group == name] for name in names}


def _row(name: str, metric: str, seeds: str, values: Sequence[float]) -> list[str]:
    many = len(values) > 1
    spread = [f"{stdev(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"] if many else ["", "", ""]
    middle = [f"{median(values):.2f}", f"{mean(values):.2f}" if many else ""]
    return [name, metric.replace("_", " "), seeds, *middle, *spread]


def _rows(group: Sequence[Run], split: str) -> Iterator[list[str]]:
    found = [run.finished.scores[split] for run in group if run.finished is not None and split in run.finished.scores]
    for metric in dict.fromkeys(metric for scores in found for metric in scores):
        values = [_SCORE * scores[metric] for scores in found if metric in scores]
        yield _row(group[0].group, metric, str(len(values)), values)


def _baselines(runs: Sequence[Run], split: str) -> list[list[str]]:
    found: dict[tuple[str, str], float] = {}
    for run in runs:
        named = run.finished.baselines.get(split, {}) if run.finished is not None else {}
        for name, scores in named.items() if isinstance(named, dict) else ():
            for metric, value in scores.items():
                found.setdefault((name, metric), _SCORE * value)
    return [_row(f"{name}, without an encoder", metric, "", [value]) for (name, metric), value in found.items()]

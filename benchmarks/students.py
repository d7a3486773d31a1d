"""``python -m benchmarks.students <picture> <name>=<pattern> ...``: scores of groups of runs (tasks, seeds).

A pattern is of run folders, as in ``teacher=runs/finetune/*/bert_mini/seed-*``; the first group is what the others are
compared with. The table has the median over the seeds and their standard deviation, of the first metric of each task.
"""

from __future__ import annotations

import glob
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from engine.plot import figure, markdown, save

Scores = dict[str, list[float]]
"""By task, of each seed."""


def read(pattern: str) -> Scores:
    scores: Scores = defaultdict(list)
    for folder in sorted(map(Path, glob.glob(pattern))):
        if not (folder / "finished.json").exists():
            continue
        task = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["task"]
        found = json.loads((folder / "finished.json").read_text(encoding="utf-8"))["scores"]
        scores[task["name"]].append(found[task["validation"][0]][task["metrics"][0]])
    return dict(scores)


def table(groups: dict[str, Scores]) -> str:
    tasks = sorted({task for scores in groups.values() for task in scores})
    first = next(iter(groups.values()))
    rows = [["", *tasks, "mean", "kept"]]
    for name, scores in groups.items():
        cells = []
        for task in tasks:
            values = 100 * np.array(scores.get(task, []))
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.median(values):.1f}{spread}" if len(values) else "-")
        whole = all(task in scores and task in first for task in tasks)
        mean = np.mean([np.median(scores[task]) for task in tasks]) if whole else np.nan
        reference = np.mean([np.median(first[task]) for task in tasks]) if whole else np.nan
        rows.append([name, *cells, f"{100 * mean:.1f}", f"{mean / reference:.1%}"])
    return markdown(rows)


def draw(groups: dict[str, Scores], picture: Path) -> None:
    tasks = sorted({task for scores in groups.values() for task in scores})
    axes = figure(1, "scores of the seeds", panel=(3.0 + 1.6 * len(tasks), 4.2))
    for number, (name, scores) in enumerate(groups.items()):
        at = (number - (len(groups) - 1) / 2) * 0.8 / len(groups)
        points = [(place + at, value) for place, task in enumerate(tasks) for value in scores.get(task, [])]
        if points:
            axes[0].plot(*zip(*points, strict=True), "o", markersize=5, alpha=0.8, label=name)
    axes[0].set_xticks(range(len(tasks)), tasks)
    axes[0].grid(alpha=0.3, axis="y")
    axes[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save(axes, picture)


def main(picture: Path, given: list[str]) -> None:
    groups = {name: read(pattern) for name, _, pattern in (each.partition("=") for each in given)}
    print(table(groups))
    draw(groups, picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

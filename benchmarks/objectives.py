"""``python -m benchmarks.objectives <picture> <run> ...``: held-out curves of pretraining runs over their compute."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bertillery.report.plot import figure, save

WORDS = ("mlm", "generator")
TASKS = {"nsp_accuracy": "NSP accuracy", "sop_accuracy": "SOP accuracy", "auc": "detection AUC"}


def curve(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    """(1e12 floating-point operations so far, value) of a held-out number."""
    spent, points = 0.0, []
    before = 0
    for row in rows:
        if "seconds_per_step" in row:
            spent += (row["step"] - before) * row["seconds_per_step"] * row["model_tflops_per_device"]
            before = int(row["step"])
        if f"held_out/{name}" in row:
            points.append((spent, row[f"held_out/{name}"]))
    return points


def main(picture: Path, runs: list[Path]) -> None:
    words, tasks = figure(2, "held-out numbers over the compute of training")
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        baseline = json.loads((run / "finished.json").read_text(encoding="utf-8"))["baselines"]
        for name in WORDS:
            if points := curve(rows, name):
                words.plot(*zip(*((x, y - baseline[name]) for x, y in points), strict=True), "o-", label=run.name)
        for name, title in TASKS.items():
            if points := curve(rows, name):
                tasks.plot(*zip(*points, strict=True), "o-", label=f"{run.name}: {title}")
    words.axhline(0, color="grey", linestyle="--", linewidth=1)
    words.set(title="masked words: loss above that without context", xlabel="1e12 operations", ylabel="nats")
    tasks.axhline(0.5, color="grey", linestyle="--", linewidth=1)
    tasks.set(title="the other task", xlabel="1e12 operations")
    for axis in (words, tasks):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    save([words, tasks], picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])

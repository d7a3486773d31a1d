"""Folders of runs as they lie on disk, with numbers that a test can add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from bertillery.report.table import write_tsv

HOSTILE = (
    '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\x00\x1b[31m\n\u202eabc\u2066 שלום &amp; $x$'
)
"""What a page must show as text."""
ENVIRONMENT = {
    "python": "3.11.2", "torch": "2.13.0", "cpu": "A CPU", "gpus": [], "commit": "a" * 40, "changed": False,
    "command": ["/somewhere/finetune/__main__.py", "task.yaml", "run.seed=1"],
}  # fmt: skip


def write_run(
    folder: Path,
    *,
    task: str = "mood",
    model: str = "small",
    seed: int = 1,
    accuracy: float = 0.5,
    text: str = "w1 w2",
    processes: int = 2,
) -> Path:
    """A finished fine-tuning of 20 steps: 2 seconds a step, 100 tokens a second, 1e12 operations a second on each of
    its processes; after step 10 it was resumed on one process."""
    path = folder / "finetune" / task / model / f"seed-{seed}"
    path.mkdir(parents=True)
    config = {
        "run": {"name": f"{task}/{model}/seed-{seed}", "seed": seed},
        "model": {"from": "runs/pretrain/small/export"},
        "task": {"name": task, "files": {"train": ["train.csv"], "validation": ["valid.csv"]}},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    speed = {"seconds_per_step": 2.0, "tokens_per_second": 100.0, "model_tflops_per_device": 1.0, "memory_gib": 3.0}
    rows: list[dict[str, Any]] = [
        {"step": step, "time": float(step), "train/loss": 2.0 - step / 20, **speed} for step in (5, 10, 15, 20)
    ]
    rows += [{"step": 20, "time": 20.0, "held_out/loss": 1.5, "held_out/accuracy": accuracy}]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    finished = {
        "steps": 20,
        "table": "",
        "scores": {"validation": {"accuracy": accuracy}},
        "baselines": {"validation": {"majority": {"accuracy": 0.25}}},
        "warnings": {},
        "exported": {"model.safetensors": {"size": 9, "sha256": "b" * 64}},
    }
    (path / "finished.json").write_text(json.dumps(finished))
    (path / "inputs.json").write_text(json.dumps({"train rows": {"sha256": "c" * 64, "what": "9 rows", "exact": True}}))
    starts = [
        {"step": step, "time": 1.0 + step, "processes": number, "device": "cpu", "precision": "no",
         "environment": ENVIRONMENT, "data": {}}
        for step, number in ((0, processes), (10, 1))
    ]  # fmt: skip
    (path / "starts.jsonl").write_text("".join(f"{json.dumps(start)}\n" for start in starts))
    hardest = [["index", "distance", "label", "prediction", "text"]]
    hardest += [[str(i), f"{1 - i / 10:.1f}", "good", "bad", f"{text} {i}"] for i in range(9)]
    write_tsv(path / "hardest.tsv", hardest)
    return path


def write_context(folder: Path) -> Path:
    """An evaluation in context of two numbers of worked examples, one of them with two seeds."""
    path = folder / "prompting" / "copa" / "tiny"
    path.mkdir(parents=True)
    outcomes = [
        {"shots": shots, "seed": seed, "num_items": 40, "metrics": {"accuracy": value}, "errors": {"accuracy": 0.05}}
        for shots, seed, value in ((0, 1, 0.5), (4, 1, 0.6), (4, 2, 0.7))
    ]
    found = {"task": "copa", "model": "runs/tiny/export", "floors": {"chance": 0.5}, "outcomes": outcomes}
    (path / "results.json").write_text(json.dumps(found))
    return path


def write_comparison(folder: Path) -> Path:
    """A teacher and a student that keeps nine tenths at half the time."""
    path = folder / "compare" / "big"
    path.mkdir(parents=True)

    def score(value: float, kept: float | None) -> dict[str, Any]:
        place = {"dataset": "mood", "split": "validation", "metric": "accuracy"}
        return {**place, "score": value, "kept": kept, "seeds": [value - 0.01, value]}

    models = [
        {"name": name, "parameters": size, "bytes": 4 * size, "scores": [found]}
        for name, size, found in (("big", 1000, score(0.8, 1.0)), ("little", 200, score(0.72, 0.9)))
    ]
    sides = {"big": {"median_seconds": 0.02}, "little": {"median_seconds": 0.01}}
    speeds = [{"batch_size": 1, "length": 128, "sides": sides}]
    (path / "results.json").write_text(json.dumps({"models": models, "speeds": speeds, "device": "cpu", "threads": 1}))
    return path

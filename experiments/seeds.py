"""``python -m experiments.seeds tasks=[sst2,rte] seeds=5 model.from=... key.sub=value``: tasks with several seeds.

With a configuration of a distillation, its task and ``teacher.from=...`` the runs are distillations. Each run has its
own process and its own folder; finished runs are not repeated. One seed says little, so the table that follows has
median, mean, spread and best, the average of the seeds' probabilities (an ensemble), and the baselines.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()


import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from bertillery.config import types as ranges
from bertillery.config.layers import read_values, take
from bertillery.config.section import ConfigError, InputError, Section
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import code, escaped, markdown_table
from bertillery.run.command import TASKS, cli
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import beside
from bertillery.system.files import tidy, write_text
from bertillery.system.invocation import settings
from bertillery.system.lock import locked
from bertillery.system.records import read_json
from experiments.jobs import Job, command_of, job, print_changes, read_rows, run_jobs
from finetune.config import FinetuneConfig
from finetune.stage import Finetuning
from finetune.task import task_type_of

GLUE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
"""The benchmark's tasks, by the names of their configurations: the published mean is over exactly these."""


class Summary(BaseModel):
    """A task's entry in ``table.json``."""

    scores: dict[str, Annotated[dict[str, Annotated[list[float], Field(min_length=1)]], Field(min_length=1)]] = Field(
        min_length=1
    )
    """Of each seed, by validation split and metric."""
    ensemble: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, dict[str, float]]]
    """By validation split, baseline and metric."""
    warnings: list[str]
    runs: list[str] = Field(min_length=1)
    """Folders of the finished seeds."""
    best: str
    """One of them."""

    @model_validator(mode="after")
    def _splits_have_baselines(self) -> Summary:
        if not self.scores.keys() <= self.baselines.keys():
            raise ValueError("baselines are missing of a split that has scores")
        return self


def read_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """``table.json`` of the folder, by task; empty if there is none. Raises ``InputError`` if it is damaged."""
    file = folder / "table.json"
    if not file.exists():
        return {}
    remedy = "delete it: the command that wrote it makes it again of the runs that are finished"
    found = read_json(file, dict[str, Summary], remedy=remedy)
    return {task: summary.model_dump() for task, summary in found.items()}


def write_table(summaries: dict[str, dict[str, Any]], folder: Path, start: str) -> str:
    """Write ``table.md``, ``table.json`` and ``seeds.png`` to the folder; returns the text to print."""
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
    counted = Counter(summary["warnings"]).most_common()
    return [f"{task}: {number} of {len(summary['runs'])} models: {warning}." for warning, number in counted]


def _plot(summaries: dict[str, dict[str, Any]], picture: Path, title: str) -> None:
    axes = figure(1, title, panel=(4.0 + 0.8 * len(summaries), 4.0))
    baselines: dict[str, list[tuple[int, float]]] = {}
    for place, summary in enumerate(summaries.values()):
        split, found = next(iter(summary["scores"].items()))
        metric, values = next(iter(found.items()))
        axes[0].plot([place] * len(values), values, "o", color="tab:blue", alpha=0.6, label="" if place else "seeds")
        for name, baseline in summary["baselines"][split].items():
            if metric in baseline:
                baselines.setdefault(name, []).append((place, baseline[metric]))
    # A baseline looks the same wherever it stands, and tasks differ in which they have.
    for (name, points), style in zip(baselines.items(), cycle("_x+|1234"), strict=False):
        axes[0].plot(*zip(*points, strict=True), style, color="grey", label=name)
    axes[0].set_xticks(range(len(summaries)), [*map(plain, summaries)], rotation=30, ha="right")
    axes[0].grid(alpha=0.3, axis="y")
    axes[0].legend(fontsize=8)
    save(axes, picture)


class SeedsSection(Section):
    """Which runs are made; all other keys are those of ``python -m finetune`` or ``python -m distill``."""

    seeds: ranges.Runs = 1
    """Runs of each task, with the seeds 1, 2, 3, ..."""
    side_by_side: ranges.Processes | None = None
    """Runs at a time; by default one for each GPU, or for each core of the CPU."""
    tasks: list[str] = Field(default=GLUE, min_length=1)
    """Names in ``configs/finetune``, or YAML files; by default the task that the other keys describe, or all of
    GLUE."""
    after_mnli: list[str] = Field(default=[])
    """Tasks that start from the model fine-tuned on MNLI with the same seed; in ALBERT's paper rte, stsb and mrpc."""


class Runs:
    """The runs of one task."""

    def __init__(self, arguments: Mapping[int, Sequence[str]]) -> None:
        """``arguments`` are those of each seed. Raises ``ConfigError`` if they name the run or give a seed."""
        given = {each for those in arguments.values() for each in those}
        fixed = sorted(each for each in given if each.startswith(("run.seed=", "run.name=")))
        if fixed:
            raise ConfigError(f"{', '.join(fixed)}: seeds and names of these runs follow from seeds={len(arguments)}")
        self.arguments = [(*given, *_own(given, seed)) for seed, given in arguments.items()]
        self.command = command_of(self.arguments[0])
        self.stages: list[Finetuning] = []
        for each in self.arguments:
            config = self.command.load(each)
            if not isinstance(config, FinetuneConfig):
                raise ConfigError(
                    "several seeds are for a task: give "
                    + settings("distill", TASK="<name>", STUDENT="<directory or Hub id>")
                )
            stage = self.command.stage(config)
            assert isinstance(stage, Finetuning)
            self.stages.append(stage)
        self.section = self.stages[0].config.task
        self.rows: dict[str, Fingerprint] = {}
        """Of the task's splits, once they have been read."""

    def jobs(self) -> list[Job]:
        """The runs that are not finished, or whose export is missing; raises what would keep one from starting.

        Prints a note for each finished run whose inputs have changed since.
        """
        found = []
        for given, stage in zip(self.arguments, self.stages, strict=True):
            directory = stage.open(is_main=False)
            if directory.finished and not stage.defect():
                print_changes(stage, self.rows)
            else:
                found.append(job(stage, given, self.command.module))
        return found

    def summary(self) -> dict[str, Any] | None:
        """The finished seeds as a :class:`Summary`; None if no seed is finished."""
        done = [stage for stage in self.stages if _finished(stage.path)]
        if not done:
            return None
        paths, results = [stage.path for stage in done], [stage.results() for stage in done]
        splits, metric = self.section.validation, self.section.metrics[0]
        ranked = [result["scores"][splits[0]][metric] for result in results]
        task_type = task_type_of(self.section)
        return {
            "scores": {
                split: {metric: [result["scores"][split][metric] for result in results] for metric in found}
                for split, found in results[0]["scores"].items()
            },
            "ensemble": {
                split: task_type.ensemble([path / "predictions" / f"{split}.tsv" for path in paths])
                for split in (splits if len(done) > 1 else [])
            },
            "baselines": results[0]["baselines"],
            "warnings": [  # one split need not be named
                warning if len(splits) == 1 else f"on {split} {warning}"
                for result in results
                for split, warning in result["warnings"].items()
            ],
            "runs": [*map(str, paths)],
            "best": str(paths[ranked.index(max(ranked))]),
        }


def _own(given: Sequence[str], seed: int) -> list[str]:
    """The name and seed of a run, and of the stage before it; they replace those of a run's own ``config.yaml``."""
    before = read_values(given)[0].get("before")
    at = ["", *(["before."] if isinstance(before, dict) and "run" in before else [])]
    return [f"{place}run.{key}" for place in at for key in ("name=null", f"seed={seed}")]


def _finished(path: Path) -> bool:
    return (path / "finished.json").exists()


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and print the table; returns the exit status."""
    return cli(arguments, help=__doc__, schema=SeedsSection, action=lambda: _run(arguments), settings=_settings)


def _settings(arguments: Sequence[str]) -> list[Section]:
    section, tasks = _tasks(arguments)
    configs = [Runs({1: given}).stages[0].config for given in tasks.values()]
    return [section.model_copy(update={"tasks": [*tasks]}), *configs]


def _tasks(arguments: Sequence[str]) -> tuple[SeedsSection, dict[str, list[str]]]:
    """The arguments of each task's runs: those of ``tasks``, or the one that the arguments themselves describe."""
    section, rest = take(SeedsSection, arguments)
    values, _ = read_values(rest)
    task = values.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    if "tasks" not in section.model_fields_set and (name or "teacher" in values):
        return section, {str(name): rest}
    return section, {task: [_file(task), *rest] for task in section.tasks}


def _file(task: str) -> str:
    return task if task.endswith((".yaml", ".yml")) else str(TASKS / f"{task}.yaml")


def _run(arguments: Sequence[str]) -> int:
    section, tasks = _tasks(arguments)
    later = [task for task in tasks if task in section.after_mnli]
    if later and "mnli" not in tasks:
        raise ConfigError(f"after_mnli={later}: these start from the models of mnli, which has to be one of the tasks")
    # All tasks are checked before anything runs, also those whose models do not exist yet.
    runs = {task: Runs(dict.fromkeys(range(1, section.seeds + 1), given)) for task, given in tasks.items()}
    _check_data([*runs.values()])
    first = [runs[task] for task in tasks if task not in later]
    failed = run_jobs([run for each in first for run in each.jobs()], section.side_by_side)
    after = [found for task in later if (found := _after(runs["mnli"], tasks[task]))]
    failed += run_jobs([run for each in after for run in each.jobs()], section.side_by_side)
    lacking = [str(stage.path) for stage in runs["mnli"].stages if not _finished(stage.path)] if later else []
    failed += [f"{', '.join(later)} did not start from {path}: it is not finished" for path in lacking]
    print(_update_table([*first, *after]))
    print("\n".join(failed), end="\n" if failed else "")
    return 2 if failed else 0


def _check_data(runs: Sequence[Runs]) -> None:
    """Raises one ``InputError`` that names all missing data."""
    problems = []
    for task in runs:
        try:
            task.rows = read_rows(task.stages[0].config)
        except InputError as error:
            problems.append(str(error))
    if problems:
        ways = ["give the tasks whose data is there: tasks=[...]"] if len(runs) > 1 else []
        raise InputError("\n".join([*problems, *ways]))


def _after(mnli: Runs, given: Sequence[str]) -> Runs | None:
    """The runs of a task that start from the finished models of MNLI; None if there are none."""
    others = [each for each in given if not each.startswith("model.from=")]
    starts = {
        seed: [*others, f"model.from={stage.path / 'export'}"]
        for seed, stage in enumerate(mnli.stages, 1)
        if _finished(stage.path)
    }
    return Runs(starts) if starts else None


def _update_table(runs: Sequence[Runs]) -> str:
    """Write the table of the model's tasks, earlier ones whose runs still exist among them; returns what to print."""
    first = runs[0].stages[0]
    model = Path(first.name).parts[1]
    folder = first.config.run.dir / first.folder / "tables" / model
    found = {each.section.name: summary for each in runs if (summary := each.summary())}
    with locked(folder / "lock", doing="is writing this table"):
        tidy(folder)
        earlier = read_summaries(folder).items()
        kept = {task: each for task, each in earlier if all(Path(run).is_dir() for run in each["runs"])}
        return write_table(kept | found, folder, model)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

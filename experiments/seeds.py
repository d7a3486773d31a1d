"""``python -m experiments.seeds tasks=[sst2,rte] seeds=5 model.from=... key.sub=value``: tasks with several seeds.

Every run is one of ``python -m finetune``, in its own process and its own folder; what is finished is not run again.
Then a table: one seed says little, so median, mean, spread and best are given, beside what the average of the seeds'
probabilities (an ensemble) and the baselines reach.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()


import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from bertillery.config import types as ranges
from bertillery.config.section import ConfigError, InputError, Section, read_values, take
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import code, escaped, markdown_table
from bertillery.run.command import tool
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import beside
from bertillery.run.suggestion import TASKS
from bertillery.system.files import tidy, write_text
from bertillery.system.lock import locked
from bertillery.system.records import read_json
from experiments.jobs import Job, run_jobs
from finetune.config import FinetuneConfig, load_config
from finetune.sources import glue_dir_from_environment
from finetune.splits import read_task, row_inputs
from finetune.stage import Finetuning
from finetune.task_types.base import task_type_of

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


class SeedsSection(Section):
    """What is run; all other keys are those of the command that is run for each seed."""

    seeds: ranges.Runs = 1
    """Runs of each task, with the seeds 1, 2, 3, ..."""
    side_by_side: ranges.Processes | None = None
    """Runs at a time; where not given one for each GPU, or for each core of the CPU."""

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(1, self.seeds + 1)


class TasksSection(SeedsSection):
    """What is run; all other keys are those of ``python -m finetune``."""

    tasks: list[str] = GLUE
    """Names in ``configs/finetune``, or YAML files; all of GLUE where not given."""
    after_mnli: list[str] = Field(default=[])
    """Tasks that start from the model fine-tuned on MNLI with the same seed; in ALBERT's paper rte, stsb and mrpc."""


@dataclass(frozen=True)
class Command:
    """A command that trains on one task with one seed."""

    module: str
    """``python -m <module>``."""
    load: Callable[[Sequence[str]], FinetuneConfig]
    stage: type[Finetuning]


FINETUNE = Command("finetune", load_config, Finetuning)


class Runs:
    """The runs of one task."""

    def __init__(self, arguments: Mapping[int, Sequence[str]], command: Command = FINETUNE) -> None:
        """``arguments`` are those of each seed, beside the seed itself, which is ``ConfigError`` there."""
        given = {each for those in arguments.values() for each in those}
        fixed = sorted(each for each in given if each.startswith(("run.seed=", "run.name=")))
        if fixed:
            raise ConfigError(f"{', '.join(fixed)}: seeds and names of these runs follow from seeds={len(arguments)}")
        self.command = command
        self.arguments = [(*given, *_own(given, seed)) for seed, given in arguments.items()]
        self.stages = [command.stage(command.load(given)) for given in self.arguments]
        self.section = self.stages[0].config.task
        self.paths = [stage.path for stage in self.stages]
        self.rows: dict[str, Fingerprint] = {}
        """Of the task's splits, once they were read."""

    def jobs(self) -> list[Job]:
        """Those that are not finished, or whose export is gone; raises what would keep one from starting.

        It is said of the others where they were made from something else than there is now.
        """
        found = []
        for given, stage in zip(self.arguments, self.stages, strict=True):
            directory = stage.open(is_main=False)
            if directory.finished and not stage.defect():
                print("".join(f"{line}\n" for line in stage.changes(self.rows | stage.models())), end="")
            else:
                log = stage.path.with_name(f"{stage.path.name}.log")
                found.append(Job(stage.name, given, log, self.command.module))
        return found

    def check_data(self) -> None:
        """``InputError`` where a split that is needed is not there."""
        data_dir = self.stages[0].config.run.data_dir
        task = read_task(self.section, data_dir=data_dir, glue_dir=glue_dir_from_environment())
        for name in ["train", *self.section.validation]:
            task.split(name)
        self.rows = row_inputs(task)

    def summary(self) -> dict[str, Any] | None:
        """Scores by validation split and metric, over the seeds that are finished; None if there is none."""
        done = [stage.path for stage in self.stages if _finished(stage.path)]
        results = [stage.results() for stage in self.stages if _finished(stage.path)]
        if not results:
            return None
        best = max(
            zip(results, done, strict=True),
            key=lambda run: run[0]["scores"][self.section.validation[0]][self.section.metrics[0]],
        )
        return {
            "scores": {
                split: {metric: [result["scores"][split][metric] for result in results] for metric in found}
                for split, found in results[0]["scores"].items()
            },
            "ensemble": self._ensemble(done) if len(done) > 1 else {},
            "baselines": results[0]["baselines"],
            "warnings": [self._warning(*each) for result in results for each in result["warnings"].items()],
            "runs": [str(path) for path in done],
            "best": str(best[1]),
        }

    def _warning(self, split: str, warning: str) -> str:
        """With its split where there are several, so that a model says each thing once."""
        return warning if len(self.section.validation) == 1 else f"on {split} {warning}"

    def _ensemble(self, paths: Sequence[Path]) -> dict[str, dict[str, float]]:
        """What the mean of the outputs reaches."""
        kind = task_type_of(self.section)
        return {
            split: kind.ensemble([path / "predictions" / f"{split}.tsv" for path in paths])
            for split in self.section.validation
        }


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=TasksSection, action=lambda: _run(arguments), settings=_settings)


def _settings(arguments: Sequence[str]) -> list[Section]:
    section, rest = take(TasksSection, arguments)
    return [section, *(Runs({1: (_file(task), *rest)}).stages[0].config for task in section.tasks)]


def _run(arguments: Sequence[str]) -> int:
    section, rest = take(TasksSection, arguments)
    later = [task for task in section.tasks if task in section.after_mnli]
    if later and "mnli" not in section.tasks:
        raise ConfigError(f"after_mnli={later}: these start from the models of mnli, which has to be one of the tasks")
    # The later ones, too, to see what is wrong with them before anything runs: then their models are not there yet.
    runs = {task: Runs(dict.fromkeys(section.numbers, (_file(task), *rest))) for task in section.tasks}
    check_data([*runs.values()])
    first = [runs[task] for task in section.tasks if task not in later]
    failed = run_all(first, section.side_by_side)
    after = [found for task in later if (found := _after(runs["mnli"], _file(task), rest))]
    failed += run_all(after, section.side_by_side)
    lacking = [str(path) for path in runs["mnli"].paths if not _finished(path)] if later else []
    failed += [f"{', '.join(later)} did not start from {path}: it is not finished" for path in lacking]
    return tell([*first, *after], failed)


def _file(task: str) -> str:
    return task if task.endswith((".yaml", ".yml")) else str(TASKS / f"{task}.yaml")


def _after(mnli: Runs, file: str, rest: Sequence[str]) -> Runs | None:
    """The runs of a task that start from those models of MNLI that there are; None where there is none."""
    others = [given for given in rest if not given.startswith("model.from=")]
    starts = {
        seed: (file, *others, f"model.from={path / 'export'}")
        for seed, path in enumerate(mnli.paths, 1)
        if _finished(path)
    }
    return Runs(starts) if starts else None


def _own(given: Sequence[str], seed: int) -> list[str]:
    """What the run of a seed has of its own: also where a YAML, such as another run's own, says otherwise."""
    values, _ = read_values(given)
    before = values.get("before")
    at = [""] + ["before."] * (isinstance(before, dict) and "run" in before)
    return [f"{place}run.{key}" for place in at for key in ("name=null", f"seed={seed}")]


def _finished(path: Path) -> bool:
    return (path / "finished.json").exists()


def check_data(runs: Sequence[Runs]) -> None:
    """``InputError`` that names all the data that is missing."""
    problems = []
    for task in runs:
        try:
            task.check_data()
        except InputError as error:
            problems.append(str(error))
    if problems:
        ways = ["give the tasks whose data is there: tasks=[...]"] if len(runs) > 1 else []
        raise InputError("\n".join([*problems, *ways]))


def run_all(runs: Sequence[Runs], side_by_side: int | None) -> list[str]:
    """Run what is not finished; returns what failed."""
    return run_jobs([job for task in runs for job in task.jobs()], side_by_side)


def tell(runs: Sequence[Runs], failed: Sequence[str]) -> int:
    """Write and print the table of all tasks that this model was trained on with seeds; returns the exit status."""
    first = runs[0].stages[0]
    model = Path(first.name).parts[1]
    folder = first.config.run.dir / first.folder / "tables" / model
    found = {each.section.name: summary for each in runs if (summary := each.summary())}
    with locked(folder / "lock", doing="is writing this table"):
        tidy(folder)
        print(write_table(_earlier(folder) | found, folder, model))
    print("\n".join(failed), end="\n" * bool(failed))
    return 2 if failed else 0


def _earlier(folder: Path) -> dict[str, Any]:
    """What the table there says of runs that still exist."""
    found = read_summaries(folder)
    return {task: each for task, each in found.items() if all(Path(run).is_dir() for run in each["runs"])}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m experiments.search task.yaml model.from=... space=default trials=20 search_seed=1 key.sub=value``.

A seeded random search; a grid is covered without repetition. Trial i depends on the seed and on i alone: repeating
the command continues a stopped search, and more trials extend it. A trial is a run of ``python -m finetune``; keys
other than those below apply to all trials.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()


import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from pydantic import TypeAdapter

from bertillery.config.layers import read_values, take
from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Processes, Runs, Seed
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import escaped, markdown_table
from bertillery.run.command import cli, task_command
from bertillery.run.directory import RESUMABLE, RunDirectory
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import beside
from bertillery.system.files import remove, write_text
from experiments.jobs import Job, job, print_changes, read_rows, run_jobs
from experiments.space import Range, Space, read_space
from finetune.config import FinetuneConfig, load_config
from finetune.stage import Finetuning, finetuning


@dataclass(frozen=True)
class Trial:
    """A finished trial: a line of the ledger."""

    trial: int
    settings: dict[str, Any]
    metric: str
    score: float
    path: str

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key: best score first, then the earlier trial; NaN last."""
        return (math.inf if math.isnan(self.score) else -self.score, self.trial)


_TRIAL = TypeAdapter(Trial)


def read_ledger(file: Path) -> dict[int, Trial]:
    """Finished trials by number. Skips a line that a crash cut short: the trial's folder has its result, too."""
    found = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            entry = _TRIAL.validate_python(json.loads(line))
        except (ValueError, RecursionError):
            continue
        found[entry.trial] = entry
    return found


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
    """Plot the score of every trial against each setting and mark the best trial."""
    axes = figure(len(space.settings), title)
    ranked = sorted(trials, key=lambda trial: trial.rank)
    best, scores, over_edges = ranked[0], [trial.score for trial in ranked], {"clip_on": False, "zorder": 3}
    for axis, (key, values) in zip(axes, space.settings.items(), strict=True):
        drawn = [trial.settings[key] for trial in ranked]
        places = drawn if isinstance(values, Range) else [values.index(value) for value in drawn]
        axis.plot(places, scores, "o", alpha=0.5, **over_edges)
        axis.plot(places[0], best.score, "*", color="tab:red", markersize=12, label=f"trial {best.trial}", **over_edges)
        if isinstance(values, Range):
            axis.set(xlim=(values.low, values.high), xscale="log" if values.distribution == "log_uniform" else "linear")
        else:
            axis.set_xticks(range(len(values)), [plain(str(value)) for value in values])
            axis.set_xlim(-0.5, len(values) - 0.5)
        axis.set(xlabel=plain(key), ylabel=best.metric.replace("_", " "))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(axes, picture)


def _parameter(values: Range | list[Any]) -> dict[str, Any]:
    if isinstance(values, Range):  # W&B's own log_uniform takes the logarithms of the ends
        name = values.distribution.replace("log_uniform", "log_uniform_values")
        return {"distribution": name, "min": values.low, "max": values.high}
    return {"distribution": "categorical", "values": values}


class SearchSection(Section):
    """The search; all other keys are those of ``python -m finetune``."""

    space: str = "default"
    """Name in ``configs/finetune/spaces``, or a YAML file."""
    trials: Runs = 20
    """Trials in total, including those of earlier commands; a grid has at most as many as points."""
    search_seed: Seed = 1
    """Seed of the drawn trials. It is part of their names: another seed is another search."""
    side_by_side: Processes | None = None
    """Runs at a time; by default one for each GPU, or for each core of the CPU."""


class Searched(Section):
    """The ``config.yaml`` of a search: its space, and the configuration that all trials have."""

    space: dict[str, Any]
    trials: FinetuneConfig


class Search:
    """The trials of one space, on one task, with one model."""

    def __init__(self, section: SearchSection, given: Sequence[str]) -> None:
        """``given`` are the arguments that all trials share.

        Raises one ``ConfigError`` with all problems of the space and of the trials drawn from it.
        """
        self.section, self.given = section, list(given)
        self.space, problems = read_space(section.space)
        fixed = {argument.split("=")[0] for argument in given}
        problems += [f"{key}: given, and searched by the space too" for key in self.space.settings if key in fixed]
        if "run.name" in fixed:
            raise ConfigError("run.name: trials are named after the task, the model and search_seed")
        self.config = load_config([*given, "run.name=null"])  # a run's own config.yaml has a name
        self.task, self.metric = self.config.task, self.config.task.metrics[0]
        assert self.config.run.name is not None
        self.name = f"{self.config.run.name.rpartition('/')[0]}/search-{section.search_seed}"
        self.folder = self.config.run.dir / Finetuning.folder / self.name
        self.number = min(section.trials, self.space.size or section.trials)
        self.stages: list[Finetuning] = []
        self.rows: dict[str, Fingerprint] = {}
        """Of the task's splits, within :meth:`opened`."""
        try:
            self.stages += [finetuning(load_config(self.arguments(number))) for number in range(self.number)]
        except ConfigError as error:  # a wrong key is wrong in all trials: the first one tells
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))

    def settings(self, number: int) -> dict[str, Any]:
        """The values that the space gives a trial."""
        return self.space.trial(self.section.search_seed, number)

    def arguments(self, number: int) -> list[str]:
        """A trial's arguments of ``python -m finetune``."""
        settings = [as_argument(key, value) for key, value in self.settings(number).items()]
        return [*self.given, *settings, f"run.name={self.name}/trial-{number}"]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, or check that it holds this search, lock it, and write its ``sweep.yaml``.

        Raises ``InputError`` for everything that would keep all trials from starting.
        """
        self.rows = read_rows(self.config)
        space = {key: asdict(v) if isinstance(v, Range) else v for key, v in self.space.settings.items()}
        text = yaml.safe_dump({"space": space, "trials": self.config.model_dump(mode="json")}, sort_keys=False)
        ignore = [f"trials.{key}" for key in RESUMABLE]
        try:
            directory = RunDirectory.open(self.folder, text, schema=Searched, ignore=ignore, is_main=False)
        except ConfigError as error:
            raise ConfigError(f"{error}\nA search gets another name by another search_seed=...") from None
        with directory.held():
            RunDirectory.open(self.folder, text, schema=Searched, ignore=ignore)
            write_text(self.folder / "sweep.yaml", self._sweep())
            yield

    def _sweep(self) -> str:
        """The YAML for ``wandb sweep``; an agent adds the arguments of a trial to those that all trials share.

        The runs' folders are ``<name>/sweep-<id of the run>``. They record online: a sweep sees no offline runs.
        """
        given = [*(each for each in self.given if not each.startswith("tracking.wandb=")), "tracking.wandb=online"]
        # An agent replaces only whole items of a command, calls the interpreter `python`, and knows no run id: a shell
        # takes this project's interpreter and inserts the id into the name.
        python = "python=.venv/bin/python; [ -x $python ] || python=$0"
        start = f'{python}; exec $python -m finetune "$@" "run.name={self.name}/sweep-$WANDB_RUN_ID"'
        sweep: dict[str, Any] = {
            "name": self.name,
            "project": self.config.tracking.project,
            "program": "finetune/__main__.py",
            "method": "random" if self.space.size is None else "grid",
            "metric": {"name": "score", "goal": "maximize"},
            "run_cap": self.number,
            "parameters": {key: _parameter(values) for key, values in self.space.settings.items()},
            "command": ["${env}", "bash", "-c", start, "${interpreter}", *given, "${args_no_hyphens}"],
        }
        head = "# .venv/bin/wandb sweep <this file>, then, on each machine, in the root of the source,\n"
        return (
            f"{head}# what it answers: .venv/bin/wandb agent <id>\n{yaml.safe_dump(sweep, sort_keys=False, width=1000)}"
        )

    def finished(self) -> list[Trial]:
        """The finished trials among those asked for; adds to the ledger what it lacks."""
        file = self.folder / "ledger.jsonl"
        known = read_ledger(file)
        found = {number: trial for number in range(self.number) if (trial := known.get(number) or self._result(number))}
        if not file.exists() or not found.keys() <= known.keys():
            every = known | found
            write_text(file, "".join(f"{json.dumps(asdict(every[number]))}\n" for number in sorted(every)))
        return list(found.values())

    def _result(self, number: int) -> Trial | None:
        path = self.stages[number].path
        if not (path / "finished.json").exists():
            return None
        results = self.stages[number].results()
        remove(path / "checkpoints")  # not needed any more, and large: there are many trials
        score = results["scores"][self.task.validation[0]][self.metric]
        return Trial(number, self.settings(number), self.metric, score, str(path))

    def jobs(self) -> list[Job]:
        """The trials that are not finished; prints a note for each finished one whose rows or models have changed."""
        done, found = {trial.trial for trial in self.finished()}, []
        for number, stage in enumerate(self.stages):
            if number in done:
                print_changes(stage, self.rows)
            else:
                found.append(job(stage, self.arguments(number)))
        return found

    def again(self, trial: Trial, seeds: int = 5) -> str:
        """The command that runs a trial's settings with several seeds.

        It has its own ``run.dir``: the task may have been run with other settings, and another trial may win later.
        """
        settings = [as_argument(key, value) for key, value in trial.settings.items()]
        own = f"run.dir={self.folder}/trial-{trial.trial}-seeds"
        model, run = self.config.model.from_, Path(trial.path)
        return task_command("finetune", self.given, *settings, own, model=model, run=run, seeds=seeds)

    def report(self) -> str:
        """Write ``trials.md`` and ``trials.png``; returns the text to print."""
        trials = self.finished()
        if not trials:
            return "no trial is finished"
        best, split = min(trials, key=lambda trial: trial.rank), self.task.validation[0]
        middle = median(trial.score for trial in trials)
        text = (
            f"{trials_table(trials)}\n\n{len(trials)} trials, median {100 * middle:.2f}. The best score is optimistic: "
            f"it is the largest of {len(trials)} on the\nsplit {split}, by which it was chosen. Other seeds tell how "
            "good its settings are, and examples that\nneither training nor search has seen how good the model is."
        )
        with beside(f"the table {self.folder / 'trials.md'}"):
            write_text(self.folder / "trials.md", f"# {escaped(self.name)}\n\n{text}\n")
        with beside(f"the picture {self.folder / 'trials.png'}"):
            plot_trials(trials, self.space, self.folder / "trials.png", f"{self.name}: {self.metric} on {split}")
        return (
            f"\n{text}\n\nledger      {self.folder / 'ledger.jsonl'}\npicture     {self.folder / 'trials.png'}\n"
            f"W&B sweep   {self.folder / 'sweep.yaml'}\nbest        {best.path}\n\nnext        {self.again(best)}"
        )


def as_argument(key: str, value: Any) -> str:
    """``key=value`` for a command line; text is quoted only if it would be read as something else."""
    with suppress(ConfigError):
        if isinstance(value, str) and read_values([f"value={value}"])[0]["value"] == value:
            return f"{key}={value}"
    return f"{key}={json.dumps(value)}"


def main(arguments: Sequence[str]) -> int:
    """Run missing trials and report the best; returns the exit status."""
    return cli(arguments, help=__doc__, schema=SearchSection, action=lambda: _run(arguments), settings=_settings)


def _settings(arguments: Sequence[str]) -> list[Section]:
    section, rest = take(SearchSection, arguments)
    return [section, Search(section, rest).config]


def _run(arguments: Sequence[str]) -> int:
    section, rest = take(SearchSection, arguments)
    search = Search(section, rest)
    with search.opened():
        failed = run_jobs(search.jobs(), section.side_by_side)
        print(search.report())
    print("\n".join(failed), end="\n" if failed else "")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

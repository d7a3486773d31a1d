"""``python -m experiments.search task.yaml model.from=... space=default trials=20 search_seed=1 key.sub=value``.

A seeded random search; a space that is a grid is covered without repetition. Trial i depends on the seed and on i
alone: the same command goes on where it was stopped, and with more trials it extends the search. A trial is a run of
``python -m finetune``; what is given beside the keys below holds for all of them.
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

from bertillery.config.section import ConfigError, Section, read_values, take
from bertillery.config.types import Processes, Runs, Seed
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import escaped, markdown_table
from bertillery.run.command import tool
from bertillery.run.directory import RESUMABLE, RunDirectory
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import beside
from bertillery.run.suggestion import make_command
from bertillery.system.files import remove, write_text
from experiments.jobs import Job, run_jobs
from finetune.config import load_config
from finetune.sources import glue_dir_from_environment
from finetune.space import Range, Space, read_space
from finetune.splits import read_task, row_inputs
from finetune.stage import Finetuning


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


_DISTRIBUTIONS = {"uniform": "uniform", "log_uniform": "log_uniform_values"}
"""What W&B calls them; its ``log_uniform`` wants the logarithms of the ends."""


def sweep_file(space: Space, *, arguments: Sequence[str], name: str, metric: str, trials: int, project: str) -> str:
    """The YAML for ``wandb sweep``, after its documented schema.

    ``arguments`` are what all runs of ``python -m finetune`` have; an agent adds a trial's. Their folders are
    ``<name>/sweep-<id of the run>``, and they record online, or the sweep would see none of them.
    """
    arguments = [*(given for given in arguments if not given.startswith("tracking.wandb=")), "tracking.wandb=online"]
    # Only whole items of a command are replaced, and the id is known to the run alone: a shell puts it into the name.
    start = f'exec "$0" -m finetune "$@" "run.name={name}/sweep-$WANDB_RUN_ID"'
    sweep: dict[str, Any] = {
        "name": name,
        "project": project,
        "program": "finetune/__main__.py",
        "method": "random" if space.size is None else "grid",
        "metric": {"name": f"held_out/{metric}", "goal": "maximize"},
        "run_cap": trials,
        "parameters": {key: _parameter(values) for key, values in space.settings.items()},
        "command": ["${env}", "bash", "-c", start, "${interpreter}", *arguments, "${args_no_hyphens}"],
    }
    head = "# wandb sweep <this file>, then, on each machine, in the root of the source and with .venv activated,\n"
    return f"{head}# what it answers: wandb agent <id>\n{yaml.safe_dump(sweep, sort_keys=False, width=1000)}"


def _parameter(values: Range | list[Any]) -> dict[str, Any]:
    if isinstance(values, Range):
        return {"distribution": _DISTRIBUTIONS[values.distribution], "min": values.low, "max": values.high}
    return {"distribution": "categorical", "values": values}


class SearchSection(Section):
    """What is searched; all other keys are those of ``python -m finetune``."""

    space: str = "default"
    """Name in ``configs/finetune/spaces``, or a YAML file."""
    trials: Runs = 20
    """Trials in all, those of earlier commands included; of a grid no more than its points."""
    search_seed: Seed = 1
    """What the trials are drawn by. It is part of their names: another one is another search."""
    side_by_side: Processes | None = None
    """Runs at a time; where not given one for each GPU, or for each core of the CPU."""


class Search:
    """The trials of one space, on one task, with one model."""

    def __init__(self, section: SearchSection, given: Sequence[str]) -> None:
        """``given`` are the arguments that all trials have.

        Raises ``ConfigError`` with all that is wrong with the space and with the trials drawn from it.
        """
        self.section, self.given = section, list(given)
        self.space, problems = read_space(section.space)
        fixed = {argument.split("=")[0] for argument in given}
        problems += [f"{key}: given, and searched by the space too" for key in self.space.settings if key in fixed]
        if "run.name" in fixed:
            raise ConfigError("run.name: trials are named after the task, the model and search_seed")
        self.config = load_config([*given, "run.name=null"])  # a YAML, such as a run's own, may have one
        self.task, self.metric = self.config.task, self.config.task.metrics[0]
        assert self.config.run.name is not None
        self.name = f"{self.config.run.name.rpartition('/')[0]}/search-{section.search_seed}"
        self.folder = self.config.run.dir / Finetuning.folder / self.name
        self.number = min(section.trials, self.space.size or section.trials)
        self.stages: list[Finetuning] = []
        self.rows: dict[str, Fingerprint] = {}
        """Of the task's splits, once they were read."""
        try:
            self.stages += [Finetuning(load_config(self.arguments(number))) for number in range(self.number)]
        except ConfigError as error:  # what is wrong with a key is so in all trials
            problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))

    def settings(self, number: int) -> dict[str, Any]:
        """What a trial has of its own."""
        return self.space.trial(self.section.search_seed, number)

    def arguments(self, number: int) -> list[str]:
        """A trial's run, as arguments of ``python -m finetune``."""
        settings = [as_argument(key, value) for key, value in self.settings(number).items()]
        return [*self.given, *settings, f"run.name={self.name}/trial-{number}"]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, or see that it is this search's, and keep it to this process; writes its ``sweep.yaml``.

        Raises ``InputError`` for what would keep every trial from starting.
        """
        task = self.task
        data = read_task(task, data_dir=self.config.run.data_dir, glue_dir=glue_dir_from_environment())
        for name in ["train", *task.validation]:
            data.split(name)
        self.rows = row_inputs(data)
        space = {key: asdict(v) if isinstance(v, Range) else v for key, v in self.space.settings.items()}
        text = yaml.safe_dump({"space": space, "trials": self.config.model_dump(mode="json")}, sort_keys=False)
        ignore = [f"trials.{key}" for key in RESUMABLE]
        try:
            directory = RunDirectory.open(self.folder, text, ignore=ignore, is_main=False)
        except ConfigError as error:
            raise ConfigError(f"{error}\nA search gets another name by another search_seed=...") from None
        sweep = sweep_file(
            self.space,
            arguments=self.given,
            name=self.name,
            metric=self.metric,
            trials=self.number,
            project=self.config.tracking.project,
        )
        with directory.held():
            RunDirectory.open(self.folder, text, ignore=ignore)
            write_text(self.folder / "sweep.yaml", sweep)
            yield

    def finished(self) -> list[Trial]:
        """The trials that are finished, of those asked for; the ledger is written anew if it lacks some."""
        file = self.folder / "ledger.jsonl"
        known = read_ledger(file)
        found = {number: trial for number in range(self.number) if (trial := known.get(number) or self._result(number))}
        if not file.exists() or not found.keys() <= known.keys():
            write_ledger(file, known | found)
        return list(found.values())

    def _result(self, number: int) -> Trial | None:
        path = self.stages[number].path
        if not (path / "finished.json").exists():
            return None
        results = self.stages[number].results()
        remove(path / "checkpoints")  # of no use to a run that is finished, and those of many trials fill a disk
        score = results["scores"][self.task.validation[0]][self.metric]
        return Trial(number, self.settings(number), self.metric, score, str(path))

    def jobs(self) -> list[Job]:
        """The trials that are not finished; it is said of the others where the rows or models are others now."""
        done = {trial.trial for trial in self.finished()}
        for stage in (self.stages[number] for number in sorted(done)):
            print("".join(f"{line}\n" for line in stage.changes(self.rows | stage.models())), end="")
        missing = [number for number in range(self.number) if number not in done]
        paths = {number: self.stages[number].path for number in missing}
        return [
            Job(self.stages[number].name, tuple(self.arguments(number)), path.with_name(f"{path.name}.log"))
            for number, path in paths.items()
        ]

    def again(self, trial: Trial, seeds: int = 5) -> str:
        """The command that runs a trial's settings with several seeds.

        In a folder of its own: the task may have been run with other settings, and another trial may win tomorrow.
        """
        settings = [as_argument(key, value) for key, value in trial.settings.items()]
        own = f"run.dir={self.folder}/trial-{trial.trial}-seeds"
        model, run = self.config.model.from_, Path(trial.path)
        return make_command("finetune", self.given, *settings, own, model=model, run=run, seeds=seeds)

    def report(self) -> str:
        """Write ``trials.md`` and ``trials.png``; returns what to print."""
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
    """``key=value`` for a command line; a word or two stand bare where they are read as the text they are."""
    with suppress(ConfigError):
        if isinstance(value, str) and read_values([f"value={value}"])[0]["value"] == value:
            return f"{key}={value}"
    return f"{key}={json.dumps(value)}"


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and say what was best; returns the exit status."""
    return tool(arguments, help=__doc__, schema=SearchSection, action=lambda: _run(arguments), settings=_settings)


def _settings(arguments: Sequence[str]) -> list[Section]:
    section, rest = take(SearchSection, arguments)
    return [section, Search(section, rest).config]


def _run(arguments: Sequence[str]) -> int:
    section, rest = take(SearchSection, arguments)
    search = Search(section, rest)
    with search.opened():
        failed = run_jobs(search.jobs(), section.side_by_side)
        print(search.report())
    print("\n".join(failed), end="\n" * bool(failed))
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

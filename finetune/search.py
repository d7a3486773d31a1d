"""``python -m finetune.search task.yaml model.from=... space=default trials=20 search_seed=1 key.sub=value``.

A seeded random search; a space that is a grid is covered without repetition. Trial i depends on the seed and on i
alone: the same command goes on where it was stopped, and with more trials it extends the search. A trial is a run of
``python -m finetune``; what is given beside the keys below holds for all of them.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.entry import begin

    begin()

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from engine.command import tool
from engine.config import ConfigError, Section, read_values, take
from engine.files import remove, write_text
from engine.inputs import Fingerprint
from engine.markdown import escaped
from engine.ranges import Processes, Runs, Seed
from engine.run import RESUMABLE, RunDirectory
from engine.stage import beside
from finetune.again import make_command
from finetune.config import load_config
from finetune.data import read_task, row_inputs
from finetune.jobs import Job, run_jobs
from finetune.sources import glue_dir_from_environment
from finetune.space import Range, read_space
from finetune.stage import Finetuning
from finetune.sweep import sweep_file
from finetune.trials import Trial, plot_trials, read_ledger, trials_table, write_ledger


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

"""``python -m experiments.submit <model, or folder of a table> [ensemble=true] [fill=true]``: a submission to GLUE.

The model is the one that was given to ``make glue``, the folder what that printed last. Of each task the best seed on
the validation split predicts, or, with ``ensemble``, the mean of all seeds' probabilities. What is missing has to be
predicted, or, with ``fill``, gets the majority class, which is said.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertillery.config.section import InputError, Section, read_values, validate
from bertillery.run.command import tool
from bertillery.system.records import checked, read_yaml
from experiments.seeds import read_summaries
from experiments.submission import write_submission
from finetune.config import model_name
from finetune.task import TaskSection
from finetune.task_types.base import task_type_of
from finetune.task_types.sequences import VectorType, mean_outputs

TABLES = Path("runs/finetune/tables")
"""Where ``make glue`` leaves its tables."""


class SubmitSection(Section):
    """How predictions are chosen."""

    ensemble: bool = False
    """Average the seeds instead of taking the best."""
    fill: bool = False
    """Give files without predictions the majority class."""


def main(arguments: Sequence[str]) -> int:
    """Write and check the submission; returns the exit status."""
    if not arguments:
        print(__doc__)
        return 2

    def settings(given: Sequence[str]) -> list[SubmitSection]:
        return [validate(SubmitSection, *read_values(given[1:]))]

    def action() -> int:
        return _run(table_folder(arguments[0]), *settings(arguments))

    return tool(arguments, help=__doc__, schema=SubmitSection, action=action, settings=settings)


def table_folder(given: str) -> Path:
    """The folder itself where it holds a table, else that of the model of this name, directory or id."""
    folder = Path(given)
    return folder if (folder / "table.json").is_file() else TABLES / model_name(given)


def _run(folder: Path, section: SubmitSection) -> int:
    table = folder / "table.json"
    if not table.is_file():
        raise InputError(
            f"{folder}: no table.json in it; run `make glue` with this model, or give the folder "
            "that it names at its end"
        )
    predictions: dict[str, list[str] | np.ndarray] = {}
    for summary in read_summaries(folder).values():
        runs = [Path(run) for run in (summary["runs"] if section.ensemble else [summary["best"]])]
        predictions |= _predictions(runs)
    archive = write_submission(folder / "submission", predictions, fill=section.fill)
    print(f"{archive}: eleven files, checked; predicted: {', '.join(predictions)}")
    return 0


def _predictions(runs: Sequence[Path]) -> dict[str, list[str] | np.ndarray]:
    """Names of labels, or scores, for each file of the submission that the task of these runs has."""
    remedy = "run the seeds of this task again"
    file = runs[0] / "config.yaml"
    task = checked(file, read_yaml(file, dict[str, Any], remedy=remedy).get("task"), TaskSection, remedy=remedy)
    kind = task_type_of(task)
    if not isinstance(kind, VectorType):
        return {}  # tables may hold tasks beside GLUE's
    found: dict[str, list[str] | np.ndarray] = {}
    for split, name in task.submission.items():
        files = [run / "predictions" / f"{split}.tsv" for run in runs]
        if all(file.exists() for file in files):
            predictions = kind.best(mean_outputs(files))
            found[name] = (
                predictions if task.type == "regression" else [kind.format_prediction(each) for each in predictions]
            )
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

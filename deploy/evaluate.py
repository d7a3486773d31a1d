"""``python -m deploy.evaluate model=<directory or Hub id> [task.yaml] [data=[labelled.csv]]``: the scores of a model.

Nothing is trained. The model is scored on the labelled splits of a task, by default the one that it was trained on, or
on labelled files: the metrics and the table are those of the end of a training.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertillery.config.section import InputError
from bertillery.run.stage import beside
from bertillery.system.files import check_writable, write_text
from bertillery.system.invocation import command_line, settings
from deploy.predict import found_files
from deploy.trained import ALONE, Trained, UseSection, use
from finetune.data.splits import Task, open_task, report
from finetune.report import classes_table, findings, hardest_examples, results_table, scored, write_predictions


def main(arguments: Sequence[str]) -> int:
    """Evaluate and print the table; returns the exit status."""
    return use(arguments, __doc__, _run)


def _run(section: UseSection, named: bool) -> int:
    own = None
    if section.data:
        own = {**ALONE, "files": {"data": [str(file.absolute()) for file in found_files(section.data)]}}
    trained = Trained.open(section, named, own=own)
    task = open_task(trained.section, section.run.data_dir)
    print(report(task), flush=True)
    folder = section.output or section.run.dir / "evaluate" / trained.section.name / section.called
    check_writable(folder)
    results = evaluated(trained, task, folder)
    print(f"\n{findings(results, folder)}\n\nscores      {folder / 'results.json'}")
    print(f"predictions {folder / 'predictions'}")
    return 0


def evaluated(trained: Trained, task: Task, folder: Path) -> dict[str, Any]:
    """The scores on all labelled splits but ``train``, with the baselines where there is one, written to the folder.

    Raises ``InputError`` where no split has labels.
    """
    task_type, section = trained.task_type, trained.section
    names = [name for name in section.splits[1:] if name in task.splits and task.splits[name].labels is not None]
    if not names:
        there = ", ".join(task.splits) or "none"
        raise InputError(
            f"{section.name}: no labelled split to evaluate on (there are: {there}, and train is not evaluated on); "
            f"give {settings('evaluate', DATA='<file with labels>')}; files without labels are predicted with "
            + command_line("predict", MODEL="...", DATA="...")
        )
    found = {name: trained.predict(task.split(name)) for name in names}
    predicted, means = (
        {name: each for name, (each, _) in found.items()},
        {name: terms for name, (_, terms) in found.items()},
    )
    first = predicted[names[0]]
    known = trained.record.chosen
    chosen = {} if known else task_type.choose(first)
    values, warnings = scored(task_type, predicted)
    baselines: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for name in names if "train" in task.splits else ():
        with beside(f"baselines of {name}"):
            baselines[name] = task_type.baselines(task, name)
    table = [results_table(values, baselines, warnings, chosen), *task_type.notes(predicted, means)]
    table += [f"{name} {value:.4g}, as it was chosen in training." for name, value in known.items()]
    results: dict[str, Any] = {"scores": values, "baselines": baselines, "warnings": warnings}
    results["chosen"] = dict(known) or chosen
    results |= {"table": "\n\n".join(table), "classes": classes_table(first, task_type)}
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions", predicted, task_type)
    with beside(f"the hardest examples, {folder / 'hardest.tsv'}"):
        results["hardest"] = hardest_examples(first, task_type, folder / "hardest.tsv")
    with beside(f"pictures of the predictions in {folder}"):
        task_type.draw(first, folder)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    write_text(folder / "table.md", "\n\n".join(filter(None, [results["table"], results["classes"]])) + "\n")
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

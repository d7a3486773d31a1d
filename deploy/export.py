"""``python -m deploy.export model=<folder of a run> [checkpoint=best|last|<step>]``: a run is exported again.

A checkpoint becomes a model directory as at the end of the run, in ``<run>/exports/step-<n>/export``, beside the
predictions of a fine-tuning; the run's own export stays as it is. The run may be unfinished. It needs the data and the
model that it was started from, unchanged. The keys are those of the run: ``run.device=cpu``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from bertillery.config.layers import take
from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Count
from bertillery.run.command import cli
from bertillery.run.stage import Stage
from bertillery.system.files import write_text
from bertillery.system.records import read_yaml


class ExportSection(Section):
    """Keys of the command; those of the run, such as ``run.device``, may stand beside them."""

    model: Path
    """Folder of a run, which has ``config.yaml`` and ``checkpoints/``."""
    checkpoint: Literal["best", "last"] | Count | None = None
    """``best`` by the held-out evaluations, ``last``, or that of a step; by default what ``train.export`` of the run
    says. Beside the best a run keeps the newest ``train.keep``."""
    output: Path | None = None
    """Folder for the result; by default ``exports/step-<n>`` in the run's."""


def main(arguments: Sequence[str]) -> int:
    """Export and print the table; returns the exit status."""
    return cli(
        arguments,
        help=__doc__,
        schema=ExportSection,
        action=lambda: _run(arguments),
        settings=lambda given: [take(ExportSection, given)[0]],
    )


def _run(arguments: Sequence[str]) -> int:
    section, rest = take(ExportSection, arguments)
    stage = stage_of(section.model, rest)
    which = section.checkpoint or stage.config.train.export
    folder, results = stage.export_checkpoint(which, section.output)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    print(f"\n{results['table']}\n\nof step     {results['steps']:,}\nmodel       {folder / 'export'}")
    return 0


def stage_of(run: Path, given: Sequence[str]) -> Stage:
    """The stage that made the run in this folder; ``ConfigError`` where it is none that can be exported."""
    config, found = run / "config.yaml", run.absolute()
    if not config.is_file():
        what = "no config.yaml in this folder" if run.is_dir() else "no such folder"
        meant = f" (did you mean {run.parent}?)" * (run.parent / "config.yaml").is_file()
        raise ConfigError(f"{run}: {what}{meant}; give the folder of a run, such as runs/pretrain/bert_docs")
    values = read_yaml(config, dict[str, Any], remedy="restore it")
    name = str((values.get("run") or {}).get("name"))
    place = found.parents[min(name.count("/"), len(found.parents) - 1)]
    if place.name not in STAGES or found != place / name:
        raise ConfigError(
            f"{run}: its config.yaml is that of the run {name!r} in a folder {', '.join(STAGES)}; give the folder of a "
            "run under the name that it was made with"
        )
    folder = place.parent.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place.parent
    return STAGES[place.name]([str(config), f"run.dir={folder}", *given])


def _pretraining(arguments: Sequence[str]) -> Stage:
    from pretrain.config import load_config
    from pretrain.stage import Pretraining

    return Pretraining(load_config(arguments))


def _finetuning(arguments: Sequence[str]) -> Stage:
    from finetune.config import load_config
    from finetune.stage import finetuning

    return finetuning(load_config(arguments))


def _distillation(arguments: Sequence[str]) -> Stage:
    from distill.config import TaskAgnosticConfig, load_config
    from distill.stage import TaskAgnostic
    from distill.task_stage import TaskSpecific

    config = load_config(arguments)
    return TaskAgnostic(config) if isinstance(config, TaskAgnosticConfig) else TaskSpecific(config)


def _embedding(arguments: Sequence[str]) -> Stage:
    from knowledge.stage import Embedding, load_config

    return Embedding(load_config(arguments))


STAGES: dict[str, Callable[[Sequence[str]], Stage]] = {
    "pretrain": _pretraining,
    "finetune": _finetuning,
    "distill": _distillation,
    "embed": _embedding,
}
"""By the folder of their runs."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

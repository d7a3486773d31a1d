"""``python -m distill.compare teacher=<directory> students=[<directory>,...] key=value``: is a student worth it?

Teacher and students are stock model directories, such as the ``export/`` of runs. Each is counted (parameters, bytes,
multiply-adds), timed as a user would run it, in turns with the others, and scored by what its model card says.
"""

from __future__ import annotations

if __name__ == "__main__":
    from engine.entry import begin

    begin()

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from distill.compare_report import Comparison, write_comparison
from distill.facts import facts_of
from distill.speed import Speed, SpeedSection, side_by_side
from distill.stock import head_in_words, names_of, open_stock, stock_inputs
from engine.command import tool
from engine.config import ConfigError, InputError, read_values, validate
from engine.encoders import longest_sequence
from engine.environment import environment
from engine.names import PathName


class CompareSection(SpeedSection):
    """What is compared, and how."""

    teacher: Path
    """Directory of the model that the others are compared with."""
    students: list[Path] = Field(min_length=1)
    """Directories of the others."""
    name: PathName | None = None
    """Folder under ``<dir>/compare``; the teacher's name where not given. An older comparison there is replaced."""
    dir: Path = Path("runs")
    """Folder of all runs."""
    device: Literal["auto", "cpu"] = "auto"
    """``cpu`` ignores a GPU."""


def main(arguments: Sequence[str]) -> int:
    """Compare, write the folder and print the tables; returns the exit status."""
    return tool(
        arguments,
        help=__doc__,
        schema=CompareSection,
        action=lambda: _run(arguments),
        settings=lambda given: [_section(given)],
    )


def _section(arguments: Sequence[str]) -> CompareSection:
    values, sources = read_values(arguments)
    if not values.get("teacher") or not values.get("students"):
        raise ConfigError("a comparison needs models: make compare TEACHER=<directory> STUDENTS='<directory> ...'")
    return validate(CompareSection, values, sources)


def _run(arguments: Sequence[str]) -> int:
    section = _section(arguments)
    folders = [section.teacher, *section.students]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(
            f"given twice among teacher and students: {', '.join(map(str, folders))}; give each model once"
        )
    models = dict(zip(names_of(folders), map(open_stock, folders), strict=True))
    check_tasks(models)
    lengths, notes = section.fitting(min(longest_sequence(model.config) for model in models.values()))
    facts = [facts_of(name, folder, models[name], lengths) for name, folder in zip(models, folders, strict=True)]
    speeds = measure(section, models, lengths)
    about = {
        "command": shlex.join(["python", "-m", "distill.compare", *arguments]),
        "device": next(iter(models.values())).device.type,
        "threads": torch.get_num_threads(),
        "rounds": section.rounds,
        "environment": environment(),
    }
    comparison = Comparison(facts, speeds, about, notes)
    folder = section.dir / "compare" / (section.name or facts[0].name.replace("/", "-"))
    write_comparison(comparison, folder)
    print(
        f"\n{comparison.tables()}\n\n{comparison.measured_on()}\n\n"
        f"tables      {folder / 'table.md'}\nresults     {folder / 'results.json'}\n"
        f"picture     {folder / 'latency.png'}\npage        {folder / 'README.md'}\n\n"
        f"next        make onnx MODEL={comparison.fastest_student().folder}"
    )
    return 0


def check_tasks(models: Mapping[str, PreTrainedModel]) -> None:
    """``InputError`` where a student answers another question than the teacher, or calls the answers otherwise."""
    heads = {name: head_in_words(model.config) for name, model in models.items()}
    teacher, *students = heads
    others = [f"student {name}: {heads[name]}" for name in students if heads[name] != heads[teacher]]
    if others:
        listing = "\n".join(f"  - {line}" for line in [f"teacher {teacher}: {heads[teacher]}", *others])
        raise InputError(f"not the same task and labels:\n{listing}\nGive students of the same task as the teacher.")


def measure(section: CompareSection, models: Mapping[str, PreTrainedModel], lengths: Sequence[int]) -> list[Speed]:
    """Time all models, which are moved to the device, at each length and batch size; the first is the base."""
    gpu = torch.accelerator.current_accelerator(check_available=True) if section.device == "auto" else None
    wait: Callable[[], object] = torch.accelerator.synchronize if gpu else lambda: None
    for model in models.values():
        nn.Module.to(model, gpu or torch.device("cpu"))  # transformers' own has no types
    return [
        side_by_side(
            {name: forward(model, batch_size, length) for name, model in models.items()},
            length=length,
            batch_size=batch_size,
            rounds=section.rounds,
            wait=wait,
        )
        for length in lengths
        for batch_size in sorted({*section.batch_sizes})
    ]


def forward(model: PreTrainedModel, batch_size: int, length: int) -> Callable[[], object]:
    """A forward pass over random tokens, to be called again and again."""
    inputs = stock_inputs(model, batch_size, length)

    @torch.inference_mode()
    def call() -> object:
        return model(**inputs)

    return call


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m deploy.compare teacher=<directory> students=[<directory>,...] key=value``: students beside their teacher.

Teacher and students are stock model directories, such as the ``export/`` of runs. The command counts parameters, bytes
and multiply-adds of each, times forward passes in alternating rounds, and reads scores from the model cards.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from bertillery.config.layers import read_values
from bertillery.config.section import ConfigError, InputError, validate
from bertillery.config.types import PathName
from bertillery.models.encoders import longest_sequence
from bertillery.models.heads import head_in_words
from bertillery.models.load import open_stock
from bertillery.report.card import page
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import code, escaped, fenced, markdown_table
from bertillery.run.command import tool
from bertillery.run.stage import beside
from bertillery.system.environment import environment
from bertillery.system.files import publish, remove, write_text
from bertillery.system.invocation import command_line
from deploy.facts import Column, Facts, facts_of
from deploy.timing import Speed, SpeedSection, forward, speed_rows
from finetune.config import model_name


@dataclass(frozen=True)
class Comparison:
    """Models in numbers; the first is the teacher."""

    models: list[Facts]
    speeds: list[Speed]
    about: dict[str, Any]
    """Command, device, threads, rounds and environment."""
    notes: list[str]

    @property
    def teacher(self) -> Facts:
        """The model that the students are compared with."""
        return self.models[0]

    @property
    def columns(self) -> list[Column]:
        """The first metric of each data set and split on the cards, the teacher's before the students'."""
        found: dict[tuple[str, str], str] = {}
        for card in (card for model in self.models for card in model.cards):
            for key, metrics in card.scores.items():
                found.setdefault(key, next(iter(metrics)))
        return [(*key, metric) for key, metric in found.items()]

    def kept(self, model: Facts, column: Column) -> float | None:
        """Share of the teacher's score. None if a score is missing, if the teacher's is not above 0 (as a correlation
        may be), or if either model does no better than a constant answer: then nothing was learned to share."""
        own, whole = model.score(column), self.teacher.score(column)
        if own is None or whole is None or whole <= 0:
            return None
        return None if self.constant(model, column) or self.constant(self.teacher, column) else own / whole

    def constant(self, model: Facts, column: Column) -> str | None:
        """Why a model's score is no better than that of a constant answer; None if it is better."""
        *_, metric = column
        own, counted, key = model.score(column), len(model.scores(column)), column[:2]
        said = Counter(card.warnings[key] for card in model.cards if key in card.warnings)
        if said and 2 * said.total() >= counted:
            which = "; ".join(f"{number} of {counted} models: {warning}" for warning, number in said.most_common())
            return which if counted > 1 else next(iter(said))
        cards = (card.majority.get(key, {}) for each in self.models for card in each.cards)
        floor = max((card[metric] for card in cards if metric in card), default=None)
        if own is not None and floor is not None and own <= floor:
            return f"its score is no higher than that of one answer to everything, {100 * floor:.2f}"
        return None

    def latency(self) -> Speed:
        """The smallest batch of the longest sequences."""
        return min(self.speeds, key=lambda speed: (speed.batch_size, -speed.length))

    def best_student(self) -> Facts:
        """The student that keeps the largest share of the teacher's scores, on average over those of both; of equals,
        and where there are no such scores, the one of the lowest latency."""

        def rank(model: Facts) -> tuple[float, float]:
            shares = [share for column in self.columns if (share := self.kept(model, column)) is not None]
            return statistics.fmean(shares or [0.0]), statistics.median(self.latency().ratios(model.name))

        return max(self.models[1:], key=rank)

    def measured_on(self) -> str:
        """Machine and method of the measurement."""
        about, environment = self.about, self.about["environment"]
        gpu = environment["gpus"][0] if about["device"] == "cuda" else None
        precision = " and ".join(dict.fromkeys(model.precision for model in self.models))
        return (
            f"{gpu or environment['cpu']}, CPU threads: {about['threads']}, {precision}, torch {environment['torch']}, "
            f"transformers {environment['transformers']}. Stock models in evaluation mode, in turns, medians of "
            f"{about['rounds']} rounds; a ratio is to the teacher's time in the same round."
        )

    def tables(self) -> str:
        """A row for each model; a row for each shape and model; notes."""
        sizes = ["parameters", "without embeddings", "MB on disk"]
        lengths = [f"multiply-adds at {length}" for length in self.teacher.multiply_adds]
        rows = [["model", *(f"{_title(column)} (kept)" for column in self.columns), *sizes, *lengths]]
        for model in self.models:
            sizes = [f"{model.parameters:,}", f"{model.without_embeddings:,}", f"{model.bytes / 1e6:,.1f}"]
            counts = [f"{number / 1e6:,.1f} M" for number in model.multiply_adds.values()]
            rows.append([model.name, *(self._cell(model, column) for column in self.columns), *sizes, *counts])
        notes = "\n".join(f"- {escaped(note)}" for note in [*self.notes, *self._notes()])
        tables = markdown_table(rows), markdown_table(speed_rows(self.speeds, "teacher")), notes
        return "\n\n".join(filter(None, tables))

    def _cell(self, model: Facts, column: Column) -> str:
        own, kept, seeds = model.score(column), self.kept(model, column), model.scores(column)
        share = f" ({100 * kept:.1f} %)" if kept is not None and model is not self.teacher else ""
        spread = f" [{100 * min(seeds):.2f}, {100 * max(seeds):.2f}]" if len(seeds) > 1 else ""
        return "-" if own is None else f"{100 * own:.2f}{spread}{share}"

    def _notes(self) -> Iterator[str]:
        scored = {model.name: sum(bool(card.scores) for card in model.cards) for model in self.models}
        several = ", ".join(f"{name} {number}" for name, number in scored.items() if number > 1)
        if several:
            yield f"Scores are medians over seeds, with the lowest and the highest: {several}."
        for model in self.models:
            for column in self.columns:
                if why := self.constant(model, column):
                    kept = "nothing that students could keep" if model is self.teacher else "no share of the teacher's"
                    yield f"{model.name}, {_title(column)}: {kept}: {why}."
        for model in self.models:
            if model.left_out:
                yield f"{model.name}: not other seeds of the same run, and left out: {'; '.join(model.left_out)}."
        for model in self.models:
            lacking = [_title(column) for column in self.columns if model.score(column) is None]
            if lacking or not scored[model.name]:
                yield f"{model.name}: its model card has no {', '.join(lacking) if scored[model.name] else 'scores'}."

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        models = []
        for model in self.models:
            scores = [
                {"dataset": column[0], "split": column[1], "metric": column[2], "score": own}
                | {"kept": self.kept(model, column), "seeds": model.scores(column)}
                | ({"constant": why} if (why := self.constant(model, column)) else {})
                for column in self.columns
                if (own := model.score(column)) is not None
            ]
            counts = {key: value for key, value in asdict(model).items() if key != "cards"}
            models.append({**counts, "folder": str(model.folder), "scores": scores})
        return {**self.about, "models": models, "speeds": [speed.as_json() for speed in self.speeds]}


def _title(column: Column) -> str:
    dataset, split, metric = column
    part = split.removeprefix("validation").lstrip("_")
    return " ".join(filter(None, (dataset, part, metric.replace("_", " "))))


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``table.md``, ``results.json``, ``latency.png`` and ``README.md``; the folder appears once it is whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    write_text(partial / "table.md", f"{comparison.tables()}\n")
    write_text(partial / "results.json", json.dumps(comparison.as_json(), indent=1))
    write_text(partial / "README.md", _page(comparison))
    with beside(f"the picture {folder / 'latency.png'}"):
        save(draw(comparison), partial / "latency.png")
    publish(partial, folder)


def _page(comparison: Comparison) -> str:
    about, (teacher, *students) = comparison.about, [model.name for model in comparison.models]
    tags = {"library_name": "transformers", "tags": ["bertillery", "distillation"]}
    machine = {key: about[key] for key in ("device", "threads")} | about["environment"]
    machine.pop("command", None)
    models = [f"- {code(model.name)}: {model.architecture}, {code(str(model.folder))}" for model in comparison.models]
    return page(
        {**tags, "teacher": teacher, "students": students},
        f"{teacher} and its students",
        *("\n".join(models), comparison.tables(), comparison.measured_on(), "![score against latency](latency.png)"),
        *("## Command", fenced(about["command"], "sh")),
        *("## Machine", fenced(yaml.safe_dump(machine, sort_keys=False), "yaml")),
    )


def draw(comparison: Comparison) -> list[Any]:
    """Axes with a point for each model against its latency: a panel for each score, or one of parameters without any.

    A vertical line is the range over seeds, the dashed one the teacher's score.
    """
    speed, teacher = comparison.latency(), comparison.teacher
    panels: dict[str, dict[str, list[float]]] = {
        plain(_title(column)): {m.name: [100 * each for each in m.scores(column)] for m in comparison.models}
        for column in comparison.columns
    } or {"parameters (millions)": {model.name: [model.parameters / 1e6] for model in comparison.models}}
    title = f"batch of {speed.batch_size}, {speed.length} tokens, {comparison.about['device'].upper()}"
    axes = figure(len(panels), title, panel=(4.8, 3.8), columns=3)
    points = {}
    for axis, (name, heights) in zip(axes, panels.items(), strict=True):
        for number, (model, values) in enumerate(heights.items()):
            if not values:
                continue
            color, at, middle = f"C{number % 10}", 1e3 * speed.median(model), statistics.median(values)
            marker = "D" if model == teacher.name else "os^v"[number // 10 % 4]
            axis.vlines(at, min(values), max(values), color=color, linewidth=2)
            (points[model],) = axis.plot(at, middle, marker, color=color, markersize=7)
            if model == teacher.name:
                axis.axhline(middle, color="grey", linestyle="--", linewidth=1, zorder=1)
        axis.set(xlabel="milliseconds", ylabel=name)
        axis.margins(x=0.3, y=0.25)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    names = [plain(f"{name} (teacher)" if name == teacher.name else name) for name in points]
    axes[0].figure.legend(points.values(), names, loc="outside lower center", ncols=min(3, len(panels)), fontsize=8)
    return axes


class CompareSection(SpeedSection):
    """Keys of a comparison."""

    teacher: Path
    """Directory of the model that the others are compared with."""
    students: list[Path] = Field(min_length=1)
    """Directories of the others."""
    name: PathName | None = None
    """Folder under ``<dir>/compare``; the teacher's name by default. An older comparison there is replaced."""
    dir: Path = Path("runs")
    """Folder of all runs."""
    device: Literal["auto", "cpu"] = "auto"
    """``cpu`` ignores a GPU."""


def main(arguments: Sequence[str]) -> int:
    """Compare, write the folder and print the tables; returns the exit status."""
    shown = shlex.join(["python", "-m", "deploy.compare", *arguments])
    return tool(arguments, help=__doc__, schema=CompareSection, action=lambda given: _run(given, shown), read=_read)


def _read(arguments: Sequence[str]) -> CompareSection:
    values, sources = read_values(arguments)
    if not values.get("teacher") or not values.get("students"):
        raise ConfigError(
            f"a comparison needs models: {command_line('compare', TEACHER='<directory>', STUDENTS='<directory>')}"
        )
    return validate(CompareSection, values, sources)


def _run(section: CompareSection, command: str) -> int:
    folders = [section.teacher, *section.students]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(
            f"given twice among teacher and students: {', '.join(map(str, folders))}; give each model once"
        )
    models = dict(zip(names_of(folders), map(open_stock, folders), strict=True))
    check_tasks(models)
    lengths, notes = section.fitting(min(longest_sequence(model.config) for model in models.values()))
    facts = [facts_of(name, folder, models[name], lengths) for name, folder in zip(models, folders, strict=True)]
    gpu = torch.accelerator.current_accelerator(check_available=True) if section.device == "auto" else None
    for model in models.values():
        nn.Module.to(model, gpu or torch.device("cpu"))  # the type of transformers' own method is unknown
    speeds = section.measure(
        lambda batch_size, length: {name: forward(model, batch_size, length) for name, model in models.items()},
        lengths,
        wait=torch.accelerator.synchronize if gpu else lambda: None,
    )
    about = {
        "command": command,
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
        f"next        {command_line('onnx', MODEL=comparison.best_student().folder)}"
    )
    return 0


def check_tasks(models: Mapping[str, PreTrainedModel]) -> None:
    """``InputError`` if a student has another task than the teacher, or other labels."""
    heads = {name: head_in_words(model.config) for name, model in models.items()}
    teacher, *students = heads
    others = [f"student {name}: {heads[name]}" for name in students if heads[name] != heads[teacher]]
    if others:
        listing = "\n".join(f"  - {line}" for line in [f"teacher {teacher}: {heads[teacher]}", *others])
        raise InputError(f"not the same task and labels:\n{listing}\nGive students of the same task as the teacher.")


def names_of(folders: Sequence[Path]) -> list[str]:
    """What the models are called: by their runs, and by as much of their paths as tells them apart."""
    names = [model_name(str(folder)) for folder in folders]
    for depth in range(2, 9):
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            return names
        parts = [folder.resolve().parts for folder in folders]
        parts = [part[:-1] if part[-1] == "export" else part for part in parts]
        names = ["/".join(part[-depth:]) if name in twice else name for name, part in zip(names, parts, strict=True)]
    return [str(folder) for folder in folders]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

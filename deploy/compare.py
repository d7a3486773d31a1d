"""``python -m deploy.compare teacher=<directory> students=[<directory>,...] key=value``: is a student worth it?

Teacher and students are stock model directories, such as the ``export/`` of runs. Each is counted (parameters, bytes,
multiply-adds), timed as a user would run it, in turns with the others, and scored by what its model card says.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from matplotlib.transforms import Bbox
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from bertillery.config.section import ConfigError, InputError, read_values, validate
from bertillery.config.types import PathName
from bertillery.engine.batch import pack_stream
from bertillery.models.encoders import longest_sequence
from bertillery.models.flops import model_flops
from bertillery.models.folder import weight_files
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import code, escaped, fenced, markdown_table, page
from bertillery.run.command import tool
from bertillery.run.directory import RESUMABLE, changes
from bertillery.run.stage import beside
from bertillery.system.environment import environment
from bertillery.system.files import publish, remove, write_text
from bertillery.system.records import read_yaml
from deploy.timing import Speed, SpeedSection, side_by_side, speed_rows
from finetune.stock import head_in_words, names_of, open_stock, stock_inputs

Scores = dict[tuple[str, str], dict[str, float]]
"""By data set and split, then by metric; the first metric is the one that counts."""


@dataclass(frozen=True)
class Facts:
    """A model in numbers."""

    name: str
    folder: Path
    architecture: str
    precision: str
    parameters: int
    """Numbers in all tensors; a tensor that is used twice counts once."""
    without_embeddings: int
    """Of those, the ones that are not in a table of embeddings."""
    bytes: int
    """Of the files of weights on disk."""
    multiply_adds: dict[int, int]
    """Of a forward pass of one sequence, by its length."""
    scores: tuple[Scores, ...]
    """From the model cards: of the model, and of those that are the same but for the seed."""
    left_out: tuple[str, ...] = ()
    """What lies where other seeds do, and is of another run."""
    warnings: tuple[dict[tuple[str, str], str], ...] = ()
    """From the same cards, by data set and split: what is wrong with predictions that do not depend on the example."""
    majority: Scores = field(default_factory=dict)
    """What giving every example one answer scores."""


def facts_of(name: str, folder: Path, model: PreTrainedModel, lengths: Sequence[int]) -> Facts:
    """Count what there is to count."""
    everything = {id(parameter): parameter.numel() for parameter in model.parameters()}
    same, left_out = seeds_of(folder)
    cards = [read_card(each) for each in same]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return Facts(
        name=name,
        folder=folder,
        architecture=type(model).__name__,
        precision=str(model.dtype).removeprefix("torch."),
        parameters=sum(everything.values()),
        without_embeddings=sum(size for tensor, size in everything.items() if tensor not in tables),
        bytes=sum(file.stat().st_size for file in weight_files(folder)),
        multiply_adds={length: _multiply_adds(model, length) for length in lengths},
        scores=tuple(card.scores for card in cards),
        left_out=tuple(left_out),
        warnings=tuple(card.warnings for card in cards),
        majority={key: found for card in cards for key, found in card.majority.items()},
    )


def _multiply_adds(model: PreTrainedModel, length: int) -> int:
    zeros = np.zeros(length, dtype=np.int64)
    return round(model_flops(model, pack_stream(zeros, np.array([length]))) / 2)


def seeds_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The model, with those that runs of other seeds left beside it (``seed-<n>/export``), as one seed is no score.

    A run whose configuration differs in more than that is another one: these come second, each with a difference.
    """
    same, others = [folder], []
    run = folder.parent
    beside = run.parent.glob("seed-*/export") if run.name.startswith("seed-") and folder.name == "export" else []
    for other in sorted(set(beside) - {folder}):
        found = _differences(run, other.parent)
        if found:
            others.append(f"{other.parent.name} ({found[0]})")
        else:
            same.append(other)
    return same, others


def _differences(run: Path, other: Path) -> list[str]:
    """What two runs were given otherwise, but for what is each run's own."""
    files = [path / "config.yaml" for path in (run, other)]
    missing = [f"there is no {file}" for file in files if not file.is_file()]
    if missing:
        return missing
    try:
        here, there = (read_yaml(file, dict[str, Any], remedy="run that seed again") for file in files)
    except InputError as error:
        return [str(error)]
    ignored = ["run", *RESUMABLE]
    if here.get("before"):  # a stage before this one, whose export is where this one's student is from
        ignored += ["model.from", *(f"before.{key}" for key in ignored)]
    return changes(there, here, ignored)


@dataclass(frozen=True)
class Card:
    """What a model card's metadata says of the model; empty where there is no card, or none that can be read."""

    scores: Scores = field(default_factory=dict)
    """The ``model-index``."""
    warnings: dict[tuple[str, str], str] = field(default_factory=dict)
    majority: Scores = field(default_factory=dict)


def read_card(folder: Path) -> Card:
    """The card in a model's folder."""
    try:
        metadata = metadata_load(folder / "README.md") or {}
        _, results = model_index_to_eval_results(metadata["model-index"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return Card()
    card = Card()
    for result in results:
        if isinstance(result.metric_value, int | float):
            found = card.scores.setdefault((result.dataset_name, result.dataset_split or "validation"), {})
            found.setdefault(result.metric_name or result.metric_type, float(result.metric_value))
    own: Any = metadata.get("bertillery")
    for key in card.scores:
        with suppress(AttributeError, KeyError, TypeError):  # not there, or a card that somebody edited
            card.warnings[key] = str(own["warnings"][key[1]])
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            card.majority[key] = {name: float(value) for name, value in own["baselines"][key[1]]["majority"].items()}
    return card


Column = tuple[str, str, str]
"""Data set, split and metric."""


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
        """What the students are compared with."""
        return self.models[0]

    @property
    def columns(self) -> list[Column]:
        """The first metric of each data set and split on the cards, the teacher's before the students'."""
        found: dict[tuple[str, str], str] = {}
        for card in (card for model in self.models for card in model.scores):
            for key, metrics in card.items():
                found.setdefault(key, next(iter(metrics)))
        return [(*key, metric) for key, metric in found.items()]

    def kept(self, model: Facts, column: Column) -> float | None:
        """Share of the teacher's score. There is none of a score that is missing or, as a correlation may be, not above
        0, and none where either model is no better than one answer to everything: it would be a share of nothing
        learned."""
        own, whole = score(model, column), score(self.teacher, column)
        if own is None or whole is None or whole <= 0:
            return None
        return None if self.constant(model, column) or self.constant(self.teacher, column) else own / whole

    def constant(self, model: Facts, column: Column) -> str | None:
        """Why a model's score is no better than one answer to everything, or None where it is."""
        *key, metric = column
        own, counted = score(model, column), len(seeds_scored(model, column))
        said = Counter(warning for each in model.warnings if (warning := each.get((key[0], key[1]))))
        if said and 2 * said.total() >= counted:
            which = "; ".join(f"{number} of {counted} models: {warning}" for warning, number in said.most_common())
            return which if counted > 1 else next(iter(said))
        floors = (each.majority.get((key[0], key[1]), {}).get(metric) for each in self.models)
        floor = max((each for each in floors if each is not None), default=None)
        if own is not None and floor is not None and own <= floor:
            return f"its score is no higher than that of one answer to everything, {100 * floor:.2f}"
        return None

    def latency(self) -> Speed:
        """The smallest batch of the longest sequences."""
        return min(self.speeds, key=lambda speed: (speed.batch_size, -speed.length))

    def fastest_student(self) -> Facts:
        """By latency."""
        return max(self.models[1:], key=lambda model: statistics.median(self.latency().ratios(model.name)))

    def measured_on(self) -> str:
        """Machine and manner, in a line or two."""
        about, environment = self.about, self.about["environment"]
        gpu = environment["gpus"][0] if about["device"] == "cuda" else None
        precision = " and ".join(dict.fromkeys(model.precision for model in self.models))
        return (
            f"{gpu or environment['cpu']}, CPU threads: {about['threads']}, {precision}, torch {environment['torch']}, "
            f"transformers {environment['transformers']}. Stock models in evaluation mode, in turns, medians of "
            f"{about['rounds']} rounds; a ratio is to the teacher's time in the same round."
        )

    def tables(self) -> str:
        """A row for each model; a row for each shape and model; what a reader has to know."""
        head = ["model", *(f"{_title(column)} (kept)" for column in self.columns)]
        head += ["parameters", "without embeddings", "MB on disk"]
        head += [f"multiply-adds at {length}" for length in self.teacher.multiply_adds]
        rows = [head]
        for model in self.models:
            scores = [self._score(model, column) for column in self.columns]
            sizes = [f"{model.parameters:,}", f"{model.without_embeddings:,}", f"{model.bytes / 1e6:,.1f}"]
            rows.append([model.name, *scores, *sizes, *(f"{n / 1e6:,.1f} M" for n in model.multiply_adds.values())])
        notes = "\n".join(
            f"- {escaped(note)}"
            for note in [*self.notes, *self._seeds(), *self._constant(), *self._left_out(), *self._missing()]
        )
        return "\n\n".join(
            [markdown_table(rows), markdown_table(speed_rows(self.speeds, "teacher")), *([notes] if notes else [])]
        )

    def _score(self, model: Facts, column: Column) -> str:
        own, kept, seeds = score(model, column), self.kept(model, column), seeds_scored(model, column)
        share = f" ({100 * kept:.1f} %)" if kept is not None and model is not self.teacher else ""
        spread = f" [{100 * min(seeds):.2f}, {100 * max(seeds):.2f}]" if len(seeds) > 1 else ""
        return "-" if own is None else f"{100 * own:.2f}{spread}{share}"

    def _seeds(self) -> Iterator[str]:
        scored = {model.name: sum(map(bool, model.scores)) for model in self.models}
        several = {name: number for name, number in scored.items() if number > 1}
        if several:
            counts = ", ".join(f"{name} {number}" for name, number in several.items())
            yield f"Scores are medians over seeds, with the lowest and the highest: {counts}."

    def _constant(self) -> Iterator[str]:
        for model in self.models:
            for column in self.columns:
                if why := self.constant(model, column):
                    kept = "nothing that students could keep" if model is self.teacher else "no share of the teacher's"
                    yield f"{model.name}, {_title(column)}: {kept}: {why}."

    def _left_out(self) -> Iterator[str]:
        for model in self.models:
            if model.left_out:
                yield f"{model.name}: not other seeds of the same run, and left out: {'; '.join(model.left_out)}."

    def _missing(self) -> Iterator[str]:
        for model in self.models:
            lacking = [_title(column) for column in self.columns if score(model, column) is None]
            if not any(model.scores):
                yield f"{model.name}: its model card has no scores."
            elif lacking:
                yield f"{model.name}: its model card has no {', '.join(lacking)}."

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        models = []
        for model in self.models:
            found = [(column, score(model, column)) for column in self.columns]
            scores = [
                {"dataset": column[0], "split": column[1], "metric": column[2], "score": own}
                | {"kept": self.kept(model, column), "seeds": seeds_scored(model, column)}
                | ({"constant": why} if (why := self.constant(model, column)) else {})
                for column, own in found
                if own is not None
            ]
            own = asdict(model) | {"folder": str(model.folder), "scores": scores}
            models.append({key: value for key, value in own.items() if key not in ("warnings", "majority")})
        return {**self.about, "models": models, "speeds": [speed.as_json() for speed in self.speeds]}


def score(model: Facts, column: Column) -> float | None:
    """The median of what the model's cards say."""
    seeds = seeds_scored(model, column)
    return statistics.median(seeds) if seeds else None


def seeds_scored(model: Facts, column: Column) -> list[float]:
    """What each of the model's cards says that says something."""
    dataset, split, metric = column
    found = (card.get((dataset, split), {}).get(metric) for card in model.scores)
    return [value for value in found if value is not None]


def _title(column: Column) -> str:
    dataset, split, metric = column
    part = split.removeprefix("validation").lstrip("_")
    return " ".join(word for word in (dataset, part, metric.replace("_", " ")) if word)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``table.md``, ``results.json``, ``latency.png`` and ``README.md``; the folder appears when all is there."""
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
    teacher, *students = (model.name for model in comparison.models)
    head = {
        "library_name": "transformers",
        "tags": ["bertillery", "distillation"],
        "teacher": teacher,
        "students": students,
    }
    environment = {key: value for key, value in comparison.about["environment"].items() if key != "command"}
    machine = {"device": comparison.about["device"], "threads": comparison.about["threads"], **environment}
    listing = "\n".join(
        f"- {code(model.name)}: {model.architecture}, {code(str(model.folder))}" for model in comparison.models
    )
    return page(
        head,
        f"{teacher} and its students",
        *(listing, comparison.tables(), comparison.measured_on(), "![score against latency](latency.png)"),
        *("## Command", fenced(comparison.about["command"], "sh")),
        *("## Machine", fenced(yaml.safe_dump(machine, sort_keys=False), "yaml")),
    )


def draw(comparison: Comparison) -> list[Any]:
    """Axes with a point for each model: a panel for each score, or one of parameters where there is none."""
    speed, teacher = comparison.latency(), comparison.teacher.name
    panels: list[tuple[str, dict[str, list[float]]]] = [
        (
            plain(_title(column)),
            {m.name: [100 * each for each in own] for m in comparison.models if (own := seeds_scored(m, column))},
        )
        for column in comparison.columns
    ] or [("parameters (millions)", {model.name: [model.parameters / 1e6] for model in comparison.models})]
    title = f"batch of {speed.batch_size}, {speed.length} tokens, {comparison.about['device'].upper()}"
    axes = figure(len(panels), title, panel=(4.8, 3.8), columns=3)
    colors = {model.name: f"C{number % 10}" for number, model in enumerate(comparison.models)}
    points = [
        {name: (1e3 * speed.median(name), statistics.median(heights)) for name, heights in panel.items()}
        for _, panel in panels
    ]
    for axis, (name, panel), found in zip(axes, panels, points, strict=True):
        for model, point in found.items():
            axis.vlines(point[0], min(panel[model]), max(panel[model]), color=colors[model], linewidth=2, zorder=2)
            axis.plot(*point, "D" if model == teacher else "o", color=colors[model], markersize=7, zorder=3)
        if teacher in found:
            axis.axhline(found[teacher][1], color="grey", linestyle="--", linewidth=1, zorder=1)
        axis.set(xlabel="milliseconds", ylabel=name)
        axis.margins(x=0.3, y=0.25)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    axes[0].figure.canvas.draw()  # from here on the layout is known
    for axis, found in zip(axes, points, strict=True):
        _label(axis, found, teacher)
    return axes


def _label(axis: Any, points: dict[str, tuple[float, float]], teacher: str) -> None:
    """Write names beside points, each where it hides no point, no name and not the teacher's line: the nearest such
    place of many, or the last of them."""
    renderer, inside = axis.figure.canvas.get_renderer(), axis.get_window_extent()
    middles = {name: axis.transData.transform(point) for name, point in points.items()}
    taken = [Bbox([[x - 7, y - 7], [x + 7, y + 7]]) for x, y in middles.values()]
    if teacher in points:
        line = middles[teacher][1]
        taken.append(Bbox([[inside.x0, line - 1], [inside.x1, line + 1]]))
    for name, point in points.items():
        text = plain(f"{name} (teacher)" if name == teacher else name)
        label = axis.annotate(text, point, (0, 0), textcoords="offset points", fontsize=8, va="center")
        label.set_in_layout(False)
        box = Bbox.null()
        for dx, dy in _PLACES:
            label.set(position=(dx, dy), ha="left" if dx > 0 else "right" if dx < 0 else "center")
            box = label.get_window_extent(renderer)
            fits = inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1
            if fits and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


_PLACES = [
    (across * far, up * far)
    for far in (10, 15, 20, 28, 36, 44, 52, 60, 70, 80)
    for across, up in ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
]
"""Where a label may be, in points from its own point; the nearest first."""


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
        "command": shlex.join(["python", "-m", "deploy.compare", *arguments]),
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

"""What a comparison shows: tables, a picture of score against latency, and a page that holds both."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.transforms import Bbox

from distill.facts import Facts
from distill.speed import Speed, speed_rows
from engine.files import publish, remove, write_text
from engine.markdown import code, escaped, fenced, markdown_table, page
from engine.plot import figure, plain, save
from engine.stage import beside

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

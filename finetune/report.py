"""What a fine-tuning run shows: an example, scores beside baselines, curves, confusions, and the hardest examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.report.card import page
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import escaped, fenced, markdown_table, write_tsv
from bertillery.run.tracking import read_series
from bertillery.system.files import publish, remove, writing
from bertillery.system.printable import printable
from finetune.config import FinetuneConfig
from finetune.examples import Examples
from finetune.splits import Split, rows_of
from finetune.task_types.base import Predicted, TaskType


def show_example(examples: Examples, split: Split, kind: TaskType, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first example as the model sees it, with its label."""
    laid_out = [examples.sequences.lay_out(which[None])[0] for which in examples.members(np.array([0]))]
    lines = [f"  {printable(str(tokenizer.decode(ids)))}" for ids in laid_out]
    assert split.labels is not None
    label = printable(kind.format_label(split.labels[0])) or "none"
    lines.append(f"  {sum(map(len, laid_out))} tokens, label: {label}")
    return "\n".join(lines)


def results_table(
    values: dict[str, dict[str, float]],
    baselines: dict[str, dict[str, dict[str, float]]],
    warnings: dict[str, str],
    chosen: dict[str, float],
) -> str:
    """Metrics of each validation split beside its baselines, as a Markdown table; then what is wrong with them, and
    what was chosen by them."""
    names = list(dict.fromkeys(name for found in baselines.values() for name in found))
    rows = [["", "model", *(name.replace("_", " ") for name in names)]]
    for split, found in values.items():
        for metric, value in found.items():
            base = [baselines[split].get(name, {}).get(metric, float("nan")) for name in names]
            rows.append([f"{split} {metric}", *(f"{100 * number:.2f}" for number in [value, *base])])
    notes = [escaped(f"Note: on {split} the model {warning}.") for split, warning in warnings.items()]
    notes += [escaped(f"Chosen on {next(iter(values))}: {name} {value:.4g}.") for name, value in chosen.items()]
    return "\n\n".join([markdown_table(rows), *notes])


def write_predictions(folder: Path, predicted: dict[str, Predicted], kind: TaskType) -> None:
    """A file ``<split>.tsv`` each: official index, prediction, label where there is one, and the kind's columns.

    The folder appears when all of it is written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    for name, each in predicted.items():
        split = each.split
        labels = [""] * split.num_examples if split.labels is None else map(kind.format_label, split.labels)
        names, numbers = kind.columns(each)
        lines = [["index", "prediction", "label", *names]]
        for index, prediction, label, row in zip(split.index, each.predictions, labels, numbers, strict=True):
            # Nine digits give every float32 back, so that an ensemble of files is one of the models.
            lines.append([str(index), kind.format_prediction(prediction), label, *(f"{value:.9g}" for value in row)])
        write_tsv(partial / f"{name}.tsv", lines)
        with writing(partial):
            kind.write(partial, each)
    publish(partial, folder)


def plot_curves(
    metrics_file: Path, metrics: list[str], baselines: dict[str, dict[str, float]], picture: Path, title: str
) -> None:
    """Loss and the metrics over steps, with the baselines as lines."""
    series = read_series(metrics_file)
    axes = figure(1 + len(metrics), title)
    for axis, name in zip(axes, ["loss", *metrics], strict=True):
        for part, style in (("train", "-"), ("held_out", "o-")):
            if points := series.get(f"{part}/{name}"):
                axis.plot(*zip(*points, strict=True), style, label=part.replace("_", " "), markersize=4)
        for baseline, style in zip(baselines, ("--", ":"), strict=False):
            if name in baselines[baseline]:
                label = baseline.replace("_", " ")
                axis.axhline(baselines[baseline][name], color="grey", linestyle=style, linewidth=1, label=label)
        axis.set(title=name.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(axes, picture)


def plot_confusion(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence[str], picture: Path, title: str
) -> None:
    """Shares of the examples of each class id that were predicted as each class id; their numbers, where they can be
    read."""
    size = len(names)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    readable = size <= _READABLE
    side = 3.0 + (0.5 if readable else 0.14) * size
    (axis,) = axes = figure(1, title, panel=(side + 0.8, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [*map(plain, names)]
    axis.set_xticks(range(size), names, rotation=45 if readable else 90, ha="right", fontsize=8 if readable else 5)
    axis.set_yticks(range(size), names, fontsize=8 if readable else 5)
    axis.set(xlabel="predicted", ylabel="label")
    for row, column in np.ndindex(size, size) if readable else ():
        color = "white" if shares[row, column] > 0.6 else "black"
        axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
    save(axes, picture)


def plot_bars(groups: Sequence[str], bars: dict[str, list[float]], picture: Path, title: str) -> None:
    """For each group a bar of each name, from 0 to 1."""
    (axis,) = axes = figure(1, title, panel=(2.0 + 0.9 * len(groups), 3.4))
    width = 0.8 / len(bars)
    for place, (name, heights) in enumerate(bars.items()):
        at = np.arange(len(groups)) + (place - (len(bars) - 1) / 2) * width
        axis.bar(at, heights, width, label=name.replace("_", " "))
    axis.set_xticks(range(len(groups)), [*map(plain, groups)], rotation=30, ha="right", fontsize=8)
    axis.set(ylim=(0, 1))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8)
    save(axes, picture)


def hardest_examples(predicted: Predicted, kind: TaskType, path: Path, shown: int = 3) -> str:
    """Write all examples to ``path``, those first on which the model is furthest off; returns the first few as text."""
    split, rows, distances = predicted.split, rows_of(kind.section), kind.distances(predicted)
    lines, told = [["index", "distance", "label", "prediction", *rows.names]], []
    for i in np.argsort(-distances, kind="stable"):
        texts = [rows.format_prediction(column[i]) for column in split.texts]
        label, given = kind.format_label(predicted.labels[i]), kind.format_prediction(predicted.predictions[i])
        lines.append([str(split.index[i]), f"{distances[i]:.4f}", label, given, *texts])
        if len(told) < shown:
            right, wrong = label or "nothing", given or "nothing"
            told.append(printable(f"  {right}, off by {distances[i]:.2f} with {wrong}: {' | '.join(texts)[:160]}"))
    write_tsv(path, lines)
    return "\n".join(told)


_READABLE = 40
"""Labels, at most, of a picture that has a number in each cell."""
_HUB_METRICS = {
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "macro_f1": "f1",
}


def model_card(
    name: str,
    about: str,
    table: str,
    values: dict[str, dict[str, float]],
    config: FinetuneConfig,
    text: str,
    pipeline: str | None,
    *,
    baselines: dict[str, dict[str, dict[str, float]]],
    warnings: dict[str, str],
) -> str:
    """The export's README.md, which says ``about`` the model what it is, with the measured results as metadata that
    the Hub reads, and beside them, by split, the baselines and the warnings that a comparison of models needs."""
    section = config.task
    results = [
        {
            "task": {"type": pipeline or section.type},
            "dataset": {
                "name": section.name,
                "type": section.hub.dataset if section.hub else section.name,
                "split": split,
            },
            "metrics": [
                {"type": _HUB_METRICS.get(metric, metric), "name": metric, "value": round(value, 6)}
                for metric, value in found.items()
            ],
        }
        for split, found in values.items()
    ]
    head = {
        "library_name": "transformers",
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": ["bertillery", section.name],
        "model-index": [{"name": name.replace("/", "-"), "results": results}],
        "bertillery": {"baselines": baselines, "warnings": warnings},
    }
    seeds = f"seed {config.run.seed} (on small sets another seed gives a score some points away)."
    return page(
        head, name, f"{escaped(about)} with Bertillery, {seeds}", table, "## Configuration", fenced(text, "yaml")
    )

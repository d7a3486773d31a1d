"""What a fine-tuning run reports: an example, scores beside baselines, predictions, and the hardest examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.report import card
from bertillery.report.plot import Panel
from bertillery.report.table import escaped, markdown_table, write_tsv
from bertillery.system.files import publish, remove, writing
from bertillery.system.printable import printable
from finetune.config import FinetuneConfig
from finetune.data.splits import Split
from finetune.examples import Examples
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
    """A Markdown table of each validation split's metrics beside its baselines, then warnings, then values (such as
    thresholds) that were chosen on the first split."""
    names = list(dict.fromkeys(name for found in baselines.values() for name in found))
    rows = [["", "model", *(name.replace("_", " ") for name in names)]]
    for split, found in values.items():
        for metric, value in found.items():
            base = [baselines[split].get(name, {}).get(metric, float("nan")) for name in names]
            rows.append([f"{split} {metric}", *(_percent(number) for number in [value, *base])])
    notes = [escaped(f"Note: on {split} the model {warning}.") for split, warning in warnings.items()]
    notes += [escaped(f"Chosen on {next(iter(values))}: {name} {value:.4g}.") for name, value in chosen.items()]
    return "\n\n".join([markdown_table(rows), *notes])


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def scored(kind: TaskType, predicted: Mapping[str, Predicted]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The metrics, and warnings of predictions that do not depend on the example, of labelled splits by name."""
    values = {name: kind.scores(each.predictions, each.labels, each.outputs) for name, each in predicted.items()}
    warnings = {name: kind.warning(each.predictions, each.labels) for name, each in predicted.items()}
    return values, {name: warning for name, warning in warnings.items() if warning}


def classes_table(predicted: Predicted, kind: TaskType) -> str:
    """The scores of each class as Markdown; empty where there are no classes."""
    rows = kind.class_report(predicted)
    return f"By class, on {predicted.split.name}:\n\n{markdown_table(rows)}" if rows else ""


def findings(results: Mapping[str, Any], folder: Path) -> str:
    """What a person reads at the end: the table, the scores of each class, and the hardest examples."""
    parts = [results["table"], results.get("classes", "")]
    if parts[1].count("\n") > _SHOWN:
        parts[1] = f"{parts[1].count(chr(10)) - 3:,} classes: their scores are in {folder}"
    if "hardest" in results:
        parts.append(f"hardest examples (all of them in {folder / 'hardest.tsv'})\n{results['hardest']}")
    return "\n\n".join(filter(None, parts))


_SHOWN = 50
"""Lines of scores by class that a terminal is shown."""


def write_predictions(folder: Path, predicted: dict[str, Predicted], kind: TaskType) -> None:
    """A file ``<split>.tsv`` for each split: official index, prediction, label if known, the task type's columns.

    The folder appears once it is complete.
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
            # Nine digits restore every float32, so averaging files is averaging models.
            lines.append([str(index), kind.format_prediction(prediction), label, *(f"{value:.9g}" for value in row)])
        write_tsv(partial / f"{name}.tsv", lines)
        with writing(partial):
            kind.write(partial, each)
    publish(partial, folder)


def panels(metrics: Sequence[str], baselines: Mapping[str, Mapping[str, float]]) -> list[Panel]:
    """The loss and each metric, with the baselines that have it."""
    found = {
        metric: {name: values[metric] for name, values in baselines.items() if metric in values} for metric in metrics
    }
    return [Panel("loss", "loss"), *(Panel(name, name.replace("_", " "), lines) for name, lines in found.items())]


def hardest_examples(predicted: Predicted, kind: TaskType, path: Path) -> str:
    """Write all examples to ``path``, the largest errors first; returns the first three as text."""
    split, distances = predicted.split, kind.distances(predicted)
    lines, told = [["index", "distance", "label", "prediction", *kind.text_names()]], []
    for i in np.argsort(-distances, kind="stable"):
        texts = [kind.format_text(column[i]) for column in split.texts]
        label, given = kind.format_label(predicted.labels[i]), kind.format_prediction(predicted.predictions[i])
        lines.append([str(split.index[i]), f"{distances[i]:.4f}", label, given, *texts])
        if len(told) < 3:
            right, wrong = label or "nothing", given or "nothing"
            told.append(printable(f"  {right}, predicted {wrong}, error {distances[i]:.2f}: {' | '.join(texts)[:160]}"))
    write_tsv(path, lines)
    return "\n".join(told)


ROWS = 64
"""Examples in a table of a tracker."""


def table_rows(predicted: Predicted, kind: TaskType, distances: np.ndarray, which: np.ndarray) -> list[dict[str, Any]]:
    """Texts, label, prediction and its numbers, such as probabilities, of the examples ``which`` (R,), for a table.

    ``distances`` (N,) are the errors of all examples.
    """
    split, (names, numbers) = predicted.split, kind.columns(predicted)
    return [
        {
            "id": str(split.index[i]),
            **{n: kind.format_text(column[i]) for n, column in zip(kind.text_names(), split.texts, strict=True)},
            "expected": kind.format_label(predicted.labels[i]),
            "predicted": kind.format_prediction(predicted.predictions[i]),
            "error": float(distances[i]),
            **{name: float(value) for name, value in zip(names, numbers[i], strict=True)},
        }
        for i in which.tolist()
    ]


_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}
"""What the Hub calls metrics that have another name here."""


def _hub_metric(name: str, value: float, config: FinetuneConfig) -> dict[str, Any]:
    """A metric as the Hub reads it, with how it was computed."""
    average, _, plain = name.partition("_") if name.startswith(("macro_", "micro_")) else ("", "", name)
    return {
        "type": _HUB_METRICS.get(plain, plain),
        "name": name,
        "value": round(value, 6),
        "args": {
            **({"average": average} if average else {}),
            "sequence_length": config.train.phases[0].sequence_length,
            "seed": config.run.seed,
        },
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
    """The export's README.md: what the model is (``about``), its results as the Hub reads them, and, by split, the
    baselines and warnings that a comparison of models needs."""
    section = config.task
    results = [
        {
            "task": {"type": pipeline or section.type},
            "dataset": {
                "name": section.name,
                "type": section.hub.dataset if section.hub else section.name,
                **({"config": section.hub.subset} if section.hub and section.hub.subset else {}),
                "split": split,
            },
            "metrics": [_hub_metric(metric, value, config) for metric, value in found.items()],
        }
        for split, found in values.items()
    ]
    metadata = {
        "model-index": [{"name": name.replace("/", "-"), "results": results}],
        "bertillery": {"baselines": baselines, "warnings": warnings},
    }
    seeds = f"seed {config.run.seed} (on small sets another seed gives a score some points away)."
    about = f"{escaped(about)} with Bertillery, {seeds}"
    return card.model_card(name, about, table, config=text, tags=[section.name], pipeline=pipeline, metadata=metadata)

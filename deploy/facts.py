"""Counts of one model, and the scores on its model card."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from torch import nn
from transformers import PreTrainedModel

from bertillery.config.section import InputError
from bertillery.engine.batch import pack_stream
from bertillery.models.flops import model_flops
from bertillery.models.folder import weight_files
from bertillery.run.directory import RESUMABLE, changes
from bertillery.system.records import read_yaml

Scores = dict[tuple[str, str], dict[str, float]]
"""By data set and split, then by metric; the first metric of a split is its main one."""
Column = tuple[str, str, str]
"""Data set, split and metric."""


@dataclass(frozen=True)
class Card:
    """The metadata of a model card; empty if there is no card or it cannot be read."""

    scores: Scores = field(default_factory=dict)
    """The ``model-index``."""
    warnings: dict[tuple[str, str], str] = field(default_factory=dict)
    """By data set and split: why predictions do not depend on the example."""
    majority: Scores = field(default_factory=dict)
    """Scores of giving every example the most frequent answer."""


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
        with suppress(AttributeError, KeyError, TypeError):  # absent, or edited by somebody
            card.warnings[key] = str(own["warnings"][key[1]])
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            card.majority[key] = {name: float(value) for name, value in own["baselines"][key[1]]["majority"].items()}
    return card


@dataclass(frozen=True)
class Facts:
    """A model in numbers."""

    name: str
    folder: Path
    architecture: str
    precision: str
    parameters: int
    """Numbers in all tensors; a shared tensor counts once."""
    without_embeddings: int
    """Parameters outside embedding tables."""
    bytes: int
    """Size of the weight files on disk."""
    multiply_adds: dict[int, int]
    """Of a forward pass of one sequence, by its length in tokens."""
    cards: tuple[Card, ...]
    """Of the model, then of runs that differ in the seed only."""
    left_out: tuple[str, ...] = ()
    """Runs of other seeds whose configuration differs in more than the seed."""

    def scores(self, column: Column) -> list[float]:
        """The score on each card that has it."""
        *_, metric = column
        found = (card.scores.get(column[:2], {}).get(metric) for card in self.cards)
        return [value for value in found if value is not None]

    def score(self, column: Column) -> float | None:
        """The median of the scores."""
        found = self.scores(column)
        return statistics.median(found) if found else None


def facts_of(name: str, folder: Path, model: PreTrainedModel, lengths: Sequence[int]) -> Facts:
    """Count parameters, bytes and, for sequences of these lengths, multiply-adds; read the cards."""
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    streams = {length: pack_stream(np.zeros(length, dtype=np.int64), np.array([length])) for length in lengths}
    same, left_out = seeds_of(folder)
    return Facts(
        name=name,
        folder=folder,
        architecture=type(model).__name__,
        precision=str(model.dtype).removeprefix("torch."),
        parameters=sum(sizes.values()),
        without_embeddings=sum(size for tensor, size in sizes.items() if tensor not in tables),
        bytes=sum(file.stat().st_size for file in weight_files(folder)),
        multiply_adds={length: round(model_flops(model, stream) / 2) for length, stream in streams.items()},
        cards=tuple(map(read_card, same)),
        left_out=tuple(left_out),
    )


def seeds_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The model and the exports of the same run with other seeds beside it (``seed-<n>/export``).

    The second list names the runs whose configuration differs in more than the seed, with one difference each.
    """
    same, others, run = [folder], [], folder.parent
    beside = run.parent.glob("seed-*/export") if run.name.startswith("seed-") and folder.name == "export" else []
    for other in sorted({*beside} - {folder}):
        if found := _differences(run, other.parent):
            others.append(f"{other.parent.name} ({found[0]})")
        else:
            same.append(other)
    return same, others


def _differences(run: Path, other: Path) -> list[str]:
    files = [path / "config.yaml" for path in (run, other)]
    missing = [f"there is no {file}" for file in files if not file.is_file()]
    if missing:
        return missing
    try:
        here, there = (read_yaml(file, dict[str, Any], remedy="run that seed again") for file in files)
    except InputError as error:
        return [str(error)]
    ignored = ["run", *RESUMABLE]
    if here.get("before"):  # the student is the export of the stage before, which is another one for each seed
        ignored += ["model.from", *(f"before.{key}" for key in ignored)]
    return changes(there, here, ignored, ("it", "the compared run"))

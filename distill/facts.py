"""What can be said of a model without running it: its size, its arithmetic, and the scores on its card."""

from __future__ import annotations

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

from engine.batch import pack
from engine.config import InputError
from engine.flops import model_flops
from engine.model_folder import weight_files
from engine.records import read_yaml
from engine.run import RESUMABLE, changes

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
    return round(model_flops(model, pack(zeros, zeros, np.array([length]), targets={}, counts={})) / 2)


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

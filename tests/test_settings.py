"""Properties of every key of every command: defaults that stand by themselves, and the schemas that have the keys."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import create_model

from bertillery.config.layers import Layer, merge_layers
from bertillery.config.section import ConfigError, Section, validate
from bertillery.engine.objective import objective_module
from deploy.compare import CompareSection
from deploy.export import ExportSection
from deploy.onnx import OnnxSection
from deploy.push import PushSection
from deploy.trained import UseSection
from distill.config import TaskAgnosticConfig, TaskConfig
from experiments.glue import SubmitSection
from experiments.rates import RangeSection
from experiments.search import SearchSection
from experiments.seeds import SeedsSection
from finetune.config import FinetuneConfig
from finetune.task import FolderSection, task_types
from pretrain.config import PretrainConfig

TASK = {"name": "mood", "type": "classification", "labels": ["bad", "good"], "metrics": ["accuracy"]}
TASK |= {"files": {"train": ["a.csv"], "validation": ["b.csv"]}}
ANSWERS = {"task": TASK, "model": {"from": "a"}, "teacher": {"from": "b"}}
SIZED = {"teacher": {"from": "b"}, "model": {"num_hidden_layers": 2}}


def with_objective(base: type[Any], kind: str, section: str) -> type[Any]:
    package = "pretrain.objectives" if base is PretrainConfig else "distill.objectives"
    module = objective_module(package, {"type": kind})
    return create_model(base.__name__, __base__=base, objective=(getattr(module, section), getattr(module, section)()))


KINDS: dict[str, dict[str, Any]] = {
    "classification": {},
    "regression": {"type": "regression", "labels": [], "metrics": ["pearson"], "range": [0, 5]},
    "choice": {"type": "choice", "choices": ["one", "two"]},
    "graph_choice": {"type": "graph_choice", "choices": ["one", "two"], "graph": {}, "kagnet": {}},
    "spans": {"type": "spans", "labels": [], "metrics": ["f1"], "text": ["question", "context"], "spans": {}},
}
"""What a task of each type with keys of its own has otherwise than ``TASK``."""


def with_task(kind: str) -> type[Any]:
    return create_model("FinetuneConfig", __base__=FinetuneConfig, task=(task_types()[kind].Config, ...))


SCHEMAS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    **{
        f"finetune {kind}": (with_task(kind), {"task": TASK | task, "model": {"from": "a"}})
        for kind, task in KINDS.items()
    },
    **{
        f"pretrain {kind}": (with_objective(PretrainConfig, kind, "Config"), {})
        for kind in ("bert", "mlm", "albert", "electra")
    },
    **{
        f"distill {kind}": (with_objective(TaskAgnosticConfig, kind, "Config"), SIZED)
        for kind in ("distilbert", "tinybert", "minilm")
    },
    **{
        f"distill task {kind}": (with_objective(TaskConfig, kind, "AnswersConfig"), ANSWERS)
        for kind in ("distilbert", "tinybert")
    },
    "seeds": (SeedsSection, {}),
    "search": (SearchSection, {}),
    "rates": (RangeSection, {}),
    "use": (UseSection, {"model": "a"}),
    "export": (ExportSection, {"model": "a"}),
    "push": (PushSection, {"model": "a", "repo": "b/c", "license": "mit", "language": ["en"]}),
    "compare": (CompareSection, {"teacher": "a", "students": ["b"]}),
    "onnx": (OnnxSection, {"model": "a"}),
    "submit": (SubmitSection, {}),
}
"""Schema of every command, and the least that it takes."""
EVERY = pytest.mark.parametrize(("schema", "least"), SCHEMAS.values(), ids=SCHEMAS)


def keys_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that a section holds, of the sections within it, too."""
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{field.alias or name}"
        items = {key: value} if isinstance(value, Section) else {}
        if isinstance(value, list):
            items = {f"{key}.{i}": item for i, item in enumerate(value) if isinstance(item, Section)}
        for path, item in items.items():
            yield from keys_of(item, f"{path}.")
        if not items:
            yield key, value


def values_of(config: Section) -> dict[str, Any]:
    return {key: str(value) for key, value in keys_of(config)}


@EVERY
def test_a_key_at_its_default_changes_no_other(schema: type[Any], least: dict[str, Any]) -> None:
    """Whatever section is named for the sake of one key, its other keys stay what they are without it."""
    config = validate(schema, least)
    plain, dumped = values_of(config), config.model_dump(mode="json", by_alias=True)
    for key in plain:
        nested: Any = dumped
        for part in key.split("."):
            nested = nested[int(part) if part.isdecimal() else part]
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values, _ = merge_layers([Layer(_merged(least, nested), "")])
        assert values_of(validate(schema, values)) == plain, key


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = _merged(values[key], value) if both else value
    return values


def test_one_file_of_a_folder_leaves_the_others() -> None:
    folder = validate(FolderSection, {"name": "RTE", "files": {"test": "mine.tsv"}})
    assert [folder.file(split) for split in ("train", "validation", "test", "more")] == [
        "train.tsv", "dev.tsv", "mine.tsv", "more.tsv",
    ]  # fmt: skip


MAY_BE_0 = {
    "run.seed", "search_seed", "train.workers", "optim.weight_decay", "optim.betas", "optim.warmup", "optim.cooldown",
    "optim.final_share", "model.auxiliary_lm",
    "model.hidden_dropout", "model.attention_dropout", "model.classifier_dropout", "model.hidden_dropout_prob",
    "model.attention_probs_dropout_prob", "model.layers", "objective.short_probability", "objective.single_probability",
    "objective.discriminator_weight", "objective.kl", "objective.mlm", "objective.cosine", "objective.smoothing",
    "objective.hard", "objective.soft",
    "task.kagnet.least_score",
}  # fmt: skip
"""Numbers at which something is switched off, or from which is counted."""
ANY = {"task.range"}
"""Numbers of the user's data."""
MEANINGLESS = [float("nan"), float("inf"), float("-inf"), -1, 1e30, 10**30]


def numbers_of(schema: type[Any], prefix: str = "", around: tuple[Any, ...] = ()) -> Iterator[tuple[str, int, bool]]:
    """Of every key that holds numbers: its name, how many, and whether it is a list of them; durations are numbers."""
    for name, field in schema.model_fields.items():
        key, section = f"{prefix}{field.alias or name}", section_of(field.annotation)
        if section is not None:
            if not any(issubclass(each, section) for each in around):
                yield from numbers_of(
                    section, f"{key}.0." if "list" in str(field.annotation) else f"{key}.", (*around, section)
                )
            continue
        kind = str(field.annotation)
        if re.search(r"\b(int|float|Duration)\b", kind):
            yield key, 2 if "tuple" in kind else 1, "list" in kind


def section_of(annotation: Any) -> type[Any] | None:
    options = [annotation, *get_args(annotation)]
    options = [getattr(option, "__origin__", option) for option in options]
    return next((each for each in options if isinstance(each, type) and issubclass(each, Section)), None)


def refused(schema: type[Any], least: dict[str, Any], key: str, value: Any) -> bool:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    values, sources = merge_layers([Layer(_merged(least, nested), "")])
    try:
        validate(schema, values, sources)
    except ConfigError as error:
        return key in str(error)
    return False


@EVERY
def test_a_number_that_means_nothing_is_refused_by_its_name(schema: type[Any], least: dict[str, Any]) -> None:
    for key, number, listed in numbers_of(schema, around=(schema,)):
        for value in [*MEANINGLESS, *[0] * (key not in MAY_BE_0)]:
            given = [value] * number if number > 1 or listed else value
            assert refused(schema, least, key, given) or (key in ANY and math.isfinite(value)), (key, value)

"""Weights to initialise from (``model.from``): a model directory or a Hub model, put into a freshly built objective."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from bertillery.config.section import ConfigError, InputError
from bertillery.engine.objective import Objective
from bertillery.models.encoders import Role, family
from bertillery.models.export import warnings_of_transformers
from bertillery.models.folder import check_size, file_of
from bertillery.models.load import check_finite, read_config, read_weights


@dataclass(frozen=True)
class Weights:
    """What ``model.from`` names."""

    path: str
    """A directory that ``save_pretrained`` wrote, or a name on the Hub."""
    config: Any
    """Its config.json, in transformers' class."""

    @classmethod
    def find(cls, path: str, role: Role = "encoder") -> Weights:
        """Read the config.json; ``ConfigError`` where there is none.

        A resumed run comes here too, although its weights are its checkpoint's: sizes and tokenizer are read where they
        are, as the text is, instead of being kept a second time. What a run is made from stays in its place, or the run
        is refused before anything is computed.
        """
        try:
            config = read_config(path, roles=(role,))
            check_size(path, config)
        except InputError as error:
            raise ConfigError(
                f"model.from: given {path!r}: {error}. A run that started from it needs it to be resumed"
            ) from None
        return cls(path, config)

    def companion(self, folder: str) -> Any:
        """The config.json of a companion, which is in a folder of its own; None where there is none."""
        if file_of(self.path, f"{folder}/config.json") is None and not Path(self.path, folder).exists():
            return None
        try:
            return read_config(self.path, folder)
        except InputError as error:
            raise ConfigError(f"model.from: {error}") from None

    def read(self, kind: type[PreTrainedModel], config: PreTrainedConfig, folder: str = "") -> tuple[Any, Any]:
        """A model of this kind and configuration with these weights, in float32, and transformers' report of it."""
        what = f"model.from: the weights in {Path(self.path) / folder}"
        options = {"dtype": torch.float32, "ignore_mismatched_sizes": True}  # the report lists them
        with warnings_of_transformers():
            return read_weights(kind, self.path, config, what=what, folder=folder, **options)


def networks(objective: Objective) -> dict[str, PreTrainedModel]:
    """The models that an objective trains, by their folder within an export: a companion's is its attribute's name."""
    auxiliary_models = objective.auxiliary_models()
    models = {name: child for name, child in objective.named_children() if isinstance(child, PreTrainedModel)}
    return {name if name in auxiliary_models else "": model for name, model in models.items()}


def load_weights(objective: Objective, path: str) -> list[str]:
    """Put the weights that ``path`` names into a freshly built ``objective``; returns lines that say what became of it.

    Heads, poolers and auxiliary models absent there keep their initialisation, and what the objective cannot use is
    dropped. Tied tensors stay tied. ``ConfigError`` where any other tensor is missing, has another shape, or is tied
    here but differs there.
    """
    models = networks(objective)
    weights = Weights.find(path, family(objective.exported().config).role)
    copies: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    problems, dropped = [], []
    for folder, model in models.items():
        config = weights.companion(folder) if folder else weights.config
        if config is None:
            continue
        stored = copy.deepcopy(model.config)
        stored.vocab_size = config.vocab_size
        read, report = weights.read(type(model), stored, folder)
        check_finite(f"model.from: {path}", read)
        problems += _misfits(model, config, report)
        dropped += [_named(folder, name) for name in report["unexpected_keys"]]
        absent = report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}
        here, there = model.state_dict(keep_vars=True), read.state_dict()
        spare = config.vocab_size - model.config.vocab_size
        dropped += [_named(folder, f"{spare:,} spare rows of the vocabulary")] * (spare > 0)
        copies += [
            (_named(folder, name), tensor, _without_spare_rows(there[name], tensor))
            for name, tensor in here.items()
            if name not in absent
        ]
    with torch.no_grad():
        for _, tensor, value in copies:
            tensor.copy_(value)
    unequal = [name for name, tensor, value in copies if not torch.equal(tensor, value)]
    problems += [f"{name}: one tensor with another here, not equal to it there" for name in unequal]
    if problems:
        shown = problems[:8] + [f"and {len(problems) - 8} more"] * (len(problems) > 8)
        raise ConfigError(
            f"model.from: {path!r} does not hold the model that its config.json describes, with two segments:\n"
            + "\n".join(f"  - {problem}" for problem in shown)
            + "\nGive weights that save_pretrained wrote, of such a model."
        )
    loaded, new = _parted(models, {id(tensor) for _, tensor, _ in copies})
    return [
        f"{path}: {len(loaded):,} tensors, {sum(parameter.numel() for parameter in loaded.values()):,} parameters",
        f"new: {_stems(new, loaded)}; dropped: {_stems(dropped, loaded)}",
    ]


def _without_spare_rows(stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A table with a row for each piece, of one that has more rows; any other tensor as it is."""
    return stored if stored.shape == like.shape else stored[: len(like)]


def _misfits(model: PreTrainedModel, config: Any, report: Mapping[str, Iterable[Any]]) -> list[str]:
    """What does not fit: a shape, or what the weights lack or have in excess of the body (all but pooler and heads)."""
    prefix = f"{model.base_model_prefix}."
    body = {name for name, _ in model.base_model.named_children() if not name.startswith("pooler")}

    def of_body(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if name.removeprefix(prefix).split(".")[0] in body)

    there, here = config.num_attention_heads, model.config.num_attention_heads  # which no shape tells
    return [
        *([f"{prefix}encoder: {there} attention heads there, {here} here"] if there != here else []),
        *(f"{name}: {tuple(a)} there, {tuple(b)} here" for name, a, b in sorted(report["mismatched_keys"])),
        *(f"{name}: missing there" for name in of_body(report["missing_keys"])),
        *(f"{name}: has no place here" for name in of_body(report["unexpected_keys"])),
    ]


def _parted(
    models: Mapping[str, PreTrainedModel], ids: set[int]
) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
    """Parameters by name, those of these ids and the others; what models share goes by its name in the first."""
    within: dict[str, torch.nn.Parameter] = {}
    others: dict[str, torch.nn.Parameter] = {}
    seen: set[int] = set()
    for folder, model in models.items():
        for name, parameter in model.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                (within if id(parameter) in ids else others)[_named(folder, name)] = parameter
    return within, others


def _named(folder: str, name: str) -> str:
    return f"{folder}.{name}" if folder else name


def _stems(names: Iterable[str], others: Iterable[str]) -> str:
    """The shortest dotted beginnings that all of ``names`` have and none of ``others``."""
    taken = {stem for name in others for stem in _beginnings(name)}
    stems = {next((stem for stem in _beginnings(name) if stem not in taken), name) for name in names}
    return ", ".join(sorted(stems)) or "nothing"


def _beginnings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]

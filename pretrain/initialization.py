"""What existing weights decide of a run's configuration (``model.from``): sizes, tokenizer, keys of the objective.

Existing weights to go on from: a model directory or one of the Hub, read and put into a freshly built objective.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError, Section
from bertillery.engine.objective import Objective
from bertillery.models.export import warnings_of_transformers
from bertillery.models.folder import check_size, file_of, has_tokenizer, reading, safely
from bertillery.models.load import check_finite, load_tokenizer, read_config, vocabulary_size

_FIXED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
"""Keys of ``model`` that must be the weights'."""
_TAKEN = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
"""Keys that change no tensor: the weights' where none are given."""
_MOST_PIECES = 3


class ObjectiveSection(Section):
    """Base of the objectives' ``Config``: all that an objective says of existing weights."""

    family: ClassVar[str]
    """``model_type`` of the models it trains, as transformers' config.json has it."""
    num_texts: ClassVar[int] = 2
    """Texts of an example, at most."""

    @classmethod
    def decided_by(cls, weights: Weights) -> dict[str, Any]:
        """Values of this section's keys that follow from existing weights; ``ConfigError`` if it cannot train them."""
        return {}

    def predicted(self, sequence_length: int) -> str:
        """How many tokens of an example of this length are predicted, and what else than the rate decides that."""
        raise NotImplementedError


def adopt(values: dict[str, Any], sources: dict[str, str], section: type[ObjectiveSection]) -> None:
    """Complete the plain ``values`` of a configuration, in place, by what the weights of ``model.from`` decide.

    ``sources`` says where each value is from; ``section`` is the objective's. Raises one ``ConfigError`` for weights of
    another family, for all keys that contradict the weights, and for a tokenizer that does not fit them.
    """
    model, tokenizer = values.get("model"), values.get("tokenizer", {})
    path = model.get("from") if isinstance(model, dict) else None
    if not isinstance(path, str) or not isinstance(tokenizer, dict):  # validation comes next, and says what is wrong
        return
    weights = Weights.find(path)
    if weights.config.model_type != section.family:
        raise ConfigError(
            f"model.from: {path!r} is of the family {weights.config.model_type}, but objective.type="
            f"{values['objective']['type']} trains {section.family}; give such weights, or another objective.type"
        )
    found = {f"model.{key}": getattr(weights.config, key) for key in (*_FIXED, *_TAKEN)}
    found |= {f"objective.{key}": value for key, value in section.decided_by(weights).items()}
    contradictions = []
    for name, there in found.items():
        part, key = name.split(".")
        given = values[part].get(key)
        if given is None:
            values[part][key], sources[name] = there, f"the weights of {path}"
        elif given != there and key not in _TAKEN:
            contradictions.append(f"  - {name}: {there!r} there, {given!r} given (from {sources[name]})")
    if contradictions:
        raise ConfigError(
            f"model.from: the weights of {path!r} are of another shape than configured:\n"
            + "\n".join(contradictions)
            + "\nGive a configuration that leaves these keys to the weights, or weights of that shape."
        )
    values["tokenizer"] = {**tokenizer, "path": _fitting_tokenizer(weights, tokenizer.get("path"))}


def _fitting_tokenizer(weights: Weights, given: str | None) -> str:
    """Path of the tokenizer: the one given, which must number its pieces as the weights do, or the weights' own.

    Rows of embeddings beyond the pieces of the weights' own tokenizer are spare, as where a table was made larger to be
    a multiple of 64; beside another tokenizer they would say that it is not theirs.
    """
    rows, own = weights.config.vocab_size, None
    if not given or given == weights.path or has_tokenizer(weights.path):
        own = load_tokenizer(weights.path, "model.from")
    tokenizer = load_tokenizer(given, "tokenizer.path") if given and given != weights.path else own
    assert tokenizer is not None
    size = vocabulary_size(tokenizer)
    differences = [] if own in (None, tokenizer) or vocabulary_size(own) > rows else _differences(own, tokenizer)
    spare = own is not None and not differences
    problems = [f"{rows:,} rows of word embeddings there, {size:,} pieces given"] * (
        size > rows or (size < rows and not spare)
    )
    if problems or differences:
        raise ConfigError(
            (f"tokenizer.path: {given!r} does" if given else f"model.from: the tokenizer in {weights.path!r} does")
            + f" not fit the weights of {weights.path!r}, which know a piece by its number:\n"
            + "\n".join(f"  - {problem}" for problem in [*problems, *differences])
            + ("\nLeave tokenizer.path out for the weights' own," if given else "\nGive theirs in tokenizer.path,")
            + " or pretrain a new vocabulary without model.from."
        )
    return given or weights.path


def _differences(own: PreTrainedTokenizerBase, given: PreTrainedTokenizerBase) -> list[str]:
    """In which pieces (the first of them) and special tokens two tokenizers differ."""
    there, here = ({number: piece for piece, number in each.get_vocab().items()} for each in (own, given))
    pieces = [number for number in sorted(there.keys() | here.keys()) if there.get(number) != here.get(number)]
    said = [f"piece {n}: {there.get(n)!r} there, {here.get(n)!r} given" for n in pieces[:_MOST_PIECES]]
    said += [f"and {len(pieces) - _MOST_PIECES:,} pieces more"] * (len(pieces) > _MOST_PIECES)
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"):
        if getattr(own, name) != getattr(given, name):
            said.append(f"{name}: {getattr(own, name)!r} there, {getattr(given, name)!r} given")
    return said


@dataclass(frozen=True)
class Weights:
    """What ``model.from`` names."""

    path: str
    """A directory that ``save_pretrained`` wrote, or a name on the Hub."""
    config: Any
    """Its config.json, in transformers' class."""

    @classmethod
    def find(cls, path: str) -> Weights:
        """Read the config.json; ``ConfigError`` where there is none.

        A resumed run comes here too, although its weights are its checkpoint's: sizes and tokenizer are read where they
        are, as the text is, instead of being kept a second time. What a run is made from stays in its place, or the run
        is refused before anything is computed.
        """
        try:
            config = read_config(path)
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
        where = f"model.from: the weights in {Path(self.path) / folder} cannot be read"
        with warnings_of_transformers(), reading(where, "save them again"):
            read: Any = kind.from_pretrained(
                self.path,
                config=config,
                subfolder=folder,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # the report lists them
                output_loading_info=True,
                **safely(self.path),
            )
        return read


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
    weights, models = Weights.find(path), networks(objective)
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

"""Configuration of a pretraining run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import SerializeAsAny, create_model, model_validator

from bertillery.config.layers import Layer, merge_layers, read_layers
from bertillery.config.section import ConfigError, Section, check_sections, validate
from bertillery.data.corpus import CorpusSection
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.objective import objective_module
from bertillery.models.encoders import Role
from bertillery.models.folder import has_tokenizer
from bertillery.models.load import load_tokenizer, vocabulary_size
from bertillery.run.command import run_name
from bertillery.run.stage import StageConfig
from pretrain.initialization import Weights
from pretrain.model import ModelSection

_FIXED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
"""Keys of ``model`` that must be the checkpoint's."""
_TAKEN = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
"""Keys that change no tensor: the checkpoint's where they are not given."""
_MOST_PIECES = 3
"""Differing pieces that a message lists."""


class ObjectiveSection(Section):
    """Base of the objectives' ``Config``."""

    family: ClassVar[str]
    """``model_type`` of the models that it trains, as in transformers' config.json."""
    starts_from: ClassVar[tuple[str, ...]] = ()
    """Other families whose checkpoints initialise a part of the model."""
    role: ClassVar[Role] = "encoder"
    """Whether these are encoders or decoders."""
    num_texts: ClassVar[int] = 2
    """The most texts in an example."""
    units: ClassVar[Literal["sentences", "documents"]] = "sentences"
    """What it reads of a corpus (``data.units``): sentences with BERT's special tokens, or documents with an
    end-of-text token."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Sections of the configuration that have other defaults with this objective, below all that is given."""
    keys: ClassVar[Mapping[str, str]] = {}
    """Names of the family's configuration for keys of ``model``, where they differ."""

    @classmethod
    def decided_by(cls, weights: Weights) -> dict[str, Any]:
        """Keys of this section that a checkpoint decides, with its values; ``ConfigError`` if it cannot be trained."""
        return {}

    def predicted(self, sequence_length: int) -> str:
        """How many tokens of a full example are predicted: those that a ``masking`` section says, or all of them."""
        masking: Any = getattr(self, "masking", None)
        return masking.predicted(sequence_length) if masking else f"{sequence_length} of {sequence_length} tokens"


class PretrainConfig(StageConfig):
    """Configuration of a pretraining run. Defaults are BERT-Base, uncased, as published."""

    data: CorpusSection = CorpusSection()
    tokenizer: TokenizerSection = TokenizerSection()
    model: ModelSection = ModelSection()
    objective: SerializeAsAny[ObjectiveSection]
    """``type`` names a file in ``pretrain/objectives``; the other keys are that file's ``Config``."""

    @model_validator(mode="after")
    def _sequences_fit(self) -> PretrainConfig:
        longest = max(phase.sequence_length for phase in self.train.phases)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"train.phases: a sequence_length of {longest} is above model.max_position_embeddings "
                f"{self.model.max_position_embeddings}; shorten it, or enlarge the position table"
            )
        reads = type(self.objective).units
        if self.data.units != reads:
            raise ValueError(
                f"data.units: given {self.data.units}; objective.type={self.objective.model_dump()['type']} reads "
                f"{reads}; leave the key out"
            )
        fitting = ("byte_bpe", "characters") if reads == "documents" else ("wordpiece", "unigram")
        if self.tokenizer.path is None and self.tokenizer.type not in fitting:
            needed = "an end-of-text token" if reads == "documents" else "a mask token"
            raise ValueError(
                f"tokenizer.type: given {self.tokenizer.type}, which lacks {needed}; "
                f"objective.type={self.objective.model_dump()['type']} needs one of {', '.join(fitting)}"
            )
        if min(phase.sequence_length for phase in self.train.phases) < 8:
            raise ValueError("train.phases: a sequence_length below 8 leaves no room for a pair; give at least 8")
        return self


def load_config(arguments: Sequence[str]) -> PretrainConfig:
    """Read ``*.yaml`` files and ``key.sub=value`` overrides; raises ``ConfigError`` with all problems at once.

    A run without a name is named after the configuration files. What the checkpoint of ``model.from`` decides is
    filled in.
    """
    layers = read_layers(arguments)
    values, sources = merge_layers(layers)
    check_sections(PretrainConfig, values, sources)
    values.setdefault("objective", {}).setdefault("type", "bert")
    module = objective_module("pretrain.objectives", values["objective"])
    type_ = values["objective"]["type"]
    below = Layer({**module.Config.defaults, "objective": {"type": type_}}, f"defaults of objective.type={type_}")
    values, sources = merge_layers([below, *layers])
    adopt(values, sources, module.Config)
    schema = create_model("PretrainConfig", __base__=PretrainConfig, objective=(module.Config, ...))
    config = validate(cast(type[PretrainConfig], schema), values, sources)
    return config.named(run_name(arguments, otherwise=config.objective.model_dump()["type"]))


def objective_of(config: PretrainConfig) -> Any:
    """The module of the configured objective."""
    return objective_module("pretrain.objectives", config.objective.model_dump())


def adopt(values: dict[str, Any], sources: dict[str, str], section: type[ObjectiveSection]) -> None:
    """Fill in, in place, the plain ``values`` of a configuration that the checkpoint of ``model.from`` decides.

    ``sources`` says where each value is from; ``section`` is the objective's. Raises one ``ConfigError`` for a
    checkpoint of another family, for all keys that contradict it, or for a tokenizer that does not fit it.
    """
    model, tokenizer = values.get("model"), values.get("tokenizer", {})
    path = model.get("from") if isinstance(model, dict) else None
    if not isinstance(path, str) or not isinstance(tokenizer, dict):  # validation comes next and reports it
        return
    weights = Weights.find(path, section.role)
    if weights.config.model_type not in (section.family, *section.starts_from):
        raise ConfigError(
            f"model.from: {path!r} is of the family {weights.config.model_type}, but objective.type="
            f"{values['objective']['type']} trains {section.family}; give such weights, or another objective.type"
        )
    stored = {key: getattr(weights.config, section.keys.get(key, key)) for key in (*_FIXED, *_TAKEN)}
    found = {f"model.{key}": value for key, value in stored.items() if value is not None}
    found |= {f"objective.{key}": value for key, value in section.decided_by(weights).items()}
    contradictions = []
    for name, stored in found.items():
        part, key = name.split(".")
        given = values[part].get(key)
        if given is None:
            values[part][key], sources[name] = stored, f"the weights of {path}"
        elif given != stored and key not in _TAKEN:
            contradictions.append(
                f"  - {name}: the checkpoint has {stored!r}, this command has {given!r} (from {sources[name]})"
            )
    if contradictions:
        raise ConfigError(
            f"model.from: the weights of {path!r} are of another shape than configured:\n"
            + "\n".join(contradictions)
            + "\nGive a configuration that leaves these keys to the weights, or weights of that shape."
        )
    values["tokenizer"] = {**tokenizer, "path": _fitting_tokenizer(weights, tokenizer.get("path"), section.role)}


def _fitting_tokenizer(weights: Weights, given: str | None, role: Role) -> str:
    """Path of the tokenizer: the one given, which must number its pieces as the checkpoint does, or the checkpoint's.

    Embedding rows beyond the pieces of the checkpoint's own tokenizer are spare (tables are padded to a multiple of
    64). With another tokenizer they mean that it is the wrong one.
    """
    rows, own = weights.config.vocab_size, None
    if not given or given == weights.path or has_tokenizer(weights.path):
        own = load_tokenizer(weights.path, "model.from", role=role)
    tokenizer = own
    if given and given != weights.path:
        tokenizer = load_tokenizer(given, "tokenizer.path", role=role)
    assert tokenizer is not None
    size = vocabulary_size(tokenizer)
    comparable = own is not None and own is not tokenizer and vocabulary_size(own) <= rows
    problems = _differences(own, tokenizer) if comparable else []
    if size > rows or (size < rows and (own is None or problems)):
        problems.insert(0, f"the checkpoint has {rows:,} rows of word embeddings, the tokenizer {size:,} pieces")
    if problems:
        raise ConfigError(
            (f"tokenizer.path: {given!r} does" if given else f"model.from: the tokenizer in {weights.path!r} does")
            + f" not fit the weights of {weights.path!r}, which know a piece by its number:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + ("\nLeave tokenizer.path out for the weights' own," if given else "\nGive theirs in tokenizer.path,")
            + " or pretrain a new vocabulary without model.from."
        )
    return given or weights.path


def _differences(own: Any, given: Any) -> list[str]:
    """The first pieces and the special tokens in which the checkpoint's tokenizer and the given one differ."""
    stored, here = ({number: piece for piece, number in each.get_vocab().items()} for each in (own, given))
    pieces = [number for number in sorted(stored.keys() | here.keys()) if stored.get(number) != here.get(number)]
    compared = [(f"piece {n}", stored.get(n), here.get(n)) for n in pieces[:_MOST_PIECES]]
    special = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "eos_token")
    compared += [(name, getattr(own, name), getattr(given, name)) for name in special]
    lines = [f"{name}: the checkpoint has {a!r}, the tokenizer {b!r}" for name, a, b in compared if a != b]
    if len(pieces) > _MOST_PIECES:
        lines.insert(_MOST_PIECES, f"and {len(pieces) - _MOST_PIECES:,} more pieces")
    return lines

"""What existing weights decide of a run's configuration (``model.from``): sizes, tokenizer, keys of the objective."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from engine.config import ConfigError, Section
from engine.load import load_tokenizer, vocabulary_size
from engine.model_folder import has_tokenizer
from pretrain.weights import Weights

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

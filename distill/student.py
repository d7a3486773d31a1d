"""A student: a stock model, smaller than its teacher, of fresh weights or of some of the teacher's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Depth, Dropout, Width
from bertillery.models.attention import NAME
from bertillery.models.dropout import prepare_dropout
from bertillery.models.encoders import FAMILIES, longest_sequence
from pretrain.model import initialize


def spread(student: int, teacher: int) -> list[int]:
    """Layers of the teacher, counted from 0, that a student of so many layers is started from: evenly spread from the
    first to the last.

    For 6 of 12 these are 0, 2, 4, 7, 9 and 11, as in DistilBERT's released code (Sanh et al. 2019, section 3).
    """
    if student > teacher:
        raise ConfigError(
            f"model.num_hidden_layers: a student of {student} layers cannot be started from a teacher of {teacher}; "
            "give at most that many, or model.start=random"
        )
    return [round(layer * (teacher - 1) / max(1, student - 1)) for layer in range(student)]


def uniform(student: int, teacher: int) -> list[int]:
    """Layers of the teacher, counted from 1, that the student's are compared with: g(m) = m * teacher / student.

    TinyBERT's map (Jiao et al. 2020, section 4.1): 3, 6, 9 and 12 for 4 of 12. ``ConfigError`` if it does not divide.
    """
    if teacher % student:
        raise ConfigError(
            f"objective.layers: {student} layers of the student do not divide the teacher's {teacher}; say which layer "
            f"of the teacher (from 1 to {teacher}) each of the student's learns from, as in objective.layers="
            f"{[1 + layer for layer in spread(min(student, teacher), teacher)]}"
        )
    return [layer * (teacher // student) for layer in range(1, student + 1)]


def checked(layers: Sequence[int], student: int, *, first: int, last: int, key: str) -> list[int]:
    """A map that was given: one layer of the teacher for each of the student, within bounds, ascending."""
    if len(layers) != student or not all(first <= layer <= last for layer in layers) or sorted(layers) != [*layers]:
        raise ConfigError(
            f"{key}: given {[*layers]}; it names a layer of the teacher, from {first} to {last}, for each of the "
            f"student's {student}, in ascending order"
        )
    return [*layers]


class StudentSection(Section):
    """The student's size; what is not given is the teacher's."""

    type: Literal["bert", "distilbert"] = "bert"
    """DistilBERT has no token types and no pooler."""
    num_hidden_layers: Depth
    """Transformer layers."""
    hidden_size: Width | None = None
    """Width."""
    num_attention_heads: Width | None = None
    """Must divide the width."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layers; 4 times the width where neither it nor the width is the teacher's."""
    hidden_dropout: Dropout = 0.1
    """Dropout of embeddings and layer outputs."""
    attention_dropout: Dropout = 0.1
    """Dropout of attention probabilities."""
    start: Literal["teacher", "random"] = "random"
    """``teacher`` copies embeddings, layers and masked-word head; the widths must be the same."""
    layers: list[Annotated[int, Field(ge=0, lt=1000)]] | None = None
    """Layers of the teacher, from 0, to copy; evenly spread where not given."""


def build_student(
    section: StudentSection, teacher: PreTrainedModel, *, masked_words: bool
) -> tuple[PreTrainedModel, str]:
    """A stock ``BertModel`` or ``DistilBertModel``, or with ``masked_words`` its masked language model; in words, where
    its weights are from.

    Fresh weights are drawn from torch's global generator, as in pretraining. Raises ``ConfigError`` where sizes do not
    fit, or where the teacher's weights have no place in such a student.
    """
    if section.layers is not None and section.start == "random":
        raise ConfigError("model.layers: nothing is copied into a student with model.start=random; give start=teacher")
    config = student_config(section, teacher.config)
    classes: dict[tuple[str, bool], Any] = {
        ("bert", True): BertForMaskedLM,
        ("bert", False): BertModel,
        ("distilbert", True): DistilBertForMaskedLM,
        ("distilbert", False): DistilBertModel,
    }
    student = classes[section.type, masked_words]._from_config(config, attn_implementation=NAME)
    initialize(student, config.initializer_range)
    prepare_dropout(student)
    if section.start == "random":
        return student, "freshly initialised"
    number, last = section.num_hidden_layers, teacher.config.num_hidden_layers - 1
    if section.layers is None:
        layers = spread(number, last + 1)
    else:
        layers = checked(section.layers, number, first=0, last=last, key="model.layers")
    copied = copy_weights(teacher, student, layers)
    return student, f"{copied} tensors of the teacher, its layers {', '.join(map(str, layers))} (from 0)"


def student_config(section: StudentSection, teacher: Any) -> PreTrainedConfig:
    """The student's configuration beside a teacher's; ``ConfigError`` for heads that do not divide the width."""
    kind = FAMILIES[teacher.model_type]
    inner = getattr(teacher, kind.intermediate_size)
    width, heads = section.hidden_size or teacher.hidden_size, section.num_attention_heads
    heads = heads or teacher.num_attention_heads
    inner = section.intermediate_size or (inner if width == teacher.hidden_size else 4 * width)
    if width % heads:
        raise ConfigError(f"model: a hidden_size of {width} is not a multiple of num_attention_heads {heads}")
    shared: dict[str, Any] = {
        "vocab_size": teacher.vocab_size,  # distributions over one vocabulary, even where rows of it are spare
        "max_position_embeddings": longest_sequence(teacher),
        "pad_token_id": teacher.pad_token_id,
        "initializer_range": teacher.initializer_range,
    }
    activation = getattr(teacher, "hidden_act", None) or teacher.activation
    if section.type == "distilbert":
        return DistilBertConfig(
            n_layers=section.num_hidden_layers,
            dim=width,
            n_heads=heads,
            hidden_dim=inner,
            dropout=section.hidden_dropout,
            attention_dropout=section.attention_dropout,
            activation=activation,
            **shared,
        )
    return BertConfig(
        num_hidden_layers=section.num_hidden_layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_dropout_prob=section.hidden_dropout,
        attention_probs_dropout_prob=section.attention_dropout,
        hidden_act=activation,
        layer_norm_eps=getattr(teacher, "layer_norm_eps", 1e-12),
        type_vocab_size=teacher.type_vocab_size if kind.token_types else 2,  # pairs have two segments
        **shared,
    )


_BERT_LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT_LAYER = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
_NAMES = {
    "bert": ("encoder.layer", _BERT_LAYER, ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")),
    "electra": ("encoder.layer", _BERT_LAYER, ("generator_predictions.dense", "generator_predictions.LayerNorm")),
    "distilbert": ("transformer.layer", _DISTILBERT_LAYER, ("vocab_transform", "vocab_layer_norm")),
}
"""What the families call the same: the layers, the modules of a layer, and those of the head before the vocabulary."""


def copy_weights(teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int]) -> int:
    """Copy embeddings, the teacher's ``layers`` (from 0), and the masked-word head where both have one; returns the
    number of tensors.

    A student without token types goes without the teacher's, as in DistilBERT's released code: its outputs differ from
    those of the teacher even if all layers are copied. Raises ``ConfigError`` where a tensor has no place.
    """
    types = FAMILIES[teacher.config.model_type].token_types and FAMILIES[student.config.model_type].token_types
    there, here = _tensors(teacher, layers, types), _tensors(student, [*range(len(layers))], types)
    pairs = [*zip(there, here, strict=False)]  # the word head comes last
    problems = [
        f"{name}: {tuple(old.shape)} there, {tuple(new.shape)} in the student"
        for (name, old), (_, new) in pairs
        if old.shape != new.shape
    ]
    if problems:
        raise ConfigError(
            "model.start: the teacher's tensors have no place in a student of this size:\n"
            + "\n".join(f"  - {problem}" for problem in problems[:4])
            + "\nLeave the widths to the teacher, or give model.start=random."
        )
    with torch.no_grad():
        for (_, old), (_, new) in pairs:
            new.copy_(old)
    return len(pairs)


def _tensors(model: PreTrainedModel, layers: list[int], token_types: bool) -> list[tuple[str, Tensor]]:
    """Embeddings, layers and, last, the word head if there is one: by name, in the same order for all families."""
    if model.config.model_type not in _NAMES:
        raise ConfigError(
            f"model.start: layers of the family {model.config.model_type} have no place in a student, only those of "
            f"{', '.join(_NAMES)} have; give model.start=random"
        )
    place, modules, head = _NAMES[model.config.model_type]
    base, vocabulary = model.base_model, model.get_output_embeddings()
    found: list[tuple[str, Tensor]] = []
    tables = ["word_embeddings", "position_embeddings", *["token_type_embeddings"] * token_types, "LayerNorm"]
    embeddings = [f"embeddings.{name}" for name in tables]
    for stem in [*embeddings, *(f"{place}.{layer}.{module}" for layer in layers for module in modules)]:
        found += [(f"{stem}.{name}", tensor) for name, tensor in base.get_submodule(stem).named_parameters()]
    if vocabulary is not None:
        for stem in head:
            found += [(f"{stem}.{name}", tensor) for name, tensor in model.get_submodule(stem).named_parameters()]
        found.append(("vocabulary.bias", vocabulary.bias))  # its weight is the word embedding
    return found

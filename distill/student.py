"""Students: stock models smaller than their teacher, freshly initialised or from some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
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
from bertillery.models.encoders import family, intermediate_size, longest_sequence
from bertillery.models.layers.attention import NAME
from pretrain.model import initialize


def spread(student: int, teacher: int) -> list[int]:
    """Layers of the teacher, from 0, that a student of so many layers starts from: evenly spread, first to last.

    For 6 of 12 these are 0, 2, 4, 7, 9 and 11, as in DistilBERT's released code (Sanh et al. 2019, section 3).
    """
    if student > teacher:
        raise ConfigError(
            f"model.num_hidden_layers: a student of {student} layers cannot be started from a teacher of {teacher}; "
            "give at most that many, or model.start=random"
        )
    return [round(layer * (teacher - 1) / max(1, student - 1)) for layer in range(student)]


def uniform(student: int, teacher: int) -> list[int]:
    """Layers of the teacher, from 1, that the student's are compared with: g(m) = m * teacher / student.

    TinyBERT's map (Jiao et al. 2020, section 4.1): 3, 6, 9 and 12 for 4 of 12. ``ConfigError`` if it does not divide.
    """
    if teacher % student:
        raise ConfigError(
            f"objective.layers: {student} layers of the student do not divide the teacher's {teacher}; give the layer "
            f"of the teacher (1 to {teacher}) that each of the student's learns from, such as objective.layers="
            f"{[1 + layer for layer in spread(min(student, teacher), teacher)]}"
        )
    return [layer * (teacher // student) for layer in range(1, student + 1)]


def checked(layers: Sequence[int], student: int, *, first: int, last: int, key: str) -> list[int]:
    """A given map of layers: one of the teacher for each of the student, in ascending order, within the bounds."""
    if len(layers) != student or not all(first <= layer <= last for layer in layers) or sorted(layers) != [*layers]:
        raise ConfigError(
            f"{key}: given {[*layers]}; it names a layer of the teacher, from {first} to {last}, for each of the "
            f"student's {student}, in ascending order"
        )
    return [*layers]


class StudentSection(Section):
    """Size of the student. Sizes that are not given are the teacher's."""

    type: Literal["bert", "distilbert"] = "bert"
    """DistilBERT has no token types and no pooler."""
    num_hidden_layers: Depth
    """Transformer layers."""
    hidden_size: Width | None = None
    """Width."""
    num_attention_heads: Width | None = None
    """Must divide the width."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layers; 4 times the width if that is not the teacher's."""
    hidden_dropout: Dropout = 0.1
    """Dropout of embeddings and layer outputs."""
    attention_dropout: Dropout = 0.1
    """Dropout of attention probabilities."""
    start: Literal["teacher", "random"] = "random"
    """``teacher`` copies embeddings, layers and MLM head; the widths must be equal."""
    layers: list[Annotated[int, Field(ge=0, lt=1000)]] | None = None
    """Layers of the teacher, from 0, to copy; evenly spread by default."""


def build_student(
    section: StudentSection, teacher: PreTrainedModel, *, masked_words: bool
) -> tuple[PreTrainedModel, str]:
    """A stock ``BertModel`` or ``DistilBertModel``, with ``masked_words`` its masked language model, and a description
    of its initialisation.

    Fresh weights are drawn from torch's global generator, as in pretraining. Raises ``ConfigError`` if sizes do not
    fit, or if such a student cannot hold the teacher's weights.
    """
    if section.layers is not None and section.start == "random":
        raise ConfigError("model.layers: nothing is copied into a student with model.start=random; give start=teacher")
    classes: dict[str, Any] = {
        "bert": BertForMaskedLM if masked_words else BertModel,
        "distilbert": DistilBertForMaskedLM if masked_words else DistilBertModel,
    }
    config = student_config(section, teacher.config)
    student = classes[section.type]._from_config(config, attn_implementation=NAME)
    initialize(student, config.initializer_range)
    if section.start == "random":
        return student, "freshly initialised"
    number, there = section.num_hidden_layers, teacher.config.num_hidden_layers
    if section.layers is None:
        layers = spread(number, there)
    else:
        layers = checked(section.layers, number, first=0, last=there - 1, key="model.layers")
    copied = copy_weights(teacher, student, layers)
    numbers = ", ".join(map(str, layers))
    return student, f"{copied} tensors copied from the teacher (layers {numbers}, counted from 0)"


def student_config(section: StudentSection, teacher: Any) -> PreTrainedConfig:
    """Configuration of the student of a ``teacher`` with this configuration; ``ConfigError`` for heads that do not
    divide the width."""
    kind = family(teacher)
    inner = intermediate_size(teacher)
    width, heads = section.hidden_size or teacher.hidden_size, section.num_attention_heads
    heads = heads or teacher.num_attention_heads
    inner = section.intermediate_size or (inner if width == teacher.hidden_size else 4 * width)
    if width % heads:
        raise ConfigError(f"model: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    shared: dict[str, Any] = {
        "vocab_size": teacher.vocab_size,  # with spare rows: both give distributions over it
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


_HEADS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm"),
    "distilbert": ("vocab_transform", "vocab_layer_norm"),
}
"""The MLM head before the vocabulary. In these families the tensors of a layer have one order, under other names."""


def copy_weights(teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int]) -> int:
    """Copy embeddings, the teacher's ``layers`` (from 0) and, if both have one, the MLM head; returns the number of
    tensors.

    Token types are copied if both have them. DistilBERT has none, as in its released code, so a student with all layers
    of a BERT still differs from it. Raises ``ConfigError`` for another family or a tensor of another shape.
    """
    types = family(teacher.config).token_types and family(student.config).token_types
    there, here = _tensors(teacher, layers, types), _tensors(student, [*range(len(layers))], types)
    pairs = [*zip(there, here, strict=False)]  # the MLM head comes last
    problems = [
        f"{name}: teacher {tuple(old.shape)}, student {tuple(new.shape)}"
        for (name, old), (_, new) in pairs
        if old.shape != new.shape
    ]
    if problems:
        raise ConfigError(
            "model.start: tensors of the teacher and of a student of this size have other shapes:\n"
            + "\n".join(f"  - {problem}" for problem in problems[:4])
            + "\nLeave model.hidden_size and model.intermediate_size out, or give model.start=random."
        )
    with torch.no_grad():
        for (_, old), (_, new) in pairs:
            new.copy_(old)
    return len(pairs)


def _tensors(model: PreTrainedModel, layers: list[int], token_types: bool) -> list[tuple[str, Tensor]]:
    """Names and tensors of embeddings, layers and, last, the MLM head if there is one."""
    if model.config.model_type not in _HEADS:
        raise ConfigError(
            f"model.start: layers of the family {model.config.model_type} cannot be copied into a student, only those "
            f"of {', '.join(_HEADS)}; give model.start=random"
        )
    base, vocabulary = model.base_model, model.get_output_embeddings()
    stack = next(module for module in base.modules() if isinstance(module, nn.ModuleList))
    tables = ["word_embeddings", "position_embeddings", *["token_type_embeddings"] * token_types, "LayerNorm"]
    parts = {f"embeddings.{name}": base.get_submodule(f"embeddings.{name}") for name in tables}
    parts |= {f"layer {layer}": stack[layer] for layer in layers}
    parts |= {name: model.get_submodule(name) for name in _HEADS[model.config.model_type] if vocabulary is not None}
    found: list[tuple[str, Tensor]] = []
    for part, module in parts.items():
        found += [(f"{part}.{name}", tensor) for name, tensor in module.named_parameters()]
    return found + ([] if vocabulary is None else [("vocabulary.bias", vocabulary.bias)])  # its weight is an embedding

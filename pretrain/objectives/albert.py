"""ALBERT: masked n-grams of whole words and sentence order, over layers that share their weights (Lan et al. 2020).

Examples: pairs of ALBERT's ``create_pretraining_data.py``, drawn afresh each epoch. Loss: mean cross-entropy of the
masked tokens plus mean cross-entropy of the order (0: as in the text, 1: swapped), weights 1 and 1
(``run_pretraining.py``).
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from transformers import AlbertConfig, AlbertForPreTraining, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.config.types import Count, Probability, Width
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode
from pretrain.config import ObjectiveSection
from pretrain.examples import DocumentSource
from pretrain.initialization import Weights
from pretrain.masked_lm import MaskedObjective, masked_lm_terms
from pretrain.masking import Masking, MaskingSection
from pretrain.model import ModelSection, packed_config
from pretrain.pairs import PairLabel, Tokens, sentence_order_pairs

LABEL = PairLabel("sop", "order_labels", ("in order", "swapped (or random)"))
Sharing = Literal["all", "attention", "ffn", "none"]


class NgramMaskingSection(MaskingSection):
    """ALBERT's masking."""

    max_predictions: Count | None = 20
    """Most predictions in an example. At 512 tokens ALBERT's 20 are 3.9 %; null predicts the rate's full share, 77."""
    whole_words: bool = True
    longest_ngram: Annotated[int, Field(ge=1, le=10)] = 3


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "albert"
    type: Literal["albert"] = "albert"
    masking: NgramMaskingSection = NgramMaskingSection()
    short_probability: Probability = 0.1
    """Share of document passes with a random shorter target length."""
    single_segment: Literal["original", "drop"] = "original"
    """Chunks of one sentence, which have no order: ``original`` pairs them with another document's sentences and calls
    that swapped, as the released code does; ``drop`` leaves them out."""
    embedding_size: Width | None = None
    """Width of the embeddings, projected to the model's; ALBERT's 128 where not given, or less in a narrow model."""
    sharing: Sharing = "all"
    """What the layers share: everything, their attention or their feed-forward parts only, or nothing (Table 4)."""

    @classmethod
    def decided_by(cls, weights: Weights) -> dict[str, Any]:
        """The width of the embeddings, and what the layers share."""
        return {"embedding_size": weights.config.embedding_size, "sharing": sharing_of(weights)}


def source(
    config: Config, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Sentence-order pairs, masked; ``ConfigError`` for a corpus in which no two sentences have an order."""
    num_documents = len(tokens.documents) - 1
    if num_documents < 2 and config.single_segment == "original":
        raise ConfigError(
            "the corpus has one document, but chunks of one sentence are paired with another one; separate documents "
            "by blank lines (or data.documents=file), or leave such chunks out: objective.single_segment=drop"
        )
    examples = DocumentSource(
        tokens,
        tokenizer,
        seed=seed,
        draw=partial(
            sentence_order_pairs,
            sequence_length=sequence_length,
            short_probability=config.short_probability,
            single_segment=config.single_segment,
        ),
        finish=Masking(config.masking, tokenizer, sequence_length),
        label=LABEL,
    )
    lacking = len(tokens.sentences) - 1 == num_documents
    if config.single_segment == "drop" and not lacking:
        lacking = not any(len(examples.examples(0, block)) for block in range(examples.num_blocks))
    if lacking:
        raise ConfigError(
            f"no two sentences of the corpus ({num_documents} documents) form a pair of at most {sequence_length} "
            "tokens, so there is no order to predict; separate documents, not sentences, by blank lines, lengthen "
            "train.phases' sequence_length, or train without sentence order: objective.type=mlm"
        )
    return examples


def albert_config(config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> AlbertConfig:
    """The transformers configuration of a model of these sizes.

    ``classifier_dropout_prob``, which pretraining does not use, stays at transformers' 0.1: the paper fine-tunes all
    tasks with it, also where the layers have no dropout (Table 14). Unless everything is shared, each layer is a group
    of its own, and :func:`share` ties what the layers have in common.
    """
    return packed_config(
        AlbertConfig,
        sizes,
        tokenizer,
        embedding_size=config.embedding_size or min(128, sizes.hidden_size),
        num_hidden_groups=1 if config.sharing == "all" else sizes.num_hidden_layers,
        bos_token_id=cast(int, tokenizer.cls_token_id),
        eos_token_id=cast(int, tokenizer.sep_token_id),
    )


_PARTS: dict[Sharing, tuple[str, ...]] = {
    "all": (),
    "attention": ("attention",),
    "ffn": ("ffn", "ffn_output", "full_layer_layer_norm"),
    "none": (),
}
"""Modules of a layer that all groups share; with ``all`` there is only one group."""


def share(model: AlbertForPreTraining, sharing: Sharing, *, untie: bool = False) -> None:
    """Give all layers the first one's modules for the shared parts, or, with ``untie``, copies of them."""
    first, *others = _layers(model)
    for layer in others:
        for part in _PARTS[sharing]:
            module = getattr(first, part)
            setattr(layer, part, copy.deepcopy(module) if untie else module)


def sharing_of(weights: Weights) -> Sharing:
    """What the layers of a checkpoint share; ``ConfigError`` for groups of layers, which cannot be trained here.

    A stock config.json cannot say that a part of each layer is shared, so equal copies are taken for shared ones.
    """
    config = weights.config
    if (config.num_hidden_groups, config.inner_group_num) == (1, 1):
        return "all"
    if (config.num_hidden_groups, config.inner_group_num) != (config.num_hidden_layers, 1):
        raise ConfigError(
            f"model.from: {weights.path!r} has {config.num_hidden_layers} layers in {config.num_hidden_groups} groups "
            f"of {config.inner_group_num}; give weights with one group for all layers (objective.sharing: all) or a "
            "group for each (attention, ffn, none)"
        )
    first, *others = (layer.state_dict() for layer in _layers(weights.read(AlbertForPreTraining, config)[0]))
    candidates: list[Sharing] = ["attention", "ffn"]
    for sharing in candidates:
        shared = [name for name in first if name.startswith(tuple(f"{part}." for part in _PARTS[sharing]))]
        if all(torch.equal(first[name], layer[name]) for layer in others for name in shared):
            return sharing
    return "none"


def _layers(model: AlbertForPreTraining) -> list[Any]:
    return [group.albert_layers[0] for group in cast(Any, model.albert.encoder).albert_layer_groups]


class Albert(MaskedObjective):
    """Both tasks of ALBERT on one stock ``AlbertForPreTraining``."""

    label = LABEL

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        model = AlbertForPreTraining(albert_config(config, sizes, tokenizer))
        share(model, config.sharing)
        super().__init__(model, sizes, tokenizer)
        self.sharing: Sharing = config.sharing

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm`` and ``sop`` with their accuracies; the order head sees the [CLS] rows only."""
        hidden, albert = encode(self.model, batch.input), self.model.albert
        pooled = albert.pooler_activation(albert.pooler(hidden[batch.input.first_rows]))
        # The stock head would apply dropout first; the original does not.
        logits = self.model.sop_classifier.classifier(pooled).float()
        return {**masked_lm_terms(self.model.predictions, hidden, batch), **LABEL.terms(logits, batch)}

    def exported(self) -> AlbertForPreTraining:
        """Encoder, pooler and both heads.

        A stock model cannot say that only a part of each layer is shared, so it gets equal copies.
        """
        if not _PARTS[self.sharing]:
            return self.model
        model = copy.deepcopy(self.model)
        share(model, self.sharing, untie=True)
        return model


build = Albert

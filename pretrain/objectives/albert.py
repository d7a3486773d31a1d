"""ALBERT: masked n-grams of whole words and sentence order, over layers that share their weights (Lan et al. 2020).

Examples: pairs of ALBERT's ``create_pretraining_data.py``, drawn afresh each epoch. Loss: mean cross-entropy of the
masked tokens plus mean cross-entropy of the order (0: as in the text, 1: swapped), weights 1 and 1
(``run_pretraining.py``).
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch.nn import functional as F
from transformers import AlbertConfig, AlbertForPreTraining, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.config.types import Count, Probability, Width
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective, Term
from bertillery.models.attention import NAME
from bertillery.models.dropout import prepare_dropout
from bertillery.models.encoders import encode
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.load import vocabulary_size
from pretrain.examples import DocumentSource
from pretrain.initialization import ObjectiveSection, Weights
from pretrain.model import ModelSection, initialize
from pretrain.objectives.mlm import MaskingSection, masked_batch, masked_lm_terms
from pretrain.pairs import Tokens, sentence_order_pairs

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

    def predicted(self, sequence_length: int) -> str:
        """The masking's."""
        return self.masking.predicted(sequence_length)

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
        draw=lambda documents, epoch: sentence_order_pairs(
            tokens,
            documents,
            sequence_length=sequence_length,
            short_probability=config.short_probability,
            single_segment=config.single_segment,
            seed=seed,
            epoch=epoch,
        ),
        finish=masked_batch(config.masking, tokenizer, sequence_length, pairs=True, labels="order_labels"),
    )
    single = len(tokens.sentences) - 1 == num_documents
    if single or (config.single_segment == "drop" and not any(map(len, _plans(examples)))):
        raise ConfigError(
            f"no two sentences of the corpus ({num_documents} documents) form a pair of at most {sequence_length} "
            "tokens, so there is no order to predict; separate documents, not sentences, by blank lines, lengthen "
            "train.phases' sequence_length, or train without sentence order: objective.type=mlm"
        )
    return examples


def _plans(examples: DocumentSource) -> Any:
    return (examples.examples(0, block) for block in range(examples.num_blocks))


def albert_config(config: Config, model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> AlbertConfig:
    """The transformers configuration of a size, with the packed attention.

    ``classifier_dropout_prob`` stays at transformers' 0.1, of which pretraining has no use: it is what the paper
    fine-tunes all tasks with, also where the layers have no dropout (Table 14).

    Unless all is shared every layer is a group of its own; :func:`share` then ties what is common to them.
    """
    settings: dict[str, Any] = {**model.sizes(), "attn_implementation": NAME}
    return AlbertConfig(
        vocab_size=vocabulary_size(tokenizer),
        embedding_size=config.embedding_size or min(128, model.hidden_size),
        num_hidden_groups=1 if config.sharing == "all" else model.num_hidden_layers,
        type_vocab_size=2,
        pad_token_id=cast(int, tokenizer.pad_token_id),
        bos_token_id=cast(int, tokenizer.cls_token_id),
        eos_token_id=cast(int, tokenizer.sep_token_id),
        **settings,
    )


_PARTS: dict[Sharing, tuple[str, ...]] = {
    "all": (),
    "attention": ("attention",),
    "ffn": ("ffn", "ffn_output", "full_layer_layer_norm"),
    "none": (),
}
"""Modules of a layer that are one and the same in all groups; with ``all`` there is but one group."""


def share(model: AlbertForPreTraining, sharing: Sharing, *, untie: bool = False) -> None:
    """Give all layers the first one's modules for the shared parts, or, with ``untie``, copies of them."""
    first, *others = _layers(model)
    for layer in others:
        for part in _PARTS[sharing]:
            module = getattr(first, part)
            setattr(layer, part, copy.deepcopy(module) if untie else module)


def sharing_of(weights: Weights) -> Sharing:
    """What the layers of existing weights share; ``ConfigError`` for groups of layers, which we do not train.

    Sharing a part of each layer has no word in a stock config.json: there the layers' copies are equal.
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
    kinds: list[Sharing] = ["attention", "ffn"]
    for kind in kinds:
        shared = [name for name in first if name.startswith(tuple(f"{part}." for part in _PARTS[kind]))]
        if all(torch.equal(first[name], layer[name]) for layer in others for name in shared):
            return kind
    return "none"


def _layers(model: AlbertForPreTraining) -> list[Any]:
    return [group.albert_layers[0] for group in cast(Any, model.albert.encoder).albert_layer_groups]


def build(config: Config, model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> Albert:
    """The objective with a freshly initialised model (torch's global generator)."""
    return Albert(model, config.sharing, AlbertForPreTraining(albert_config(config, model, tokenizer)))


class Albert(Objective):
    """Both tasks of ALBERT over one stock ``AlbertForPreTraining``."""

    def __init__(self, sizes: ModelSection, sharing: Sharing, model: AlbertForPreTraining) -> None:
        super().__init__()
        self.model = model
        self.sharing: Sharing = sharing
        share(model, sharing)
        initialize(model, sizes.initializer_range)
        prepare_dropout(model)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm`` and ``sop``; the order head sees the [CLS] rows only."""
        albert: Any = self.model.albert
        hidden = encode(self.model, batch.input)
        pooled = albert.pooler_activation(albert.pooler(hidden[batch.input.first_rows]))
        # Not through the stock head, which would drop out first; the original does not.
        logits = self.model.sop_classifier.classifier(pooled).float()
        labels = batch.targets["order_labels"]
        return {
            **masked_lm_terms(self.model.predictions, hidden, batch),
            "sop": Term(F.cross_entropy(logits, labels, reduction="sum"), "pairs"),
            "sop_accuracy": Term((logits.detach().argmax(-1) == labels).sum(), "pairs", weight=0.0),
        }

    def exported(self) -> AlbertForPreTraining:
        """Encoder, pooler and both heads.

        What only a part of each layer shares, a stock model cannot say: it gets copies that are equal.
        """
        if not _PARTS[self.sharing]:
            return self.model
        model = copy.deepcopy(self.model)
        share(model, self.sharing, untie=True)
        return model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: encoder with its projection, masked-word head, pooler and order head."""
        config, width = self.model.config, self.model.config.hidden_size
        pooler = 2.0 * batch.input.num_sequences * (width**2 + 2 * width)
        head = head_flops(width, config.vocab_size, batch.counts["masked"], config.embedding_size)
        return 3 * (encoder_flops(config, batch.input) + head + pooler)

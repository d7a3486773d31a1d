"""Masked language modelling on full segments, without a sentence task (RoBERTa's way, Liu et al. 2019)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from bertillery.config.section import Section
from bertillery.config.types import Count, Share
from bertillery.data.tokenizer import starts_of_words
from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.objective import Objective, Term
from bertillery.models.attention import NAME
from bertillery.models.chunks import word_sums
from bertillery.models.dropout import prepare_dropout
from bertillery.models.encoders import encode
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.load import vocabulary_size
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.initialization import ObjectiveSection
from pretrain.masking import mask_tokens, num_predictions
from pretrain.model import ModelSection, initialize
from pretrain.pairs import Tokens, full_segments


class MaskingSection(Section):
    """BERT's masking."""

    rate: Share = 0.15
    """Share of the tokens that are predicted; 0.3 works better for some (Wettig et al. 2023)."""
    max_predictions: Count | None = None
    """Most predictions in an example; where not given, the rate's share of a full sequence, rounded up (20, 77)."""
    whole_words: bool = False
    """Choose words, not tokens."""
    longest_ngram: Annotated[int, Field(ge=1, le=10)] = 1
    """Choose runs of up to so many words (or tokens), short ones more often; ALBERT's is 3."""

    def most(self, sequence_length: int) -> int:
        """Predictions in an example, at most, where sequences have this length."""
        return self.max_predictions or int(np.ceil(self.rate * sequence_length))

    def predicted(self, sequence_length: int) -> str:
        """As :meth:`ObjectiveSection.predicted`."""
        most, wanted = self.most(sequence_length), int(num_predictions(sequence_length, self.rate, sequence_length))
        return f"{min(most, wanted)} of {sequence_length} tokens" + (
            f": objective.masking.max_predictions={self.max_predictions} decides, not the rate of {self.rate:g}, which "
            f"would be {wanted} (max_predictions=null)"
        ) * (most < wanted)


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "bert"
    num_texts: ClassVar[int] = 1
    type: Literal["mlm"] = "mlm"
    masking: MaskingSection = MaskingSection()

    def predicted(self, sequence_length: int) -> str:
        """The masking's."""
        return self.masking.predicted(sequence_length)


def masked_batch(
    section: MaskingSection,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    pairs: bool,
    labels: str = "pair_labels",
) -> Any:
    """The function that masks flat examples and packs them, with pair ``labels`` where the objective has pairs."""
    starts_word = starts_of_words(tokenizer) if section.whole_words else None
    maximum = section.most(sequence_length)

    def finish(examples: FlatExamples) -> PackedBatch:
        masked = mask_tokens(
            examples.input_ids,
            examples.lengths,
            examples.keys,
            ~examples.special,
            rate=section.rate,
            maximum=maximum,
            mask_id=cast(int, tokenizer.mask_token_id),
            vocab_size=vocabulary_size(tokenizer),
            starts_word=None if starts_word is None else starts_word[examples.input_ids],
            longest_ngram=section.longest_ngram,
        )
        targets = {"masked_positions": masked.positions, "masked_ids": masked.labels}
        counts = {"masked": len(masked.positions)}
        if pairs:
            targets[labels] = examples.labels
            counts["pairs"] = len(examples.labels)
        return pack(masked.input_ids, examples.token_type_ids, examples.lengths, targets=targets, counts=counts)

    return finish


def source(
    config: Config, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Full segments, masked as BERT masks."""
    return DocumentSource(
        tokens,
        tokenizer,
        seed=seed,
        draw=lambda documents, epoch: full_segments(
            tokens, documents, sequence_length=sequence_length, seed=seed, epoch=epoch
        ),
        finish=masked_batch(config.masking, tokenizer, sequence_length, pairs=False),
        num_texts=config.num_texts,
    )


def bert_config(model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    """The transformers configuration of a size, with the packed attention."""
    settings: dict[str, Any] = {**model.sizes(), "attn_implementation": NAME}
    return BertConfig(
        vocab_size=vocabulary_size(tokenizer),
        type_vocab_size=2,
        pad_token_id=cast(int, tokenizer.pad_token_id),
        **settings,
    )


def build(config: Config, model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> Mlm:
    """The objective with a freshly initialised model (torch's global generator)."""
    return Mlm(model, BertForMaskedLM(bert_config(model, tokenizer)))


def masked_lm_terms(head: nn.Module, hidden: Tensor, batch: PackedBatch) -> dict[str, Term]:
    """Sums of cross-entropy and of right guesses; the vocabulary projection sees the masked rows only.

    ``hidden`` is (T, hidden size), ``head`` a stock one whose last layer is ``decoder``.
    """
    rows, vocab_size = hidden[batch.targets["masked_positions"]], cast(nn.Linear, head.decoder).out_features
    words = batch.targets["masked_ids"]
    loss, right = word_sums(head, rows, words, parameters=head.parameters(), vocab_size=vocab_size)
    return {"mlm": Term(loss, "masked"), "mlm_accuracy": Term(right, "masked", weight=0.0)}


class Mlm(Objective):
    """Masked language model alone."""

    def __init__(self, sizes: ModelSection, model: BertForMaskedLM) -> None:
        super().__init__()
        self.model = model
        initialize(model, sizes.initializer_range)
        prepare_dropout(model)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Term ``mlm``: mean cross-entropy of the masked tokens."""
        hidden = encode(self.model, batch.input)
        return masked_lm_terms(self.model.cls.predictions, hidden, batch)

    def exported(self) -> BertForMaskedLM:
        """The masked language model."""
        return self.model

    @torch.no_grad()
    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: encoder and head."""
        config = self.model.config
        head = head_flops(config.hidden_size, config.vocab_size, batch.counts["masked"])
        return 3 * (encoder_flops(config, batch.input) + head)

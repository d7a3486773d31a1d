"""Masked language modelling on full segments, without a sentence task, as in RoBERTa (Liu et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import numpy as np
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective, Term
from bertillery.models.dropout import prepare_dropout
from bertillery.models.encoders import encode
from bertillery.models.flops import encoder_flops, head_flops
from pretrain.config import ObjectiveSection
from pretrain.examples import DocumentSource
from pretrain.masking import Masking, MaskingSection, masked_lm_baselines, masked_lm_terms
from pretrain.model import ModelSection, bert_config, initialize
from pretrain.pairs import Tokens, full_segments


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "bert"
    num_texts: ClassVar[int] = 1
    type: Literal["mlm"] = "mlm"
    masking: MaskingSection = MaskingSection()


def source(
    config: Config, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Full segments with BERT's masks."""
    return DocumentSource(
        tokens,
        tokenizer,
        seed=seed,
        draw=partial(full_segments, sequence_length=sequence_length),
        finish=Masking(config.masking, tokenizer, sequence_length),
        num_texts=config.num_texts,
    )


class Mlm(Objective):
    """A stock ``BertForMaskedLM``."""

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = BertForMaskedLM(bert_config(sizes, tokenizer))
        self.mask_id = cast(int, tokenizer.mask_token_id)
        initialize(self.model, sizes.initializer_range)
        prepare_dropout(self.model)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm``, the mean cross-entropy of the masked tokens, and ``mlm_accuracy``."""
        return masked_lm_terms(self.model.cls.predictions, encode(self.model, batch.input), batch)

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Those of the masked tokens."""
        return masked_lm_baselines(batches, unigrams, self.mask_id)

    def exported(self) -> BertForMaskedLM:
        """The masked language model."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: encoder and MLM head."""
        config = self.model.config
        head = head_flops(config.hidden_size, config.vocab_size, batch.counts["masked"])
        return 3 * (encoder_flops(config, batch.input) + head)


build = Mlm

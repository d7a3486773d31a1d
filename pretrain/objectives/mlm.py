"""Masked language modelling on full segments, without a sentence task, as in RoBERTa (Liu et al. 2019)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode
from pretrain.config import ObjectiveSection
from pretrain.examples import DocumentSource
from pretrain.masked_lm import MaskedObjective, masked_lm_terms
from pretrain.masking import Masking, MaskingSection
from pretrain.model import ModelSection, bert_config
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


class Mlm(MaskedObjective):
    """A stock ``BertForMaskedLM``."""

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(BertForMaskedLM(bert_config(sizes, tokenizer)), sizes, tokenizer)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm``, the mean cross-entropy of the masked tokens, and ``mlm_accuracy``."""
        return masked_lm_terms(self.model.cls.predictions, encode(self.model, batch.input), batch)


build = Mlm

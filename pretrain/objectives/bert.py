"""BERT: masked language modelling and next-sentence prediction (Devlin et al. 2019).

Examples: pairs of ``create_pretraining_data.py``, drawn afresh each epoch. Loss: mean cross-entropy of the masked
tokens plus mean cross-entropy of the pair label (0: B follows A, 1: B is random), weights 1 and 1
(``run_pretraining.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor
from transformers import BertForPreTraining, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.config.types import Probability
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode
from pretrain.config import ObjectiveSection
from pretrain.examples import DocumentSource
from pretrain.masked_lm import MaskedObjective, masked_lm_terms
from pretrain.masking import Masking, MaskingSection
from pretrain.model import ModelSection, bert_config
from pretrain.pairs import PairLabel, Tokens, next_sentence_pairs

D = TypeVar("D", bound=DocumentSource)
LABEL = PairLabel("nsp", "pair_labels", ("IsNext", "NotNext (random)"))


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "bert"
    type: Literal["bert"] = "bert"
    masking: MaskingSection = MaskingSection()
    short_probability: Probability = 0.1
    """Share of document passes with a random shorter target length."""


def source(
    config: Config,
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    seed: int,
    kind: Callable[..., D] = DocumentSource,
) -> D:
    """Next-sentence pairs, masked, as a ``kind`` of source; ``ConfigError`` for a corpus in which every next sentence
    would be random."""
    check_corpus(tokens, remedy="train without it: objective.type=mlm")
    return kind(
        tokens,
        tokenizer,
        seed=seed,
        draw=partial(next_sentence_pairs, sequence_length=sequence_length, short_probability=config.short_probability),
        finish=Masking(config.masking, tokenizer, sequence_length),
        label=LABEL,
    )


def check_corpus(tokens: Tokens, *, remedy: str) -> None:
    """Raise ``ConfigError``, with this remedy, for a corpus in which every next sentence would be random."""
    num_documents = len(tokens.documents) - 1
    if num_documents < 2:
        raise ConfigError(
            "the corpus has one document, but next-sentence prediction takes its random sentences from another one; "
            f"separate documents by blank lines (or data.documents=file), or {remedy}"
        )
    if len(tokens.sentences) - 1 == num_documents:
        raise ConfigError(
            f"all {num_documents} documents have a single sentence, so no sentence has a next one; separate documents, "
            f"not sentences, by blank lines, or {remedy}"
        )


class Bert(MaskedObjective):
    """Both tasks of BERT on one stock ``BertForPreTraining``."""

    label = LABEL

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(BertForPreTraining(bert_config(sizes, tokenizer)), sizes, tokenizer)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm`` and ``nsp`` with their accuracies; the pair head sees the [CLS] rows only."""
        return both_terms(self.model, encode(self.model, batch.input), batch)


def both_terms(model: Any, hidden: Tensor, batch: PackedBatch) -> dict[str, Term]:
    """Those of masked words and of pairs, from hidden states (T, H), of a model with BERT's heads."""
    # The stock pooler takes position 0 of each row of a batch, so every [CLS] becomes a row of one position.
    pooled = model.bert.pooler(hidden[batch.input.first_rows][:, None])
    logits = model.cls.seq_relationship(pooled).float()
    return {**masked_lm_terms(model.cls.predictions, hidden, batch), **LABEL.terms(logits, batch)}


build = Bert

"""BERT: masked language modelling and next-sentence prediction (Devlin et al. 2019).

Examples: pairs of ``create_pretraining_data.py``, drawn afresh each epoch. Loss: mean cross-entropy of the masked
tokens plus mean cross-entropy of the pair label (0: B follows A, 1: B is random), weights 1 and 1
(``run_pretraining.py``).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch.nn import functional as F
from transformers import BertForPreTraining, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.config.types import Probability
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective, Term
from bertillery.models.dropout import prepare_dropout
from bertillery.models.encoders import encode
from bertillery.models.flops import encoder_flops, head_flops
from pretrain.examples import DocumentSource
from pretrain.initialization import ObjectiveSection
from pretrain.model import ModelSection, initialize
from pretrain.objectives.mlm import MaskingSection, bert_config, masked_batch, masked_lm_terms
from pretrain.pairs import Tokens, next_sentence_pairs


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "bert"
    type: Literal["bert"] = "bert"
    masking: MaskingSection = MaskingSection()
    short_probability: Probability = 0.1
    """Share of document passes with a random shorter target length."""

    def predicted(self, sequence_length: int) -> str:
        """The masking's."""
        return self.masking.predicted(sequence_length)


def source(
    config: Config, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Next-sentence pairs, masked; ``ConfigError`` for a corpus in which every next sentence would be random."""
    check_corpus(tokens, remedy="train without it: objective.type=mlm")
    return DocumentSource(
        tokens,
        tokenizer,
        seed=seed,
        draw=lambda documents, epoch: next_sentence_pairs(
            tokens,
            documents,
            sequence_length=sequence_length,
            short_probability=config.short_probability,
            seed=seed,
            epoch=epoch,
        ),
        finish=masked_batch(config.masking, tokenizer, sequence_length, pairs=True),
    )


def check_corpus(tokens: Tokens, *, remedy: str) -> None:
    """Raise ``ConfigError`` for a corpus in which every next sentence would be random; ``remedy`` is a way out."""
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


def build(config: Config, model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> Bert:
    """The objective with a freshly initialised model (torch's global generator)."""
    return Bert(model, BertForPreTraining(bert_config(model, tokenizer)))


class Bert(Objective):
    """Both tasks of BERT over one stock ``BertForPreTraining``."""

    def __init__(self, sizes: ModelSection, model: BertForPreTraining) -> None:
        super().__init__()
        self.model = model
        initialize(model, sizes.initializer_range)
        prepare_dropout(model)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm`` and ``nsp``; the pair head sees the [CLS] rows only."""
        hidden = encode(self.model, batch.input)
        assert self.model.bert.pooler is not None
        # The stock pooler takes position 0 of each row of a batch, so every [CLS] becomes a row of one position.
        pooled = self.model.bert.pooler(hidden[batch.input.first_rows][:, None])
        logits = self.model.cls.seq_relationship(pooled).float()
        labels = batch.targets["pair_labels"]
        return {
            **masked_lm_terms(self.model.cls.predictions, hidden, batch),
            "nsp": Term(F.cross_entropy(logits, labels, reduction="sum"), "pairs"),
            "nsp_accuracy": Term((logits.detach().argmax(-1) == labels).sum(), "pairs", weight=0.0),
        }

    def exported(self) -> BertForPreTraining:
        """Encoder, pooler and both heads."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: encoder, masked-word head, pooler and pair head."""
        config, width = self.model.config, self.model.config.hidden_size
        pooler = 2.0 * batch.input.num_sequences * (width**2 + 2 * width)
        head = head_flops(width, config.vocab_size, batch.counts["masked"])
        return 3 * (encoder_flops(config, batch.input) + head + pooler)

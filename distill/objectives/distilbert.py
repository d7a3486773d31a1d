"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): the teacher's masked-word distribution, the text's words, and the
direction of the teacher's hidden states.

L = 5 * T^2 KL(teacher || student) + 2 * masked-word cross-entropy + 1 * (1 - cosine) with T = 2, the weights of the
released code, where divergence and cosine are means over all tokens, special ones included. (Weights of 1 each perform
poorly, says its author.) For a task (section 3 of the paper): the labels and the teacher's softened answers, half each.

Legend: T tokens of a batch, R rows of a chunk of it, H width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.corpus import Part
from distill.imitation import Imitation
from distill.rarity import RareMaskedSource, rarity_weights
from distill.teacher import Taught, Teacher
from engine.batch import PackedBatch
from engine.chunks import in_chunks, word_sums
from engine.config import ConfigError, Section
from engine.encoders import encode, word_logits
from engine.flops import encoder_flops, head_flops
from engine.objective import Term
from engine.ranges import Factor, Share, Weight
from finetune.model import Predictor

MASKED_WORDS = True
"""The student has a masked-word head, and so has the teacher."""
_CHUNK = 1 << 24
"""Logits of student or teacher that are held at a time, at most: all of a batch are never there together."""


class Config(Section):
    """Section of this method."""

    type: Literal["distilbert"] = "distilbert"
    temperature: Factor = 2.0
    """Softens both distributions."""
    kl: Weight = 5.0
    """Weight of the divergence from the teacher's distribution, at every token."""
    mlm: Weight = 2.0
    """Weight of the masked words' cross-entropy."""
    cosine: Weight = 1.0
    """Weight of the angle between last hidden states, which have to be of one width."""
    rate: Share = 0.15
    """Share of a step's tokens that are predicted."""
    smoothing: Weight = 0.7
    """Tokens are predicted with a probability proportional to their count to the power of minus this."""


class AnswersConfig(Section):
    """Section of this method for a task."""

    type: Literal["distilbert"] = "distilbert"
    temperature: Factor = 2.0
    """Softens both distributions."""
    hard: Weight = 0.5
    """Weight of the labels."""
    soft: Weight = 0.5
    """Weight of the teacher's answers."""


def source(
    config: Config, part: Part, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> RareMaskedSource:
    """Segments of whole sentences, masked afresh in each epoch."""
    weights = rarity_weights(part.unigrams, config.smoothing)
    return RareMaskedSource(
        part.tokens, tokenizer, weights=weights, rate=config.rate, sequence_length=sequence_length, seed=seed
    )


def build(config: Config, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> General:
    """``ConfigError`` where the widths differ though the cosine counts, or nothing counts at all."""
    here, there = student.config.hidden_size, teacher.module.config.hidden_size
    if config.cosine and here != there:
        raise ConfigError(
            f"objective.cosine: hidden states of {there} (teacher) and {here} (student) have no angle; give a student "
            "of the teacher's width, objective.cosine=0, or objective.type=tinybert or minilm, which need no one width"
        )
    if not config.kl + config.mlm + config.cosine:
        raise ConfigError("objective: kl, mlm and cosine are all 0, so nothing would be learned; give one a weight")
    return General(config, student, teacher)


def task(config: AnswersConfig, student: Predictor, teacher: Teacher[Predictor]) -> Imitation:
    """Labels and the teacher's softened answers."""
    return Imitation(student, teacher, hard=config.hard, soft=config.soft, temperature=config.temperature)


class General(Taught):
    """A student with a masked-word head beside a teacher with one."""

    def __init__(self, config: Config, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> None:
        super().__init__(student, teacher)
        self.config = config
        if not config.kl + config.mlm:  # nothing depends on the head, and processes wait for gradients
            encoder = {id(parameter) for parameter in student.base_model.parameters()}
            for parameter in student.parameters():
                parameter.requires_grad_(id(parameter) in encoder)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """``kl`` (times T^2), ``mlm``, ``cosine``; beside them the student's accuracy and the teacher's two numbers."""
        hidden = encode(self.student, batch)
        with self.teacher.asked(batch) as teacher:
            taught = encode(teacher, batch)
        kl = self._divergence(batch, hidden, taught)
        positions, words = batch.targets["masked_positions"], batch.targets["masked_ids"]
        vocab_size, parameters = self.student.config.vocab_size, [*self.student.parameters()]
        mine = partial(_words, self.student, batch)
        loss, right = word_sums(mine, hidden[positions], words, parameters=parameters, vocab_size=vocab_size)
        with self.teacher.asked(batch) as teacher:
            theirs = partial(_words, teacher, batch)
            known, known_right = word_sums(theirs, taught[positions], words, parameters=(), vocab_size=vocab_size)
        terms = {
            "kl": Term(kl, "tokens", self.config.kl),
            "mlm": Term(loss, "masked", self.config.mlm),
            "mlm_accuracy": Term(right, "masked", 0.0),
            "teacher_mlm": Term(known, "masked", 0.0),
            "teacher_mlm_accuracy": Term(known_right, "masked", 0.0),
        }
        if hidden.shape == taught.shape:
            angle = 1 - F.cosine_similarity(hidden.float(), taught.float(), dim=-1)
            terms["cosine"] = Term(angle.sum(), "tokens", self.config.cosine)
        return terms

    def _divergence(self, batch: PackedBatch, hidden: Tensor, taught: Tensor) -> Tensor:
        """Sum over all tokens of the divergence times T^2, from the last hidden states (T, H) of both."""
        temperature = self.config.temperature

        def divergence(hidden: Tensor, taught: Tensor) -> tuple[Tensor]:
            mine = F.log_softmax(_words(self.student, batch, hidden) / temperature, -1)
            with self.teacher.asked(batch) as teacher:
                theirs = F.log_softmax(_words(teacher, batch, taught) / temperature, -1)
            return (F.kl_div(mine, theirs, reduction="sum", log_target=True) * temperature**2,)

        parameters, width = self.student.parameters(), self.student.config.vocab_size
        return in_chunks(divergence, hidden, taught, parameters=parameters, width=width, most=_CHUNK)[0]

    def flops(self, batch: PackedBatch) -> float:
        """Three times the student's forward pass and once the teacher's, with their heads at every token and again at
        the masked ones."""
        return 3 * _forward_flops(self.student, batch) + _forward_flops(self.teacher.module, batch)


def _words(model: PreTrainedModel, batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Logits (R, V), float32, of last hidden states (R, H)."""
    return word_logits(model, batch, torch.arange(len(hidden), device=hidden.device), hidden)


def _forward_flops(model: PreTrainedModel, batch: PackedBatch) -> float:
    config = model.config
    narrow = getattr(config, "embedding_size", None)
    rows = batch.num_tokens + batch.counts["masked"]
    return encoder_flops(config, batch) + head_flops(config.hidden_size, config.vocab_size, rows, narrow)

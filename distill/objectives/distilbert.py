"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): the teacher's token distributions, MLM, and the direction of the
teacher's hidden states.

L = 5 * T^2 KL(teacher || student) + 2 * MLM loss + 1 * (1 - cosine) with T = 2, the weights of the released code, in
which divergence and cosine are means over all tokens, special ones included. (Weights of 1 each perform poorly, says
its author.) For a task (section 3 of the paper): labels and soft targets at equal weights.

Legend: T tokens of a batch, R rows of a chunk of it, H width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Factor, Share, Weight
from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.objective import Term
from bertillery.engine.rng import key, uniform
from bertillery.models.encoders import encode, mlm_logits
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.layers.chunks import in_chunks, word_sums
from bertillery.models.layers.divergence import divergences
from bertillery.models.load import vocabulary_size
from distill.corpus import Part, unmasked
from distill.soft_targets import Imitation
from distill.teacher import Taught, Teacher
from finetune.predict import Predictor
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.masking import corrupt
from pretrain.pairs import ROW, Tokens, full_segments

MASKED_WORDS = True
"""Student and teacher need an MLM head."""
MASKED_ROW = np.dtype([*ROW.descr, ("threshold", np.float64)])
"""A row of :mod:`pretrain.pairs`, with the latest time at which a token of its step is still masked."""
_TIME = 301
"""Purpose of a draw; part of its key."""
_SHORTEST = 12
_UNKNOWN = 0.5
"""Segments with this share of unknown tokens, or more, are left out."""
_SCANNED = 1 << 24
_CHUNK = 1 << 26
"""Most logits of student or teacher at a time: 256 MiB in float32, 2,198 tokens of BERT's vocabulary."""


class Config(Section):
    """Section of this method."""

    type: Literal["distilbert"] = "distilbert"
    temperature: Factor = 2.0
    """Softens both distributions."""
    kl: Weight = 5.0
    """Weight of the divergence from the teacher's distribution, at every token."""
    mlm: Weight = 2.0
    """Weight of the MLM loss."""
    cosine: Weight = 1.0
    """Weight of the cosine loss between last hidden states, which needs equal hidden sizes."""
    rate: Share = 0.15
    """Share of a step's tokens that are masked."""
    smoothing: Weight = 0.7
    """Tokens are masked with a probability proportional to their count to the power of minus this."""


class AnswersConfig(Section):
    """Section of this method for a task."""

    type: Literal["distilbert"] = "distilbert"
    temperature: Factor = 2.0
    """Softens both distributions."""
    hard: Weight = 0.5
    """Weight of the labels."""
    soft: Weight = 0.5
    """Weight of the soft targets."""


def source(
    config: Config, part: Part, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> RareMaskedSource:
    """Segments of whole sentences, masked afresh in each epoch."""
    weights = rarity_weights(part.unigrams, config.smoothing)
    return RareMaskedSource(
        part.tokens, tokenizer, weights=weights, rate=config.rate, sequence_length=sequence_length, seed=seed
    )


def build(config: Config, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> Distributions:
    """``ConfigError`` if the cosine loss is used with unequal hidden sizes, or all weights are 0."""
    here, there = student.config.hidden_size, teacher.module.config.hidden_size
    if config.cosine and here != there:
        raise ConfigError(
            f"objective.cosine: cosine loss needs equal hidden sizes (teacher {there}, student {here}); give "
            f"model.hidden_size={there}, objective.cosine=0, or objective.type=tinybert or minilm, which do not need it"
        )
    if not config.kl + config.mlm + config.cosine:
        raise ConfigError("objective: kl, mlm and cosine are all 0, so nothing would be learned; give one a weight")
    return Distributions(config, student, teacher)


def task(config: AnswersConfig, student: Predictor, teacher: Teacher[Predictor]) -> Imitation:
    """Labels and soft targets."""
    return Imitation(student, teacher, hard=config.hard, soft=config.soft, temperature=config.temperature)


def rarity_weights(unigrams: np.ndarray, smoothing: float) -> np.ndarray:
    """Relative probability (V,) of masking each token: its count in the text to the power of -``smoothing``."""
    return np.maximum(unigrams, 1).astype(np.float64) ** -smoothing


class RareMaskedSource(DocumentSource):
    """Segments of whole sentences with exactly ``ceil(rate * tokens)`` of a step masked, special tokens counted.

    Tokens are drawn without replacement, with probabilities proportional to their weights, over the whole step (the
    released code: over its batch); special tokens, among them unknown words, are never masked. The draw does not depend
    on how a step is divided: every token has a keyed exponential time with its weight as rate, and the earliest are
    masked (Efraimidis and Spirakis 2006). :meth:`sample_step` writes the time of the last one into the rows.

    Segments of less than 12 tokens, or with half of them unknown, are left out; ``ConfigError`` if that leaves none.
    Unlike the released code, which pads, this does not group examples by length.
    """

    def __init__(
        self,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: np.ndarray,
        rate: float,
        sequence_length: int,
        seed: int,
    ) -> None:
        draw = partial(full_segments, sequence_length=sequence_length)
        super().__init__(tokens, tokenizer, seed=seed, draw=draw, finish=unmasked, num_texts=1)
        self._weights, self._rate = weights.copy(), rate
        self._weights[tokenizer.all_special_ids] = 0
        self._mask_id, self._vocab_size = cast(int, tokenizer.mask_token_id), vocabulary_size(tokenizer)
        found = [np.empty(0, np.int64)]
        for start in range(0, len(tokens.ids), _SCANNED):  # of a memory-mapped array a part at a time
            found.append(start + np.flatnonzero(tokens.ids[start : start + _SCANNED] == tokenizer.unk_token_id))
        self._unknown = np.concatenate(found)
        if not any(len(self.examples(0, block)) for block in range(self.num_blocks)):
            raise ConfigError(
                f"no segment of the text, cut to a sequence_length of {sequence_length}, has {_SHORTEST} tokens of "
                "which more than half are known; give longer sequences or documents, or a teacher that knows the "
                "language"
            )

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``MASKED_ROW``."""
        found = super().examples(epoch, block)
        ends = found["a_start"] + found["a_length"]
        unknown = np.searchsorted(self._unknown, ends) - np.searchsorted(self._unknown, found["a_start"])
        found = found[(found["length"] >= _SHORTEST) & (unknown < _UNKNOWN * found["length"])]
        rows = np.zeros(len(found), MASKED_ROW)
        for name in ROW.names or ():
            rows[name] = found[name]
        return rows

    def sample_step(self, rows: np.ndarray, step: int | None) -> np.ndarray:
        """The rows of a step with the threshold that masks its share of tokens."""
        examples = self.lay_out(rows)
        times = self._times(examples)
        wanted = min(int(np.ceil(self._rate * len(times))), int(np.isfinite(times).sum()))
        rows = rows.copy()
        rows["threshold"] = np.partition(times, wanted - 1)[wanted - 1] if wanted else -1
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Rows of a step, masked, with the targets of :mod:`pretrain.masking`."""
        examples = self.lay_out(rows)
        chosen = self._times(examples) <= np.repeat(rows["threshold"], examples.lengths)
        positions = np.flatnonzero(chosen)
        return corrupt(
            examples.input_ids,
            positions,
            _token_keys(examples)[positions],
            mask_id=self._mask_id,
            vocab_size=self._vocab_size,
        ).pack(examples)

    def _times(self, examples: FlatExamples) -> np.ndarray:
        """(T,) float64, infinite for special tokens."""
        weights, times = self._weights[examples.input_ids], -np.log1p(-uniform(_token_keys(examples), _TIME))
        return np.divide(times, weights, out=np.full(len(times), np.inf), where=weights > 0)


def _token_keys(examples: FlatExamples) -> np.ndarray:
    return key(np.repeat(examples.keys, examples.lengths), ranges(examples.lengths))


class Distributions(Taught):
    """A student compared with its teacher in distributions of tokens and last hidden states."""

    def __init__(self, config: Config, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> None:
        super().__init__(student, teacher)
        self.config = config
        if not config.kl + config.mlm:  # the loss does not depend on the head, and processes wait for gradients
            encoder = {id(parameter) for parameter in student.base_model.parameters()}
            for parameter in student.parameters():
                parameter.requires_grad_(id(parameter) in encoder)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """``kl`` (times T^2), ``mlm`` and ``cosine``; as metrics accuracy, and loss and accuracy of the teacher."""
        hidden = encode(self.student, batch.input)
        with self.teacher.asked(batch) as teacher:
            taught = encode(teacher, batch.input)
        kl = self._divergence(batch, hidden, taught)
        positions, labels = batch.targets["masked_positions"], batch.targets["masked_ids"]
        vocab_size, parameters = self.student.config.vocab_size, [*self.student.parameters()]
        mine = partial(_logits, self.student, batch)
        loss, correct = word_sums(mine, hidden[positions], labels, parameters=parameters, vocab_size=vocab_size)
        with self.teacher.asked(batch) as teacher:
            theirs = partial(_logits, teacher, batch)
            known, known_correct = word_sums(theirs, taught[positions], labels, parameters=(), vocab_size=vocab_size)
        terms = {
            "kl": Term(kl, "tokens", self.config.kl, title="divergence from the teacher (T² nats)"),
            "mlm": Term(loss, "masked", self.config.mlm, title="MLM loss (nats)"),
            "mlm_accuracy": Term(correct, "masked", 0.0, title="MLM accuracy", direction="higher"),
            "teacher_mlm": Term(known, "masked", 0.0),
            "teacher_mlm_accuracy": Term(known_correct, "masked", 0.0),
        }
        if hidden.shape == taught.shape:
            angle = 1 - F.cosine_similarity(hidden.float(), taught.float(), dim=-1)
            terms["cosine"] = Term(angle.sum(), "tokens", self.config.cosine, title="1 - cosine of last hidden states")
        return terms

    def _divergence(self, batch: PackedBatch, hidden: Tensor, taught: Tensor) -> Tensor:
        """T^2 KL(teacher || student), summed over all tokens, from the last hidden states (T, H) of both."""
        temperature = self.config.temperature

        def divergence(hidden: Tensor, taught: Tensor) -> tuple[Tensor]:
            mine = _logits(self.student, batch, hidden)
            with self.teacher.asked(batch) as teacher:
                theirs = _logits(teacher, batch, taught)
            return (divergences(mine, theirs, temperature).sum() * temperature**2,)

        parameters, width = self.student.parameters(), self.student.config.vocab_size
        return in_chunks(divergence, hidden, taught, parameters=parameters, width=width, most=_CHUNK)[0]

    def flops(self, batch: PackedBatch) -> float:
        """Three times the student's forward pass, once the teacher's; heads run on all tokens and on masked ones."""
        return 3 * _forward_flops(self.student, batch) + _forward_flops(self.teacher.module, batch)


def _logits(model: PreTrainedModel, batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Logits (R, V) of last hidden states (R, H)."""
    return mlm_logits(model, batch.input, torch.arange(len(hidden), device=hidden.device), hidden)


def _forward_flops(model: PreTrainedModel, batch: PackedBatch) -> float:
    config = model.config
    narrow = getattr(config, "embedding_size", None)
    rows = batch.input.num_tokens + batch.counts["masked"]
    return encoder_flops(config, batch.input) + head_flops(config.hidden_size, config.vocab_size, rows, narrow)

"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): the teacher's masked-word distribution, the text's words, and the
direction of the teacher's hidden states.

L = 5 * T^2 KL(teacher || student) + 2 * masked-word cross-entropy + 1 * (1 - cosine) with T = 2, the weights of the
released code, where divergence and cosine are means over all tokens, special ones included. (Weights of 1 each perform
poorly, says its author.) For a task (section 3 of the paper): the labels and the teacher's softened answers, half each.

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
from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.objective import Term
from bertillery.engine.rng import key, uniform
from bertillery.models.chunks import in_chunks, word_sums
from bertillery.models.encoders import encode, mlm_logits
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.load import vocabulary_size
from distill.corpus import Part
from distill.soft_targets import Imitation
from distill.teacher import Taught, Teacher
from finetune.predictor import Predictor
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.masking import corrupt
from pretrain.pairs import ROW, Tokens, full_segments

MASKED_ROW = np.dtype([*ROW.descr, ("threshold", np.float64)])
"""A row of :mod:`pretrain.pairs`, and how late in the order of its step a token may come and still be predicted."""
_PLACE = 301
"""What a draw is for; part of its key."""
_SHORTEST = 12
_UNKNOWN = 0.5
"""A segment with such a share of unknown words, or a larger one, is left out."""
_SCANNED = 1 << 24


def rarity_weights(unigrams: np.ndarray, smoothing: float) -> np.ndarray:
    """Relative probability (V,) of each piece to be predicted: its count in the text to the power of -``smoothing``."""
    return np.maximum(unigrams, 1).astype(np.float64) ** -smoothing


class RareMaskedSource(DocumentSource):
    """Segments of whole sentences, masked: exactly ``ceil(rate * tokens)`` of a step, special tokens counted.

    They are drawn without replacement, a token with a probability proportional to its weight; special tokens never,
    wherever they stand, and an unknown word's is one. The draw is over the whole step, as the original's is over its
    batch, and does not depend on how the step is shared out: every token has a keyed exponential time of its weight,
    the earliest are taken (Efraimidis and Spirakis 2006), and :meth:`sample_step` writes the time of the last one into
    the rows. Segments of less than 12 tokens or with half of them unknown are left out, and ``ConfigError`` is
    raised where that leaves none. The original groups examples by length, for the sake of padding, which packed batches
    have not.
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
        super().__init__(
            tokens,
            tokenizer,
            seed=seed,
            draw=partial(full_segments, sequence_length=sequence_length),
            finish=_refuse,
            num_texts=1,
        )
        self._weights, self._rate = weights.copy(), rate
        self._weights[tokenizer.all_special_ids] = 0
        self._mask_id, self._vocab_size = cast(int, tokenizer.mask_token_id), vocabulary_size(tokenizer)
        starts = range(0, len(tokens.ids), _SCANNED)
        found = [
            start + np.flatnonzero(tokens.ids[start : start + _SCANNED] == tokenizer.unk_token_id) for start in starts
        ]
        self._unknown = np.concatenate([np.empty(0, np.int64), *found])
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

    def sample_step(self, rows: np.ndarray) -> np.ndarray:
        """Which tokens of the step are predicted, as one threshold for all of its rows."""
        examples = self.lay_out(rows)
        times = self._times(examples)
        wanted = min(int(np.ceil(self._rate * len(times))), int(np.isfinite(times).sum()))
        rows = rows.copy()
        rows["threshold"] = np.partition(times, wanted - 1)[wanted - 1] if wanted else -1
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Rows of a step, masked; targets are those of pretraining (:mod:`pretrain.masking`)."""
        examples = self.lay_out(rows)
        chosen = self._times(examples) <= np.repeat(rows["threshold"], examples.lengths)
        positions = np.flatnonzero(chosen)
        masked = corrupt(
            examples.input_ids,
            positions,
            _token_keys(examples)[positions],
            mask_id=self._mask_id,
            vocab_size=self._vocab_size,
        )
        return pack(
            masked.input_ids,
            examples.token_type_ids,
            examples.lengths,
            targets={"masked_positions": positions, "masked_ids": masked.labels},
            counts={"masked": len(positions)},
        )

    def _times(self, examples: FlatExamples) -> np.ndarray:
        """(T,) float64: when each token's turn to be predicted comes; never for special tokens."""
        weights, turns = self._weights[examples.input_ids], -np.log1p(-uniform(_token_keys(examples), _PLACE))
        return np.divide(turns, weights, out=np.full(len(turns), np.inf), where=weights > 0)


def _token_keys(examples: FlatExamples) -> np.ndarray:
    return key(np.repeat(examples.keys, examples.lengths), ranges(examples.lengths))


def _refuse(_: FlatExamples) -> PackedBatch:
    raise AssertionError("rows of a step are sampled before they are masked")


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
        hidden = encode(self.student, batch.input)
        with self.teacher.asked(batch) as teacher:
            taught = encode(teacher, batch.input)
        kl = self._divergence(batch, hidden, taught)
        positions, words = batch.targets["masked_positions"], batch.targets["masked_ids"]
        vocab_size, parameters = self.student.config.vocab_size, [*self.student.parameters()]
        mine = partial(_words, self.student, batch)
        loss, right = word_sums(mine, hidden[positions], words, parameters=parameters, vocab_size=vocab_size)
        with self.teacher.asked(batch) as teacher:
            theirs = partial(_words, teacher, batch)
            known, known_right = word_sums(theirs, taught[positions], words, parameters=(), vocab_size=vocab_size)
        terms = {
            "kl": Term(kl, "tokens", self.config.kl, title="divergence from the teacher (T² nats)"),
            "mlm": Term(loss, "masked", self.config.mlm, title="MLM loss (nats)"),
            "mlm_accuracy": Term(right, "masked", 0.0, title="MLM accuracy", direction="higher"),
            "teacher_mlm": Term(known, "masked", 0.0),
            "teacher_mlm_accuracy": Term(known_right, "masked", 0.0),
        }
        if hidden.shape == taught.shape:
            angle = 1 - F.cosine_similarity(hidden.float(), taught.float(), dim=-1)
            terms["cosine"] = Term(angle.sum(), "tokens", self.config.cosine, title="1 - cosine of last hidden states")
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
    return mlm_logits(model, batch.input, torch.arange(len(hidden), device=hidden.device), hidden)


def _forward_flops(model: PreTrainedModel, batch: PackedBatch) -> float:
    config = model.config
    narrow = getattr(config, "embedding_size", None)
    rows = batch.input.num_tokens + batch.counts["masked"]
    return encoder_flops(config, batch.input) + head_flops(config.hidden_size, config.vocab_size, rows, narrow)

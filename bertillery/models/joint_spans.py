"""Heads that find the last token of an answer given its first, and tell whether there is one: ELECTRA's and ALBERT's.

They are models of transformers. Importing this module lets ``AutoModelForQuestionAnswering`` open what they are saved
as; by itself transformers has no such heads.

Legend: B windows (a question and a part of its context), s tokens of each, padded; T tokens of all of them, without
padding; H width of the encoder, K beam.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    AlbertModel,
    AlbertPreTrainedModel,
    AutoModelForQuestionAnswering,
    ElectraConfig,
    ElectraForQuestionAnswering,
    ElectraModel,
    ElectraPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from bertillery.models.heads import log_softmax_within
from bertillery.models.init import truncated_normal_


class Beam(NamedTuple):
    """The best spans of each window: the K best first tokens, and for each of them the K best last tokens.

    Logarithms of probabilities are those of the first token, and of the last one given the first; -inf where a window
    has fewer tokens that an answer may begin with or end in.
    """

    starts: Tensor
    """(B, K) int64, numbers of tokens in the window."""
    start_log_probs: Tensor
    """(B, K)."""
    ends: Tensor
    """(B, K, K) int64."""
    end_log_probs: Tensor
    """(B, K, K)."""


class SpanScores(NamedTuple):
    """What a head says of windows."""

    start_log_probs: Tensor
    """(T,) of being the first token."""
    end_log_probs: Tensor | None
    """(T,) of being the last token, given the right first one; None where that is not known."""
    null: Tensor
    """(B,) logit of there being no answer."""
    beam: Beam | None
    """None unless asked for."""


@dataclass
class JointSpansOutput(ModelOutput):
    """What ``forward`` returns. Logits are -inf at tokens that no answer has."""

    start_logits: Tensor | None = None
    """(B, s)."""
    end_logits: Tensor | None = None
    """(B, s), given the first token: the one that was given, or else the best."""
    null_logits: Tensor | None = None
    """(B,), of there being no answer."""
    start_top_index: Tensor | None = None
    """(B, K), as :class:`Beam` has it."""
    start_top_log_probs: Tensor | None = None
    """(B, K)."""
    end_top_index: Tensor | None = None
    """(B, K, K)."""
    end_top_log_probs: Tensor | None = None
    """(B, K, K)."""


@dataclass(frozen=True)
class Windows:
    """Hidden states of windows, end to end."""

    hidden: Tensor
    """(T, H)."""
    token_type_ids: Tensor
    """(T,), 1 in the context and the separator behind it."""
    ends: Tensor
    """(B + 1,) int64, where each window begins; the last entry is T."""
    owner: Tensor
    """(T,) int64, the window of each token."""
    place: Tensor
    """(T,) int64, the number of each token in its window."""

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Of logits (T,), over the tokens of each window."""
        return log_softmax_within(logits, self.owner, len(self.ends) - 1)

    def best(self, values: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Rows and values (B, ``number``) of the highest of ``values`` (T,) in each window, the first one of equals."""
        ranked = values.argsort(descending=True, stable=True)
        ranked = ranked[self.owner[ranked].argsort(stable=True)]
        rank = self.ends[:-1, None] + torch.arange(number, device=values.device)
        rows = ranked[rank.clamp(max=self.ends[1:, None] - 1)]
        return rows, values[rows].masked_fill(rank >= self.ends[1:, None], -torch.inf)


class JointSpans(PreTrainedModel, ABC):
    """What both heads have in common; a subclass is also a model of its family.

    ``config.beam_size`` is K, the beam of the released code where the configuration does not say.
    """

    usual_beam: ClassVar[int]
    start: nn.Linear

    @abstractmethod
    def allowed(self, windows: Windows) -> Tensor:
        """(T,) bool: the tokens that a softmax is over."""

    @abstractmethod
    def end_logits(self, hidden: Tensor, start: Tensor) -> Tensor:
        """(T,) of tokens with states ``hidden`` (T, H) being last, where the first has the state ``start`` (T, H)."""

    @abstractmethod
    def null_logits(self, first: Tensor, summary: Tensor) -> Tensor:
        """(B,) from the states (B, H) of [CLS], and the expected state (B, H) of an answer's first token."""

    @abstractmethod
    def draw(self, weight: Tensor) -> Tensor:
        """Draw a matrix of the head as the released code does, in place."""

    def scores(self, windows: Windows, first: Tensor | None = None, *, beam: bool = False) -> SpanScores:
        """What the head says of the windows, in float32; ``first`` (B,) are rows of the right first tokens."""
        excluded = ~self.allowed(windows)
        cls, hidden = windows.hidden[windows.ends[:-1]], windows.hidden
        starts = windows.log_softmax(self.start(hidden)[:, 0].float().masked_fill(excluded, -torch.inf))

        def ends(rows: Tensor) -> Tensor:
            logits = self.end_logits(hidden, hidden[rows][windows.owner]).float()
            return windows.log_softmax(logits.masked_fill(excluded, -torch.inf))

        weighted = starts.exp()[:, None] * hidden.float()
        summary = torch.zeros_like(cls, dtype=torch.float32).index_add(0, windows.owner, weighted)
        null = self.null_logits(cls, summary.to(cls.dtype)).float()
        found = None
        if beam:
            rows, values = windows.best(starts, self.beam_size)
            behind = [windows.best(ends(column), self.beam_size) for column in rows.unbind(1)]
            last = torch.stack([windows.place[each] for each, _ in behind], 1)
            found = Beam(windows.place[rows], values, last, torch.stack([each for _, each in behind], 1))
        return SpanScores(starts, None if first is None else ends(first), null, found)

    @property
    def beam_size(self) -> int:
        """K."""
        return getattr(self.config, "beam_size", None) or self.usual_beam

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        **options: Any,
    ) -> JointSpansOutput:
        """Scores of padded windows (B, s); ``token_type_ids`` say where the context is.

        ``start_positions`` (B,) are the first tokens that ``end_logits`` follow.
        """
        if token_type_ids is None:
            raise ValueError("token_type_ids are missing: give those of the tokenizer, which say where the context is")
        mask = torch.ones_like(token_type_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": position_ids}
        encoded = self.base_model(**inputs, attention_mask=mask, token_type_ids=token_type_ids, **options)
        real, number = mask.bool(), mask.bool().sum(1)
        owner, place = real.nonzero().unbind(1)
        ends = F.pad(number.cumsum(0), (1, 0))
        windows = Windows(encoded[0][real], token_type_ids[real], ends, owner, place)
        free = self.scores(windows, beam=True)
        assert free.beam is not None
        chosen = free.beam.starts[:, 0] if start_positions is None else start_positions
        rows = torch.zeros_like(mask).masked_scatter(real, torch.arange(len(owner), device=owner.device))
        tied = self.scores(windows, rows.gather(1, chosen[:, None])[:, 0])

        def padded(values: Tensor | None) -> Tensor:
            assert values is not None
            return torch.full(mask.shape, -torch.inf, device=values.device).masked_scatter(real, values)

        starts, last = padded(free.start_log_probs), padded(tied.end_log_probs)
        first, first_values, behind, behind_values = free.beam
        return JointSpansOutput(starts, last, free.null, first, first_values, behind, behind_values)


class ElectraForJointQuestionAnswering(JointSpans, ElectraPreTrainedModel):
    """ELECTRA's head for SQuAD: hidden layers of 512 with GELU, softmaxes over [CLS], the context and the separator
    behind it."""

    config_class = ElectraConfig
    usual_beam = 20

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.electra = ElectraModel(config)
        self.start = nn.Linear(width, 1)
        self.end_hidden, self.end = nn.Linear(2 * width, 512), nn.Linear(512, 1)
        self.null_hidden, self.null = nn.Linear(2 * width, 512), nn.Linear(512, 1)
        self.post_init()

    def allowed(self, windows: Windows) -> Tensor:
        """[CLS], the context and the separator behind it."""
        return windows.token_type_ids.bool().index_fill(0, windows.ends[:-1], True)

    def end_logits(self, hidden: Tensor, start: Tensor) -> Tensor:
        """A hidden layer over first token and last."""
        return self.end(F.gelu(self.end_hidden(torch.cat((start, hidden), -1))))[:, 0]

    def null_logits(self, first: Tensor, summary: Tensor) -> Tensor:
        """A hidden layer over both."""
        return self.null(F.gelu(self.null_hidden(torch.cat((first, summary), -1))))[:, 0]

    def draw(self, weight: Tensor) -> Tensor:
        """Uniformly, within Glorot's bounds."""
        return nn.init.xavier_uniform_(weight)


class AlbertForJointQuestionAnswering(JointSpans, AlbertPreTrainedModel):
    """ALBERT's head for SQuAD 2.0: hidden layers as wide as the encoder with tanh, softmaxes over [CLS] and the
    context."""

    config_class = AlbertConfig
    usual_beam = 5

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.albert = AlbertModel(config, add_pooling_layer=False)
        self.start = nn.Linear(width, 1)
        self.end_hidden, self.end = nn.Linear(2 * width, width), nn.Linear(width, 1)
        self.end_layer_norm = nn.LayerNorm(width, eps=1e-12)
        self.null_hidden, self.null = nn.Linear(2 * width, width), nn.Linear(width, 1, bias=False)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.post_init()

    def allowed(self, windows: Windows) -> Tensor:
        """[CLS] and the context."""
        inside = windows.token_type_ids.bool().index_fill(0, windows.ends[1:] - 1, False)
        return inside.index_fill(0, windows.ends[:-1], True)

    def end_logits(self, hidden: Tensor, start: Tensor) -> Tensor:
        """A hidden layer over last token and first, normalised."""
        inner = torch.tanh(self.end_hidden(torch.cat((hidden, start), -1)))
        return self.end(self.end_layer_norm(inner))[:, 0]

    def null_logits(self, first: Tensor, summary: Tensor) -> Tensor:
        """A hidden layer over both, with dropout."""
        inner = torch.tanh(self.null_hidden(torch.cat((summary, first), -1)))
        return self.null(self.dropout(inner))[:, 0]

    def draw(self, weight: Tensor) -> Tensor:
        """As the encoder's are."""
        return truncated_normal_(weight, self.config.initializer_range)


HEADS: dict[str, type[JointSpans]] = {
    "electra": ElectraForJointQuestionAnswering,
    "albert": AlbertForJointQuestionAnswering,
}
"""By the family that they belong to."""


def joint_head(config: PreTrainedConfig) -> str | None:
    """Whose joint head a model of this configuration was saved with; None for any other head."""
    architectures = config.architectures or []
    return next((name for name, head in HEADS.items() if head.__name__ in architectures), None)


class _Choice:
    """The stock class of a family or the one with its joint head, whichever ``config.architectures`` names.

    A pair of classes, from which transformers would choose in the same way, fails for a configuration that names none.
    """

    def __init__(self, stock: type[PreTrainedModel], head: type[PreTrainedModel]) -> None:
        self.stock, self.head, self.__name__ = stock, head, stock.__name__
        self.config_class = stock.config_class

    def _of(self, config: PreTrainedConfig) -> Any:
        return self.head if joint_head(config) else self.stock

    def from_pretrained(self, name: Any, *arguments: Any, config: PreTrainedConfig, **options: Any) -> Any:
        return self._of(config).from_pretrained(name, *arguments, config=config, **options)

    def _from_config(self, config: PreTrainedConfig, **options: Any) -> Any:
        return self._of(config)._from_config(config, **options)


for _config, _stock, _head in (
    (ElectraConfig, ElectraForQuestionAnswering, ElectraForJointQuestionAnswering),
    (AlbertConfig, AlbertForQuestionAnswering, AlbertForJointQuestionAnswering),
):
    # ``register`` passes over configurations of the library's own in some of its versions.
    AutoModelForQuestionAnswering._model_mapping._extra_content[_config] = _Choice(_stock, _head)  # pyright: ignore


def flattened(scores: SpanScores) -> Tensor:
    """The numbers (B, 1 + 2K + 2K^2) of each window that :func:`best_of_beam` reads."""
    assert scores.beam is not None
    return torch.cat([scores.null[:, None], *(part.flatten(1).float() for part in scores.beam)], 1)


class BestSpan(NamedTuple):
    """The best span of a window."""

    score: float
    """In nats."""
    first: int
    """Its first token, counted from the context's first."""
    last: int
    total: float
    """Logarithm of the sum of exp(score) over all spans that could have been chosen."""


def best_of(scores: np.ndarray, first: np.ndarray, last: np.ndarray) -> BestSpan | None:
    """The span of the highest of ``scores`` (A, B); None where none is finite. ``first`` and ``last``, the spans'
    tokens, are broadcast to (A, B)."""
    there = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float64)
    if not np.isfinite(there).any():
        return None
    at = np.unravel_index(int(there.argmax()), there.shape)
    begin, end = (int(np.broadcast_to(tokens, there.shape)[at]) for tokens in (first, last))
    return BestSpan(float(there[at]), begin, end, float(np.logaddexp.reduce(there, axis=None)))


def best_of_beam(
    row: np.ndarray, first: int, allowed: np.ndarray, *, answer_length: int
) -> tuple[float, BestSpan | None]:
    """From what :func:`flattened` has of a window: the logit of there being no answer, and the span of the highest
    probability, its score being the logarithm of that; None where there is none.

    ``first`` is the first token of the context, in which the tokens that an answer may begin with are ``allowed``; the
    span has ``answer_length`` tokens at most.
    """
    if not len(allowed):
        return float(row[0]), None
    number = round(((2 * len(row) - 1) ** 0.5 - 1) / 2)  # K, since the row holds 1 + 2K + 2K^2
    starts, start_values, ends, end_values = np.split(row[1:], np.cumsum((number, number, number**2)))
    begin = starts.astype(np.int64)[:, None] - first
    end, last = ends.astype(np.int64).reshape(number, number) - first, len(allowed) - 1
    possible = (begin >= 0) & (end >= begin) & (end <= last) & (end - begin < answer_length)
    possible &= allowed[begin.clip(0, last)]
    sums = np.where(possible, start_values[:, None] + end_values.reshape(number, number), -np.inf)
    return float(row[0]), best_of(sums, begin, end)

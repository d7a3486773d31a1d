"""Decoding: greedy and beam search.

A hypothesis is scored by the sum of the logarithms of its tokens' probabilities, the end-of-sequence token included,
over a normalisation of its length t, counted with that token: t**penalty, or ((5 + t) / 6)**penalty (Wu et al. 2016,
equation 14).

Legend: B sentences, k hypotheses of each, t tokens of a hypothesis so far, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig

from bertillery.config.section import Section
from bertillery.config.types import Count
from bertillery.engine.batch import Stream
from bertillery.models.seq2seq import EncoderDecoder

_STOPS: dict[str, str | bool] = {"exact": "never", "heuristic": False, "first": True}
"""The stock ``early_stopping`` of each rule."""
_GNMT = "gnmt_length_penalty"


class DecodeSection(Section):
    """How translations are searched for."""

    beam: int = Field(default=5, ge=1, le=1024)
    """Hypotheses kept of each sentence; 1 is greedy search."""
    length_penalty: float = Field(default=1.0, ge=0, le=10)
    """Exponent of the normalisation by length; 0 compares sums, which favours short translations."""
    normalization: Literal["length", "gnmt"] = "length"
    """What is raised to it: the length t, or (5 + t) / 6 as in GNMT."""
    stop: Literal["exact", "heuristic", "first"] = "exact"
    """When a sentence is finished: when no live hypothesis can become better than the worst of ``beam`` finished ones
    (``exact``, the stock `early_stopping="never"`), when none is better at its present length (``heuristic``, the stock
    False), or with ``beam`` finished hypotheses (``first``, True), which favours short translations."""
    max_length: Count = 128
    """Tokens of a translation, at most."""

    def norm(self, length: float) -> float:
        """The divisor of a hypothesis of that length."""
        return (length if self.normalization == "length" else (5 + length) / 6) ** self.length_penalty

    def within(self, positions: int) -> DecodeSection:
        """The same, for a model of so many positions."""
        return self.model_copy(update={"max_length": min(self.max_length, positions)})

    def over(self, config: GenerationConfig) -> DecodeSection:
        """The keys that were given, over what a model's ``generation_config.json`` says, over the defaults."""
        longest = config.max_new_tokens or (config.max_length and config.max_length - 1)
        found = {"beam": config.num_beams, "length_penalty": config.length_penalty, "max_length": longest}
        if config.early_stopping is not None:
            found["stop"] = {stock: stop for stop, stock in _STOPS.items()}[config.early_stopping]
        if (penalty := getattr(config, _GNMT, None)) is not None:
            found |= {"normalization": "gnmt", "length_penalty": penalty}
        known = {key: value for key, value in found.items() if value is not None}
        return DecodeSection.model_validate(known | self.model_dump(exclude_unset=True))

    def write_to(self, config: GenerationConfig) -> None:
        """Let the stock ``generate``, and :meth:`over`, search with these settings. GNMT's normalisation has a name
        that only the latter reads."""
        config._from_model_config = False
        config.num_beams, config.max_new_tokens = self.beam, self.max_length
        if self.beam > 1:
            config.early_stopping = _STOPS[self.stop]
        if self.normalization == "gnmt":
            setattr(config, _GNMT, self.length_penalty)
        elif self.beam > 1:
            config.length_penalty = self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A translation of one sentence."""

    ids: list[int]
    """Its tokens, with the end-of-sequence token unless the longest length was reached."""
    log_probability: float
    """The sum over its tokens."""
    score: float
    """The normalised sum; translations are ordered by it."""


@torch.no_grad()
def search(
    network: EncoderDecoder, source: Stream, section: DecodeSection, *, start: int, end: int, n_best: int = 1
) -> list[list[Hypothesis]]:
    """The best ``n_best`` translations of each sentence, best first, at most ``section.beam`` of them.

    Each step extends the k live hypotheses, of the 2k best extensions those that end are finished if they are among the
    first k, and the best k others live on. A sentence that is finished leaves the batch.
    """
    beams = _Beams(network, source, section, start, end)
    while beams.advance():
        pass
    return [found[:n_best] for found in beams.found]


class _Beams:
    """The live and the finished hypotheses of the sentences that are not done."""

    def __init__(self, network: EncoderDecoder, source: Stream, section: DecodeSection, start: int, end: int) -> None:
        number, device = source.num_sequences, source.ids.device
        self.network, self.section, self.end = network, section, end
        self.state = network.begin(source)
        self.sentences = torch.arange(number, device=device)
        """(B,) which sentences are not done."""
        self.tokens = torch.full((number, 1), start, device=device)
        """(B, k) last token of each live hypothesis."""
        self.live = torch.zeros(number, 1, device=device)
        """(B, k) sums of logarithms."""
        self.ids = torch.empty(number, 1, 0, dtype=torch.long, device=device)
        """(B, k, t)."""
        width = section.beam
        self.scores = torch.full((number, width), -torch.inf, device=device)
        """(B, k) normalised, of finished hypotheses; -inf where there are fewer."""
        self.sums = torch.zeros(number, width, device=device)
        self.finished = torch.full((number, width, section.max_length), end, device=device)
        """(B, k, max_length), filled up with the end-of-sequence token."""
        self.lengths = torch.zeros(number, width, dtype=torch.long, device=device)
        self.found: list[list[Hypothesis]] = [[] for _ in range(number)]

    def advance(self) -> bool:
        """Extend all live hypotheses by a token; returns whether sentences are left."""
        section, width = self.section, self.section.beam
        log_probs, state = self.network.step(self.state, self.tokens)
        sums = (self.live[..., None] + log_probs).flatten(1)  # (B, k * V)
        vocabulary = log_probs.shape[-1]
        best, which = sums.topk(min(2 * width, sums.shape[1]), sorted=True)
        beam, token = which // vocabulary, which % vocabulary
        ids = torch.cat([self.ids.gather(1, _wide(beam, self.ids)), token[..., None]], -1)
        length, ends = ids.shape[-1], token == self.end
        ending = ends & (torch.arange(ends.shape[1], device=ends.device) < width)
        self._finish(ending, best, ids, length)
        alive, rank = best.masked_fill(ends, -torch.inf).topk(min(width, best.shape[1]), sorted=True)
        self.live, self.tokens = alive, token.gather(1, rank)
        self.ids = ids.gather(1, _wide(rank, ids))
        last = length == section.max_length
        if last:
            self._finish(self.live > -torch.inf, self.live, self.ids, length)
        done = torch.ones_like(self.sentences, dtype=torch.bool) if last else self._done(length)
        self._take(done)
        kept = torch.nonzero(~done)[:, 0]
        if len(kept):
            self.state = self.network.select(state, kept, beam.gather(1, rank)[kept])
            self._keep(kept)
        return bool(len(kept))

    def _finish(self, which: Tensor, sums: Tensor, ids: Tensor, length: int) -> None:
        """Put the hypotheses that are marked in ``which`` among the finished ones, and keep the best."""
        scores = (sums / self.section.norm(length)).masked_fill(~which, -torch.inf)
        padded = self.finished.new_full((*ids.shape[:2], self.section.max_length), self.end)
        padded[..., :length] = ids
        both = torch.cat([self.scores, scores], 1)
        self.scores, order = both.topk(self.section.beam, sorted=True)
        self.sums = torch.cat([self.sums, sums], 1).gather(1, order)
        self.lengths = torch.cat([self.lengths, torch.full_like(which, length, dtype=torch.long)], 1).gather(1, order)
        self.finished = torch.cat([self.finished, padded], 1).gather(1, _wide(order, padded))

    def _done(self, length: int) -> Tensor:
        """(B,) whether a sentence's best translation is found."""
        worst = self.scores[:, -1]
        if self.section.stop == "first":
            return worst > -torch.inf
        furthest = length if self.section.stop == "heuristic" else self.section.max_length
        reachable = self.live[:, 0] / max(self.section.norm(length), self.section.norm(furthest))
        return worst >= reachable

    def _take(self, done: Tensor) -> None:
        """Move the translations of finished sentences to ``found``."""
        rows = torch.nonzero(done)[:, 0]
        parts = (self.sentences, self.scores, self.sums, self.lengths, self.finished)
        for sentence, scores, sums, lengths, ids in zip(*(part[rows].tolist() for part in parts), strict=True):
            each = zip(scores, sums, lengths, ids, strict=True)
            self.found[sentence] = [
                Hypothesis(tokens[:length], total, score) for score, total, length, tokens in each if score > -torch.inf
            ]

    def _keep(self, rows: Tensor) -> None:
        for name in ("sentences", "tokens", "live", "ids", "scores", "sums", "finished", "lengths"):
            setattr(self, name, getattr(self, name)[rows])


def _wide(index: Tensor, like: Tensor) -> Tensor:
    """An index (B, k) for ``gather`` from (B, n, t)."""
    return index[..., None].expand(-1, -1, like.shape[-1])

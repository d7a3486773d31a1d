"""Log-likelihoods of texts under a causal model, as the field's evaluation harness counts them (lm-evaluation-harness,
``loglikelihood`` and ``loglikelihood_rolling``).

Context and continuation are encoded as one string, which is then split by the length of the encoded context; spaces
that end the context belong to the continuation. The first token of the continuation is predicted by the last of the
context. An empty context is the end-of-text token. What is too long is cut from the left.

Requests are packed without padding; what several share at their beginning is computed once, such as the context of the
answers to one question. Only the rows that predict a continuation go through the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bertillery.config.section import InputError
from bertillery.engine.batch import pack_branches
from bertillery.models.encoders import encode
from prompting.branches import Join, join_prefixes
from prompting.model import CausalModel

_BATCH_TOKENS = 8192
_HEAD_ROWS = 1024
"""Rows of the logits that exist at a time."""


@dataclass(frozen=True)
class Request:
    """A continuation whose log-likelihood is asked for."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    log_likelihood: float
    """In nats, the sum over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the most probable one."""
    num_tokens: int


class Scorer:
    """Scores continuations; equal requests are computed once."""

    def __init__(self, causal: CausalModel) -> None:
        self._causal = causal

    def encode(self, request: Request) -> tuple[list[int], list[int]]:
        """Tokens of the context and of the continuation, cut to what the model can read.

        Raises ``InputError`` for a continuation without tokens, or longer than the model can read.
        """
        causal = self._causal
        context = request.context.rstrip(" ")
        continuation = request.context[len(context) :] + request.continuation
        before = causal.ids(context) if context else []
        after = causal.ids(context + continuation)[len(before) :]
        if not after or len(after) > causal.positions:
            raise InputError(
                f"the continuation {continuation!r:.80} has {len(after)} tokens; it has at least one and at most "
                f"{causal.positions}, the positions of the model"
            )
        before = before or [causal.end]
        return before[-(causal.positions + 1 - len(after)) :], after

    def scores(self, requests: Sequence[Request]) -> list[Score]:
        """The score of each request."""
        encoded = {request: self.encode(request) for request in dict.fromkeys(requests)}
        found = dict(zip(encoded, self._of_tokens([*encoded.values()]), strict=True))
        return [found[request] for request in requests]

    def rolling(self, text: str) -> Score:
        """The log-likelihood of a whole text after the end-of-text token, in windows that follow each other, with one
        token of context for each but the first."""
        causal = self._causal
        ids = [causal.end, *causal.ids(text)]
        windows = [
            (ids[at : at + 1], ids[at + 1 : at + 1 + causal.positions])
            for at in range(0, len(ids) - 1, causal.positions)
        ]
        scores = self._of_tokens(windows)
        return Score(
            math.fsum(score.log_likelihood for score in scores), all(score.is_greedy for score in scores), len(ids) - 1
        )

    def _of_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        """Scores of continuations that are given as tokens, with their contexts; the order does not matter."""
        scores: list[Score | None] = [None] * len(pairs)
        for joins in _batches(join_prefixes([[*before, *after][:-1] for before, after in pairs])):
            ids = np.fromiter((token for join in joins for token in join.ids), dtype=np.int64)
            starts = np.cumsum([0, *(join.size for join in joins)])
            which, rows = [], []
            for join, start in zip(joins, starts.tolist(), strict=False):
                for member, number in enumerate(join.members):
                    which.append(number)
                    rows.append(start + join.rows(member)[-len(pairs[number][1]) :])
            targets = torch.tensor([token for number in which for token in pairs[number][1]])
            with torch.inference_mode():
                hidden = encode(self._causal.model, pack_branches(ids, [join.parts for join in joins]))
                nats, greedy = self._of_rows(hidden, np.concatenate(rows), targets)
            sizes = [len(each) for each in rows]
            parts = zip(nats.split(sizes), greedy.split(sizes), strict=True)
            for number, size, (part, right) in zip(which, sizes, parts, strict=True):
                scores[number] = Score(part.sum().item(), bool(right.all()), size)
        return [score for score in scores if score is not None]

    def _of_rows(self, hidden: Tensor, rows: np.ndarray, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target (N,) after its row of the hidden states, and whether it is the most probable
        token. Each row goes through the vocabulary once, so many at a time."""
        kept, place = np.unique(rows, return_inverse=True)
        places = torch.from_numpy(place)
        nats, greedy = torch.empty(len(rows), dtype=torch.float64), torch.empty(len(rows), dtype=torch.bool)
        for start in range(0, len(kept), _HEAD_ROWS):
            logits = self._causal.model.lm_head(hidden[torch.from_numpy(kept[start : start + _HEAD_ROWS])]).float()
            mine = ((places >= start) & (places < start + _HEAD_ROWS)).nonzero()[:, 0]
            row, target = places[mine] - start, targets[mine]
            nats[mine] = (logits[row, target] - logits.logsumexp(-1)[row]).double()
            greedy[mine] = logits.argmax(-1)[row] == target
        return nats, greedy


def _batches(joins: Iterable[Join]) -> Iterator[list[Join]]:
    """Joins of similar length, longest first, up to so many tokens at a time."""
    batch: list[Join] = []
    for join in sorted(joins, key=lambda join: -join.size):
        if batch and sum(each.size for each in batch) + join.size > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(join)
    if batch:
        yield batch


def perplexities(scores: Sequence[Score], texts: Sequence[str]) -> dict[str, float]:
    """Word and byte perplexity and bits per byte of whole texts together; words are what white space separates."""
    nats = -math.fsum(score.log_likelihood for score in scores)
    words = max(1, sum(len(text.split()) for text in texts))
    size = max(1, sum(len(text.encode()) for text in texts))
    return {
        "word_perplexity": math.exp(min(700, nats / words)),
        "byte_perplexity": math.exp(nats / size),
        "bits_per_byte": nats / size / math.log(2),
    }

"""Log-likelihoods of texts under a causal model, as the field's evaluation harness counts them (lm-evaluation-harness,
``loglikelihood`` and ``loglikelihood_rolling``).

Context and continuation are encoded as one string, which is then split by the length of the encoded context; spaces
that end the context belong to the continuation. The first token of the continuation is predicted by the last of the
context. An empty context is the end-of-text token. What is too long is cut from the left.

Requests are packed without padding, and only the rows that predict a continuation go through the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from bertillery.config.section import InputError
from bertillery.engine.batch import pack_stream
from bertillery.models.encoders import encode
from prompting.model import CausalModel

_BATCH_TOKENS = 8192


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
        lengths = np.array([len(before) + len(after) - 1 for before, after in pairs])
        scores: list[Score | None] = [None] * len(pairs)
        for which in _batches(lengths):
            inputs = np.concatenate([[*pairs[i][0], *pairs[i][1]][:-1] for i in which])
            stream = pack_stream(inputs.astype(np.int64), lengths[which])
            sizes = np.array([len(pairs[i][1]) for i in which])
            ends = np.cumsum(lengths[which])
            rows = np.concatenate([np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)])
            targets = torch.tensor([token for i in which for token in pairs[i][1]])
            with torch.inference_mode():
                hidden = encode(self._causal.model, stream)[torch.from_numpy(rows)]
                logits = self._causal.model.lm_head(hidden).float()
                nats = -F.cross_entropy(logits, targets, reduction="none").double()
                greedy = logits.argmax(-1) == targets
            parts = zip(nats.split(sizes.tolist()), greedy.split(sizes.tolist()), strict=True)
            for i, size, (part, right) in zip(which, sizes, parts, strict=True):
                scores[i] = Score(part.sum().item(), bool(right.all()), int(size))
        return [score for score in scores if score is not None]


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Requests of similar length, longest first, up to so many tokens at a time."""
    order = np.argsort(-lengths, kind="stable")
    filled = np.cumsum(lengths[order])
    parts = np.split(order, np.searchsorted(filled, np.arange(_BATCH_TOKENS, filled[-1], _BATCH_TOKENS)))
    yield from (part for part in parts if len(part))


def perplexities(score: Score, text: str) -> dict[str, float]:
    """Word and byte perplexity and bits per byte of a text; words are what white space separates."""
    nats, size = -score.log_likelihood, len(text.encode())
    return {
        "word_perplexity": math.exp(min(700, nats / max(1, len(text.split())))),
        "byte_perplexity": math.exp(nats / max(1, size)),
        "bits_per_byte": nats / max(1, size) / math.log(2),
    }

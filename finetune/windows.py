"""Contexts cut into overlapping windows, and answers found in them: BERT's ``run_squad.py`` with character offsets.

Legend: C distinct contexts, N questions, S windows of all of them, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from engine.batch import ranges
from engine.frame import text_backend
from finetune.examples import Tokens


@dataclass(frozen=True)
class Contexts:
    """Contexts as tokens that know their characters."""

    texts: list[str]
    tokens: Tokens
    offsets: np.ndarray
    """First character of each token of its context, and the one behind its last, (T, 2)."""

    def span(self, context: int, start: int, length: int) -> tuple[int, int] | None:
        """First and last token of the context that hold some of its characters; None where no token does."""
        first = int(self.tokens.starts[context])
        offsets = self.offsets[first : first + int(self.tokens.lengths[context])]
        a = int(np.searchsorted(offsets[:, 1], start, side="right"))
        b = int(np.searchsorted(offsets[:, 0], start + length, side="left")) - 1
        return (a, b) if a <= b else None

    def text(self, context: int, first: int, last: int) -> str:
        """What stands in the context from one of its tokens to another."""
        at = int(self.tokens.starts[context])
        return self.texts[context][self.offsets[at + first, 0] : self.offsets[at + last, 1]].strip()


def read_contexts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[Contexts, np.ndarray]:
    """The distinct ones among the texts as tokens, and which of them each text is (N,)."""
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    encoded = text_backend(tokenizer).encode_batch(list(number), add_special_tokens=False)
    lengths = np.array([len(encoding) for encoding in encoded], np.int64)
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encoded), np.int32, count=int(lengths.sum()))
    pairs = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encoded))
    offsets = np.fromiter(pairs, np.int32, count=2 * len(ids)).reshape(-1, 2)
    return Contexts(list(number), Tokens(ids, lengths), offsets), np.array([number[text] for text in texts], np.int64)


def windows(lengths: np.ndarray, room: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut contexts of so many tokens (N,) into windows of ``room`` (N,) tokens at most, ``stride`` apart.

    Returns how many there are of each context (N,), and first token and size of each window (S,). Every token is in
    one; a ``stride`` longer than the room is cut to it.
    """
    step = np.minimum(room, stride)
    number = 1 + -(-np.maximum(0, lengths - room) // step)
    starts = ranges(number) * np.repeat(step, number)
    sizes = np.minimum(np.repeat(room, number), np.repeat(lengths, number) - starts)
    return number, starts, sizes


def most_context(starts: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Of one context's windows, for each the tokens (size,) that have in it more context than in any other, bool.

    That is the smaller of the numbers of tokens to the left and to the right, and for equal ones a hundredth of the
    window's size; then the earlier window (``_check_is_max_context`` of ``run_squad.py``).
    """
    if len(starts) == 1:
        return [np.ones(int(sizes[0]), bool)]
    tokens = np.arange(int((starts + sizes).max()))
    left = tokens - starts[:, None]
    right = sizes[:, None] - 1 - left
    context = np.minimum(left, right) + 0.01 * sizes[:, None]
    best = np.where((left >= 0) & (right >= 0), context, -np.inf).argmax(0)
    return [best[a : a + n] == i for i, (a, n) in enumerate(zip(starts, sizes, strict=True))]


def best_span(
    logits: np.ndarray, first: int, allowed: np.ndarray, *, answer_length: int, n_best: int
) -> tuple[float, int, int] | None:
    """The highest sum of a start's and an end's logit in a window, and the first and last token of that span.

    ``logits`` (T, 2) are of all tokens of the window; those from ``first`` on, as many as ``allowed`` has, are the
    context's, and the tokens returned are numbers among these. A start has to be ``allowed``; both have to be among
    the ``n_best`` of the window; the span has ``answer_length`` tokens at most. None where there is none.
    """
    number = min(n_best, len(logits))
    top = np.argpartition(-logits, number - 1, axis=0)[:number] - first
    starts, ends = (column[(column >= 0) & (column < len(allowed))] for column in top.T)
    starts = starts[allowed[starts]]
    length = ends - starts[:, None] + 1
    sums = np.where(
        (length >= 1) & (length <= answer_length),
        logits[first + starts, 0][:, None] + logits[first + ends, 1],
        -np.inf,
    )
    if not np.isfinite(sums).any():
        return None
    a, b = np.unravel_index(int(np.nanargmax(sums)), sums.shape)
    return float(sums[a, b]), int(starts[a]), int(ends[b])

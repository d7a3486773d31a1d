"""Questions on long contexts: each context is cut into overlapping windows, and the best answer of all windows counts.

Both as in BERT's ``run_squad.py``, with character offsets, so that an answer is the context's own text.

Legend: C distinct contexts, N questions of a split, S windows of all of them, B windows and T tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Tokens as NumTokens
from bertillery.data.listed import Tokens, tokenize
from bertillery.engine.batch import ranges
from bertillery.models.frame import template, text_backend
from bertillery.models.joint_spans import BestSpan, best_of, best_of_beam
from finetune.data.splits import Split
from finetune.examples import Examples, Sequences
from finetune.task_types.answers import Prediction


class SpansSection(Section):
    """How answers are looked for in a text; the defaults are those of BERT's ``run_squad.py``."""

    unanswerable: bool = False
    """Whether some questions have no answer in their text, as in SQuAD 2.0."""
    stride: NumTokens = 128
    """Tokens from one window on a long text to the next."""
    question_length: NumTokens = 64
    """Tokens of a question, at most; the rest is cut off."""
    answer_length: NumTokens = 30
    """Tokens of an answer, at most."""
    n_best: Annotated[int, Field(ge=1, le=1000)] = 20
    """How many of a window's tokens are tried as the start of an answer, and how many as its end; with a head other
    than `independent`, as its end for each start."""
    head: Literal["independent", "electra", "albert"] = "independent"
    """``independent``: first and last token each by itself, as BERT finds them, and the score of [CLS] for no answer.
    ``electra``, ``albert``: the last token given the first, and a classifier for no answer, as in the released code of
    these models, for whom alone they are; their recipes set them. ``albert`` goes with `unanswerable` only."""


@dataclass(frozen=True)
class Contexts:
    """Contexts as tokens with their character offsets."""

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

    def text(self, context: int, first: int, last: int) -> tuple[str, int]:
        """The text of the context from one of its tokens to another, without spaces around it, and its first
        character."""
        at = int(self.tokens.starts[context])
        start = int(self.offsets[at + first, 0])
        found = self.texts[context][start : self.offsets[at + last, 1]]
        return found.strip(), start + len(found) - len(found.lstrip())


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
) -> BestSpan | None:
    """The span of the highest sum of a start's and an end's logit in a window.

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
    return best_of(sums, starts[:, None], ends)


class QuestionExamples(Examples):
    """A sequence for each window: the question, and a part of its context."""

    def __init__(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        section: SpansSection,
        *,
        max_length: int,
        seed: int,
        training: bool,
    ) -> None:
        """An example is a window in ``training``, and otherwise a question with all its windows.

        Raises ``ConfigError`` where ``max_length`` leaves no room for a context.
        """
        self.section, self.joint, around = section, section.head != "independent", template(tokenizer, 2)
        asked = tokenize(split.texts[0], tokenizer)
        kept = np.minimum(asked.lengths, section.question_length)
        room = max_length - around.size - kept
        if (room < 1).any():
            raise ConfigError(
                f"train.phases: a sequence_length of {max_length} leaves no room for a context beside a question of "
                f"{kept.max()} tokens; give more, such as the papers' 384, or a smaller task.spans.question_length"
            )
        self.contexts, self.context = read_contexts(split.texts[1], tokenizer)
        tokens = self.contexts.tokens
        number, self.starts, sizes = windows(tokens.lengths[self.context], room, section.stride)
        question = np.repeat(np.arange(split.num_examples), number)
        self.first = len(around.parts[0]) + kept[question] + len(around.parts[1])
        """Where the context begins in each window (S,)."""
        ids = np.concatenate([asked.ids, tokens.ids])
        begins = len(asked.ids) + tokens.starts[self.context[question]] + self.starts
        starts = np.stack([asked.starts[question], begins])
        sequences = Sequences(around, ids, starts, np.stack([kept[question], sizes]))
        super().__init__(
            sequences,
            np.ones(len(question), np.int64) if training else number,
            None if training else split.labels,
            cut=int((kept < asked.lengths).sum()),
            seed=seed,
        )
        self.spans: np.ndarray | None = None
        """First and last token of the answer in each window (S, 2); both 0, [CLS], where it is not in the window."""
        self.without: np.ndarray | None = None
        """Whether no answer is in the window, and none to its question anywhere (S, 2), bool."""
        self.unplaced = 0
        """Questions whose answer no token holds."""
        if split.labels is not None:
            gold = self._gold(split.labels)
            inside = gold[question] - self.starts[:, None]
            there = (gold[question, 0] >= 0) & (inside[:, 0] >= 0) & (inside[:, 1] < sizes)
            self.spans = np.where(there[:, None], inside + self.first[:, None], 0)
            self.without = np.stack([~there, gold[question, 0] < 0], 1)
            self.unplaced = sum(map(bool, split.labels)) - int((gold[:, 0] >= 0).sum())

    def _gold(self, labels: np.ndarray) -> np.ndarray:
        """First and last token of the context (N, 2) that hold the first answer; -1 where none does."""
        gold = np.full((len(labels), 2), -1)
        for context, given, row in zip(self.context, labels, gold, strict=True):
            if given:
                row[:] = self.contexts.span(context, given[0].start, len(given[0].text)) or -1
        return gold

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """``spans`` of the windows, and for a joint head ``unanswerable`` (B,): for ELECTRA's whether the question has
        no answer, for ALBERT's whether the window has none."""
        which, targets = self.members(index), {}
        if self.spans is not None and self.without is not None:
            targets["spans"] = self.spans[which]
            if self.joint:
                targets["unanswerable"] = self.without[which, int(self.section.head == "electra")]
        return targets, {"windows": len(which)}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each token of each window; with a joint head one for each window (``flattened``)."""
        return self.per_example[index] if self.joint else self.lengths[index]

    def predict(self, example: int, outputs: np.ndarray) -> Prediction:
        """The best span in a question's windows, whose outputs are end to end; its text is the context's own.

        Outputs are logits (T, 2), and ``null`` is the lowest sum of both logits of a [CLS], less the span's (BERT,
        section 4.3). With a joint head the best span is the most probable one, and ``null`` the lowest logit of there
        being no answer. Probabilities are the softmax over these sums, of all spans that the best one was chosen from
        and of no answer; with a joint head no answer has its classifier's, and the spans share the rest.
        """
        which = self.members(np.array([example]))
        rows = np.ones(len(which), np.int64) if self.joint else self.sequences.lengths[which]
        parts = np.split(outputs, np.cumsum(rows)[:-1])
        context = most_context(self.starts[which], self.sequences.sizes[1, which])
        null, best, total, start = np.inf, None, -np.inf, 0
        for window, part, allowed in zip(which, parts, context, strict=True):
            without, found = self._read(part, int(self.first[window]), allowed)
            null = min(null, without)
            if found:
                total = np.logaddexp(total, found.total)
                if best is None or found.score > best.score:
                    best, start = found, int(self.starts[window])
        nothing = float(self.section.unanswerable)
        if best is None:
            return Prediction("", null if self.joint else 0.0, 0, nothing, nothing)
        text, place = self.contexts.text(self.context[example], start + best.first, start + best.last)
        if self.joint:
            nothing *= float(np.exp(-np.logaddexp(0.0, -null)))
            return Prediction(text, null, place, (1 - nothing) * float(np.exp(best.score - total)), nothing)
        if nothing:
            total = np.logaddexp(total, null)
            nothing = float(np.exp(null - total))
        return Prediction(text, null - best.score, place, float(np.exp(best.score - total)), nothing)

    def _read(self, outputs: np.ndarray, first: int, allowed: np.ndarray) -> tuple[float, BestSpan | None]:
        """A window's score of no answer, and its best span."""
        answer_length, n_best = self.section.answer_length, self.section.n_best
        if self.joint:
            return best_of_beam(outputs[0], first, allowed, answer_length=answer_length)
        return float(outputs[0].sum()), best_span(outputs, first, allowed, answer_length=answer_length, n_best=n_best)

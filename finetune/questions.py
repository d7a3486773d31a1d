"""Questions on contexts as examples: windows, the answers in them, and what a model's logits say of them.

Legend: N questions of a split, S windows of all of them, T tokens of a question's windows.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from engine.config import ConfigError
from engine.frame import template
from finetune.answers import Prediction
from finetune.data import Split
from finetune.examples import Examples, Sequences, tokenize
from finetune.joint_spans import best_of_beam
from finetune.task import SpansSection
from finetune.windows import best_span, most_context, read_contexts, windows


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
        self.section, around = section, template(tokenizer, 2)
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
        for context, answers, row in zip(self.context, labels, gold, strict=True):
            if answers:
                row[:] = self.contexts.span(context, answers[0].start, len(answers[0].text)) or -1
        return gold

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """``spans`` of the windows."""
        which = self.members(index)
        return {} if self.spans is None else {"spans": self.spans[which]}, {"windows": len(which)}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each token of each window."""
        return self.lengths[index]

    def predict(self, example: int, outputs: np.ndarray) -> Prediction:
        """The best span in a question's windows, whose outputs are end to end; its text is the context's own.

        Outputs are logits (T, 2), and ``null`` is the lowest sum of both logits of a [CLS], less the span's (BERT,
        section 4.3).
        """
        null, best = self._best(example, outputs)
        if best is None:
            return Prediction("", 0.0)
        return Prediction(self.contexts.text(self.context[example], *best[1:]), null - best[0])

    def _best(self, example: int, outputs: np.ndarray) -> tuple[float, tuple[float, int, int] | None]:
        """The lowest score of no answer in any of a question's windows; the highest score of a span, with its first and
        last token of the context."""
        which = self.members(np.array([example]))
        parts = np.split(outputs, np.cumsum(self._window_outputs(which))[:-1])
        null, best = np.inf, None
        for window, part, allowed in zip(
            which, parts, most_context(self.starts[which], self.sequences.sizes[1, which]), strict=True
        ):
            without, found = self._read(part, int(self.first[window]), allowed)
            null = min(null, without)
            if found and (best is None or found[0] > best[0]):
                best = (found[0], found[1] + int(self.starts[window]), found[2] + int(self.starts[window]))
        return null, best

    def _window_outputs(self, which: np.ndarray) -> np.ndarray:
        """Rows of outputs of each of these windows."""
        return self.sequences.lengths[which]

    def _read(
        self, outputs: np.ndarray, first: int, allowed: np.ndarray
    ) -> tuple[float, tuple[float, int, int] | None]:
        """A window's score of no answer, and its best span as :func:`finetune.windows.best_span` returns it."""
        limits = {"answer_length": self.section.answer_length, "n_best": self.section.n_best}
        return float(outputs[0].sum()), best_span(outputs, first, allowed, **limits)


class BeamExamples(QuestionExamples):
    """The same for a joint head, which has a row of outputs for each window (``finetune.joint_spans.flattened``)."""

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """``spans`` of the windows, and ``unanswerable`` (B,): of an ELECTRA whether the question has no answer, of an
        ALBERT whether the window has none."""
        targets, counts = super().targets(index)
        if self.without is not None:
            of_question = int(self.section.head == "electra")
            targets["unanswerable"] = self.without[self.members(index), of_question]
        return targets, counts

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each window."""
        return self.per_example[index]

    def predict(self, example: int, outputs: np.ndarray) -> Prediction:
        """The best span in a question's windows, by its probability; ``null`` is the lowest logit of there being no
        answer, whatever the span's score."""
        null, best = self._best(example, outputs)
        return Prediction(self.contexts.text(self.context[example], *best[1:]) if best else "", null)

    def _window_outputs(self, which: np.ndarray) -> np.ndarray:
        return np.ones(len(which), np.int64)

    def _read(
        self, outputs: np.ndarray, first: int, allowed: np.ndarray
    ) -> tuple[float, tuple[float, int, int] | None]:
        return best_of_beam(outputs[0], first, allowed, answer_length=self.section.answer_length)

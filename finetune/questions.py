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
        self.unplaced = 0
        """Questions whose answer no token holds."""
        if split.labels is not None:
            gold = self._gold(split.labels)
            inside = gold[question] - self.starts[:, None]
            there = (gold[question, 0] >= 0) & (inside[:, 0] >= 0) & (inside[:, 1] < sizes)
            self.spans = np.where(there[:, None], inside + self.first[:, None], 0)
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

    def predict(self, example: int, logits: np.ndarray) -> Prediction:
        """The best span in a question's windows, whose logits (T, 2) are end to end; its text is the context's own.

        ``null`` is the lowest sum of both logits of a [CLS], less the span's (BERT, section 4.3).
        """
        which = self.members(np.array([example]))
        parts = np.split(logits, np.cumsum(self.sequences.lengths[which])[:-1])
        limits = {"answer_length": self.section.answer_length, "n_best": self.section.n_best}
        best: tuple[float, int, int] | None = None
        for window, part, allowed in zip(
            which, parts, most_context(self.starts[which], self.sequences.sizes[1, which]), strict=True
        ):
            found = best_span(part, int(self.first[window]), allowed, **limits)
            if found and (best is None or found[0] > best[0]):
                best = (found[0], found[1] + int(self.starts[window]), found[2] + int(self.starts[window]))
        if best is None:
            return Prediction("", 0.0)
        null = min(float(part[0].sum()) for part in parts)
        return Prediction(self.contexts.text(self.context[example], *best[1:]), null - best[0])

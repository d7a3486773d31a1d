"""A label for each word: cross-entropy at its first token, as BERT does named entities.

Legend: N sentences of a split, W words of a batch, T its tokens, L labels.
"""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.objective import Term
from bertillery.models.encoders import token_logits
from bertillery.models.frame import template
from finetune.baselines import token_baselines
from finetune.config import FinetuneTrainSection
from finetune.examples import Examples, Sequences, tokenize
from finetune.predictor import Predictor
from finetune.report import plot_bars
from finetune.rows import objects
from finetune.splits import Split, Task
from finetune.task_types import entities
from finetune.task_types.base import Predicted, TaskType
from finetune.task_types.sequences import label_names

logger = logging.getLogger(__name__)


class Objective(Predictor):
    """Targets are ``rows`` (W,), where in the batch each word begins, and ``labels`` (W,)."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """(W, L): of the first token of each word."""
        return token_logits(self.model, batch.input)[batch.targets["rows"]]

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """``cross_entropy`` in nats, and the share of words with the right label."""
        labels = batch.targets["labels"]
        right = (logits.detach().argmax(-1) == labels).sum()
        return {
            "cross_entropy": Term(F.cross_entropy(logits, labels, reduction="sum"), "words"),
            "right": Term(right, "words", weight=0.0),
        }

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Over the labels."""
        return logits.log_softmax(-1)

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Probabilities."""
        return logits.softmax(-1)


class SentenceExamples(Examples):
    """A sequence for each sentence, and where its words begin."""

    def __init__(self, split: Split, tokenizer: PreTrainedTokenizerBase, *, max_length: int, seed: int) -> None:
        """The words of a sentence that do not fit are cut off. Raises ``InputError`` where no word would fit."""
        around = template(tokenizer, 1)
        room = around.room(max_length)
        words: list[list[str]] = split.texts[0]
        ids, sizes = _word_tokens(words, tokenizer)
        number = self.number = np.array([len(sentence) for sentence in words])
        first_word = np.cumsum(number) - number
        places = np.cumsum(sizes) - sizes
        starts = np.append(places, len(ids))[first_word]  # of a sentence without words, too
        lengths = _sums(sizes, number)
        self._places = places - np.repeat(starts, number)
        self._first_word = first_word
        self.kept = _sums(self._places < room, number)
        """Words of each sentence that are there."""
        self.lost = int((number - self.kept).sum())
        """Words that are not."""
        sequences = Sequences(around, ids, starts[None], np.minimum(lengths, room)[None])
        cut = int((self.kept < number).sum())
        super().__init__(sequences, np.ones(len(words), np.int64), split.labels, cut=cut, seed=seed)

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """``rows`` of the batch where words begin, and their ``labels``."""
        kept, lengths = self.kept[index], self.sequences.lengths[index]
        begins = np.cumsum(lengths) - lengths + len(self.sequences.template.parts[0])
        which = np.repeat(self._first_word[index], kept) + ranges(kept)
        targets = {"rows": np.repeat(begins, kept) + self._places[which]}
        if self.labels is not None:
            labels = (labels[:number] for labels, number in zip(self.labels[index], kept, strict=True))
            targets["labels"] = np.fromiter(chain.from_iterable(labels), np.int64, count=int(kept.sum()))
        return targets, {"words": int(kept.sum())}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each word that is there."""
        return self.kept[index]


def _sums(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The sum of the first ``number[0]`` values, of the next ``number[1]``, and so on; 0 for none of them."""
    upto = np.append(0, np.cumsum(values, dtype=np.int64))
    ends = np.cumsum(number)
    return upto[ends] - upto[ends - number]


def _word_tokens(sentences: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all words end to end, and the number of tokens of each.

    Raises ``InputError`` for words without a token where the tokenizer has none for what it does not know.
    """
    # Byte-level and unigram vocabularies know a word by the space before it; to the others it makes no difference.
    unique = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(sentences)))}
    tokens = tokenize([f" {word}" for word in unique], tokenizer)
    # What a tokenizer drops, such as a lone control character, is a word that it does not know.
    unknown: Any = tokenizer.unk_token_id
    dropped = [word for word, length in zip(unique, tokens.lengths, strict=True) if not length]
    if dropped and unknown is None:
        raise InputError(
            f"the tokenizer makes no token of {len(dropped):,} words of the task, the first is {dropped[0]!r}, and it "
            "has no unknown token to stand for them; remove these words and their tags, or take another model"
        )
    ids = np.append(tokens.ids, np.int32(0 if unknown is None else unknown))
    starts = np.where(tokens.lengths > 0, tokens.starts, len(tokens.ids))
    lengths = np.maximum(tokens.lengths, 1)
    which = np.fromiter((unique[word] for word in chain.from_iterable(sentences)), np.int64)
    sizes = lengths[which]
    return ids[np.repeat(starts[which], sizes) + ranges(sizes)], sizes


class Type(TaskType):
    """Labels and predictions are arrays of tag ids, one for each word (N,)."""

    model_class = AutoModelForTokenClassification
    pipeline = "token-classification"

    def settings(self) -> dict[str, Any]:
        """Names of the tags."""
        return {"num_labels": len(self.section.labels)} | label_names(self.section.labels)

    def objective(self, model: PreTrainedModel) -> Predictor:
        """With cross-entropy at the first token of each word."""
        return Objective(model)

    def examples(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        training: FinetuneTrainSection | None = None,
    ) -> Examples:
        """A sequence for each sentence; words that do not fit are counted in a warning, and predicted as O."""
        examples = SentenceExamples(split, tokenizer, max_length=max_length, seed=seed)
        if examples.lost:
            logger.warning(
                "%s %s: %d sentences are longer than %d tokens: %d words at their ends are cut off and predicted as O",
                self.section.name, split.name, examples.num_cut, max_length, examples.lost,
            )  # fmt: skip
        return examples

    def decide(self, outputs: np.ndarray, examples: Examples, index: np.ndarray) -> np.ndarray:
        """The most probable tag of each word."""
        assert isinstance(examples, SentenceExamples)
        kept, best, outside = examples.kept[index], outputs.argmax(-1), self.section.labels.index("O")
        number = examples.number[index]
        ends = np.cumsum(kept)
        return objects([
            np.append(best[end - have : end], np.full(wanted - have, outside))
            for end, have, wanted in zip(ends, kept, number, strict=True)
        ])  # fmt: skip

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Those of :mod:`finetune.task_types.entities`."""
        return entities.scores(self.section.metrics, predictions, labels, self.section.labels)

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """No entity, where there are some."""
        counted = entities.count(predictions, labels, self.section.labels)[None]
        return "finds no entity at all" if counted.there and not counted.predicted else None

    def baselines(self, task: Task, split: str) -> dict[str, dict[str, float]]:
        """No entities at all, and for each word its most frequent tag."""
        found = token_baselines(task.split("train"), task.split(split), self.section.labels.index("O"))
        labels = task.split(split).labels
        assert labels is not None
        return {name: self.scores(guessed, labels) for name, guessed in found.items()}

    def format_prediction(self, prediction: Any) -> str:
        """The tags with spaces between."""
        return " ".join(self.section.labels[tag] for tag in prediction)

    def distances(self, predicted: Predicted) -> np.ndarray:
        """Words with another tag."""
        pairs = zip(predicted.predictions, predicted.labels, strict=True)
        return np.array([(a != b).sum() for a, b in pairs], dtype=np.float64)

    def write(self, folder: Path, predicted: Predicted) -> list[Path]:
        r"""``<split>.conll``: word, label (- without one) and prediction, as ``conlleval -d '\t'`` reads them."""
        split, names = predicted.split, self.section.labels
        lines = []
        for i, (words, tags) in enumerate(zip(split.texts[0], predicted.predictions, strict=True)):
            labels = ["-"] * len(words) if split.labels is None else [names[tag] for tag in split.labels[i]]
            lines += ["\t".join([*cells, names[tag]]) for *cells, tag in zip(words, labels, tags, strict=True)]
            lines.append("")
        file = folder / f"{split.name}.conll"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [file]

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """Precision, recall and F1 of each kind of entity."""
        counted = entities.count(predicted.predictions, predicted.labels, self.section.labels)
        groups = {f"{kind or 'all'} ({each.there:,})": each for kind, each in counted.items()}
        bars = {name: [getattr(each, name) for each in groups.values()] for name in ("precision", "recall", "f1")}
        picture = folder / "entities.png"
        plot_bars(list(groups), bars, picture, f"{self.section.name}, {predicted.split.name}")
        return [picture]

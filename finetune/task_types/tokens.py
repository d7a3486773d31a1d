"""A label for each word: cross-entropy at its first token, as BERT does named entities.

Predictions are scored by entities, counted as ``conlleval`` does (Tjong Kim Sang and Buchholz 2000).

Legend: N sentences of a split, W words of a batch or of all sentences end to end, T tokens, L labels.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.data.listed import tokenize
from bertillery.data.tables import Table
from bertillery.engine.batch import PackedBatch, ranges
from bertillery.models.encoders import token_logits
from bertillery.models.frame import template
from bertillery.report.plot import plot_bars
from finetune.data.rows import as_text, class_id_reader, objects
from finetune.data.sources import Source
from finetune.data.splits import Split
from finetune.examples import Examples, Sequences
from finetune.task_types import classification
from finetune.task_types.base import Predicted, Reading, TaskType, label_names, nine_digits
from finetune.task_types.class_weights import WeightedSection, weights_of_classes

logger = logging.getLogger(__name__)


class Config(WeightedSection):
    """Words with a tag each, in the notation IOB1 or IOB2."""

    available_metrics = ("f1", "precision", "recall", "accuracy")
    """Of entities, but ``accuracy``, which is the share of words with the right tag."""
    num_texts = (1,)
    pairs_of_texts = False

    def problems(self) -> list[str]:
        """Labels are tags."""
        found = super().problems()
        wrong = [name for name in self.labels if name != "O" and not name.startswith(("B-", "I-"))]
        if self.labels and (wrong or "O" not in self.labels):
            found.append(f"labels of words are O, B-<kind> and I-<kind>, not {', '.join(wrong) or 'without O'}")
        return found


class Objective(classification.Objective):
    """Targets are ``rows`` (W,), where in the batch each word begins, and ``labels`` (W,)."""

    count = "words"

    def logits(self, batch: PackedBatch) -> Tensor:
        """(W, L): of the first token of each word."""
        return token_logits(self.model, batch.input)[batch.targets["rows"]]


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
    """Texts are words ``[word, ...]``; labels and predictions are arrays of tag ids, one for each word (N,)."""

    model_class = AutoModelForTokenClassification
    pipeline = "token-classification"
    objective_class = Objective
    spaced = True
    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def weigh(self, labels: np.ndarray) -> None:
        """By the frequency of each tag."""
        counts = np.bincount(np.concatenate(labels), minlength=len(self.section.labels))
        self.class_weights = weights_of_classes(self.section, counts)

    def read_text(self, cell: Any) -> Any:
        """A list of words."""
        if not isinstance(cell, list) or any(not isinstance(word, str) or not word.strip() for word in cell):
            raise ValueError(f"no list of words, none of them empty: {cell!r:.200}")
        return [as_text(word) for word in cell]

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """From a list of tags to their ids, int64 (number of words,)."""
        one = class_id_reader(self.section, source, table, column)

        def tags(cell: Any) -> np.ndarray:
            if not isinstance(cell, list):
                raise ValueError(f"{column!r} holds {cell!r:.200}; a sentence has a list of tags")
            return np.array([one(tag) for tag in cell], dtype=np.int64)

        return tags

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """As many tags as words."""
        if label is not None and len(label) != len(texts[0]):
            raise ValueError(f"{len(texts[0])} words and {len(label)} tags")
        return texts, label

    def label_array(self, labels: list[Any]) -> np.ndarray:
        """(N,) arrays."""
        return objects(labels)

    def describe_labels(self, labels: np.ndarray) -> str:
        """Numbers of words and entities."""
        found, names = entities(labels, self.section.labels)[:, 2], kinds(self.section.labels)
        numbers = np.bincount(found, minlength=len(names))
        listed = ", ".join(f"{name} {number:,}" for name, number in zip(names, numbers, strict=True))
        return f"{sum(map(len, labels)):,} words, {len(found):,} entities ({listed})"

    def settings(self) -> dict[str, Any]:
        """Names of the tags."""
        return {"num_labels": len(self.section.labels)} | label_names(self.section.labels)

    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> Examples:
        """A sequence for each sentence; words that do not fit are counted in a warning, and predicted as O."""
        examples = SentenceExamples(split, tokenizer, max_length=how.max_length, seed=how.seed)
        if examples.lost:
            logger.warning(
                "%s %s: %d sentences are longer than %d tokens: %d words at their ends are cut off and predicted as O",
                self.section.name, split.name, examples.num_cut, how.max_length, examples.lost,
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

    def scores(
        self, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
    ) -> dict[str, float]:
        """Metrics of entities, and the accuracy of tags."""
        return entity_scores(self.section.metrics, predictions, labels, self.section.labels)

    def class_report(self, predicted: Predicted) -> list[list[str]]:
        """Precision, recall and F1 of each kind of entity."""
        rows = [["entity", "precision", "recall", "f1", "entities"]]
        for kind, each in count(predicted.predictions, predicted.labels, self.section.labels).items():
            shares = [f"{100 * value:.2f}" for value in (each.precision, each.recall, each.f1)]
            rows.append([kind or "all", *shares, f"{each.there:,}"])
        return rows

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """No entity, where there are some."""
        counted = count(predictions, labels, self.section.labels)[None]
        return "finds no entity at all" if counted.there and not counted.predicted else None

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """``majority``, the tag O everywhere, and ``bag of words``: each word's most frequent tag in training."""
        assert train.labels is not None
        outside, seen = self.section.labels.index("O"), defaultdict[str, Counter[int]](Counter)
        for words, tags in zip(train.texts[0], train.labels, strict=True):
            for word, tag in zip(words, tags.tolist(), strict=True):
                seen[word][tag] += 1
        tag_of = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
        return {
            "majority": objects([np.full(len(words), outside) for words in held_out.texts[0]]),
            "bag of words": objects([np.array([tag_of.get(w, outside) for w in words]) for words in held_out.texts[0]]),
        }

    def format_text(self, text: Any) -> str:
        """The words with spaces between."""
        return " ".join(text)

    def format_prediction(self, prediction: Any) -> str:
        """The tags with spaces between."""
        return " ".join(self.plain(prediction))

    def plain(self, prediction: Any) -> list[str]:
        """The tags."""
        return [self.section.labels[tag] for tag in prediction]

    def fields(self, predicted: Predicted) -> dict[str, Sequence[Any]]:
        """The tags, the probability of each (None for a word that is cut off), and the entities in words."""
        assert predicted.number is not None
        sentences = predicted.split.texts[0]
        parts = np.split(predicted.outputs.max(-1), np.cumsum(predicted.number)[:-1])
        shares = [
            [*map(nine_digits, part), *[None] * (len(words) - len(part))]
            for words, part in zip(sentences, parts, strict=True)
        ]
        order, told = kinds(self.section.labels), []
        for words, tags in zip(sentences, predicted.predictions, strict=True):
            found = entities([tags], self.section.labels).tolist()
            told.append([f"{order[kind]}: {' '.join(words[first:last])}" for first, last, kind in found])
        return super().fields(predicted) | {"probability": shares, "entities": told}

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
        counted = count(predicted.predictions, predicted.labels, self.section.labels)
        groups = {f"{kind or 'all'} ({each.there:,})": each for kind, each in counted.items()}
        bars = {name: [getattr(each, name) for each in groups.values()] for name in ("precision", "recall", "f1")}
        picture = folder / "entities.png"
        plot_bars(list(groups), bars, picture, f"{self.section.name}, {predicted.split.name}")
        return [picture]


@dataclass(frozen=True)
class Counts:
    """Entities of one kind, or of all."""

    right: int
    """Predicted where they are, with the same words and kind."""
    predicted: int
    there: int

    @property
    def precision(self) -> float:
        """Share of the predicted ones that are right; 0 where there are none."""
        return self.right / max(1, self.predicted)

    @property
    def recall(self) -> float:
        """Share of those there that are found; 0 where there are none."""
        return self.right / max(1, self.there)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 where both are."""
        return 2 * self.right / max(1, self.predicted + self.there)


def entities(tags: Collection[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """The entities (E, 3) of sentences of tag ids: first word, word behind the last, and kind.

    Words are counted over all sentences; kinds are numbers in ``kinds(names)``. An entity begins at ``B-``, and, as in
    ``conlleval``, at an ``I-`` that follows no tag of the same kind, so that IOB1 is read as well as IOB2. It ends with
    the sentence at the latest.
    """
    flat = np.concatenate([np.asarray(sentence, np.int64) for sentence in tags]) if len(tags) else np.empty(0, np.int64)
    order = kinds(names)
    kind_of_tag = np.array([order.index(name[2:]) if name != "O" else -1 for name in names])
    kind = kind_of_tag[flat]
    begins = np.array([name.startswith("B-") for name in names])[flat]
    first = np.zeros(len(flat), bool)
    first[np.cumsum([0, *map(len, tags)])[:-1][[len(sentence) > 0 for sentence in tags]]] = True
    before = np.where(first, -1, np.concatenate(([-1], kind[:-1])))
    starts = (kind >= 0) & (begins | (before != kind))
    # What goes on is neither a start nor outside; an entity ends where that stops.
    stops = np.append(np.flatnonzero(starts | (kind < 0)), len(flat))
    (at,) = np.nonzero(starts)
    ends = stops[np.searchsorted(stops, at, side="right")]
    return np.stack([at, ends, kind[at]], axis=1)


def kinds(names: Sequence[str]) -> list[str]:
    """The kinds of entity that tags name, in the order of their first tag."""
    return list(dict.fromkeys(name[2:] for name in names if name != "O"))


def count(
    predictions: Collection[np.ndarray], labels: Collection[np.ndarray], names: Sequence[str]
) -> dict[str | None, Counts]:
    """The entities of each kind, and under None of all."""
    found, there = ({*map(tuple, entities(tags, names).tolist())} for tags in (predictions, labels))
    counted: dict[str | None, Counts] = {}
    for number, name in enumerate([*kinds(names), None]):
        a, b = ({entity for entity in every if name is None or entity[2] == number} for every in (found, there))
        counted[name] = Counts(len(a & b), len(a), len(b))
    return counted


def entity_scores(
    metrics: Sequence[str], predictions: Collection[np.ndarray], labels: Collection[np.ndarray], names: Sequence[str]
) -> dict[str, float]:
    """The named metrics of ``Config.available_metrics``.

    Sentences are arrays of ids of the tags ``names``.
    """
    overall = count(predictions, labels, names)[None]
    right = sum(int((np.asarray(a) == np.asarray(b)).sum()) for a, b in zip(predictions, labels, strict=True))
    found = {
        "f1": overall.f1,
        "precision": overall.precision,
        "recall": overall.recall,
        "accuracy": right / max(1, sum(map(len, labels))),
    }
    return {name: found[name] for name in metrics}

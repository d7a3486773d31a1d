"""Entities in sequences of tags, and how many of them are found, counted as ``conlleval`` does.

Legend: W words of all sentences end to end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

METRICS = ("f1", "precision", "recall", "accuracy")
"""What can be asked of a task of words."""


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
    ``conlleval`` (Tjong Kim Sang and Buchholz 2000), at an ``I-`` that follows no tag of the same kind, so that IOB1
    is read as well as IOB2. It ends with the sentence at the latest.
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


def scores(
    metrics: Sequence[str], predictions: Collection[np.ndarray], labels: Collection[np.ndarray], names: Sequence[str]
) -> dict[str, float]:
    """The named metrics of ``METRICS``: of entities, but ``accuracy``, which is the share of words with the right tag.

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

"""What a task is solved to without an encoder: by the labels alone, and by a bag of words.

A fine-tuned encoder that is not above both has learned nothing that needs one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.config import InputError
from finetune.data import Split, Task
from finetune.metrics import scores

_LARGEST = 100_000
"""Examples that the bag of words is fitted to; the first ones."""
_FIT = 10.0
"""Inverse strength of the logistic regression's penalty; the library's 1 is too strong for most of GLUE."""


def baselines(task: Task, split: str) -> dict[str, dict[str, float]]:
    """The task's metrics on a labelled split, for ``majority`` (of scores ``mean``) and ``bag of words``.

    The first gives every example the training split's most frequent class, the labels that most of its examples have,
    or its mean score. The second is a logistic or a ridge regression on TF-IDF of words and of neighbouring words; of
    a pair, on what both texts have, on what only one has, and on how alike they are. Deterministic. Raises
    ``InputError`` where the training split or the split's labels are missing.
    """
    train, held_out = task.split("train"), task.split(split)
    if train.labels is None or held_out.labels is None:
        raise InputError(f"{task.section.name} {split}: a baseline needs labels, and this split has none")
    kind = task.section.type
    constant = _constant(kind, train.labels)
    same = np.repeat(constant[None], held_out.num_examples, axis=0)
    words = _bag_of_words(kind, train, held_out)
    predicted = {"mean" if kind == "regression" else "majority": same, "bag of words": words}
    return {name: scores(task.section.metrics, values, held_out.labels) for name, values in predicted.items()}


def _constant(kind: str, labels: np.ndarray) -> np.ndarray:
    """One prediction for every example: ``()``, or ``(L,)`` of several labels."""
    if kind == "classification":
        return np.bincount(labels).argmax()
    mean = labels.mean(axis=0)
    return mean if kind == "regression" else np.round(mean)


def _bag_of_words(kind: str, train: Split, held_out: Split) -> np.ndarray:
    """Predictions for the held-out split, shaped as its labels."""
    from sklearn.linear_model import LogisticRegression, Ridge

    assert train.labels is not None
    known, unknown = _features(train, held_out)
    labels = train.labels[: known.shape[0]]

    def fitted(target: np.ndarray) -> np.ndarray:
        if np.ptp(target) == 0:  # nothing to separate
            return np.full(unknown.shape[0], target[0])
        model = Ridge(solver="sparse_cg") if kind == "regression" else LogisticRegression(C=_FIT, max_iter=1000)
        return model.fit(known, target).predict(unknown)

    return fitted(labels) if labels.ndim == 1 else np.stack([fitted(column) for column in labels.T], axis=1)


def _features(train: Split, held_out: Split) -> tuple[Any, Any]:
    """Sparse matrices of both splits, a row an example."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A punctuation mark is a word too: it is much of what tells an unacceptable sentence or a question.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, dtype=np.float32  # pyright: ignore
    )  # fmt: skip
    columns = [texts[:_LARGEST] for texts in train.texts]
    vectorizer.fit(text for texts in columns for text in texts)

    def rows(texts: list[list[str]]) -> Any:
        counted: list[Any] = [vectorizer.transform(column) for column in texts]
        if len(counted) == 1:
            return counted[0]
        first, second = counted
        both = first.multiply(second)
        return sparse.hstack([both, abs(first - second), sparse.csr_matrix(both.sum(axis=1))], format="csr")

    return rows(columns), rows(list(held_out.texts))

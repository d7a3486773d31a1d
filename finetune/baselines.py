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
"""Examples that anything is fitted to; the first ones."""


def baselines(task: Task, split: str) -> dict[str, dict[str, float]]:
    """The task's metrics on a labelled split, for ``majority`` (of scores ``mean``), ``bag of words`` and ``overlap``.

    ``majority`` gives every example the training split's most frequent class, the labels that most of its examples
    have, or its mean score. ``bag of words`` is a ridge regression on TF-IDF of words and of neighbouring words; of a
    pair, on what both texts have, on what only one has, and on how alike they are. ``overlap``, for pairs, knows only
    how alike they are (the cosine). Deterministic. Raises ``InputError`` where training split or labels are missing.
    """
    train, held_out = task.split("train"), task.split(split)
    if train.labels is None or held_out.labels is None:
        raise InputError(f"{task.section.name} {split}: a baseline needs labels, and this split has none")
    kind = task.section.type
    predicted = {"mean" if kind == "regression" else "majority": _constant(kind, train.labels, held_out.num_examples)}
    known, unknown = _features(train, held_out)
    labels = train.labels[: known.shape[0]]
    predicted["bag of words"] = _ridge(kind, known, labels, unknown)
    if len(train.texts) == 2:
        predicted["overlap"] = _ridge(kind, known[:, -1], labels, unknown[:, -1])
    return {name: scores(task.section.metrics, values, held_out.labels) for name, values in predicted.items()}


def _constant(kind: str, labels: np.ndarray, num_examples: int) -> np.ndarray:
    """The same prediction for every example, ``(N,)`` or ``(N, L)``."""
    if kind == "classification":
        return np.full(num_examples, np.bincount(labels).argmax())
    mean = labels.mean(axis=0, dtype=np.float64)
    return np.full(num_examples, mean) if kind == "regression" else np.tile(np.round(mean), (num_examples, 1))


def _ridge(kind: str, known: Any, labels: np.ndarray, unknown: Any) -> np.ndarray:
    """Predictions for ``unknown`` of a model fitted to ``known`` and its labels, shaped as labels are."""
    from sklearn.linear_model import Ridge, RidgeClassifier

    if (labels == labels[0]).all():  # nothing to separate
        return np.repeat(labels[:1], unknown.shape[0], axis=0)
    model = Ridge(solver="sparse_cg") if kind == "regression" else RidgeClassifier(solver="sparse_cg")
    return np.asarray(model.fit(known, labels).predict(unknown))


def _features(train: Split, held_out: Split) -> tuple[Any, Any]:
    """Sparse matrices of both splits, a row an example; the last column of a pair is the cosine."""
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

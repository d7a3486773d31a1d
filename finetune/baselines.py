"""What a bag of words reaches without an encoder. A fine-tuned encoder that is not better has learned nothing that
needs one."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.data.splits import Split

_LARGEST = 100_000
"""Examples to fit a baseline to; the first ones."""


def bag_of_words(train: Split, held_out: Split, *, scores: bool) -> dict[str, np.ndarray]:
    """Predictions for ``held_out``, shaped as labels are, of a ridge regression on TF-IDF of words and of pairs of
    neighbouring words.

    For a pair of texts the features are what both have, what only one has, and their cosine; ``overlap`` is then a
    regression on the cosine alone. With ``scores`` the predictions are scores, otherwise classes. Deterministic.
    """
    assert train.labels is not None
    known, unknown = _features(train, held_out)
    labels = train.labels[: known.shape[0]]
    found = {"bag of words": _ridge(known, labels, unknown, scores=scores)}
    if len(train.texts) == 2:
        found["overlap"] = _ridge(known[:, -1], labels, unknown[:, -1], scores=scores)
    return found


def _ridge(known: Any, labels: np.ndarray, unknown: Any, *, scores: bool) -> np.ndarray:
    from sklearn.linear_model import Ridge, RidgeClassifier

    if (labels == labels[0]).all():  # nothing to separate
        return np.repeat(labels[:1], unknown.shape[0], axis=0)
    model = Ridge(solver="sparse_cg") if scores else RidgeClassifier(solver="sparse_cg")
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

"""What a task is solved to without an encoder: by the labels alone, and by a bag of words.

A fine-tuned encoder that is not above both has learned nothing that needs one.

What choices, words and questions are solved to without an encoder: by nothing at all, and by counting words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np

from bertillery.config.section import InputError
from finetune.metrics import scores
from finetune.rows import objects
from finetune.splits import Split, Task
from finetune.task_types.answers import Prediction

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


_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


def choice_baselines(train: Split, held_out: Split) -> dict[str, np.ndarray]:
    """``majority``, the most frequent place of the right choice, and ``bag of words``: the choice (N,) that a logistic
    regression on its words, and on how many of the text's it has, prefers."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    assert train.labels is not None
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([*train.texts[0], *(choice for choices in train.texts[1] for choice in choices)])

    def features(split: Split) -> tuple[Any, np.ndarray]:
        sizes = np.array([len(choices) for choices in split.texts[1]])
        choices = vectorizer.transform([choice for choices in split.texts[1] for choice in choices])
        texts = vectorizer.transform(split.texts[0])[np.repeat(np.arange(len(sizes)), sizes)]
        alike = np.asarray(texts.multiply(choices).sum(1))
        return sparse.hstack([choices, sparse.csr_matrix(alike)], format="csr"), sizes

    known, sizes = features(train)
    right = np.zeros(known.shape[0], np.int64)
    right[np.cumsum(sizes) - sizes + train.labels] = 1
    unknown, sizes = features(held_out)
    preferred = LogisticRegression(max_iter=1000).fit(known, right).decision_function(unknown)
    empty = [not choice for choices in held_out.texts[1] for choice in choices]
    parts = np.split(np.where(empty, -np.inf, preferred), np.cumsum(sizes)[:-1])
    majority = np.full(held_out.num_examples, np.bincount(train.labels).argmax())
    return {"majority": majority, "bag of words": np.array([part.argmax() for part in parts])}


def token_baselines(train: Split, held_out: Split, outside: int) -> dict[str, np.ndarray]:
    """``majority``, the tag ``outside`` everywhere, and ``bag of words``: each word's most frequent tag in training."""
    assert train.labels is not None
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for words, tags in zip(train.texts[0], train.labels, strict=True):
        for word, tag in zip(words, tags.tolist(), strict=True):
            seen[word][tag] += 1
    tag_of = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    return {
        "majority": objects([np.full(len(words), outside) for words in held_out.texts[0]]),
        "bag of words": objects([np.array([tag_of.get(w, outside) for w in words]) for words in held_out.texts[0]]),
    }


def span_baselines(held_out: Split) -> dict[str, np.ndarray]:
    """``majority``, no answer, and ``bag of words``: the sentence of the context that is most like the question."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    numbers = {context: i for i, context in enumerate(dict.fromkeys(held_out.texts[1]))}
    parts = [_SENTENCE.split(context) for context in numbers]
    sentences = [sentence for part in parts for sentence in part]
    ends = np.cumsum([len(part) for part in parts])
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    rows: Any = vectorizer.fit_transform(sentences)
    asked: Any = vectorizer.transform(held_out.texts[0])
    found = []
    for question, context in enumerate(held_out.texts[1]):
        begin, end = ends[numbers[context]] - len(parts[numbers[context]]), ends[numbers[context]]
        alike = (rows[begin:end] @ asked[question].T).toarray()[:, 0]
        found.append(Prediction(sentences[begin + int(alike.argmax())].strip(), -float(alike.max())))
    return {"majority": objects([Prediction("", 0.0)] * len(found)), "bag of words": objects(found)}

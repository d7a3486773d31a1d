"""Answers to questions, scored as the official scripts of SQuAD 1.1 and 2.0 do.

The scripts differ in two things, which ``unanswerable`` stands for: in 2.0 a gold answer that normalises to nothing is
none, and two empty answers have an F1 of 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune.data.rows import as_text

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


class Answer(NamedTuple):
    """A right answer."""

    text: str
    start: int
    """Where it is in the context, in characters."""


class Prediction(NamedTuple):
    """The best answer found."""

    text: str
    null: float = -np.inf
    """Score of there being no answer less that of the answer, in nats."""
    start: int = 0
    """Where it is in the context, in characters."""
    probability: float = 0.0
    """Its share among all spans that it was chosen from, and no answer where there may be none."""
    null_probability: float = 0.0
    """The share of no answer."""


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same once they are normalised."""
    return float(normalized(prediction) == normalized(answer))


def f1(prediction: str, answer: str, *, unanswerable: bool) -> float:
    """Harmonic mean of precision and recall of the words, counted as often as they occur."""
    found, there = normalized(prediction).split(), normalized(answer).split()
    if unanswerable and not (found and there):
        return float(found == there)
    same = sum((Counter(found) & Counter(there)).values())
    return 2 * same / (len(found) + len(there)) if same else 0.0


def question_scores(prediction: str, answers: Sequence[Answer], *, unanswerable: bool) -> tuple[float, float]:
    """Exact match and F1 of one question: the best over its answers; without one, whether the prediction is empty."""
    texts = [answer.text for answer in answers]
    if unanswerable:
        texts = [text for text in texts if normalized(text)] or [""]
    return (
        max(exact_match(prediction, text) for text in texts),
        max(f1(prediction, text, unanswerable=unanswerable) for text in texts),
    )


def table(
    predictions: Collection[Prediction], labels: Collection[Sequence[Answer]], *, unanswerable: bool
) -> np.ndarray:
    """Exact match and F1 of each question (N, 2), were each of them answered."""
    pairs = zip(predictions, labels, strict=True)
    return np.array([question_scores(each.text, answers, unanswerable=unanswerable) for each, answers in pairs])


def at_threshold(
    answered: np.ndarray, predictions: Collection[Prediction], labels: Collection[Sequence[Answer]], threshold: float
) -> np.ndarray:
    """Exact match and F1 of each question (N, 2) if those whose ``null`` is above the threshold are not answered.

    ``answered`` is what :func:`table` returned.
    """
    silent = np.array([each.null for each in predictions]) > threshold
    return np.where(silent[:, None], _without(labels)[:, None], answered)


def best_threshold(
    answered: np.ndarray, predictions: Collection[Prediction], labels: Collection[Sequence[Answer]]
) -> tuple[float, float]:
    """The threshold at which the mean of ``answered`` (N,), and of 1 for what has no answer and gets none, is largest.

    Returns that mean, and the threshold: the largest ``null`` of a question that is still answered, or, if none is best
    answered, the number just below the smallest. Questions of the same ``null`` are answered together, since no
    threshold parts them.
    """
    null = np.array([each.null for each in predictions])
    order = np.argsort(null, kind="stable")
    without = _without(labels)
    sums = without.sum() + np.concatenate(([0.0], np.cumsum((answered - without)[order])))
    ranked = null[order]
    possible = np.concatenate(([True], np.append(ranked[1:] != ranked[:-1], True)))
    best = int(np.argmax(np.where(possible, sums, -np.inf)))
    threshold = ranked[best - 1] if best else np.nextafter(ranked[0], -np.inf)
    return float(sums[best] / len(null)), float(threshold)


def _without(labels: Collection[Sequence[Answer]]) -> np.ndarray:
    """What a question scores that is not answered (N,)."""
    return np.array([not any(normalized(answer.text) for answer in answers) for answers in labels], dtype=np.float64)


def scores(
    metrics: Sequence[str],
    predictions: Collection[Prediction],
    labels: Collection[Sequence[Answer]],
    *,
    unanswerable: bool,
) -> dict[str, float]:
    """The named metrics of a task of spans, from 0 to 1.

    With ``unanswerable``, ``f1`` and ``exact_match`` are those at the threshold 0, and the ones named ``best`` each at
    its own best threshold; otherwise every question is answered.
    """
    answered = table(predictions, labels, unanswerable=unanswerable)
    found = {}
    if unanswerable:
        for column, name in enumerate(("exact_match", "f1")):
            found[f"best_{name}"] = best_threshold(answered[:, column], predictions, labels)[0]
        answered = at_threshold(answered, predictions, labels, 0.0)
    found |= {"exact_match": float(answered[:, 0].mean()), "f1": float(answered[:, 1].mean())}
    return {name: found[name] for name in metrics}


def read_answers(column: str, cell: Any) -> tuple[Answer, ...]:
    """The answers in a cell of SQuAD's or the Hub's form; ``ValueError`` for anything else."""
    wanted = f"{column!r} holds {cell!r:.200}; answers have text and answer_start"
    pairs = [cell] if isinstance(cell, dict) else cell
    if not isinstance(pairs, list) or not all(isinstance(p, dict) and {"text", "answer_start"} <= {*p} for p in pairs):
        raise ValueError(f"{wanted}, and no answer is an empty list")
    found: list[Answer] = []
    for pair in pairs:
        texts, starts = pair["text"], pair["answer_start"]
        if isinstance(texts, list) != isinstance(starts, list):
            raise ValueError(f"{wanted}, both lists or neither")
        texts, starts = (texts, starts) if isinstance(texts, list) else ([texts], [starts])
        if len(texts) != len(starts):
            raise ValueError(f"{wanted}, as many of one as of the other")
        found += [Answer(as_text(text), _read_start(start)) for text, start in zip(texts, starts, strict=True)]
    return tuple(found)


def _read_start(value: Any) -> int:
    """Where an answer begins, in characters; ``ValueError`` for what is no place in a text."""
    if (isinstance(value, str) and value.isdecimal()) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"answer_start is {value!r:.200}; it is the number of characters of the context before it")
    return value

from __future__ import annotations

import numpy as np
import pytest

from finetune.task_types.answers import (
    Answer,
    Prediction,
    at_threshold,
    best_threshold,
    exact_match,
    f1,
    normalized,
    question_scores,
    scores,
    table,
)
from finetune.task_types.spans import Config


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Cat", "cat"),
        ("a cat, an owl & the dog!", "cat owl dog"),
        ("  two \t words\n", "two words"),
        ("U.S.", "us"),
        ("$12.50", "1250"),
        ("well-known", "wellknown"),
        ("theatre another", "theatre another"),
        ("«the» cat", "« » cat"),
        ("THE", ""),
        ("a-b", "ab"),
    ],
)
def test_normalisation(text: str, wanted: str) -> None:
    """Lower, punctuation, articles, spaces, in this order; only ASCII's punctuation, only whole articles."""
    assert normalized(text) == wanted


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "wanted"),
    [
        ("the Cat", "cat.", 1, 1),
        ("big cat", "cat", 0, 2 / 3),
        ("cat", "big black cat", 0, 0.5),
        ("b b", "b", 0, 2 / 3),
        ("b b c", "b c c", 0, 2 / 3),
        ("cat dog", "dog cat", 0, 1),
        ("cat", "dog", 0, 0),
    ],
)
def test_exact_match_and_f1(prediction: str, answer: str, em: float, wanted: float) -> None:
    assert exact_match(prediction, answer) == em
    for unanswerable in (False, True):
        assert f1(prediction, answer, unanswerable=unanswerable) == pytest.approx(wanted)
        assert f1(answer, prediction, unanswerable=unanswerable) == pytest.approx(wanted)


def test_a_question_takes_its_best_answer() -> None:
    answers = [Answer("red fox", 0), Answer("fox", 4)]
    assert question_scores("the fox", answers, unanswerable=False) == (1, 1)
    assert question_scores("a quick red fox", answers, unanswerable=True) == (0, pytest.approx(0.8))


def test_the_two_scripts_differ_where_nothing_is_left() -> None:
    """SQuAD 1.1: "the" and "a" match, without a common word; 2.0: such an answer is none, and none matches none."""
    assert question_scores("a", [Answer("the", 0)], unanswerable=False) == (1, 0)
    assert question_scores("", [Answer("the", 0)], unanswerable=True) == (1, 1)
    assert question_scores("", [], unanswerable=True) == (1, 1)
    assert question_scores("fox", [], unanswerable=True) == (0, 0)
    assert question_scores("", [Answer("fox", 0), Answer("the", 0)], unanswerable=True) == (0, 0)


def drawn(seed: int, number: int = 30) -> tuple[list[Prediction], list[tuple[Answer, ...]]]:
    """Predictions, some right, with null scores of which several are alike; a third has no answer."""
    rng = np.random.default_rng(seed)
    labels = [() if rng.random() < 0.3 else (Answer("red fox", 0),) for _ in range(number)]
    texts = rng.choice(["red fox", "fox", "hen", ""], number)
    return [Prediction(str(text), float(rng.integers(-4, 5)) / 2) for text in texts], labels


@pytest.mark.parametrize("seed", range(8))
def test_the_best_threshold_is_the_best_of_all(seed: int) -> None:
    predictions, labels = drawn(seed)
    answered = table(predictions, labels, unanswerable=True)
    for column in (0, 1):
        best, threshold = best_threshold(answered[:, column], predictions, labels)
        tried = [at_threshold(answered, predictions, labels, each)[:, column].mean() for each in np.arange(-3, 3, 0.25)]
        assert best == pytest.approx(max(tried))
        assert at_threshold(answered, predictions, labels, threshold)[:, column].mean() == pytest.approx(best)


def test_scores_at_zero_and_at_the_best() -> None:
    predictions = [Prediction("fox", 1.0), Prediction("hen", -1.0), Prediction("owl", 3.0)]
    labels = [(Answer("fox", 0),), (Answer("hen", 0),), ()]
    got = scores(Config.available_metrics, predictions, labels, unanswerable=True)
    assert got == {"f1": pytest.approx(2 / 3), "exact_match": pytest.approx(2 / 3), "best_f1": 1, "best_exact_match": 1}
    assert scores(["exact_match"], predictions[:2], labels[:2], unanswerable=False) == {"exact_match": 1}


def test_a_model_that_is_always_wrong_is_best_silent() -> None:
    predictions, labels = [Prediction("hen", null) for null in (-1.0, 2.0)], [(), ()]
    answered = table(predictions, labels, unanswerable=True)
    best, threshold = best_threshold(answered[:, 1], predictions, labels)
    assert best == 1
    assert threshold < -1

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from bertillery.config.section import InputError, validate
from finetune.metrics import class_report, metric, scores
from finetune.task import TaskSection, task_type_of, task_types

METRICS_OF = {
    name: task_types()[name].Config.available_metrics
    for name in ("classification", "multilabel", "regression", "choice")
}
RNG = np.random.default_rng(0)
SCIKIT = {
    "accuracy": sklearn.accuracy_score,
    "f1": lambda y, p: sklearn.f1_score(y, p, zero_division=0),
    "macro_f1": lambda y, p: sklearn.f1_score(y, p, average="macro", zero_division=0),
    "precision": lambda y, p: sklearn.precision_score(y, p, zero_division=0),
    "macro_recall": lambda y, p: sklearn.recall_score(y, p, average="macro", zero_division=0),
    "matthews_correlation": sklearn.matthews_corrcoef,
}


def binary() -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and labels: random, one wrong, all wrong, one side or both of one class, one example."""
    labels = RNG.integers(0, 2, 50)
    one_wrong = labels.copy()
    one_wrong[3] ^= 1
    constant = [np.zeros(50, dtype=int), np.ones(50, dtype=int)]
    return [
        (RNG.integers(0, 2, 50), labels),
        (labels, labels),
        (one_wrong, labels),
        (1 - labels, labels),
        *((c, labels) for c in constant),
        *((labels, c) for c in constant),
        *((c, d) for c in constant for d in constant),
        (np.array([1]), np.array([0])),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", range(len(binary())))
def test_classification_equals_scikit_learn(case: int) -> None:
    predictions, labels = binary()[case]
    assert scores(list(SCIKIT), predictions, labels) == {
        name: pytest.approx(function(labels, predictions)) for name, function in SCIKIT.items()
    }


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "matthews_correlation"])
def test_three_classes_equal_scikit_learn(name: str) -> None:
    predictions, labels = RNG.integers(0, 3, (2, 200))
    assert scores([name], predictions, labels)[name] == pytest.approx(SCIKIT[name](labels, predictions))


def test_several_labels_equal_scikit_learn() -> None:
    predictions, labels = RNG.integers(0, 2, (2, 60, 4)).astype(np.float32)
    got = scores(METRICS_OF["multilabel"], predictions, labels)
    assert "roc_auc" not in got, "it is of outputs"
    assert got["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predictions))
    assert got["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predictions, average="macro"))


def test_by_hand() -> None:
    """3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    predictions, labels = np.array([1] * 4 + [0] * 6), np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    got = scores(["accuracy", "f1", "macro_f1", "matthews_correlation"], predictions, labels)
    assert got["accuracy"] == pytest.approx(7 / 10)
    assert got["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert got["macro_f1"] == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert got["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_correlations_by_hand_and_with_ties() -> None:
    predictions, labels = np.array([1.0, 2, 2, 5]), np.array([0.0, 3, 1, 4])
    got = scores(["pearson", "spearman"], predictions, labels)
    assert got["pearson"] == pytest.approx(8 / np.sqrt(9 * 10))
    assert got["spearman"] == pytest.approx(4.5 / np.sqrt(4.5 * 5))  # ranks 1 2.5 2.5 4 and 1 3 2 4
    tied, scored = RNG.integers(0, 5, 300).astype(np.float32), RNG.uniform(0, 5, 300).astype(np.float32)
    got = scores(["pearson", "spearman"], tied, scored)
    assert got["pearson"] == pytest.approx(stats.pearsonr(tied, scored).statistic)
    assert got["spearman"] == pytest.approx(stats.spearmanr(tied, scored).statistic)


@pytest.mark.parametrize("constant", [np.full(9, 2.5), np.full(9, np.nan), np.full(9, np.inf)])
def test_a_correlation_that_is_not_defined_is_zero_and_named(constant: np.ndarray) -> None:
    labels = np.linspace(0, 5, 9)
    assert scores(["pearson", "spearman"], constant, labels) == {"pearson": 0.0, "spearman": 0.0}
    assert warned("regression", constant, labels, [])


@pytest.mark.parametrize("name", [name for names in METRICS_OF.values() for name in names])
def test_the_order_of_examples_does_not_matter(name: str) -> None:
    predictions, labels = RNG.integers(0, 2, (2, 99))
    order = RNG.permutation(99)
    outputs = RNG.uniform(size=(99, 2))
    mixed = scores([name], predictions[order], labels[order], outputs[order])[name]
    assert scores([name], predictions, labels, outputs)[name] == pytest.approx(mixed)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    """By hand, with ties; of one class of two it is that of the other, and of a constant it is a half."""
    labels, outputs = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.5, 0.5, 0.7, 0.2])
    both = np.stack([1 - outputs, outputs], 1)
    assert scores(["roc_auc"], labels, labels, both) == {"roc_auc": pytest.approx((0.5 + 1 + 1 + 1 + 1 + 0) / 6)}
    assert scores(["roc_auc"], labels, labels, np.full((5, 2), 0.5)) == {"roc_auc": 0.5}
    assert scores(["roc_auc"], labels * 0, labels * 0, both) == {"roc_auc": 0.5}
    classes, three = RNG.integers(0, 3, 60), RNG.dirichlet([1, 1, 1], 60)
    wanted = sklearn.roc_auc_score(classes, three, multi_class="ovr", average="macro")
    assert scores(["roc_auc"], classes, classes, three)["roc_auc"] == pytest.approx(wanted)
    several, given = RNG.integers(0, 2, (60, 4)).astype(np.float32), RNG.uniform(size=(60, 4))
    wanted = sklearn.roc_auc_score(several, given, average="macro")
    assert scores(["roc_auc"], several, several, given)["roc_auc"] == pytest.approx(wanted)


def test_a_report_by_class() -> None:
    """By hand: of red 2 of 3 are found, and 1 of 3 found ones is wrong; blue is never there and never predicted."""
    predictions, labels = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    head, red, green, blue, mean = class_report(predictions, labels, ["red", "green", "blue"])
    assert head == ["class", "precision", "recall", "f1", "examples"]
    assert red == ["red", "66.67", "66.67", "66.67", "3"]
    assert green == ["green", "50.00", "50.00", "50.00", "2"]
    assert blue == ["blue", "0.00", "0.00", "0.00", "0"]
    assert mean == ["mean", "38.89", "38.89", "38.89", "5"]


def test_symmetries() -> None:
    predictions, labels = RNG.integers(0, 2, (2, 99))
    mcc = scores(["matthews_correlation"], predictions, labels)["matthews_correlation"]
    assert scores(["matthews_correlation"], 1 - predictions, labels)["matthews_correlation"] == pytest.approx(-mcc)
    assert scores(["matthews_correlation"], 1 - predictions, 1 - labels)["matthews_correlation"] == pytest.approx(mcc)
    names = METRICS_OF["regression"]
    one, other = RNG.normal(size=(2, 99))
    base = scores(names, one, other)
    assert scores(names, other, one) == pytest.approx(base)
    assert scores(names, 3 * one + 7, other) == pytest.approx(base)
    assert scores(["spearman"], np.exp(one), other)["spearman"] == pytest.approx(base["spearman"])
    assert scores(["pearson"], np.exp(one), other)["pearson"] != pytest.approx(base["pearson"])


def test_what_cannot_be_scored() -> None:
    with pytest.raises(InputError, match=r"given 'f2'; there are: accuracy, f1, macro_f1, micro_f1, "):
        metric("f2")
    with pytest.raises(InputError, match="f1 is that of class 1 of two"):
        scores(["f1"], np.array([0, 2]), np.array([0, 1]))
    with pytest.raises(InputError, match="give one for each"):
        scores(["accuracy"], np.array([0, 1]), np.array([0]))
    with pytest.raises(InputError, match="at least one"):
        scores(["accuracy"], np.array([]), np.array([]))


def warned(kind: str, predictions: np.ndarray, labels: np.ndarray, names: list[str]) -> str | None:
    section = {"name": "made", "type": kind, "labels": names, "metrics": METRICS_OF[kind][-1:], "files": {"train": "-"}}
    return task_type_of(validate(TaskSection, section)).warning(predictions, labels)


def test_degenerate_predictions_are_named() -> None:
    labels, names = np.array([1, 1, 0, 1]), ["unacceptable", "acceptable"]
    said = "predicts the majority class 'acceptable' for every example"
    assert warned("classification", np.ones(4), labels, names) == said
    said = "predicts the class 'unacceptable' for every example"
    assert warned("classification", np.zeros(4), labels, names) == said
    assert warned("classification", np.array([0, 1, 1, 1]), labels, names) is None
    assert warned("classification", np.ones(4), np.ones(4), names) is None
    scored = np.array([0.0, 2, 5])
    assert warned("regression", np.full(3, 2.5), scored, []) == "predicts the score 2.5 for every example"
    nearly = warned("regression", np.array([2.5, 2.5001, 2.5002]), scored, [])
    assert nearly is not None
    assert nearly.startswith("predicts nearly the score 2.5 for every example")
    assert warned("regression", np.array([2.4, 2.5, 2.6]), scored, []) is None
    assert warned("regression", np.array([2, np.nan, 3]), scored, []) == (
        "1 of 3 predictions are not a number: the training diverged"
    )
    several = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    assert warned("multilabel", np.zeros((3, 2)), several, names) == "predicts no label for every example"
    one = warned("multilabel", np.tile([0.0, 1.0], (3, 1)), several, names)
    assert one == "predicts 'acceptable' for every example"
    assert warned("multilabel", several, several, names) is None


def test_importing_is_cheap() -> None:
    """``evaluate`` takes seconds to import, and whoever only reads a configuration needs none of them."""
    script = (
        "import sys, finetune.metrics, finetune.data.splits\n"
        "print(sorted({'evaluate', 'datasets', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"

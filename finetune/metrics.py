"""Metrics by name, as ``evaluate`` metrics that need no network, and warnings about predictions that are all alike.

Definitions are those of the published scores: scikit-learn's accuracy, F1 and Matthews correlation, scipy's Pearson and
Spearman correlation. A correlation that is not defined, because one side is constant or not a number, is reported as 0;
the warnings then say so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bertillery.config.section import InputError

if TYPE_CHECKING:
    import evaluate

_NARROW = 1e-3
"""Scores that span less than this share of the labels' span count as one score."""


def scores(
    names: Sequence[str], predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
) -> dict[str, float]:
    """The named metrics, in that order; without ``outputs`` those that need none.

    ``predictions`` and ``labels`` are class ids ``(N,)``, scores ``(N,)`` or 0/1 per label ``(N, L)``; ``outputs`` are
    probabilities of the classes, or of each label, ``(N, L)``. Raises ``InputError`` for an unknown name, nothing to
    score or shapes that differ.
    """
    if predictions.shape != labels.shape or not len(labels):
        raise InputError(
            f"{predictions.shape} predictions for {labels.shape} labels; give one for each, and at least one"
        )
    given = {name: outputs if name in RANKING else predictions for name in names}
    return {
        name: metric(name).compute(predictions=found, references=labels)[name]  # pyright: ignore
        for name, found in given.items()
        if found is not None
    }


def class_report(predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """Precision, recall and F1 of each class, or label where there may be several, in percent, and how often it is
    there: rows of a table with its head, closed by the mean over the classes."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = [*range(len(names))]
    scored: Any = precision_recall_fscore_support
    found = scored(labels, predictions, labels=classes, zero_division=0)
    rows = [
        [name, *(f"{100 * value:.2f}" for value in values), f"{int(there):,}"]
        for name, *values, there in zip(names, *found, strict=True)
    ]
    means = [f"{100 * float(np.mean(values)):.2f}" for values in found[:3]]
    return [["class", "precision", "recall", "f1", "examples"], *rows, ["mean", *means, f"{int(sum(found[3])):,}"]]


def metric(name: str) -> evaluate.Metric:
    """The metric of that name; its ``compute(predictions=, references=)`` returns ``{name: value}``.

    Raises ``InputError`` that lists the names there are.
    """
    if name not in _FUNCTIONS:
        raise InputError(f"metrics: given {name!r}; there are: {', '.join(_FUNCTIONS)}")
    return _metric_class()(config_name=name, keep_in_memory=True)


def diverged(predictions: np.ndarray) -> str | None:
    """A warning about predictions that are not numbers, or None."""
    bad = int((~np.isfinite(predictions)).sum())
    return f"{bad:,} of {predictions.size:,} predictions are not a number: the training diverged" if bad else None


def all_alike(predictions: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the prediction is the same for every example though the labels are not."""
    return len(predictions) > 1 and bool((labels != labels[0]).any() and (predictions == predictions[0]).all())


def one_score(predictions: np.ndarray, labels: np.ndarray) -> str | None:
    """A warning about scores (N,) that are all alike, or nearly so beside the span of the labels, or None."""
    span, wanted = float(np.ptp(predictions)), float(np.ptp(labels))
    if len(predictions) < 2 or wanted == 0 or span >= _NARROW * wanted:
        return None
    mean = float(np.mean(predictions, dtype=np.float64))
    if span == 0:
        return f"predicts the score {mean:.4g} for every example"
    return f"predicts nearly the score {mean:.4g} for every example (they span {span:.2g}, the labels {wanted:.2g})"


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples that are right; one with several labels is right if all of them are."""
    right = predictions == labels
    return float(np.mean(right.all(axis=1) if right.ndim == 2 else right))


def _of_classes(name: str) -> tuple[Callable[[np.ndarray, np.ndarray], float], ...]:
    """scikit-learn's ``<name>_score`` of class 1 of two, as GLUE scores MRPC and QQP by F1; the mean over the labels
    where there may be several, else over the classes that are labelled or predicted; and that of all labels of all
    examples together."""

    def of_one(predictions: np.ndarray, labels: np.ndarray) -> float:
        if not np.isin(np.unique(np.append(predictions, labels)), (0, 1)).all():
            raise InputError(f"{name} is that of class 1 of two; for more classes use macro_{name}")
        return compute(predictions, labels, average="binary")

    def mean(predictions: np.ndarray, labels: np.ndarray) -> float:
        return compute(predictions, labels, average="macro")

    def together(predictions: np.ndarray, labels: np.ndarray) -> float:
        return compute(predictions, labels, average="micro")

    def compute(predictions: np.ndarray, labels: np.ndarray, average: str) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, f"{name}_score")(labels, predictions, average=average, zero_division=0))

    return of_one, mean, together


def _roc_auc(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Area under the receiver operating characteristic of each class against the others, or of each label: the share of
    pairs of an example with it and one without in which the former has the higher output, ties counting half. The mean
    over the classes that some examples have and some have not; 0.5, as of guessing, where there is none."""
    from sklearn.metrics import roc_auc_score

    one_hot = labels if labels.ndim == 2 else np.equal.outer(labels, np.arange(outputs.shape[1]))
    pairs = [(there, values) for there, values in zip(one_hot.T, outputs.T, strict=True) if len({*there.tolist()}) == 2]
    found = [float(roc_auc_score(there, np.nan_to_num(values))) for there, values in pairs]
    return float(np.mean(found)) if found else 0.5


def _matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews 1975; for more than two classes Gorodkin 2004. 0 where all are one class."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class, which a warning reports
        return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation of the ranks; those that tie share the mean of their ranks."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(function: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    sides = predictions.astype(np.float64), labels.astype(np.float64)
    if any(not np.isfinite(side).all() or np.ptp(side) == 0 for side in sides):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant, which a warning reports
        return float(np.nan_to_num(function(*sides).statistic))


_F1, _PRECISION, _RECALL = map(_of_classes, ("f1", "precision", "recall"))
_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _F1[0],
    "macro_f1": _F1[1],
    "micro_f1": _F1[2],
    "micro_precision": _PRECISION[2],
    "micro_recall": _RECALL[2],
    "matthews_correlation": _matthews_correlation,
    "precision": _PRECISION[0],
    "recall": _RECALL[0],
    "macro_precision": _PRECISION[1],
    "macro_recall": _RECALL[1],
    "roc_auc": _roc_auc,
    "pearson": _pearson,
    "spearman": _spearman,
}
RANKING = ("roc_auc",)
"""Metrics of outputs, not of predictions."""
OF_ONE_CLASS = ("f1", "precision", "recall")
"""Metrics of the second class of two."""


@cache
def _metric_class() -> type[evaluate.Metric]:
    """Made when first needed: importing ``evaluate`` takes seconds."""
    import datasets
    import evaluate

    class NamedMetric(evaluate.Metric):
        """One of ``_FUNCTIONS``, named by the configuration's name."""

        def _info(self) -> evaluate.MetricInfo:
            name = self.config_name
            labels = datasets.Value("float64" if name in ("pearson", "spearman") else "int64")
            given = datasets.Value("float64") if name in RANKING else labels
            several = name in ("accuracy", *RANKING) or name.startswith(("macro_", "micro_"))
            pairs = [(given, labels), (datasets.Sequence(given), datasets.Sequence(labels))][: 1 + several]
            if name in RANKING:  # outputs are a row each, also where labels are one
                pairs = [(datasets.Sequence(given), labels), pairs[1]]
            return evaluate.MetricInfo(
                description=_FUNCTIONS[name].__doc__ or name,
                citation="",
                features=[datasets.Features({"predictions": each, "references": label}) for each, label in pairs],
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:  # pyright: ignore
            function = _FUNCTIONS[self.config_name]
            return {self.config_name: function(np.asarray(predictions), np.asarray(references))}

    return NamedMetric

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


def scores(names: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named metrics, in that order.

    ``predictions`` and ``labels`` are class ids ``(N,)``, scores ``(N,)`` or 0/1 per label ``(N, L)``. Raises
    ``InputError`` for an unknown name, nothing to score or shapes that differ.
    """
    if predictions.shape != labels.shape or not len(labels):
        raise InputError(
            f"{predictions.shape} predictions for {labels.shape} labels; give one for each, and at least one"
        )
    return {name: metric(name).compute(predictions=predictions, references=labels)[name] for name in names}  # pyright: ignore


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


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1, as GLUE scores MRPC and QQP."""
    from sklearn.metrics import f1_score

    if not np.isin(np.unique(np.append(predictions, labels)), (0, 1)).all():
        raise InputError("f1 is the F1 of class 1 of two; for more classes use macro_f1")
    return float(f1_score(labels, predictions, zero_division=0))  # pyright: ignore[reportArgumentType]


def _macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 of the labels where there may be several, else of the classes that are labelled or predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))  # pyright: ignore[reportArgumentType]


def _micro(score: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn import metrics

    return float(getattr(metrics, score)(labels, predictions, average="micro", zero_division=0))


def _micro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of all labels of all examples together."""
    return _micro("f1_score", predictions, labels)


def _micro_precision(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of the predicted labels of all examples that are right."""
    return _micro("precision_score", predictions, labels)


def _micro_recall(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of the labels of all examples that are predicted."""
    return _micro("recall_score", predictions, labels)


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


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "micro_precision": _micro_precision,
    "micro_recall": _micro_recall,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "spearman": _spearman,
}


_OF_LABELS = ("accuracy", "macro_f1", "micro_f1", "micro_precision", "micro_recall")
"""Those that also score 0 and 1 for each of several labels."""


@cache
def _metric_class() -> type[evaluate.Metric]:
    """Made when first needed: importing ``evaluate`` takes seconds."""
    import datasets
    import evaluate

    class NamedMetric(evaluate.Metric):
        """One of ``_FUNCTIONS``, named by the configuration's name."""

        def _info(self) -> evaluate.MetricInfo:
            value = datasets.Value("float64" if self.config_name in ("pearson", "spearman") else "int64")
            kinds = [value, datasets.Sequence(value)] if self.config_name in _OF_LABELS else [value]
            return evaluate.MetricInfo(
                description=_FUNCTIONS[self.config_name].__doc__ or f"{self.config_name} correlation",
                citation="",
                features=[datasets.Features({"predictions": kind, "references": kind}) for kind in kinds],
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:  # pyright: ignore
            function = _FUNCTIONS[self.config_name]
            return {self.config_name: function(np.asarray(predictions), np.asarray(references))}

    return NamedMetric

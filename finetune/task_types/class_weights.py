"""Weights of classes in the loss, for tasks whose labels are unevenly distributed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bertillery.config.types import Factor
from finetune.task import TaskSection


class WeightedSection(TaskSection):
    """A task whose loss may weigh its classes."""

    class_weights: Literal["balanced"] | list[Factor] | None = None
    """Weight of each of `labels` in the loss, in their order, or `balanced`: the inverse of its frequency in training.
    For one label of several, and for tags, weights are scaled to a mean of 1 over the training examples, so that the
    loss and the learning rate keep their size; for several labels they weigh the examples that have the label, and
    `balanced` is how many examples lack it to one that has it."""

    def problems(self) -> list[str]:
        """As many weights as labels."""
        found, given = super().problems(), self.class_weights
        if isinstance(given, list) and len(given) != len(self.labels):
            found.append(
                f"class_weights gives {len(given)} weights, and there are {len(self.labels)} labels; give one for "
                "each, in the order of labels"
            )
        return found


def weights_of_classes(section: WeightedSection, counts: np.ndarray) -> np.ndarray | None:
    """Weights (L,) float32 of classes of which there are ``counts`` (L,) examples: their mean over the examples is 1.
    ``balanced`` is N / (L n) of King and Zeng 2001, as in scikit-learn. A class without examples weighs 1."""
    given = section.class_weights
    if given is None:
        return None
    weights = np.asarray(1 / np.maximum(counts, 1) if given == "balanced" else given, np.float64)
    weights = weights * counts.sum() / (weights * counts).sum()
    return np.where(counts > 0, weights, 1).astype(np.float32)


def weights_of_labels(section: WeightedSection, labels: np.ndarray) -> np.ndarray | None:
    """Weights (L,) float32 of having each label, from labels (N, L) of 0 and 1."""
    given, there = section.class_weights, labels.sum(0)
    if given is None:
        return None
    lacking = (len(labels) - there) / np.maximum(there, 1)
    return (np.where(there > 0, lacking, 1) if given == "balanced" else np.asarray(given)).astype(np.float32)

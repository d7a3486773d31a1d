"""The label of a pair of segments: what it means, the terms of predicting it, and their baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term


@dataclass(frozen=True)
class PairLabel:
    """A binary label of every example, counted as ``pairs``."""

    task: str
    """The name of its terms, such as ``nsp``."""
    target: str
    """Its name in ``PackedBatch.targets``."""
    meanings: tuple[str, str]
    """What 0 and 1 mean."""

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """Cross-entropy and accuracy of float32 logits (B, 2)."""
        labels, title = batch.targets[self.target], self.task.upper()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        right = (logits.detach().argmax(-1) == labels).sum()
        return {
            self.task: Term(loss, "pairs", title=f"{title} loss (nats)", baseline="label entropy"),
            f"{self.task}_accuracy": Term(
                right, "pairs", 0.0, title=f"{title} accuracy", direction="higher", baseline="majority class"
            ),
        }

    def baselines(self, batches: Sequence[PackedBatch]) -> dict[str, float]:
        """The labels' entropy, and the accuracy of always giving the more frequent label."""
        share = float(np.concatenate([batch.targets[self.target].numpy() for batch in batches]).mean())
        return {self.task: binary_entropy(share), f"{self.task}_accuracy": max(share, 1 - share)}


def binary_entropy(share: float) -> float:
    """Entropy, in nats, of a label that is 1 for this share."""
    return float(-sum(p * np.log(p) for p in (share, 1 - share) if p > 0))

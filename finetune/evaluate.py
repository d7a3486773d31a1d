"""Predictions for whole splits, gathered from all processes, and the task's metrics over them.

F1, Matthews' and the other correlations of a set are not means over its batches, so nothing is averaged: every example
is predicted once, by one process, and the metrics see all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from engine.evaluate import HeldOut, Sums
from engine.order import shares
from finetune.metrics import scores
from finetune.model import Predictor


@torch.no_grad()
def predict(
    accelerator: Accelerator, objective: nn.Module, source: Any, rows: np.ndarray, *, micro_batch_tokens: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Outputs (N, K) of the rows in their order, float32, and the means of the objective's terms if there are labels.

    All processes call it with the same rows and get the same; each predicts its part, no example twice.
    """
    plain, sums, parts = accelerator.unwrap_model(objective), Sums(), []
    assert isinstance(plain, Predictor)
    training = plain.training
    plain.eval()
    lengths = rows["length"].astype(np.int64)
    # Processes left without an example take part in what is gathered all the same.
    ranks = min(accelerator.num_processes, len(rows))
    mine = (
        shares(lengths, micro_batch_tokens, ranks, accelerator.process_index)
        if accelerator.process_index < ranks
        else []
    )
    for part in mine:
        batch = source.collate(rows[part]).to(accelerator.device)
        with accelerator.autocast():
            logits = plain.logits(batch)
        if "labels" in batch.targets:
            sums.add(plain.terms(logits, batch), batch.counts)
        parts.append((part, plain.outputs(logits).float().cpu().numpy()))
    plain.train(training)
    gathered = gather_object(parts)
    outputs = np.empty((len(rows), gathered[0][1].shape[1]), np.float32)
    for part, values in gathered:
        outputs[part] = values
    return outputs, sums.means(accelerator)


class Scored(HeldOut):
    """Validation splits, scored by the task's metrics; the first metric on the first split decides."""

    def __init__(
        self,
        splits: dict[str, Any],
        *,
        metrics: list[str],
        decide: Callable[[np.ndarray], np.ndarray],
        num_examples: int | None,
    ) -> None:
        self._sets = {name: HeldOut(source, num_examples=num_examples) for name, source in splits.items()}
        first = next(iter(splits.values()))
        super().__init__(first, num_examples=num_examples)
        self._splits, self._metrics, self._decide = splits, metrics, decide

    def score(self, values: dict[str, float]) -> float:
        """The task's first metric on its first validation split."""
        return values[self._metrics[0]]

    def evaluate(self, accelerator: Accelerator, objective: nn.Module) -> dict[str, float]:
        """Loss and metrics; those of further splits are called ``<split>/<name>``."""
        found: dict[str, float] = {}
        for name, source in self._splits.items():
            rows = self._sets[name].rows
            outputs, means = predict(accelerator, objective, source, rows, micro_batch_tokens=self.micro_batch_tokens)
            values = means | scores(self._metrics, self._decide(outputs), source.labels[rows["index"]])
            found |= {key if source is self._source else f"{name}/{key}": value for key, value in values.items()}
        return found

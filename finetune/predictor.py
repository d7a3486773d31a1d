"""What every fine-tuned encoder has in common: a stock model whose head sees the rows that it needs.

Legend: M rows of outputs of a batch, K outputs of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective, Term
from bertillery.models.flops import encoder_flops


class Predictor(Objective):
    """An objective that can be asked for its predictions."""

    entries: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def logits(self, batch: PackedBatch) -> Tensor:
        """(M, K), or (M,), in float32."""

    @abstractmethod
    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """Sums of the batch by name."""

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor | None:
        """Logarithms of the probabilities (M, K) or (M,) that the logits stand for, summing to 1 over whatever excludes
        one another; None for a score. Of logits divided by a temperature, the softened ones."""
        return None

    def distributions(self, logits: Tensor) -> int:
        """How many distributions each row of ``logits`` stands for; the task's loss is the mean over them."""
        return 1

    @abstractmethod
    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """(M, K) numbers that may be averaged over models: probabilities, or scores. One example's rows follow the
        other's."""

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """The terms of the batch."""
        return self.terms(self.logits(batch), batch)

    def exported(self) -> PreTrainedModel:
        """The fine-tuned model."""
        return self.model

    @torch.no_grad()
    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass of the encoder; the head's few rows are left out."""
        return 3 * encoder_flops(self.model.config, batch.input)

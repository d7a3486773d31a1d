"""What every fine-tuned encoder has in common: a stock model whose head sees the rows that it needs."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from engine.encoders import model_flops, sequence_logits
from torch import Tensor
from transformers import PreTrainedModel

from engine.batch import PackedBatch
from engine.objective import Objective, Term


class Predictor(Objective):
    """An objective that can be asked for its predictions. Legend: B examples of a batch, K outputs of each."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def logits(self, batch: PackedBatch) -> Tensor:
        """(B, K), in float32."""

    @abstractmethod
    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """Sums of the batch by name."""

    @abstractmethod
    def outputs(self, logits: Tensor) -> Tensor:
        """(B, K) numbers that may be averaged over models: probabilities, or scores."""

    @staticmethod
    @abstractmethod
    def decide(outputs: np.ndarray) -> np.ndarray:
        """What is predicted, from (N, K) outputs: as the labels of the task are."""

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """The terms of the batch."""
        return self.terms(self.logits(batch), batch)

    def exported(self) -> PreTrainedModel:
        """The fine-tuned model."""
        return self.model

    @torch.no_grad()
    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass of the encoder; the head's few rows are left out."""
        return 3 * model_flops(self.model, batch)


class SequencePredictor(Predictor):
    """One vector of outputs for each example, from its [CLS]."""

    def logits(self, batch: PackedBatch) -> Tensor:
        """The head's outputs, float32 whatever the precision of the model."""
        return sequence_logits(self.model, batch).float()

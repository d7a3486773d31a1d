"""What every fine-tuned encoder has in common: a stock model whose head sees the rows that it needs.

Legend: M rows of outputs of a batch, K outputs of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.batch import PackedBatch
from engine.flops import encoder_flops
from engine.initial import truncated_normal_
from engine.objective import Objective, Term


def draw_head(model: PreTrainedModel, fresh: Sequence[str]) -> None:
    """Draw the parameters named ``fresh`` as BERT's ``run_classifier.py`` does: truncated normal, biases 0.

    A head with a ``draw`` of its own draws its matrices by that. LayerNorms, which families call by different names,
    keep 1 and 0.
    """
    parameters, usual = dict(model.named_parameters()), partial(truncated_normal_, std=model.config.initializer_range)
    draw: Callable[[Tensor], Tensor] = getattr(model, "draw", usual)
    head = {*head_parameters(model)}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for name in fresh:
        if name in parameters and name.rpartition(".")[0] not in norms:
            if name.endswith("bias"):
                nn.init.zeros_(parameters[name])
            else:
                (draw if name in head else usual)(parameters[name])


def begin_at(model: PreTrainedModel, score: float) -> None:
    """Let a head with one output, and small weights, answer about ``score`` to everything."""
    parameters = dict(model.named_parameters())
    (bias,) = [parameters[name] for name in head_parameters(model) if parameters[name].shape == (1,)]
    nn.init.constant_(bias, score)


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Names of the parameters outside the encoder."""
    return [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]


def log_softmax_within(logits: Tensor, owner: Tensor, number: int) -> Tensor:
    """Logarithms of the softmax of (M, ...) logits over the rows of each owner; ``owner`` (M,) is below ``number``."""
    index = owner.reshape(-1, *[1] * (logits.ndim - 1)).expand_as(logits)
    empty = logits.new_full((number, *logits.shape[1:]), -torch.inf)
    highest = empty.scatter_reduce(0, index, logits.detach(), "amax")
    shifted = logits - highest[owner]
    sums = torch.zeros_like(empty).index_add(0, owner, shifted.exp())
    return shifted - sums.log()[owner]


def best_within(logits: Tensor, owner: Tensor, number: int) -> Tensor:
    """The row (number,) of (M,) logits that is highest among those of each owner, the first one of equals."""
    highest = logits.new_full((number,), -torch.inf).scatter_reduce(0, owner, logits, "amax")
    rows = torch.arange(len(logits), device=logits.device)
    rows = rows.where(logits == highest[owner], len(logits))
    return rows.new_full((number,), len(logits)).scatter_reduce(0, owner, rows, "amin")


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
        return 3 * encoder_flops(self.model.config, batch)

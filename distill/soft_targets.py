"""Soft targets: the outputs of a teacher that was fine-tuned for a task, beside the labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.flops import encoder_flops
from distill.teacher import Teacher
from finetune.predict import Predictor

TAUGHT = "taught"
"""Target of a batch: the teacher's logits (M, K) or (M,), where they are known (:mod:`distill.answers`)."""


class Imitation(Predictor):
    """The predictor of a task, trained with soft targets too.

    ``hard`` and ``soft`` are the weights of labels and soft targets; ``temperature`` softens both distributions.
    """

    def __init__(
        self, student: Predictor, teacher: Teacher[Predictor], *, hard: float, soft: float, temperature: float
    ) -> None:
        nn.Module.__init__(self)
        self.student, self.teacher = student, teacher
        self.hard, self.soft, self.temperature = hard, soft, temperature

    @property
    def model(self) -> PreTrainedModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The student."""
        return self.student.model

    def logits(self, batch: PackedBatch) -> Tensor:
        """The student's."""
        return self.student.logits(batch)

    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """The student's."""
        return self.student.outputs(logits, batch)

    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """The terms of the task, of which the first is its loss, and ``soft``."""
        terms = self.student.terms(logits, batch)
        name, loss = next(iter(terms.items()))
        taught = batch.targets.get(TAUGHT)
        if taught is None:
            with self.teacher.asked(batch) as teacher:
                taught = teacher.logits(batch)
        softened = soft_cross_entropy(self.student, logits, taught, batch, self.temperature)
        if softened is None:  # regression: the squared error to the teacher's score
            softened = F.mse_loss(logits, taught, reduction="sum")
        weights = {name: Term(loss.total, loss.count, self.hard, loss.value)}
        return {**terms, **weights, "soft": Term(softened, loss.count, self.soft)}

    def seconds_beside(self) -> dict[str, float]:
        """The teacher's."""
        return {"teacher": self.teacher.take_seconds()}

    def flops(self, batch: PackedBatch) -> float:
        """Three times the student's forward pass, and once the teacher's where it is asked."""
        asked = TAUGHT not in batch.targets
        return self.student.flops(batch) + asked * encoder_flops(self.teacher.module.model.config, batch.input)


def soft_cross_entropy(
    student: Predictor, logits: Tensor, taught: Tensor, batch: PackedBatch, temperature: float
) -> Tensor | None:
    """T^2 times the cross-entropy of the student's softened distribution under the teacher's (Hinton et al. 2015,
    section 2.1), minus the teacher's entropy, summed over the batch. None for regression, which has no distribution. If
    the task's loss is a mean (of an answer's first and last token, of several labels), so is this.

    The entropy is constant, so gradients are those of TinyBERT's soft cross-entropy (Jiao et al. 2020, eq. 10) and of
    DistilBERT's divergence. TinyBERT's released code divides by the number of labels.
    """
    mine = student.log_probabilities(logits / temperature, batch)
    theirs = student.log_probabilities(taught / temperature, batch)
    if mine is None or theirs is None:
        return None
    difference = torch.where(theirs > -torch.inf, theirs.exp() * (theirs - mine), 0.0)
    return temperature**2 * difference.sum() / student.distributions(logits)

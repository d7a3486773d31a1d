"""Learning a task from a teacher that was fine-tuned for it: what the methods have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.flops import encoder_flops
from distill.teacher import Teacher
from finetune.predictor import Predictor


class Imitation(Predictor):
    """A student that answers as any other model of the task, and is trained with the teacher's answers, too.

    ``hard`` and ``soft`` are the weights of the labels and of the teacher, ``temperature`` softens both distributions.
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
        """``soft`` beside the terms of the task, of which the first is its loss."""
        terms = self.student.terms(logits, batch)
        name, loss = next(iter(terms.items()))
        with self.teacher.asked(batch) as teacher:
            taught = teacher.logits(batch)
        softened = soft_cross_entropy(self.student, logits, taught, batch, self.temperature)
        if softened is None:  # a score has no distribution: BERT's loss, towards the teacher's score
            softened = F.mse_loss(logits, taught, reduction="sum")
        weights = {name: Term(loss.total, loss.count, self.hard, loss.value)}
        return {**terms, **weights, "soft": Term(softened, loss.count, self.soft)}

    def seconds_beside(self) -> dict[str, float]:
        """The teacher's."""
        return {"teacher": self.teacher.take_seconds()}

    def flops(self, batch: PackedBatch) -> float:
        """Three times the student's forward pass, and once the teacher's."""
        return self.student.flops(batch) + encoder_flops(self.teacher.module.model.config, batch.input)


def soft_cross_entropy(
    student: Predictor, logits: Tensor, taught: Tensor, batch: PackedBatch, temperature: float
) -> Tensor | None:
    """Sum over the batch of T^2 times the cross-entropy of the student's softened distribution under the teacher's
    (Hinton et al. 2015, section 2.1), less the teacher's entropy: 0 where they agree. None for a score. Where the
    task's loss is a mean, of an answer's first and last token or of several labels, so is this.

    The entropy does not depend on the student, so gradients are those of TinyBERT's soft cross-entropy (Jiao et al.
    2020, eq. 10) and of DistilBERT's divergence alike. TinyBERT's released code divides by the number of labels.
    """
    mine = student.log_probabilities(logits / temperature, batch)
    theirs = student.log_probabilities(taught / temperature, batch)
    if mine is None or theirs is None:
        return None
    difference = torch.where(theirs > -torch.inf, theirs.exp() * (theirs - mine), 0.0)
    return temperature**2 * difference.sum() / student.distributions(logits)

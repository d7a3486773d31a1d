"""Tiny teachers, students and batches with targets, for the tests of distillation."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective
from bertillery.models.layers.attention import NAME
from distill.student import StudentSection, build_student
from distill.teacher import Teacher
from tests.models.families import LENGTHS, batch_of, tiny_config

STILL: dict[str, Any] = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
DROPOUTS: dict[str, Any] = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
TEACHERS = ["bert", "albert", "electra", "distilbert", "roberta"]


def teacher_of(kind: str = "bert", *, words: bool, seed: int = 0, **settings: Any) -> Teacher[PreTrainedModel]:
    """A model of three layers of 24, all random, biases too, with the masked-word head or without."""
    torch.manual_seed(seed)
    model_class: Any = AutoModelForMaskedLM if words else AutoModel
    model = model_class.from_config(tiny_config(kind, **settings), attn_implementation=NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Teacher(model)


def student_of(teacher: Teacher[Any], *, words: bool, seed: int = 1, **section: Any) -> PreTrainedModel:
    """A student without dropout, of one layer where nothing else is said."""
    torch.manual_seed(seed)
    given = StudentSection(**{"num_hidden_layers": 1, **STILL, **section})
    return build_student(given, teacher.module, masked_words=words)[0]


def stock(model: PreTrainedModel) -> Any:
    """The same weights in the library's own padded implementation."""
    twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager")
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def masked(lengths: list[int] = LENGTHS, every: int = 4, seed: int = 0) -> PackedBatch:
    """Random words, of which every so-manieth is to be predicted."""
    batch = batch_of(lengths, seed)
    positions = torch.arange(1, batch.input.num_tokens, every)
    ids = torch.randint(5, 90, (len(positions),), generator=torch.Generator().manual_seed(seed))
    counts = {**batch.counts, "masked": len(positions)}
    return replace(batch, targets={"masked_positions": positions, "masked_ids": ids}, counts=counts)


def values(objective: Objective, batch: PackedBatch) -> dict[str, Tensor]:
    """What the loop would report of one batch, with gradient."""
    return {
        name: term.total / batch.counts[term.count] for name, term in objective(batch).items() if not term.total.ndim
    }

"""Our side of a training step: the stages' own examples, objectives and training loop."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, PreTrainedTokenizerBase

from benchmarks.contest import Step
from benchmarks.material import Material
from benchmarks.workload import LEARNING_RATE, SEED, Variant, Workload
from bertillery.engine.loader import Cursor, StepData, shares
from bertillery.engine.loop import training_steps
from bertillery.engine.objective import Objective, objective_module, sampled
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.models.layers.prepare import prepare_layers
from bertillery.run.device import RunSection, start_accelerator
from distill.corpus import Part
from distill.student import StudentSection, build_student
from distill.teacher import Teacher
from finetune.examples import TextExamples
from finetune.task_types import classification
from pretrain.model import bert_config

MICRO_BATCH_TOKENS = 8192
_SETTINGS: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 128, "generator_fraction": 0.25},
    "causal_lm": {"cross_document": True},
}
"""Settings of an objective that differ from its defaults."""


def source(workload: Workload, material: Material, split: str = "train") -> Any:
    """The examples of the workload; ``split`` is a split of GLUE's task."""
    length, tokenizer = workload.sequence_length, material.tokenizer
    if workload.stage == "finetune":
        found = material.split(workload.learns, split)
        return TextExamples(found.texts, found.labels, tokenizer, max_length=length, seed=SEED)
    module, config = _method(workload)
    if workload.learns == "causal_lm":
        tokenizer = ends_texts(tokenizer)
    text = material.tokens if workload.stage == "pretrain" else Part(material.tokens, material.unigrams)
    return module.source(config, text, tokenizer, sequence_length=length, seed=SEED)


def objective(workload: Workload, material: Material, dropout: float) -> Objective:
    """Model and loss, freshly initialised."""
    torch.manual_seed(SEED)
    model, tokenizer = workload.model(dropout), material.tokenizer
    if workload.stage == "finetune":
        return classification.Objective(BertForSequenceClassification(bert_config(model, tokenizer)))
    module, config = _method(workload)
    if workload.learns == "causal_lm":
        tokenizer = ends_texts(tokenizer)
    if workload.stage == "pretrain":
        return module.build(config, model, tokenizer)
    words = module.MASKED_WORDS
    teacher = Teacher((BertForMaskedLM if words else BertModel)(bert_config(model, tokenizer)))
    prepare_layers(teacher.module)
    section = StudentSection(
        type="distilbert" if words else "bert",
        num_hidden_layers=workload.layers // 2,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    student, _ = build_student(section, teacher.module, masked_words=words)
    return module.build(config, student, teacher)


def step(
    build: Callable[[float], Objective],
    examples: Any,
    variant: Variant,
    *,
    work: str = "tokens",
    learning_rate: Callable[[int], float] = lambda _: LEARNING_RATE,
) -> Step:
    """The training loop on given rows; dividing them into micro-batches, masking and packing are timed, too.

    ``build`` makes the objective with a dropout; ``work`` is the count of a batch that is reported.
    """
    threads = torch.get_num_threads()
    accelerator = start_accelerator(RunSection(threads=threads, device="cpu", precision=variant.precision))
    objective = build(variant.dropout).train()
    prepare_layers(objective)
    trained: nn.Module = accelerator.prepare_model(objective)
    waiting: list[np.ndarray] = []
    read: list[int] = []

    def data() -> Iterator[StepData]:
        for number in itertools.count():
            rows = sampled(examples, waiting.pop())
            split = shares(rows["length"].astype(np.int64), MICRO_BATCH_TOKENS, 1, 0)
            batches = [examples.collate(rows[part]) for part in split]
            read.append(sum(batch.counts[work] for batch in batches))
            yield StepData(number, batches, len(rows), read[-1], Cursor())

    steps = training_steps(
        accelerator,
        trained,
        build_optimizer(OptimSection(), trained),
        data(),
        learning_rate=learning_rate,
        max_gradient_norm=1.0,
        seed=SEED,
    )

    def run(rows: np.ndarray) -> int:
        waiting.append(rows)
        next(steps)
        return read[-1]

    return lambda rows: partial(run, rows)


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with an end-of-text token, which BERT's has not."""
    made = copy.copy(tokenizer)
    made.eos_token = made.sep_token
    return made


def _method(workload: Workload) -> tuple[Any, Any]:
    module = objective_module(f"{workload.stage}.objectives", {"type": workload.learns})
    return module, module.Config(**_SETTINGS.get(workload.learns, {}))

"""The measured training steps: models, objectives, and the rows that all sides get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bertillery.run.device import choose_precision
from pretrain.model import ModelSection
from pretrain.pairs import ROW

LEARNING_RATE = 1e-4
SEED = 1


@dataclass(frozen=True)
class Variant:
    """Precision and dropout of one of our sides."""

    precision: Literal["auto", "fp32"]
    dropout: float

    @property
    def label(self) -> str:
        precision, _ = choose_precision(self.precision, on_gpu=False)
        return f"{precision} dropout {self.dropout or 'off'}"


FAST = Variant("auto", 0.0)
"""Without dropout, in bfloat16 where the machine multiplies it."""
KEPT = Variant("auto", 0.1)
"""With the baseline's dropout."""
SAME = Variant("fp32", 0.1)
"""With the baseline's dropout and precision."""


@dataclass(frozen=True)
class Workload:
    """A model, its objective, and the examples of a step."""

    stage: Literal["pretrain", "distill", "finetune"]
    learns: str
    """An objective of the stage, or a task of GLUE; a student has half its teacher's layers."""
    layers: int = 4
    width: int = 256
    sequence_length: int = 128
    batch_size: int = 16
    steps: int = 1
    """Steps of each side in a round."""
    variants: tuple[Variant, ...] = (FAST, KEPT)

    def model(self, dropout: float) -> ModelSection:
        return ModelSection(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=max(1, self.width // 64),
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            hidden_act="gelu" if self.learns == "electra" else "gelu_pytorch_tanh",
        )


ALL = (FAST, KEPT, SAME)
WORKLOADS = {
    "mlm_4x256_s128": Workload("pretrain", "mlm", variants=ALL),
    "mlm_12x768_s128": Workload("pretrain", "mlm", 12, 768, variants=(FAST,)),
    "nsp_4x256_s128": Workload("pretrain", "bert"),
    "nsp_4x256_s512": Workload("pretrain", "bert", sequence_length=512, batch_size=8),
    "albert_4x256_s128": Workload("pretrain", "albert"),
    "electra_4x256_s128": Workload("pretrain", "electra"),
    "gpt_4x256_s128": Workload("pretrain", "causal_lm", variants=ALL),
    "distilbert_4x256_s128": Workload("distill", "distilbert", batch_size=8),
    "tinybert_4x256_s128": Workload("distill", "tinybert"),
    "glue_mrpc": Workload("finetune", "mrpc", batch_size=32, steps=2, variants=ALL),
    "glue_qqp": Workload("finetune", "qqp", batch_size=32, steps=4, variants=ALL),
    "glue_sst2": Workload("finetune", "sst2", batch_size=32, steps=8, variants=ALL),
}


def rows(workload: Workload, source: Any) -> Iterator[np.ndarray]:
    """Endless batches of rows.

    MLM alone and causal models read full blocks, as ``run_mlm`` and ``run_clm`` make by concatenating: the baseline
    then computes no padding.
    DistilBERT's batches have similar lengths, as its script groups them. All others are in random order.
    """
    plan = _full_blocks(workload, source) if workload.learns == "mlm" else source.examples(0, 0)
    if workload.learns == "causal_lm":
        plan = plan[plan["length"] == workload.sequence_length]
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(plan))
    if workload.learns == "distilbert":
        order = order[np.argsort(plan["length"][order], kind="stable")]
    starts = np.arange(0, len(order) - workload.batch_size + 1, workload.batch_size)
    assert len(starts), f"{len(order)} examples are less than a batch of {workload.batch_size}"
    while True:
        for start in rng.permutation(starts):
            yield plan[order[start : start + workload.batch_size]]


def _full_blocks(workload: Workload, source: Any) -> np.ndarray:
    body = workload.sequence_length - 2
    plan = np.zeros(len(source.tokens.ids) // body, ROW)
    plan["a_start"], plan["a_length"], plan["length"] = np.arange(len(plan)) * body, body, workload.sequence_length
    plan["key"] = np.arange(len(plan))
    return plan

"""What is measured: encoders, how they are trained, and the rows that all sides get alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bertillery.run.directory import choose_precision
from pretrain.model import ModelSection
from pretrain.pairs import ROW

LEARNING_RATE = 1e-4
SEED = 1


@dataclass(frozen=True)
class Variant:
    """Ours is measured in several ways."""

    precision: Literal["auto", "fp32"]
    dropout: float

    @property
    def label(self) -> str:
        """What the results call it."""
        precision, _ = choose_precision(self.precision, on_gpu=False)
        return f"{precision} dropout {self.dropout or 'off'}"


FAST = Variant("auto", 0.0)
"""As small encoders are trained by most since: without dropout, in bfloat16 where the machine multiplies it."""
KEPT = Variant("auto", 0.1)
"""Dropout as the baseline has it."""
SAME = Variant("fp32", 0.1)
"""Nothing that changes what is computed: float32, dropout."""


@dataclass(frozen=True)
class Workload:
    """A model, what it learns, and how many examples a step takes."""

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
    seconds: float = 5.0
    """What a round took on the machine of :data:`benchmarks.sizes.REFERENCE`."""

    def model(self, dropout: float) -> ModelSection:
        """The encoder's size."""
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
    "mlm_4x256_s128": Workload("pretrain", "mlm", variants=ALL, seconds=7),
    "mlm_12x768_s128": Workload("pretrain", "mlm", 12, 768, variants=(FAST,), seconds=40),
    "nsp_4x256_s128": Workload("pretrain", "bert", seconds=6),
    "nsp_4x256_s512": Workload("pretrain", "bert", sequence_length=512, batch_size=8, seconds=13),
    "albert_4x256_s128": Workload("pretrain", "albert", seconds=6),
    "electra_4x256_s128": Workload("pretrain", "electra", seconds=7),
    "distilbert_4x256_s128": Workload("distill", "distilbert", batch_size=8, seconds=10),
    "tinybert_4x256_s128": Workload("distill", "tinybert", seconds=3),
    "glue_mrpc": Workload("finetune", "mrpc", batch_size=32, steps=2, variants=ALL, seconds=6),
    "glue_qqp": Workload("finetune", "qqp", batch_size=32, steps=4, variants=ALL, seconds=4),
    "glue_sst2": Workload("finetune", "sst2", batch_size=32, steps=8, variants=ALL, seconds=4),
}
SIZES = {
    "sizes_tiny_2x128": Workload("pretrain", "mlm", 2, 128, variants=(FAST,), steps=2, seconds=6),
    "sizes_mini_4x256": Workload("pretrain", "mlm", 4, 256, variants=(FAST,), seconds=6),
    "sizes_small_4x512": Workload("pretrain", "mlm", 4, 512, variants=(FAST,), seconds=11),
    "sizes_medium_8x512": Workload("pretrain", "mlm", 8, 512, variants=(FAST,), seconds=18),
    "sizes_base_12x768": Workload("pretrain", "mlm", 12, 768, variants=(FAST,), seconds=40),
}


def rows(workload: Workload, source: Any) -> Iterator[np.ndarray]:
    """Batches of rows without end.

    Masked words alone are learned from full blocks, without padding, which is what ``run_mlm`` makes by concatenating
    and kinder to the baseline than padded segments. DistilBERT's batches are of like lengths, as its script groups
    them. All others are as they come.
    """
    plan = _full_blocks(workload, source) if workload.learns == "mlm" else source.examples(0, 0)
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

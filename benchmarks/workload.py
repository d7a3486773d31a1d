"""What is measured: encoders, their examples, and the rows that all sides get alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BertConfig, PreTrainedTokenizerBase

from pretrain.examples import DocumentSource
from pretrain.model import ModelSection
from pretrain.objectives import bert, mlm
from pretrain.pairs import ROW, Tokens

LEARNING_RATE = 1e-4
SEED = 1


@dataclass(frozen=True)
class Workload:
    """A model, its examples and how many of them a step takes."""

    pairs: bool
    layers: int
    width: int
    sequence_length: int
    batch_size: int
    steps: int
    """Steps of each side in a round."""
    dropouts: tuple[float, ...] = (0.0, 0.1)
    """Ours is measured without dropout, and with it as the baseline has it."""

    def model(self, dropout: float) -> ModelSection:
        """The encoder's size."""
        return ModelSection(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.width // 64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )


WORKLOADS = {
    "mlm_4x256_s128": Workload(False, 4, 256, 128, batch_size=16, steps=1),
    "mlm_12x768_s128": Workload(False, 12, 768, 128, batch_size=16, steps=1, dropouts=(0.0,)),
    "nsp_4x256_s512": Workload(True, 4, 256, 512, batch_size=8, steps=1),
    "nsp_4x256_s128": Workload(True, 4, 256, 128, batch_size=16, steps=1),
}


def source(workload: Workload, tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> DocumentSource:
    length = workload.sequence_length
    if workload.pairs:
        return bert.source(bert.Config(), tokens, tokenizer, sequence_length=length, seed=SEED)
    return mlm.source(mlm.Config(), tokens, tokenizer, sequence_length=length, seed=SEED)


def rows(workload: Workload, source: DocumentSource) -> Iterator[np.ndarray]:
    """Batches of rows without end. Pairs are BERT's, drawn from the text; the others are full blocks, without padding.

    Full blocks are what ``run_mlm`` makes by concatenating, and kinder to the baseline than padded segments.
    """
    if workload.pairs:
        plan = source.plan(0, 0)
    else:
        body = workload.sequence_length - 2
        plan = np.zeros(len(source.tokens.ids) // body, ROW)
        plan["a_start"], plan["a_length"], plan["length"] = np.arange(len(plan)) * body, body, workload.sequence_length
        plan["key"] = np.arange(len(plan))
    order = np.random.default_rng(SEED).permutation(len(plan))
    while True:
        for start in range(0, len(order) - workload.batch_size, workload.batch_size):
            yield plan[order[start : start + workload.batch_size]]


def objective(workload: Workload, tokenizer: PreTrainedTokenizerBase, dropout: float) -> bert.Bert | mlm.Mlm:
    torch.manual_seed(SEED)
    model = workload.model(dropout)
    return bert.build(bert.Config(), model, tokenizer) if workload.pairs else mlm.build(mlm.Config(), model, tokenizer)


def config(workload: Workload, tokenizer: PreTrainedTokenizerBase, dropout: float = 0.1) -> BertConfig:
    return mlm.bert_config(workload.model(dropout), tokenizer)

"""A throw-away objective: from the [CLS] state of an example, predict which share of its tokens has an even id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from transformers import BertForSequenceClassification

from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.objective import Objective, Term
from bertillery.models.encoders import sequence_logits
from bertillery.models.flops import model_flops
from pretrain.config import ObjectiveSection
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.model import ModelSection, bert_config, initialize
from pretrain.pairs import full_segments


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "bert"
    num_texts: ClassVar[int] = 1
    type: Literal["regression"] = "regression"


def source(config: Config, tokens: Any, tokenizer: Any, *, sequence_length: int, seed: int) -> DocumentSource:
    """Full segments with the share of even ids."""
    draw = partial(full_segments, sequence_length=sequence_length)
    return DocumentSource(tokens, tokenizer, seed=seed, draw=draw, finish=_with_shares, num_texts=1)


def _with_shares(examples: FlatExamples) -> PackedBatch:
    starts = np.cumsum(examples.lengths) - examples.lengths
    shares = np.add.reduceat(examples.input_ids % 2 == 0, starts, dtype=np.float32) / examples.lengths
    counts = {"examples": len(shares)}
    return pack(examples.input_ids, None, examples.lengths, targets={"share": shares.astype(np.float32)}, counts=counts)


class Regression(Objective):
    """A stock ``BertForSequenceClassification`` with one output."""

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: Any) -> None:
        super().__init__()
        self.model = BertForSequenceClassification(bert_config(sizes, tokenizer))
        self.model.classifier = torch.nn.Linear(sizes.hidden_size, 1)
        self.model.config.num_labels = self.model.num_labels = 1
        initialize(self.model, sizes.initializer_range)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``error`` and ``close``."""
        wrong = sequence_logits(self.model, batch.input)[:, 0] - batch.targets["share"]
        close, mean = (wrong.detach().abs() < 0.1).sum(), "the mean share"
        return {
            "error": Term(wrong.square().sum(), "examples", title="squared error of the share", baseline=mean),
            "close": Term(close, "examples", 0.0, title="shares within 0.1", direction="higher", baseline=mean),
            "unnamed": Term(wrong.detach().abs().sum(), "examples", 0.0),
        }

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Those of always giving the mean."""
        shares = torch.cat([batch.targets["share"] for batch in batches])
        wrong = shares - shares.mean()
        return {"error": wrong.square().mean().item(), "close": (wrong.abs() < 0.1).double().mean().item()}

    def exported(self) -> BertForSequenceClassification:
        """The whole model."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass."""
        return 3 * model_flops(self.model, batch.input)


build = Regression

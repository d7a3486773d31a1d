"""A tiny random model of every family, and the padded inputs that the stock models know."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from bertillery.engine.batch import PackedBatch, pack
from bertillery.models.encoders import FAMILIES

LENGTHS = [7, 31, 2, 16, 7, 24]


def tiny_config(kind: str, **settings: Any) -> PreTrainedConfig:
    """Three layers, every size another number; weights large enough for each input to matter."""
    plain = {"vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    plain |= {"max_position_embeddings": 40, "initializer_range": 0.2}
    names = {FAMILIES[kind].intermediate_size: 56}
    if kind in ("albert", "electra"):
        names["embedding_size"] = 16
    if kind in ("roberta", "xlm-roberta", "camembert"):
        names["type_vocab_size"] = 1
    return AutoConfig.for_model(kind, **{**plain, **names, **settings})


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    """Pairs of random words; none is a padding token."""
    rng = np.random.default_rng(seed)
    types = np.concatenate([(np.arange(n) > n // 2).astype(int) for n in lengths])
    return pack(rng.integers(5, 90, sum(lengths)), types, np.array(lengths), targets={}, counts={})


def padded_inputs(config: PreTrainedConfig, batch: PackedBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments (B, s) of a stock model, as its tokenizer would make them, and which cells are tokens."""
    lengths = batch.input.offsets.diff()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    inputs = {"input_ids": torch.full(mask.shape, config.pad_token_id), "attention_mask": mask.long()}
    inputs["input_ids"][mask] = batch.input.ids
    if getattr(config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = torch.zeros(mask.shape, dtype=torch.long)
        inputs["token_type_ids"][mask] = batch.input.token_type_ids
    return inputs, mask

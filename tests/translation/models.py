"""Tiny encoder-decoders with random weights, and packed sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import MarianConfig, MarianMTModel, PegasusConfig, PegasusForConditionalGeneration, PreTrainedModel

from bertillery.engine.batch import PackedBatch, Stream, pack_pairs, pack_stream
from bertillery.models.layers.attention import NAME

PAD, END = 0, 1
NORMS = ("post", "pre")


def transformer(norm: str, *, vocab_size: int = 30, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """In evaluation mode, with weights so large that its distributions are far from uniform."""
    sizes = {
        "vocab_size": vocab_size, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0,
        "max_position_embeddings": 64, "activation_function": "relu", "scale_embedding": True, "init_std": 0.3,
        "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None, "decoder_start_token_id": PAD,
        "forced_eos_token_id": None, "attn_implementation": NAME,
    }  # fmt: skip
    sizes |= settings
    torch.manual_seed(seed)
    if norm == "post":
        return MarianMTModel(MarianConfig(**sizes, share_encoder_decoder_embeddings=True)).eval()
    return PegasusForConditionalGeneration(PegasusConfig(**sizes)).eval()


def sources(lengths: list[int], *, vocab_size: int = 30, seed: int = 0) -> Stream:
    ids = np.random.default_rng(seed).integers(2, vocab_size, sum(lengths))
    return pack_stream(ids, np.array(lengths))


def pairs(source: list[int], target: list[int], *, vocab_size: int = 30, seed: int = 0) -> PackedBatch:
    """Sentences of these lengths; every target begins with the padding token."""
    rng = np.random.default_rng(seed)
    entering = rng.integers(2, vocab_size, sum(target))
    entering[np.cumsum(target) - target] = PAD
    following = rng.integers(2, vocab_size, sum(target))
    counts = {"target_tokens": sum(target), "sequences": len(target)}
    ids = rng.integers(2, vocab_size, sum(source))
    return pack_pairs(ids, np.array(source), entering, np.array(target), targets={"next_ids": following}, counts=counts)

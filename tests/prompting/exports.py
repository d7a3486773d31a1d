"""A tiny causal export for the tests, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from bertillery.data.causal_tokenizer import train_byte_bpe
from bertillery.data.tokenizer import TokenizerSection
from bertillery.models.export import export_model
from pretrain.model import ModelSection
from pretrain.objectives.causal_lm import CausalLm, Config

TEXT = ["The cat sat on the mat, and the dog sat on the cat. " * 4, "A mat is a mat; the mat's cat is not the dog's."]


def write_causal(folder: Path, positions: int = 64) -> Path:
    """A random GPT-2 whose logits differ enough to have a greedy continuation."""
    tokenizer = train_byte_bpe(TEXT, TokenizerSection(type="byte_bpe", vocab_size=280))
    sizes = ModelSection(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, max_position_embeddings=positions,
        layer_norm_eps=1e-5, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CausalLm(Config(), sizes, tokenizer).exported()
    assert isinstance(model, GPT2LMHeadModel)
    return export_model(model, tokenizer, folder / "export", card="")

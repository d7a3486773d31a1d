"""A tiny encoder and tiny tasks that the tests make for themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, ElectraConfig, ElectraModel

from tests.corpora import tiny_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_FAMILIES = {
    "bert": (BertConfig, BertModel, {}),
    "albert": (AlbertConfig, AlbertModel, {"embedding_size": 16}),
    "electra": (ElectraConfig, ElectraModel, {"embedding_size": 16}),
}


def write_encoder(folder: Path, family: str = "bert", seed: int = 0, dropout: float = 0.1) -> Path:
    """A random encoder with its tokenizer, as ``save_pretrained`` leaves it."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(64)
    config, model, more = _FAMILIES[family]
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "classifier_dropout_prob": 0}
    settings = {**SIZES, **more, **dropouts, "vocab_size": 64, "max_position_embeddings": 64, "initializer_range": 0.1}
    if family != "albert":
        del settings["classifier_dropout_prob"]
    model(config(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(number: int, seed: int, longest: int = 12) -> list[str]:
    """Words that the tiny tokenizer knows, of many lengths; never those that a label depends on."""
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(5, 59) if i % 3]
    return [" ".join(rng.choice(words, rng.integers(2, longest))) for _ in range(number)]


def write_task(folder: Path, kind: str = "classification", sizes: tuple[int, int, int] = (96, 41, 10)) -> Path:
    """A task whose label is in the text: a word for the class, a mean for the score; returns its YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, size) in enumerate(zip(("train", "validation", "test"), sizes, strict=True)):
        rng = np.random.default_rng(seed)
        rows = []
        for text, other in zip(sentences(size, seed), sentences(size, seed + 9), strict=True):
            value = int(rng.integers(3))
            row = {"first": f"{['w1', 'w2', 'w4'][value]} {text}", "second": other}
            label = {"classification": ["red", "green", "blue"][value], "regression": float(value) + 0.5}
            label["multilabel"] = [name for bit, name in enumerate(["odd", "high"]) if value >> bit & 1]  # pyright: ignore
            rows.append(json.dumps({**row, "label": label[kind]}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    names = {"classification": "[red, green, blue]", "regression": "[]", "multilabel": "[odd, high]"}[kind]
    metric = {"classification": "[accuracy, macro_f1]", "regression": "[pearson, spearman]", "multilabel": "macro_f1"}
    path = folder / "task.yaml"
    path.write_text(
        f"""
task:
  name: {kind}_toy
  type: {kind}
  text: [first, second]
  labels: {names}
  metrics: {metric[kind]}
  root: {folder}
  files: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
optim: {{learning_rate: 3.0e-3}}
train:
  steps: 12
  phases: [{{batch_size: 8, sequence_length: 24}}]
  log_every: 1
  save_every: 6
  evaluate_every: 6
tracking: {{wandb: "off"}}
"""
    )
    return path

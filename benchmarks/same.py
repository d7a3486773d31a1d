"""Check that our training step learns the same as the padded dense model."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks import ours
from benchmarks.material import Material
from benchmarks.workload import LEARNING_RATE, WORKLOADS, Workload, rows
from bertillery.engine.batch import PackedBatch
from bertillery.engine.loop import share_of_loss

Losses = list[tuple[float, float]]
"""Of each step, ours and the stock model's."""
CHECKS = {
    "pairs and masked words, fp32": ("nsp_4x256_s128", False, 1e-5),
    "pairs and masked words, bf16": ("nsp_4x256_s128", True, 1e-3),
    "glue, fp32": ("glue_mrpc", False, 1e-5),
}
"""Workload, whether in bfloat16, and the largest relative difference of the losses."""


def same_losses(material: Material, steps: int = 5) -> dict[str, Losses]:
    """The losses of each step for every check; ``AssertionError`` if ours differ from the stock model's."""
    found = {}
    for name, (workload, bf16, tolerance) in CHECKS.items():
        small = replace(WORKLOADS[workload], layers=2, width=128, batch_size=16)
        found[name] = losses = train_both(small, material, bf16=bf16, steps=steps)
        check(name, losses, tolerance)
    return found


def check(name: str, losses: Losses, tolerance: float) -> None:
    """``AssertionError`` if a pair of losses differs by more than the relative tolerance."""
    worst = max(abs(ours / theirs - 1) for ours, theirs in losses)
    assert worst <= tolerance, f"{name}: the losses differ by {worst:.1e}, more than {tolerance:.0e}: {losses}"


def train_both(workload: Workload, material: Material, *, bf16: bool, steps: int) -> Losses:
    """Train both models on the same batches from the same weights, without dropout."""
    source, objective = ours.source(workload, material), ours.objective(workload, material, 0.0)
    model_class: Any = type(objective.exported())
    stock = model_class._from_config(copy.deepcopy(objective.exported().config), attn_implementation="sdpa")
    stock.load_state_dict(objective.exported().state_dict())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE) for model in (objective, stock)]
    losses = []
    for chosen in itertools.islice(rows(workload, source), steps):
        batch = source.collate(chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            mine = share_of_loss(objective(batch), batch.counts)
            theirs = stock(**_padded(batch, cast(int, material.tokenizer.pad_token_id))).loss
        for loss, optimizer in zip((mine, theirs), optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append((mine.item(), theirs.item()))
    return losses


def _padded(batch: PackedBatch, pad_id: int) -> Mapping[str, Tensor]:
    def pad(values: Tensor, fill: int) -> Tensor:
        sequences = values.split(batch.input.offsets.diff().tolist())
        return pad_sequence([*sequences], batch_first=True, padding_value=fill)

    inputs = {
        "input_ids": pad(batch.input.ids, pad_id),
        "token_type_ids": pad(cast(Tensor, batch.input.token_type_ids), 0),
        "attention_mask": pad(torch.ones_like(batch.input.ids), 0),
    }
    if "labels" in batch.targets:
        return inputs | {"labels": batch.targets["labels"]}
    labels = torch.full_like(batch.input.ids, -100)
    labels[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
    return inputs | {"labels": pad(labels, -100), "next_sentence_label": batch.targets["pair_labels"]}

"""The check that rides along: the faster step learns the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks import workload as work
from benchmarks.conventional import pad, stock_model
from benchmarks.workload import LEARNING_RATE, WORKLOADS
from pretrain.pairs import Tokens


def same_losses(
    tokens: Tokens, tokenizer: PreTrainedTokenizerBase, steps: int = 5, tolerance: float = 1e-5
) -> list[tuple[float, float]]:
    """Train both ways on the same masked pairs from the same weights, in float32 without dropout; ours and theirs.

    Raises ``AssertionError`` where they part by more than the tolerance: a faster step that learns something else.
    """
    workload = replace(WORKLOADS["nsp_4x256_s128"], layers=2, width=128, batch_size=16)
    source = work.source(workload, tokens, tokenizer)
    objective = work.objective(workload, tokenizer, 0.0)
    stock = stock_model(work.config(workload, tokenizer, 0.0), pairs=True)
    stock.load_state_dict(objective.exported().state_dict())
    pad_id = cast(int, tokenizer.pad_token_id)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE) for model in (objective, stock)]
    losses = []
    for rows in itertools.islice(work.rows(workload, source), steps):
        batch = source.collate(rows)
        terms = objective(batch)
        means = [term.total * term.weight / batch.counts[term.count] for term in terms.values() if term.weight]
        ours = torch.stack(means).sum()
        lengths = batch.cu_seqlens.diff().tolist()
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
        theirs = stock(
            input_ids=pad(batch.input_ids, lengths, workload.sequence_length, pad_id),
            token_type_ids=pad(batch.token_type_ids, lengths, workload.sequence_length, 0),
            attention_mask=pad(torch.ones_like(labels), lengths, workload.sequence_length, 0),
            labels=pad(labels, lengths, workload.sequence_length, -100),
            next_sentence_label=batch.targets["pair_labels"],
        ).loss
        for loss, optimizer in zip((ours, theirs), optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append((ours.item(), theirs.item()))
    worst = max(abs(a / b - 1) for a, b in losses)
    assert worst <= tolerance, f"the losses part by {worst:.1e}, more than {tolerance:.0e}: {losses}"
    return losses

"""Recorded queries, keys and values of every family, against those of the stock model on a padded batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForQuestionAnswering

from bertillery.config.section import ConfigError
from bertillery.engine.batch import PackedBatch
from bertillery.models.encoders import FAMILIES, encode, encode_layers
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.layers import attention
from bertillery.models.layers.attention import NAME, Recorded, padded_buckets
from bertillery.models.relations import attention_scores, real_cells, relations
from tests.models.families import LENGTHS, batch_of, padded_inputs, tiny_config

HEADS, LAYERS, WIDTH = 4, 3, 24


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_config(kind)).eval()


def projections(model: nn.Module, batch: PackedBatch) -> dict[str, list[Tensor]]:
    """What the stock model's linear layers for queries, keys and values return (B, s, width), layer by layer."""
    inputs, _ = padded_inputs(model.config, batch)
    outputs: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    for name, module in model.named_modules():
        part = name.rsplit(".")[-1]
        if part in ("query", "key", "value", "q_lin", "k_lin", "v_lin"):
            module.register_forward_hook(lambda _, __, output, kept=outputs[part[0]]: kept.append(output))
    model(**inputs)
    return outputs


def sequences(squares: list[Tensor], batch: PackedBatch) -> list[Tensor]:
    """The real cells (heads, n, n) of each sequence, in the batch's order, cut from the padded buckets."""
    layout, found = batch.input.layout, []
    real = real_cells(layout)
    ends = torch.tensor([b * s for b, s in layout.shapes]).cumsum(0)
    for row, length in zip(batch.input.first_rows, batch.input.offsets.diff().tolist(), strict=True):
        cell = int(layout.scatter[row])
        index = int((ends <= cell).sum())
        b, s = layout.shapes[index]
        member = (cell - int(ends[index]) + b * s) // s
        assert real[index][member].tolist() == [True] * length + [False] * (s - length)
        found.append(squares[index][member, :, :length, :length])
    return found


def by_heads(rows: Tensor, length: int, num_heads: int) -> Tensor:
    return rows[:length].view(length, num_heads, -1).transpose(0, 1)


@pytest.mark.parametrize("lengths", [LENGTHS, [9, 9]])
@pytest.mark.parametrize("kind", FAMILIES)
def test_scores_equal_the_stock_models(kind: str, lengths: list[int]):
    """Scores and relations of all layers, and the gradients of the scores."""
    model, batch = model_of(kind), batch_of(lengths)
    record: list[Recorded] = []
    model.config._attn_implementation = NAME
    encode(model, batch.input, record=record)
    assert len(record) == LAYERS
    weights = [torch.randn(HEADS, n, n) for n in lengths]
    ours = [sequences(attention_scores(layer, batch.input.layout), batch) for layer in record]
    sum((w * s).sum() for scores in ours for w, s in zip(weights, scores, strict=True)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    model.config._attn_implementation = "eager"
    stock = projections(model, batch)
    total = torch.zeros(())
    for layer in range(LAYERS):
        again = {
            name: sequences(relations(rows, batch.input.layout, 6), batch)
            for name, rows in zip("qkv", (record[layer].query, record[layer].key, record[layer].value), strict=True)
        }
        for i, n in enumerate(lengths):
            query, key = (by_heads(stock[name][layer][i], n, HEADS) for name in "qk")
            scores = query @ key.mT / (WIDTH / HEADS) ** 0.5
            torch.testing.assert_close(ours[layer][i], scores, atol=1e-5, rtol=1e-5)
            total = total + (weights[i] * scores).sum()
            for name, found in again.items():
                cut = by_heads(stock[name][layer][i], n, 6)
                torch.testing.assert_close(found[i], cut @ cut.mT / 4**0.5, atol=1e-5, rtol=1e-5)
    total.backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_recording_changes_nothing(kind: str):
    model, batch = model_of(kind), batch_of(LENGTHS)
    model.config._attn_implementation = NAME
    record: list[Recorded] = []
    assert torch.equal(encode(model, batch.input, record=record), encode(model, batch.input))
    again: list[Recorded] = []
    encode_layers(model, batch.input, record=again)
    assert all(torch.equal(a.value, b.value) for a, b in zip(record, again, strict=True))
    assert {tuple(layer.query.shape) for layer in record} == {(batch.input.num_tokens, HEADS, WIDTH // HEADS)}


def test_rectangles_hold_each_sequence():
    batch = batch_of(LENGTHS)
    rows = torch.randn(batch.input.num_tokens, 3, 2, requires_grad=True)
    cut, real = padded_buckets(rows, batch.input.layout), real_cells(batch.input.layout)
    assert [tuple(x.shape) for x in cut] == [(*shape, 3, 2) for shape in batch.input.layout.shapes]
    assert sum(int(x.sum()) for x in real) == batch.input.num_tokens
    sum((x * mask[:, :, None, None]).square().sum() for x, mask in zip(cut, real, strict=True)).backward()
    torch.testing.assert_close(rows.grad, 2 * rows.detach())


def test_relation_heads_divide_the_width():
    batch = batch_of([3])
    with pytest.raises(ConfigError, match="5 relation heads do not divide a width of 24"):
        relations(torch.zeros(3, 4, 6), batch.input.layout, 5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_flops_equal_torchs_count(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Of an encoder without a pooler; in bfloat16 attention is plain matrix products, which torch's counter sees."""
    monkeypatch.setattr(attention, "_WORTH_A_KERNEL", 0)
    batch = batch_of([9, 9, 9])
    for settings in ({}, {"embedding_size": WIDTH}) if kind in ("albert", "electra") else ({},):
        model = AutoModelForQuestionAnswering.from_config(tiny_config(kind, **settings))
        model.config._attn_implementation = NAME
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
            encode(model, batch.input)
        assert encoder_flops(model.config, batch.input) == counter.get_total_flops()
    assert head_flops(6, 90, rows=2) == 2 * 2 * (6 * 6 + 6 * 90)

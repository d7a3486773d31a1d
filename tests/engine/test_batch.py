"""The packed batch and its attention, against the stock models on padded batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel

from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.layout import packing_layout
from bertillery.models.attention import NAME
from bertillery.models.dropout import Dropout, dropout, prepare_dropout


def batch_of(lengths: list[int], vocab_size: int = 90, seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    types = np.concatenate([(np.arange(n) > n // 2).astype(int) for n in lengths])
    return pack(rng.integers(5, vocab_size, total), types, np.array(lengths), targets={}, counts={})


def padded(batch: PackedBatch) -> tuple[dict[str, Tensor], Tensor]:
    lengths = batch.input.offsets.diff()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    inputs = {}
    for name in ("input_ids", "token_type_ids"):
        inputs[name] = torch.zeros(mask.shape, dtype=torch.long)
        inputs[name][mask] = getattr(batch, name)
    return {**inputs, "attention_mask": mask.long()}, mask


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return BertModel(config).eval()


LENGTHS = [[5], [7, 7, 7], [3, 128, 40, 41, 9, 2, 64, 64], list(range(2, 60))]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_equals_padded(model: PreTrainedModel, lengths: list[int]) -> None:
    """Outputs within 1e-5 and gradients within 1e-5 relative, in float32."""
    batch = batch_of(lengths)
    inputs, mask = padded(batch)
    weight = torch.randn(batch.input.num_tokens, 32)
    results = []
    for implementation in ("eager", NAME):
        model.config._attn_implementation = implementation
        model.zero_grad()
        if implementation == NAME:
            hidden = model(**batch.model_inputs()).last_hidden_state[0]
        else:
            hidden = model(**inputs).last_hidden_state[mask]
        (hidden * weight).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((hidden.detach(), gradient))
    (hidden, gradient), (packed_hidden, packed_gradient) = results
    torch.testing.assert_close(packed_hidden, hidden, atol=1e-5, rtol=0)
    assert (packed_gradient - gradient).norm() / gradient.norm() < 1e-5


def test_sequences_do_not_see_each_other(model: PreTrainedModel) -> None:
    """Changing one sequence leaves the others' outputs bit for bit."""
    model.config._attn_implementation = NAME
    batch = batch_of([9, 30, 17, 31])
    before = model(**batch.model_inputs()).last_hidden_state[0]
    batch.input.ids[9:39] = 6
    after = model(**batch.model_inputs()).last_hidden_state[0]
    assert torch.equal(before[:9], after[:9])
    assert torch.equal(before[39:], after[39:])
    assert not torch.allclose(before[9:39], after[9:39])


def test_attention_paths_agree(model: PreTrainedModel) -> None:
    """The fused path of float32 and the matrix products of bfloat16 compute the same."""
    model.config._attn_implementation = NAME
    batch = batch_of([12, 40, 33])
    reference = model(**batch.model_inputs()).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(**batch.model_inputs()).last_hidden_state
    assert not torch.equal(hidden.float(), reference)  # two paths, not one twice
    torch.testing.assert_close(hidden.float(), reference, atol=0.06, rtol=0)


def test_only_real_tokens_reach_the_layers(model: PreTrainedModel) -> None:
    model.config._attn_implementation = NAME
    batch = batch_of([3, 128, 40])
    rows = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    model.pooler = None
    model(**batch.model_inputs())
    assert set(rows) == {171}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_plan_holds_every_row_once(lengths: list[int]) -> None:
    layout = packing_layout(np.array(lengths))
    total = sum(lengths)
    np.testing.assert_array_equal(layout.gather[layout.scatter], np.arange(total))
    assert len(layout.gather) == sum(b * s for b, s in layout.shapes)
    assert len(layout.gather) < 1.5 * total  # padded buckets hold little padding
    assert len(layout.shapes) <= 16


def test_batch_moves_whole() -> None:
    batch = batch_of([3, 9]).to(torch.device("meta"))
    assert {batch.input.ids.device.type, batch.input.layout.gather.device.type} == {"meta"}
    assert {bias.device.type for bias in batch.input.layout.biases if bias is not None} <= {"meta"}


def test_positions_restart() -> None:
    np.testing.assert_array_equal(ranges(np.array([2, 0, 3])), [0, 1, 0, 1, 2])
    np.testing.assert_array_equal(batch_of([2, 3]).position_ids, [0, 1, 0, 1, 2])


def test_dropout_keeps_expectation_and_scales_gradient() -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_001, requires_grad=True)
    y = dropout(x, 0.1, training=True)
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 1e6))
    assert y.mean().item() == pytest.approx(1, abs=0.002)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())
    assert dropout(x, 0.1, training=False) is x


def test_dropout_is_seeded_by_torch() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(999), 0.5, training=True)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_cheap_dropout_changes_no_parameter(model: PreTrainedModel) -> None:
    names = list(model.state_dict())
    prepare_dropout(model)
    assert list(model.state_dict()) == names
    assert all(type(module) is Dropout for module in model.modules() if isinstance(module, nn.Dropout))

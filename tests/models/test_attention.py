"""Packed attention, bidirectional, causal and across streams, against the stock models on padded batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BartConfig, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.models.bart.modeling_bart import BartDecoderLayer

from bertillery.config.section import ConfigError
from bertillery.engine.batch import pack_branches, pack_stream
from bertillery.engine.layout import CrossLayout, cross_layout, packing_layout
from bertillery.models.encoders import model_inputs
from bertillery.models.layers import gpu_attention
from bertillery.models.layers.attention import NAME, packed_attention
from tests.models.families import batch_of, padded_inputs
from tests.models.test_gpu_attention import Module, plain_varlen

LENGTHS = [[5], [7, 7, 7], [3, 128, 40, 41, 9, 2, 64, 64], list(range(2, 60))]


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return BertModel(config).eval()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_equals_padded(model: PreTrainedModel, lengths: list[int]) -> None:
    """Outputs within 1e-5 and gradients within 1e-5 relative, in float32."""
    batch = batch_of(lengths)
    inputs, mask = padded_inputs(model.config, batch)
    weight = torch.randn(batch.input.num_tokens, 32)
    results = []
    for implementation in ("eager", NAME):
        model.config._attn_implementation = implementation
        model.zero_grad()
        if implementation == NAME:
            hidden = model(**model_inputs(model.config, batch.input)).last_hidden_state[0]
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
    before = model(**model_inputs(model.config, batch.input)).last_hidden_state[0]
    batch.input.ids[9:39] = 6
    after = model(**model_inputs(model.config, batch.input)).last_hidden_state[0]
    assert torch.equal(before[:9], after[:9])
    assert torch.equal(before[39:], after[39:])
    assert not torch.allclose(before[9:39], after[9:39])


def test_attention_paths_agree(model: PreTrainedModel) -> None:
    """The fused path of float32 and the matrix products of bfloat16 compute the same."""
    model.config._attn_implementation = NAME
    batch = batch_of([12, 40, 33])
    reference = model(**model_inputs(model.config, batch.input)).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(**model_inputs(model.config, batch.input)).last_hidden_state
    assert not torch.equal(hidden.float(), reference)  # two paths, not one twice
    torch.testing.assert_close(hidden.float(), reference, atol=0.06, rtol=0)


def test_only_real_tokens_reach_the_layers(model: PreTrainedModel) -> None:
    model.config._attn_implementation = NAME
    batch = batch_of([3, 128, 40])
    rows = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    model.pooler = None  # pyright: ignore
    model(**model_inputs(model.config, batch.input))
    assert set(rows) == {171}


@pytest.fixture
def gpt2() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 90, "n_positions": 130, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2, bos_token_id=1, eos_token_id=1)).eval()
    model.config._attn_implementation = NAME
    return model


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_packed_decoder_equals_the_stock_one(gpt2: Any, lengths: list[int]) -> None:
    """Logits of every sequence within 1e-5, and gradients: causal, and without the token types that GPT-2 would add to
    its embeddings."""
    stream = batch_of(lengths).input
    weight = torch.randn(stream.num_tokens, 90)
    ours = gpt2(**model_inputs(gpt2.config, stream)).logits[0]
    found = gradient(gpt2, (ours * weight).sum())
    gpt2.config._attn_implementation = "eager"
    theirs = torch.cat([gpt2(ids[None]).logits[0] for ids in stream.ids.split(lengths)])
    expected = gradient(gpt2, (theirs * weight).sum())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
def test_a_decoders_token_does_not_see_later_ones(gpt2: Any, autocast: bool) -> None:
    """Bit for bit, on both paths of a CPU; and it does see those before it."""
    lengths = [9, 30, 17, 31]
    stream = batch_of(lengths).input
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = gpt2(**model_inputs(gpt2.config, stream)).logits[0]
        for start, length in zip(stream.offsets.tolist(), lengths, strict=False):
            row = start + length // 2
            kept = stream.ids[row].clone()
            stream.ids[row] = 3
            after = gpt2(**model_inputs(gpt2.config, stream)).logits[0]
            stream.ids[row] = kept
            changed = (before != after).any(-1).nonzero()[:, 0]
            assert changed.tolist() == [*range(row, start + length)]


def test_a_step_on_a_packed_batch_lowers_a_decoders_loss(gpt2: Any) -> None:
    """With dropout, which attention applies on a path of its own."""
    stream = batch_of([9, 30, 17, 31]).input
    following = torch.ones(stream.num_tokens, dtype=torch.bool).index_fill(0, stream.offsets[1:] - 1, False)
    optimizer, losses = torch.optim.SGD(gpt2.parameters(), 0.02), []
    for _ in range(2):
        with torch.no_grad():
            logits = gpt2.eval()(**model_inputs(gpt2.config, stream)).logits[0]
            losses.append(float(F.cross_entropy(logits[following], stream.ids.roll(-1)[following])))
        logits = gpt2.train()(**model_inputs(gpt2.config, stream)).logits[0]
        optimizer.zero_grad()
        F.cross_entropy(logits[following], stream.ids.roll(-1)[following]).backward()
        optimizer.step()
    assert losses[1] < losses[0]


SOURCES, TARGETS = [5, 9, 40, 1, 22, 9, 33, 3, 17], [7, 31, 2, 16, 7, 24, 1, 30, 12]


def attend(layouts: dict[str, Any], lengths: list[int], keys: list[int], *, causal: bool, **options: Any) -> Any:
    """Output (T, H, D) and gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, sum(n), 3, 16, generator=generator).requires_grad_() for n in (lengths, keys, keys)]
    inputs: Any = [x.transpose(1, 2) for x in rows]
    output, _ = packed_attention(Module(is_causal=causal), *inputs, None, scaling=0.3, **layouts, **options)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    return [output.detach()[0], *(x.grad[0] for x in rows if x.grad is not None)]


def stepwise(lengths: list[int], keys: list[int], *, causal: bool) -> Any:
    """The same, sequence by sequence."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, sum(n), 3, 16, generator=generator).requires_grad_() for n in (lengths, keys, keys)]
    parts = [x[0].split(n) for x, n in zip(rows, (lengths, keys, keys), strict=True)]
    output = torch.cat([
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in qkv), is_causal=causal, scale=0.3).transpose(0, 1)
        for qkv in zip(*parts, strict=True)
    ])  # fmt: skip
    (output * torch.randn(1, *output.shape, generator=generator)).sum().backward()
    return [output.detach(), *(x.grad[0] for x in rows if x.grad is not None)]


def across(queries: list[int], keys: list[int]) -> CrossLayout:
    return cross_layout(np.array(queries), np.array(keys))


@pytest.mark.parametrize("kernel", ["padded_buckets", "varlen", "flex"])
@pytest.mark.parametrize("kind", ["causal", "cross"])
def test_every_kernel_computes_what_the_module_is(monkeypatch: pytest.MonkeyPatch, kernel: str, kind: str) -> None:
    """Outputs, and gradients where a CPU has them (flex attention, uncompiled, has none)."""
    monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout: kernel)
    monkeypatch.setattr(gpu_attention, "varlen_attn", plain_varlen)
    flex = lambda *inputs, **options: gpu_attention.flex_attention(*(x.detach() for x in inputs), **options)  # noqa: E731
    monkeypatch.setattr(gpu_attention, "_compiled_flex", lambda: flex)
    causal, keys = kind == "causal", TARGETS if kind == "causal" else SOURCES
    layouts: dict[str, Any] = {"layout": packing_layout(np.array(TARGETS)), "cross_layout": across(TARGETS, SOURCES)}
    expected = stepwise(TARGETS, keys, causal=causal)
    if kernel == "flex":
        rows = [torch.randn(1, sum(n), 3, 16, generator=torch.Generator().manual_seed(0)) for n in (TARGETS, keys)]
        module = Module(is_causal=causal)
        inputs: Any = [rows[0].transpose(1, 2), rows[1].transpose(1, 2), rows[1].transpose(1, 2)]
        found, _ = packed_attention(module, *inputs, None, **layouts)
        monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout: "padded_buckets")
        torch.testing.assert_close(found, packed_attention(module, *inputs, None, **layouts)[0], atol=1e-5, rtol=1e-5)
        return
    for mine, theirs in zip(attend(layouts, TARGETS, keys, causal=causal), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_dropout_keeps_attention_causal() -> None:
    """A token's gradient reaches no later key."""
    rows: Any = [torch.randn(1, 2, 40, 8, requires_grad=True) for _ in range(3)]
    layout = packing_layout(np.array([11, 29]))
    output, _ = packed_attention(Module(is_causal=True), *rows, None, dropout=0.5, layout=layout)
    for row in (5, 20):
        (gradient,) = torch.autograd.grad(output[0, row].sum(), rows[2], retain_graph=True)
        reached = gradient[0].abs().sum((0, 2)).nonzero()[:, 0].tolist()
        assert reached
        assert min(reached) >= (0 if row < 11 else 11)
        assert max(reached) <= row
    torch.manual_seed(0)
    bare, _ = packed_attention(Module(is_causal=True), *rows, None, dropout=1e-9, layout=layout)
    plain, _ = packed_attention(Module(is_causal=True), *rows, None, layout=layout)
    torch.testing.assert_close(bare, plain, atol=1e-5, rtol=1e-5)


def test_a_stock_decoder_layer_reads_two_streams() -> None:
    """BART's: causal attention to its own stream, then attention to the source's sequence of the same number."""
    torch.manual_seed(0)
    config = BartConfig(d_model=32, decoder_attention_heads=4, decoder_ffn_dim=16, dropout=0.0, init_std=0.2)
    layer = BartDecoderLayer(config, layer_idx=0).eval()
    source, target = (torch.randn(sum(n), 32, requires_grad=True) for n in (SOURCES, TARGETS))
    weight = torch.randn(sum(TARGETS), 32)
    config._attn_implementation = "eager"
    parts = zip(target.split(TARGETS), source.split(SOURCES), strict=True)
    theirs = []
    for mine, other in parts:
        mask = torch.full((len(mine), len(mine)), -torch.inf).triu(1)[None, None]
        theirs.append(layer(mine[None], mask, other[None], use_cache=False)[0])
    expected = torch.cat(theirs)
    gradients = torch.autograd.grad((expected * weight).sum(), (source, target, *layer.parameters()))
    config._attn_implementation = NAME
    layouts = {"layout": packing_layout(np.array(TARGETS)), "cross_layout": across(TARGETS, SOURCES)}
    found = layer(target[None], None, source[None], use_cache=False, **layouts)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((found * weight).sum(), (source, target, *layer.parameters()))
    for mine, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("queries", "keys"), [(TARGETS, SOURCES), ([200, 1, 130], [1, 257, 3]), ([4], [300])])
@pytest.mark.parametrize("causal", [True, False])
def test_block_masks_of_causal_and_cross_attention(queries: list[int], keys: list[int], causal: bool) -> None:
    """All pairs and all blocks, against the plain definition."""
    keys = queries if causal else keys
    mask: Any = packing_layout(np.array(queries)).causal_mask if causal else across(queries, keys).sequence_mask
    rows, columns = (np.repeat(np.arange(len(n)), n) for n in (queries, keys))
    wanted = np.equal.outer(rows, columns)
    if causal:
        wanted = np.tril(wanted)
    pairs = torch.arange(len(rows))[:, None], torch.arange(len(columns))
    np.testing.assert_array_equal(mask.mask_mod(None, None, *pairs), wanted)
    blocks: Any = [-(-n // 128) for n in wanted.shape]
    padded: Any = np.pad(wanted, [(0, 128 * b - n) for b, n in zip(blocks, wanted.shape, strict=True)])
    cells = padded.reshape(blocks[0], 128, blocks[1], 128).any(axis=(1, 3))
    np.testing.assert_array_equal(mask.to_dense()[0, 0] > 0, cells)


class Grouped(Module):
    num_key_value_groups = 2


class Windowed(Module):
    sliding_window = 128


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (nn.Module(), {}, TypeError, "does not say whether its attention is causal"),
        (Module(), {"layout": None}, TypeError, "needs a layout"),
        (Module(), {"surprise": 1}, TypeError, "does not know surprise, which Module passes"),
        (Module(), {"sliding_window": 4}, ConfigError, "a sliding window"),
        (Module(), {"softcap": 30.0}, ConfigError, "soft-capped scores"),
        (Module(), {"s_aux": torch.zeros(2)}, ConfigError, "attention sinks"),
        (Module(), {"position_bias": torch.zeros(1)}, ConfigError, "a bias by relative position"),
        (Module(), {"use_cache": True}, ConfigError, "a cache of keys and values"),
        (Module(), {"output_attentions": True}, ConfigError, "attention weights as an output"),
        (Module(), {"encoder_hidden_states": torch.zeros(1)}, ConfigError, "cross attention without cross_layout"),
        (Grouped(), {}, ConfigError, "Grouped asks for grouped queries"),
        (Windowed(), {}, ConfigError, "a sliding window"),
        (Module(), {"layout": packing_layout(np.array([4, 4]))}, ValueError, "9 queries and 9 keys.* 8 and 8 tokens"),
        (Module(), {"cross_layout": across([4, 5], [4, 4])}, ValueError, "9 queries and 9 keys.* 9 and 8 tokens"),
    ],
)
def test_what_is_not_computed_is_refused(module: nn.Module, options: Any, error: Any, message: str) -> None:
    rows: Any = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    plain: dict[str, Any] = {"layout": packing_layout(np.array([4, 5]))}
    with pytest.raises(error, match=message):
        packed_attention(module, *rows, None, **(plain | options))


def test_masks_and_fewer_heads_of_keys_are_refused() -> None:
    rows: Any = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    layout = packing_layout(np.array([4, 5]))
    with pytest.raises(ConfigError, match="an attention mask"):
        packed_attention(Module(), *rows, torch.zeros(1, 1, 9, 9), layout=layout)
    with pytest.raises(ConfigError, match="grouped queries"):
        packed_attention(Module(), rows[0], rows[1][:, :1], rows[2][:, :1], None, layout=layout)


def test_arguments_that_mean_nothing_here_are_accepted() -> None:
    stream = pack_stream(np.arange(9), np.array([4, 5]))
    rows: Any = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    plain, _ = packed_attention(Module(), *rows, None, layout=stream.layout)
    options: dict[str, Any] = {"position_ids": stream.positions, "output_hidden_states": True, "use_cache": False}
    same, _ = packed_attention(Module(), *rows, None, layout=stream.layout, sliding_window=None, **options)
    assert torch.equal(same, plain)
    causal, _ = packed_attention(Module(), *rows, None, layout=stream.layout, is_causal=True)
    assert not torch.equal(causal, plain)


def test_branches_of_a_prefix_equal_whole_sequences() -> None:
    """A prefix that several sequences share is computed once; the outputs are those of each sequence alone."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=90, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    parts = [np.array(each) for each in ([5, 3, 0, 7], [9], [1, 2, 2], [20, 4])]
    ids = np.random.default_rng(0).integers(0, 90, sum(part.sum() for part in parts))
    model.config._attn_implementation = NAME
    with torch.no_grad():
        stream = pack_branches(ids, parts)
        together = model.transformer(**model_inputs(config, stream)).last_hidden_state[0]
        start = 0
        for prefix, *branches in parts:
            after = start + prefix
            for branch in branches or [0]:
                rows = [*range(start, start + prefix), *range(after, after + branch)]
                alone = model.transformer(**model_inputs(config, pack_stream(ids[rows], np.array([len(rows)]))))
                torch.testing.assert_close(together[rows], alone.last_hidden_state[0], atol=1e-5, rtol=0)
                after += branch
            start = after
    assert start == len(ids) == stream.num_tokens


def test_branches_are_for_decoders(model: PreTrainedModel) -> None:
    model.config._attn_implementation = NAME
    with pytest.raises(ConfigError, match="is not causal; sequences that branch are for decoders"):
        model(**model_inputs(model.config, pack_branches(np.arange(6), [np.array([2, 2, 2])])))


def test_small_products_are_made_in_float32() -> None:
    """A kernel for the shape of each bucket of short texts would take longer to make than the products."""
    torch.manual_seed(0)
    layout = packing_layout(np.array([5, 6, 17, 30]))
    q, k, v = (torch.randn(1, 2, 58, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def attended(*inputs: Tensor) -> Tensor:
        return packed_attention(Module(), *inputs, None, layout=layout, is_causal=False)[0]

    with Kinds() as kinds, torch.autocast("cpu", torch.bfloat16):
        found = attended(q, k, v)
        found.float().sum().backward()
    assert kinds.seen == {torch.float32}
    assert found.dtype == torch.bfloat16
    exact = attended(*(x.detach().float() for x in (q, k, v)))
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)


class Kinds(TorchDispatchMode):
    """The precisions of attention's products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "aten::bmm" or "scaled_dot_product" in func.name():
            self.seen.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_large_products_are_made_in_bfloat16() -> None:
    layout = packing_layout(np.full(16, 128))
    q, k, v = (torch.randn(1, 4, 2048, 64, dtype=torch.bfloat16) for _ in range(3))
    with Kinds() as kinds, torch.autocast("cpu", torch.bfloat16):
        packed_attention(Module(), q, k, v, None, layout=layout, is_causal=False)
    assert kinds.seen == {torch.bfloat16}

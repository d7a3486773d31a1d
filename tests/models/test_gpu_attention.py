"""The kernels of a GPU against the padded buckets: on a CPU with stand-ins, on a GPU as they are."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertillery.engine.layout import PackingLayout, packing_layout
from bertillery.models.layers import gpu_attention
from bertillery.models.layers.attention import Recorded, packed_attention
from bertillery.models.layers.gpu_attention import choose
from tests.models.families import batch_of

RAGGED = [[5], [7, 7, 7], [3, 128, 40, 41, 9, 2, 64, 64], [200, 1, 1, 130, 57], [128, 256, 128]]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """As ``torch.nn.attention.varlen.varlen_attn``, as strict, sequence by sequence."""
    assert cu_seq_k is not None
    assert query.shape[1:] == key.shape[1:] == value.shape[1:]
    assert query.ndim == 3
    assert query.shape[2] % 8 == 0
    for rows, starts, longest in ((query, cu_seq_q, max_q), (key, cu_seq_k, max_k), (value, cu_seq_k, max_k)):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        assert starts[-1] == len(rows)
        assert type(longest) is int
        assert starts.diff().max() == longest
    assert type(scale) is float
    assert window_size in ((-1, -1), (-1, 0))
    ends = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist(), cu_seq_k.diff().tolist()
    parts = [x.split(lengths) for x, lengths in zip((query, key, value), ends, strict=True)]
    options: Any = {"scale": scale, "is_causal": window_size[1] == 0}
    return torch.cat([
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in qkv), **options)[0].transpose(0, 1)
        for qkv in zip(*parts, strict=True)
    ])  # fmt: skip


class Module(nn.Module):
    """What attention reads of a model's attention module."""

    def __init__(self, *, is_causal: bool = False) -> None:
        super().__init__()
        self.is_causal = is_causal


def attend(lengths: list[int], device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 16) -> list[Tensor]:
    """Output (T, H, D) and gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    shape = 1, sum(lengths), 3, size
    inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    weight = torch.randn(shape, generator=generator).to(device)
    layout: Any = plan_of(lengths, device)
    output, _ = packed_attention(Module(), *(x.transpose(1, 2) for x in inputs), None, scaling=0.3, layout=layout)  # pyright: ignore
    (output.float() * weight).sum().backward()
    return [x.detach().float().cpu() for x in (output, *(x.grad for x in inputs if x.grad is not None))]


def plan_of(lengths: list[int], device: str = "cpu") -> PackingLayout:
    return batch_of(lengths).to(torch.device(device)).input.layout


@pytest.mark.parametrize("size", [16, 26, 5])
@pytest.mark.parametrize("lengths", RAGGED)
def test_varlen_is_given_what_it_asks_for(monkeypatch: pytest.MonkeyPatch, lengths: list[int], size: int) -> None:
    """Outputs and gradients of the padded buckets, from a function that takes what the library's takes; heads of any
    width, as those of TinyBERT's 4 x 312."""
    expected = attend(lengths, size=size)
    monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout: "varlen")
    monkeypatch.setattr(gpu_attention, "varlen_attn", plain_varlen)
    found = attend(lengths, size=size)
    assert len(found) == 4
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_library_takes_the_same_arguments() -> None:
    if gpu_attention.varlen_attn is None:
        pytest.skip("this torch has no varlen_attn with a scale")
    ours, theirs = (inspect.signature(f).parameters for f in (plain_varlen, gpu_attention.varlen_attn))
    assert [*ours][:7] == [*theirs][:7]
    assert {name: ours[name].kind for name in ours} == {name: theirs[name].kind for name in ours}


@pytest.mark.parametrize("lengths", RAGGED)
def test_sequence_mask_is_that_of_all_pairs(lengths: list[int]) -> None:
    layout, total = packing_layout(np.array(lengths)), sum(lengths)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    wanted = np.equal.outer(sequence, sequence)
    mask: Any = layout.sequence_mask
    assert layout.sequence_mask is mask, "made once"
    assert mask.shape == (1, 1, total, total)
    pairs = torch.arange(total)
    np.testing.assert_array_equal(mask.mask_mod(None, None, pairs[:, None], pairs), wanted)
    blocks = -(-total // 128)
    spare = blocks * 128 - total
    padded: Any = np.pad(wanted, (0, spare))
    cells: Any = np.any(padded.reshape(blocks, 128, blocks, 128), axis=(1, 3))
    np.testing.assert_array_equal(mask.to_dense()[0, 0] > 0, cells)
    for numbers, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.q_num_blocks, mask.q_indices)):
        assert indices.min() >= 0
        assert indices.max() < blocks
        for row, number in enumerate(numbers[0, 0].tolist()):
            assert sorted(indices[0, 0, row, :number].tolist()) == np.flatnonzero(cells[row]).tolist()


def test_a_plan_that_moves_makes_a_mask_of_its_own() -> None:
    layout = plan_of([5, 9])
    assert layout.sequence_mask.kv_indices.device.type == "cpu"
    assert plan_of([5, 9], "meta").sequence_mask.kv_indices.device.type == "meta"


def test_flex_attention_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, not compiled: all that a CPU can do."""
    lengths = RAGGED[3]
    expected = attend(lengths)[0]
    monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout: "flex")
    monkeypatch.setattr(gpu_attention, "_compiled_flex", lambda: gpu_attention.flex_attention)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, sum(lengths), 3, 16, generator=generator).transpose(1, 2) for _ in range(3)]
    output, _ = packed_attention(Module(), *inputs, None, scaling=0.3, layout=plan_of(lengths))  # pyright: ignore
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_compiled_flex_attention_has_a_number_for_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a symbol for T: one compilation for all batches, one for each size of heads."""
    graphs: list[Any] = []

    def traced(graph: Any, inputs: Any) -> Any:
        graphs.append(next(node.args[5] for node in graph.graph.nodes if "flex_attention" in str(node.target)))
        return graph.forward

    compiled = torch.compile(gpu_attention.flex_attention, dynamic=True, fullgraph=True, backend=traced)
    monkeypatch.setattr(gpu_attention, "_compiled_flex", lambda: compiled)
    with torch.no_grad():
        for lengths, scale in ((RAGGED[3], 0.25), (RAGGED[4], 0.25), (RAGGED[2], 0.25), (RAGGED[3], 0.125)):
            rows = torch.randn(1, 2, sum(lengths), 16)
            output = gpu_attention.by_flex(rows, rows, rows, plan_of(lengths).sequence_mask, scale)
            assert output.shape == rows.shape
    assert graphs == [0.25, 0.125]


def test_a_start_does_not_load_the_compiler() -> None:
    """It costs a third of a second."""
    code = "import sys, bertillery.run.stage; print('torch._inductor.codecache' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("kernel", ["varlen", "flex", "padded_buckets"])
def test_queries_keys_and_values_are_recorded(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout: kernel)
    monkeypatch.setattr(gpu_attention, "varlen_attn", plain_varlen)
    monkeypatch.setattr(gpu_attention, "by_flex", lambda query, key, value, mask, scale: query)
    inputs = [torch.randn(1, 2, 9, 16) for _ in range(3)]
    kept: list[Recorded] = []
    packed_attention(Module(), *inputs, None, layout=plan_of([4, 5]), record=kept)  # pyright: ignore
    assert len(kept) == 1
    for mine, given in zip((kept[0].query, kept[0].key, kept[0].value), inputs, strict=True):
        assert torch.equal(mine, given[0].transpose(0, 1))


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "head_size", "varlen", "flex", "kernel"),
    [
        ("cuda", BF16, 0.0, 64, True, True, "varlen"),
        ("cuda", FP16, 0.0, 64, True, True, "varlen"),
        ("cuda", BF16, 0.0, 256, True, False, "varlen"),
        ("cuda", BF16, 0.0, 8, True, True, "varlen"),
        ("cuda", FP32, 0.0, 64, True, True, "flex"),
        ("cuda", BF16, 0.0, 85, True, True, "varlen"),
        ("cuda", BF16, 0.1, 26, True, True, "varlen"),
        ("cuda", BF16, 0.0, 264, True, True, "padded_buckets"),
        ("cuda", BF16, 0.0, 64, False, True, "flex"),
        ("cuda", FP32, 0.0, 8, True, True, "padded_buckets"),
        ("cuda", FP32, 0.0, 64, True, False, "padded_buckets"),
        ("cuda", BF16, 0.0, 64, False, False, "padded_buckets"),
        ("cuda", BF16, 0.1, 64, True, True, "varlen"),
        ("cuda", BF16, 0.1, 64, False, True, "padded_buckets"),
        ("cuda", FP32, 0.1, 64, True, True, "padded_buckets"),
        ("cpu", BF16, 0.0, 64, True, True, "padded_buckets"),
        ("cpu", FP32, 0.0, 64, True, True, "padded_buckets"),
        ("mps", BF16, 0.0, 64, True, True, "padded_buckets"),
    ],
)
def test_choice(
    device: str, dtype: torch.dtype, dropout: float, head_size: int, varlen: bool, flex: bool, kernel: str
) -> None:
    assert choose(device, dtype, dropout, head_size, varlen=varlen, flex=flex) == kernel


@needs_gpu
@pytest.mark.parametrize("size", [16, 26])
@pytest.mark.parametrize("lengths", RAGGED)
def test_kernels_agree_on_a_gpu(monkeypatch: pytest.MonkeyPatch, lengths: list[int], size: int) -> None:
    """Outputs and gradients in bfloat16, and those of flex in float32."""
    found: dict[tuple[str, torch.dtype], list[Tensor]] = {}
    for kernel, dtype in (("varlen", BF16), ("flex", BF16), ("padded_buckets", BF16), ("flex", FP32)):
        monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout, chosen=kernel: chosen)
        found[kernel, dtype] = attend(lengths, "cuda", dtype, size)
    monkeypatch.undo()
    exact = attend(lengths, size=size)
    for (kernel, dtype), tensors in found.items():
        for mine, theirs in zip(tensors, exact, strict=True):
            tolerance = 2e-2 if dtype == BF16 else 5e-3
            torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance, msg=f"{kernel}: {{}}".format)


@needs_gpu
def test_many_shapes_need_no_new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than torch would compile anew for one function."""
    monkeypatch.setattr(gpu_attention, "kernel_for", lambda query, dropout: "flex")
    for total in range(40, 640, 40):
        attend([total // 2, total - total // 2], "cuda", BF16)


@needs_gpu
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_drops_weights_out(causal: bool) -> None:
    """With the identity as values the output is the weights: a tenth of them 0, the others scaled; the gradient of the
    values has the mask of the output."""
    length, heads = 64, 8
    layout: Any = plan_of([length, length], "cuda")
    generator = torch.Generator("cuda").manual_seed(3)
    query, key = (
        torch.randn(1, heads, 2 * length, length, generator=generator, device="cuda").to(BF16) for _ in range(2)
    )
    value = torch.eye(length, device="cuda", dtype=BF16).repeat(1, heads, 2, 1)
    module = Module(is_causal=causal)

    def weights(dropout: float) -> Tensor:
        torch.manual_seed(7)
        values = value.clone().requires_grad_()
        output, _ = packed_attention(module, query, key, values, None, layout=layout, dropout=dropout)
        (grads,) = torch.autograd.grad(output.float().sum(), values)
        by_query = output[0].detach().float().view(2, length, heads, length)
        # A value's gradient is the sum of the weights that it was taken with.
        torch.testing.assert_close(
            grads.float()[0].view(heads, 2, length, length)[..., 0].transpose(0, 1),
            by_query.sum(1),
            atol=5e-2,
            rtol=2e-2,
        )
        return by_query

    whole, dropped = weights(0.0), weights(0.1)
    seen = whole > 1e-3
    gone = (dropped == 0) & seen
    assert (gone.sum() / seen.sum()).item() == pytest.approx(0.1, abs=0.01)
    torch.testing.assert_close(dropped[seen & ~gone], whole[seen & ~gone] / 0.9, atol=2e-2, rtol=2e-2)
    assert torch.equal(dropped, weights(0.1)), "a function of the seed"

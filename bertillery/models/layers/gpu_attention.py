"""Attention on a GPU over sequences that lie end to end, without padding, by the library's kernels.

Legend: T tokens of the batch, S tokens of the keys' stream, B sequences, H heads, D head size.

Each kernel needs certain number formats and devices, and only flash attention drops out weights; :func:`choose` knows
which fits. If neither does, attention uses padded buckets, as on a CPU (:mod:`bertillery.models.layers.attention`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Kernel = Literal["varlen", "flex", "padded_buckets"]

# The scale is a constant of a kernel, and has to be a number where that is compiled, not a symbol. And torch gives up
# compiling after 8 kinds of calls: two networks, trained and evaluated, can be as many.
torch._dynamo.config.specialize_float = True
torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)


def _library_varlen() -> Any:
    """``torch.nn.attention.varlen.varlen_attn``, or None if this torch has none that takes a scale and a window."""
    try:
        found = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if {"scale", "window_size"} <= inspect.signature(found).parameters.keys() else None


varlen_attn = _library_varlen()


def choose(device: str, dtype: torch.dtype, dropout: float, head_size: int, *, varlen: bool, flex: bool) -> Kernel:
    """The kernel for heads of a size, on a type of device; ``varlen`` and ``flex`` say whether it has these.

    ``varlen`` is flash attention: 16 bits, heads of up to 256. ``flex`` multiplies tiles of at least 16.
    """
    if device != "cuda":
        return "padded_buckets"
    if varlen and dtype in (torch.bfloat16, torch.float16) and head_size <= 256:
        return "varlen"
    return "flex" if flex and not dropout and 16 <= head_size <= 256 else "padded_buckets"


def kernel_for(query: Tensor, dropout: float) -> Kernel:
    """The kernel for queries (..., D) where they are."""
    varlen, flex = _offered(query.device)
    return choose(query.device.type, query.dtype, dropout, query.shape[-1], varlen=varlen, flex=flex)


@torch.compiler.assume_constant_result
def _offered(device: torch.device) -> tuple[bool, bool]:
    """Whether torch has ``varlen`` and ``flex`` for a device: asked, not traced, where layers are compiled."""
    return _looked_up(device)


@lru_cache
def _looked_up(device: torch.device) -> tuple[bool, bool]:
    recent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    varlen = recent and varlen_attn is not None and torch.backends.cuda.is_flash_attention_available()
    return varlen, recent and importlib.util.find_spec("triton") is not None


def by_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scale: float,
    *,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Attention (T, H, D) from queries (T, H, D), keys and values (S, H, D), 16 bits wide.

    ``starts``, (B+1,) int32 each, and ``longest`` are those of the queries' layout and of the keys'. The backward pass
    draws the mask of ``dropout`` again, from the state that torch's generator had.
    """
    size = query.shape[-1]
    if spare := -size % 8:  # heads are 8 to 256 wide, in steps of 8; zeros add nothing to a score
        query, key, value = (F.pad(x, (0, spare)) for x in (query, key, value))
    if dropout:  # the library's function has none; the operator behind it, and its derivative, do
        flash = torch.ops.aten._flash_attention_forward.default
        return flash(query, key, value, *starts, *longest, dropout, causal, False, scale=scale)[0][..., :size]
    assert varlen_attn is not None
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(query, key, value, *starts, *longest, scale=scale, window_size=window)[..., :size]


def by_flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """Attention (1, H, T, D) from (1, H, T, D) and (1, H, S, D); ``mask`` is made by
    :func:`bertillery.engine.layout.sequence_mask`."""
    attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex()  # compiled with the layer around it
    return attend(query, key, value, block_mask=mask, scale=scale)


@lru_cache
def _compiled_flex() -> Any:
    # Uncompiled, the function would hold the scores of all pairs of tokens. T differs in every batch. Compiling is set
    # up here, not above, because that takes a third of a second, which is wasted on a CPU.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)

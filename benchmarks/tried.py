"""What was tried for a step: ``python -m benchmarks.tried``; one thread of a CPU, CPU-seconds, the least of some turns.

Single operations at the sizes that they have in a step of 4 layers of 256, by which was decided what is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import table
from bertillery.models.chunks import in_chunks
from bertillery.report.table import markdown_table
from bertillery.run.directory import keep_large_blocks
from bertillery.system.environment import environment

WIDTH, VOCABULARY, MASKED, TOKENS = 256, 30522, 307, 1900
_TURNS = 6


def milliseconds(call: Callable[[], Any]) -> float:
    """Of the CPU."""
    call()
    best = float("inf")
    for _ in range(_TURNS):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best * 1e3


def activations() -> dict[str, float]:
    """Forms of GELU in bfloat16."""
    x = torch.randn(2048, 4 * WIDTH).bfloat16()
    forms = {"GELU by the error function": "none", "GELU by tanh (BERT's)": "tanh"}
    return {name: milliseconds(partial(F.gelu, x, approximate=form)) for name, form in forms.items()}


def best_guesses() -> dict[str, float]:
    """Whether the right word has the largest logit."""
    logits = torch.randn(MASKED, VOCABULARY)
    return {
        "accuracy by argmax": milliseconds(partial(logits.argmax, -1)),
        "accuracy by the largest logit": milliseconds(partial(logits.amax, -1)),
    }


def vocabularies() -> dict[str, float]:
    """The head's products in bfloat16, as large as the vocabulary and padded."""
    x = torch.randn(MASKED, WIDTH).bfloat16()
    found = {}
    for size in (VOCABULARY, -(-VOCABULARY // 64) * 64):
        weight, bias = torch.randn(size, WIDTH).bfloat16(), torch.randn(size).bfloat16()
        found[f"logits of {size:,} words"] = milliseconds(partial(F.linear, x, weight, bias))
    return found


def divergences(vocabulary: int) -> dict[str, float]:
    """DistilBERT's divergence at every token, forward and backward, in bfloat16, whole or in chunks."""
    head, teacher = nn.Linear(WIDTH, vocabulary), nn.Linear(WIDTH, vocabulary)
    hidden, taught = torch.randn(TOKENS, WIDTH, requires_grad=True), torch.randn(TOKENS, WIDTH)

    def divergence(hidden: Tensor, taught: Tensor) -> tuple[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            mine = F.log_softmax(head(hidden).float() / 2, -1)
            with torch.no_grad():
                theirs = F.log_softmax(teacher(taught).float() / 2, -1)
        return (F.kl_div(mine, theirs, reduction="sum", log_target=True),)

    def again(rows: int) -> Tensor:
        parts = zip(hidden.split(rows), taught.split(rows), strict=True)
        return torch.stack([checkpoint(divergence, *some, use_reentrant=False)[0] for some in parts]).sum()

    def at_once(most: int) -> Tensor:
        return in_chunks(divergence, hidden, taught, parameters=head.parameters(), width=vocabulary, most=most)[0]

    name = f"divergence over {vocabulary:,} words, "
    ways: dict[str, Callable[[], Tensor]] = {
        "whole": lambda: divergence(hidden, taught)[0],
        "in chunks of 2^22 logits, computed again for the backward pass": lambda: again((1 << 22) // vocabulary),
        "in chunks of 2^20 logits, each to its gradient at once": lambda: at_once(1 << 20),
        "in chunks of 2^22": lambda: at_once(1 << 22),
        "in chunks of 2^24": lambda: at_once(1 << 24),
    }
    return {name + way: milliseconds(lambda loss=loss: loss().backward()) for way, loss in ways.items()}


def main() -> None:
    torch.set_num_threads(1)
    keep_large_blocks()
    torch.manual_seed(0)
    found = activations() | best_guesses() | vocabularies() | divergences(8192) | divergences(VOCABULARY)
    print(table.machine(environment()) + "\n")
    print(markdown_table([["", "ms"], *([name, f"{spent:.1f}"] for name, spent in found.items())]))


if __name__ == "__main__":
    main()

"""``train.micro_batch_tokens: auto``: the largest micro-batch that fits, found with the objective's own passes.

The split of a step changes results by rounding only. A size is tried with copies of the longest example, the worst case
of the training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bertillery.config.section import InputError
from bertillery.engine.loop import share_of_loss
from bertillery.engine.objective import Objective, Source, sampled
from bertillery.engine.schedule import Phase
from bertillery.system.environment import free_memory

logger = logging.getLogger(__name__)

_FIRST = 1024
"""Tokens to try first."""
_USED = 0.75
"""Share of the memory to use: micro-batches vary, and allocators lose memory between tensors."""
_GROWTH = 2
"""Memory of a step as a multiple of what the forward pass keeps for the backward pass: measured 1.7 to 2.1 on a CPU for
encoders in float32 and bfloat16, with and without a vocabulary to predict."""


def largest_micro_batch(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    sources: Sequence[Source],
    phases: Sequence[Phase],
) -> int:
    """Tokens of a micro-batch, the same on all processes; ``objective`` has been prepared by the accelerator.

    On a GPU the size is doubled from 1,024 tokens until memory runs out or a whole step fits; the result is three
    quarters of the last size that fit. On a CPU the system kills a process that takes too much memory, so two small
    sizes measure how memory grows with tokens, and three quarters of the free memory are the limit. Gradients, random
    state and training mode do not change. Raises ``InputError`` if the smallest size does not fit.
    """
    plain, device = accelerator.unwrap_model(objective), accelerator.device
    assert isinstance(plain, Objective)
    different = {id(each): each for each in sources}.values()
    source, row = max(((each, _longest(each)) for each in different), key=lambda found: int(found[1]["length"][0]))
    length, processes = int(row["length"][0]), accelerator.num_processes
    most = max(-(-phase.most_examples(length) // processes) for phase in phases)
    with _undisturbed(plain, device), _reserved(optimizer, device) as reserved:

        def needs(examples: int) -> int | None:
            batch = source.collate(sampled(source, np.repeat(row, examples))).to(device)
            return _bytes_needed(plain, batch)

        first = max(1, _FIRST // length)
        if device.type == "cuda":
            examples, reason = by_trying(needs, first=first, most=most)
        else:
            room = _USED * free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - reserved
            examples, reason = by_estimate(needs, first=first, most=most, room=room)
    # Gathered before anything is raised, so that no process waits for one that has ended.
    chosen = int(accelerator.gather(torch.tensor([examples * length], device=device)).min())  # pyright: ignore
    if not chosen:
        raise InputError(
            f"train.micro_batch_tokens=auto: not even {first} examples of {length} tokens fit into the memory of "
            f"{device}; take a smaller model or a shorter sequence_length, or free memory there"
        )
    if accelerator.is_main_process:
        others = " (another process has less room)" if chosen < examples * length else ""
        logger.info("micro-batch of %s tokens: %s%s", f"{chosen:,}", reason, others)
    return chosen


def by_trying(needs: Callable[[int], int | None], *, first: int, most: int) -> tuple[int, str]:
    """Examples that fit and the reason: doubled from ``first`` to ``most``, or until ``needs`` is None (no memory)."""
    examples, fitted = min(first, most), 0
    while needs(examples) is not None:
        if examples == most:
            return most, "a whole step fits"
        examples, fitted = min(2 * examples, most), examples
    kept = max(min(1, fitted), int(_USED * fitted))
    return kept, f"{fitted} of the longest examples fit, {examples} do not, a quarter is kept free"


def by_estimate(needs: Callable[[int], int | None], *, first: int, most: int, room: float) -> tuple[int, str]:
    """The same by a line through the bytes of ``first`` and twice as many examples, up to ``room`` bytes."""
    few, more = min(first, most), min(2 * first, most)
    low, high = needs(few), needs(more)
    if low is None or high is None:
        return by_trying(needs, first=first, most=most)
    if few == more or high <= low:
        return most, "a whole step fits"
    each = (high - low) / (more - few)
    fitting = int(more + (room - high) / each)
    if fitting >= most:
        return most, f"a whole step fits into {room / 2**30:.1f} GiB"
    return max(few, fitting), f"estimated to fill {room / 2**30:.1f} GiB, three quarters of the memory that is free"


def _longest(source: Source) -> np.ndarray:
    """The longest example of the first block with examples, as one row."""
    blocks = (source.examples(0, block) for block in range(source.num_blocks))
    rows = next(rows for rows in blocks if len(rows))
    return rows[[int(rows["length"].argmax())]]


def _bytes_needed(objective: Objective, batch: Any) -> int | None:
    """Run both passes; estimates their memory without weights and gradients, or None if memory ran out."""
    kept: dict[int, int] = {parameter.untyped_storage().data_ptr(): 0 for parameter in objective.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = share_of_loss(objective(batch), batch.counts)
        loss.backward()
    except torch.OutOfMemoryError:
        return None
    finally:
        objective.zero_grad(set_to_none=True)
    return _GROWTH * sum(kept.values())


@contextmanager
def _undisturbed(objective: Objective, device: torch.device) -> Iterator[None]:
    """Training mode in the block; restores random state and mode, and frees the device's memory."""
    training = objective.training
    objective.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    objective.train(training)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def _reserved(optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[int]:
    """Allocate two moments for every parameter whose state the optimizer makes at its first step.

    Yields the bytes of these and of the gradients, which the estimate for a CPU must leave free.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    missing = [parameter for parameter in parameters if parameter not in optimizer.state for _ in range(2)]
    held = [torch.empty_like(parameter) for parameter in missing]
    yield sum(tensor.nbytes for tensor in [*held, *parameters])
    del held

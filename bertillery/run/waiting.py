"""Waiting for a process that works for hours before training, such as preparing a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

from accelerate import Accelerator
from torch import distributed as dist

_PATIENCE = timedelta(days=7)


def patient_barrier(accelerator: Accelerator) -> Callable[[], object]:
    """A barrier that waits up to a week. All processes call this function before the work, and the barrier after it.

    accelerate's barrier times out after 10 minutes on GPUs and 30 elsewhere, which detects hanging processes in
    training. This barrier has its own process group and leaves that timeout as it is.
    """
    if accelerator.num_processes == 1:
        return lambda: None
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_PATIENCE))
    return lambda: dist.barrier(group)


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs the block first, then the others, however long the main one takes."""
    meet = patient_barrier(accelerator)
    if not accelerator.is_main_process:
        meet()
    yield
    if accelerator.is_main_process:
        meet()

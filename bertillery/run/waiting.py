"""How processes wait for one that has hours of work to do, such as preparing a corpus, before they train together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

from accelerate import Accelerator
from torch import distributed as dist

_PATIENCE = timedelta(days=7)


def patient_barrier(accelerator: Accelerator) -> Callable[[], object]:
    """A function at which each process waits until all have called it, up to a week; all ask for it before that work.

    accelerate's barrier gives up after 10 minutes on GPUs and 30 elsewhere. In training that is how a process that
    hangs is noticed, so this one does not change it but has a process group of its own.
    """
    if accelerator.num_processes == 1:
        return lambda: None
    group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_PATIENCE))
    return lambda: dist.barrier(group)


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """What stands within is done by the main process and then by the others, however long it takes the main one."""
    meet = patient_barrier(accelerator)
    if not accelerator.is_main_process:
        meet()
    yield
    if accelerator.is_main_process:
        meet()

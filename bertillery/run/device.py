"""What a run computes on: device, precision, threads, memory and compiled layers."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import PathName, Processes, Seed
from bertillery.engine.sharding import Sharding
from bertillery.system.environment import num_cores
from bertillery.system.gpus import check_gpus
from bertillery.system.invocation import by_make

logger = logging.getLogger(__name__)


class RunSection(Section):
    """Where a run lives and what it runs on."""

    name: PathName | None = None
    """Folder under ``run.dir``; by default named after the configuration files."""
    dir: Path = Path("runs")
    """Folder of all runs; several machines must share it."""
    data_dir: Path = Path("data")
    """Folder of corpora, prepared corpora and downloaded tasks."""
    seed: Seed = 12345
    """Seed of everything random."""
    threads: Processes | None = None
    """CPU threads of each process; by default torch's choice, or an equal share of the cores for several processes."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """``bf16`` multiplies matrices in bfloat16 and keeps weights in float32; ``auto`` does so where the device supports
    it natively."""
    device: Literal["auto", "cpu"] = "auto"
    """``cpu`` ignores a GPU."""
    compile: bool = False
    """Compile the encoders' layers, which takes a minute in the first steps. Results differ by rounding only. On the
    CPUs where it was measured, steps became slower."""
    sharding: Sharding = "none"
    """``full`` splits parameters, gradients and optimizer state over all processes, for models that do not fit one
    device. Slower otherwise; checkpoints and results are the same."""


def start_accelerator(section: RunSection) -> Accelerator:
    """Set up threads and memory, start accelerate and log what was chosen. Raises ``ConfigError`` for more processes
    than GPUs, and for sharding with one process."""
    on_gpu = section.device == "auto" and torch.accelerator.is_available()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu and local_processes > 1:
        lacking = check_gpus(local_processes, by=f"{local_processes} processes on this machine")
        if lacking:
            raise ConfigError(f"{lacking}, or run.device=cpu")
    precision, reason = choose_precision(section.precision, on_gpu=on_gpu)
    # Without cpu=True accelerate would start as many single-process runs as torchrun has processes.
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        # The encoders' buffers are constants, and gradients may share memory with the buckets that sum them.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if section.sharding != "none" and accelerator.num_processes == 1:
        several = "PROCESSES=2, or GPUS=8" if by_make() else "torchrun --nproc-per-node 2 -m bertillery ..."
        raise ConfigError(
            f"run.sharding: given {section.sharding!r}, but a single process has nothing to split a model over; "
            f"start several ({several}), or give run.sharding=none"
        )
    if section.threads is not None:
        torch.set_num_threads(section.threads)
    elif not on_gpu:  # torch counts the machine's cores, not a container's share
        share = max(1, num_cores() // local_processes)
        torch.set_num_threads(share if local_processes > 1 else min(share, torch.get_num_threads()))
    memory = "kept" if keep_large_blocks() else "given back"
    if accelerator.is_main_process:
        logger.info("precision %s (%s)", precision, reason)
        facts = accelerator.num_processes, accelerator.device, torch.get_num_threads(), memory
        logger.info("processes: %d, device: %s, CPU threads of each: %d, freed memory: %s", *facts)
    return accelerator


def choose_precision(given: Literal["auto", "bf16", "fp32"], *, on_gpu: bool) -> tuple[Literal["bf16", "fp32"], str]:
    """The precision of matrix products, and the reason for the log."""
    if on_gpu:
        name = "GPU"
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # torch has no public functions for this; if they are missing, float32 is safe
        name, checks = "CPU", ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    fact = f"this {name} {'multiplies' if native else 'does not multiply'} bfloat16 natively"
    if given == "auto":
        return ("bf16" if native else "fp32"), fact
    return given, f"as configured; {fact}"


def keep_large_blocks() -> bool:
    """Keep freed memory in the process instead of returning it to the system; False where the C library cannot.

    glibc maps every large tensor anew and unmaps it when freed, so that each step zeroes the same pages again. On a CPU
    that takes 10 to 30 % of a training step.
    """
    known = platform.libc_ver()[0] == "glibc"
    if known:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: map only blocks above 1 GiB singly
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never return the top of the heap
    return known


def compile_layers(objective: nn.Module) -> None:
    """Compile every layer of the encoders in place; names and checkpoints stay the same.

    The number of tokens varies between batches, so shapes are symbols, and one compilation serves all layers of a size.
    Compiling heads, or whole encoders, would take longer than it saves.
    """
    for module in list(objective.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=True)

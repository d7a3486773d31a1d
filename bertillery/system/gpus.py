"""``python -m bertillery.system.gpus 8``: exits with 2 if this machine has fewer GPUs."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

import torch

from bertillery.system.invocation import by_make


def check_gpus(asked: int, *, by: str) -> str | None:
    """Message if this machine has fewer than ``asked`` GPUs; ``by`` says how they were asked for."""
    found = torch.accelerator.device_count()
    if asked <= found:
        return None
    if found:
        fewer = f"give GPUS={found}, or PROCESSES=<n> for CPUs" if by_make() else f"start {found} processes"
        return f"{by}: given {asked} GPUs, but this machine has {found}; {fewer}"
    there = f"this machine has none that torch {torch.__version__} can use"
    return (
        f"{by}: given {asked} GPUs, but {there}; {'give PROCESSES=<n> for CPUs' if by_make() else 'start one process'}"
    )


def main(arguments: Sequence[str]) -> int:
    """Check a number of GPUs; returns the exit status."""
    (given,) = arguments
    if not given.isdecimal() or not int(given):
        problem: str | None = f"GPUS: given {given!r}; it is a number, GPUs of each machine"
    else:
        problem = check_gpus(int(given), by=f"GPUS={given}")
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How fast matrices multiply here, and tokens a second over the sizes of BERT beside what that allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.material import Material
from benchmarks.turns import Ratio, apart
from benchmarks.workload import SIZES, rows
from bertillery.report.plot import figure, save

REFERENCE = 85e9
"""Operations a second in float32 on one thread of the machine on which the durations of the rounds were taken."""


def matmul_rate(dtype: torch.dtype, size: int = 2048, turns: int = 5) -> float:
    """Floating-point operations a second in products of two square matrices: the best of some turns.

    On one thread a second is one of the CPU's, as in the measurements.
    """
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(turns):
        started = now()
        torch.mm(a, b)
        best = min(best, now() - started)
    return 2 * size**3 / best


def matmul_rates(threads: int = 1) -> dict[str, float]:
    """In float32 and in bfloat16, by the names of the precisions."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {name: apart(partial(matmul_rate, dtype), threads) for name, dtype in types.items()}


def flops_per_token(name: str, material: Material) -> float:
    """Of a training step of ours, on the examples that are measured."""
    workload = SIZES[name]
    source = ours.source(workload, material)
    batch = source.collate(next(rows(workload, source)))
    return ours.objective(workload, material, 0.0).flops(batch) / batch.input.num_tokens


def draw(ratios: Sequence[Ratio], flops: dict[str, float], rate: float, picture: Path) -> None:
    """Tokens a second of ours and of both baselines; the dashed line is ``rate`` over the operations of a token."""
    (axis,) = figure(1, "masked words, 128 tokens, one step at a time", panel=(6.4, 4.2))
    names = [*dict.fromkeys(ratio.contest for ratio in ratios)]
    labels = [name.removeprefix("sizes_").replace("_", "\n") for name in names]
    for baseline in dict.fromkeys(ratio.baseline for ratio in ratios):
        here = {ratio.contest: ratio.rates[1] for ratio in ratios if ratio.baseline == baseline}
        axis.plot(labels, [here[name] for name in names], "o-", label=f"conventional, {baseline}")
    mine = {ratio.contest: ratio.rates[0] for ratio in ratios}
    axis.plot(labels, [mine[name] for name in names], "o-", label=f"ours, {ratios[0].ours}")
    limit = [rate / flops[name] for name in names]
    fastest = f"matrix products alone, {rate / 1e12:.2f} TFLOP/s in {ratios[0].ours.split()[0]}"
    axis.plot(labels, limit, "--", color="grey", label=fastest)
    seconds = "CPU-second" if ratios[0].clock == "CPU" else "second"
    axis.set(yscale="log", ylabel=f"real tokens a {seconds}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    save([axis], picture)

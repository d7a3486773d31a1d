"""How well a device is used: ``python -m benchmarks.utilisation key=value ...``.

Tokens a second of whole trainings (loader, masks, loop, optimizer), as the stages run them, over the sizes of BERT and
ELECTRA-Small, and which share that is of what large matrix products reach on the device in bfloat16. Beside it the
conventional step in the same precision, with as many tokens in a batch, padded. It takes the GPU where there is one; on
a CPU give fewer tokens and steps. Where a training waits for data, the loader is what was measured; more workers help.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from pydantic import NonNegativeInt, PositiveInt
from transformers.utils import logging

from benchmarks import conventional, ours
from benchmarks.__main__ import machine
from benchmarks.material import Material, read_material
from benchmarks.workload import LEARNING_RATE, SEED, Workload, rows
from bertillery.config.section import Section
from bertillery.engine.loader import AHEAD, StepData, Steps, load
from bertillery.engine.loop import training_steps
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.engine.schedule import Phase
from bertillery.models.layers.prepare import prepare_layers
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.device import RunSection, choose_precision, compile_layers, start_accelerator
from bertillery.system.environment import environment

SIZES = {
    "tiny": Workload("pretrain", "mlm", 2, 128),
    "mini": Workload("pretrain", "mlm", 4, 256),
    "small": Workload("pretrain", "mlm", 4, 512),
    "base": Workload("pretrain", "mlm", 12, 768),
    "electra_small": Workload("pretrain", "electra", 12, 256),
}
WARM = 5
"""Steps that are not timed, beside those that workers made meanwhile."""
Size = Literal["tiny", "mini", "small", "base", "electra_small"]
Kind = Literal["plain", "dropout", "compiled"]


@dataclass(frozen=True)
class Speed:
    """What a side does in a second."""

    tokens: float
    """Real ones."""
    flops: float = 0.0
    """Of the matrix products that it needs by our count; none is counted for the baseline."""
    waiting: float = 0.0
    """Share of the second that the host waited for data; the baseline's lies ready."""


class UtilisationSection(Section):
    """What is measured."""

    sizes: list[Size] = [*SIZES]  # pyright: ignore[reportAssignmentType]  # noqa: RUF012 (frozen)
    """Encoders."""
    kinds: list[Kind] = ["plain", "dropout", "compiled"]  # noqa: RUF012
    """Trainings without dropout, with the original's, and without in compiled layers (``run.compile``)."""
    tokens: PositiveInt = 65536
    """Of a step."""
    steps: PositiveInt = 100
    """Timed ones of a training, several times as many as workers have ready; the baseline takes a quarter of them."""
    rounds: PositiveInt = 3
    """Trainings of each kind, of which the median is taken."""
    workers: NonNegativeInt = 8
    """Processes that prepare batches."""


class _Waited:
    """Data, and the seconds that were spent waiting for it."""

    def __init__(self, data: Iterator[StepData]) -> None:
        self._data, self.seconds = data, 0.0

    def __iter__(self) -> Iterator[StepData]:
        while True:
            began = time.perf_counter()
            item = next(self._data, None)
            self.seconds += time.perf_counter() - began
            if item is None:
                return
            yield item


def device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finished() -> float:
    """The time when all that was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(size: int, turns: int = 20) -> float:
    """Floating-point operations a second in products of square matrices in bfloat16: the best of three goes."""
    a, b = (torch.randn(size, size, device=device()).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(3):
        began = finished()
        for _ in range(turns):
            torch.mm(a, b)
        seconds.append(finished() - began)
    return 2 * size**3 * turns / min(seconds)


def run_ours(workload: Workload, material: Material, kind: Kind, section: UtilisationSection) -> Speed:
    """A training in one micro-batch a step."""
    accelerator = start_accelerator(RunSection())
    objective = ours.objective(workload, material, 0.1 if kind == "dropout" else 0.0)
    prepare_layers(objective)
    if kind == "compiled":
        compile_layers(objective)
    # Warming up takes long, and meanwhile workers fill their queues: what these hold is no measure of the loader.
    untimed = WARM + section.workers * AHEAD
    total = untimed + section.steps
    data = Steps(
        [ours.source(workload, material)],
        [Phase(batch_tokens=section.tokens, sequence_length=workload.sequence_length)],
        total_steps=total,
        seed=SEED,
        micro_batch_tokens=section.tokens,
    )
    batches = _Waited(load(data, start=0, num_workers=section.workers, pin_memory=device().type == "cuda"))
    steps = training_steps(
        accelerator,
        accelerator.prepare_model(objective.train()),
        build_optimizer(OptimSection(), objective),
        batches,
        learning_rate=lambda _: LEARNING_RATE,
        max_gradient_norm=1.0,
        seed=SEED,
        certain=lambda step: step in (untimed, total),
    )
    for _ in islice(steps, untimed):
        pass
    began, waited = finished(), batches.seconds
    infos = [*steps]
    seconds = finished() - began
    tokens, flops = sum(info.num_tokens for info in infos), sum(info.flops for info in infos)
    return Speed(tokens / seconds, flops / seconds, (batches.seconds - waited) / seconds)


def run_conventional(workload: Workload, material: Material, section: UtilisationSection) -> Speed:
    """The baseline, with as many tokens in its padded batch."""
    padded = replace(workload, batch_size=max(1, section.tokens // workload.sequence_length))
    source = ours.source(padded, material)
    build = partial(conventional.baseline_of(padded), padded, material, source)
    precision, _ = choose_precision("auto", on_gpu=device().type == "cuda")
    step = conventional.step(build, bf16=precision == "bf16", device=device())
    turns = [step(some) for some in islice(rows(padded, source), WARM + max(1, section.steps // 4))]
    for turn in turns[:WARM]:
        turn()
    began = finished()
    tokens = sum(turn() for turn in turns[WARM:])
    return Speed(tokens / (finished() - began))


def median(run: Callable[[], Speed], rounds: int) -> Speed:
    """The round of the median speed; no speed where the device's memory is not enough."""
    try:
        found = [run() for _ in range(rounds)]
    except torch.OutOfMemoryError:
        return Speed(0.0)
    middle = statistics.median_low(speed.tokens for speed in found)
    return next(speed for speed in found if speed.tokens == middle)


def measure(section: UtilisationSection, material: Material, rate: float) -> Iterator[list[str]]:
    """A row of the table for each size and kind."""
    for size in section.sizes:
        workload = SIZES[size]
        theirs = median(partial(run_conventional, workload, material, section), section.rounds)
        for kind in section.kinds:
            mine = median(partial(run_ours, workload, material, kind, section), section.rounds)
            shares = mine.tokens / theirs.tokens if theirs.tokens else float("nan")
            numbers = [f"{mine.tokens:,.0f}", f"{theirs.tokens:,.0f}", f"{shares:.2f}", f"{mine.flops / 1e12:.2f}"]
            yield [size, kind, *numbers, f"{mine.flops / rate:.1%}", f"{mine.waiting:.1%}"]


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit status."""
    return tool(arguments, help=__doc__, schema=UtilisationSection, action=_run)


def _run(section: UtilisationSection) -> int:
    logging.set_verbosity_error()
    on_gpu = device().type == "cuda"
    rate = matmul_rate(8192) if on_gpu else matmul_rate(512, turns=2)
    print(machine(environment()), torch.cuda.get_device_name() if on_gpu else "no GPU", sep="\n")
    print(f"matrix products in bfloat16: {rate / 1e12:.2f} TFLOP/s; {section.tokens} tokens a step\n", flush=True)
    head = ["size", "kind", "tokens/s", "conventional", "ratio", "TFLOP/s", "of matrix products", "waiting for data"]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(section, read_material(Path(folder)), rate):
            found.append(row)
            print(json.dumps(row), flush=True)
    print("\n" + markdown_table([head, *found]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

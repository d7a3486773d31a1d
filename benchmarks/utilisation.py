"""How well a device is used: ``python -m benchmarks.utilisation key=value ...``.

Tokens a second of whole training runs (loader, masks, loop, optimizer) over the sizes of BERT and ELECTRA-Small, and
which share that is of what large matrix products reach on the device in bfloat16. Where it waits for data, the
loader is what was measured, and more workers help. Beside it the conventional step, with as many tokens in a batch,
padded. It takes the GPU where there is one; on a CPU give fewer tokens and steps.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from accelerate.state import AcceleratorState
from pydantic import NonNegativeInt, PositiveInt, field_validator
from transformers.utils import logging

from benchmarks import conventional, ours, table
from benchmarks.material import Material, read_material
from benchmarks.step import baseline
from benchmarks.workload import LEARNING_RATE, SEED, SIZES, Workload, rows
from bertillery.config.section import Section, read_values, validate
from bertillery.engine.loader import AHEAD, StepData, Steps, load
from bertillery.engine.loop import training_steps
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.engine.schedule import Phase
from bertillery.models.compiled import compile_layers
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.directory import RunSection, start_accelerator
from bertillery.system.environment import environment

WORKLOADS = {name.removeprefix("sizes_"): workload for name, workload in SIZES.items()} | {
    "electra_small_12x256": Workload("pretrain", "electra", 12, 256)
}
WARM = 5
"""Steps that are not timed, beside those that workers made meanwhile."""


@dataclass(frozen=True)
class Speed:
    """What a side does in a second."""

    tokens: float
    """Real ones."""
    flops: float
    """Of the matrix products that it needs by our count; none is counted for the baseline."""
    waiting: float = 0.0
    """Share of the second that the host waited for data; the baseline's lies ready."""


class Waited:
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
    best = float("inf")
    for _ in range(3):
        began = finished()
        for _ in range(turns):
            torch.mm(a, b)
        best = min(best, finished() - began)
    return 2 * size**3 * turns / best


def run_ours(workload: Workload, material: Material, tokens: int, steps: int, workers: int, compiled: bool) -> Speed:
    """A training as the stages do it, in one micro-batch a step."""
    accelerator = start_accelerator(RunSection())
    objective = ours.objective(workload, material, 0.0)
    if compiled:
        compile_layers(objective)
    trained = accelerator.prepare_model(objective.train())
    phase = Phase(batch_tokens=tokens, sequence_length=workload.sequence_length)
    # Warming up takes long, and meanwhile workers fill their queues: what these hold is no measure of the loader.
    untimed = WARM + workers * AHEAD
    source, total = ours.source(workload, material), untimed + steps
    data = Steps([source], [phase], total_steps=total, seed=SEED, micro_batch_tokens=tokens)
    batches = Waited(load(data, start=0, num_workers=workers, pin_memory=accelerator.device.type == "cuda"))
    done = training_steps(
        accelerator,
        trained,
        build_optimizer(OptimSection(), objective),
        batches,
        learning_rate=lambda _: LEARNING_RATE,
        max_gradient_norm=1.0,
        seed=SEED,
        certain=lambda step: step in (untimed, total),
    )
    for _ in islice(done, untimed):
        pass
    began, waited = finished(), batches.seconds
    infos = [*done]
    seconds = finished() - began
    AcceleratorState._reset_state()
    tokens, flops = sum(info.num_tokens for info in infos), sum(info.flops for info in infos)
    return Speed(tokens / seconds, flops / seconds, (batches.seconds - waited) / seconds)


def run_conventional(workload: Workload, material: Material, steps: int) -> Speed:
    """The baseline in bfloat16; ``workload`` has its batch."""
    source = ours.source(workload, material)
    step = conventional.step(baseline(workload), workload, material, source, bf16=True, device=device())
    turns = [step(some) for some in islice(rows(workload, source), WARM + steps)]
    for turn in turns[:WARM]:
        turn()
    began = finished()
    tokens = sum(turn() for turn in turns[WARM:])
    return Speed(tokens / (finished() - began), 0.0)


def median(run: Callable[[], Speed], rounds: int) -> Speed:
    """Of each number; 0 where the device's memory is not enough."""
    found = []
    with suppress(torch.OutOfMemoryError):
        found = [run() for _ in range(rounds)]
    if not found:
        return Speed(0.0, 0.0)
    return Speed(*map(statistics.median, zip(*map(astuple, found), strict=True)))


class UtilisationSection(Section):
    """What is run."""

    sizes: list[str] = [*WORKLOADS]  # noqa: RUF012 (frozen)
    """Encoders."""
    layers: list[Literal["plain", "compiled"]] = ["plain", "compiled"]  # noqa: RUF012
    """As torch runs them one operation after the other, and with ``run.compile``."""
    tokens: PositiveInt = 65536
    """Of a step."""
    steps: PositiveInt = 160
    """Timed ones of a training, several times as many as workers have ready; the baseline takes a quarter of them."""
    rounds: PositiveInt = 3
    """Trainings of each kind, of which the median is taken."""
    workers: NonNegativeInt = 8
    """Processes that prepare batches."""

    @field_validator("sizes")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        unknown = sorted({*names} - {*WORKLOADS})
        if unknown:
            raise ValueError(f"no such size: {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}")
        return names


def measure(section: UtilisationSection, material: Material, rate: float) -> Iterator[dict[str, Any]]:
    """A row for each size; 0 tokens a second is what did not fit into the memory."""
    tokens, steps, rounds = section.tokens, section.steps, section.rounds
    for name in section.sizes:
        workload = WORKLOADS[name]
        padded = replace(workload, batch_size=max(1, tokens // workload.sequence_length))
        mine = {
            kind: median(
                partial(run_ours, workload, material, tokens, steps, section.workers, kind == "compiled"), rounds
            )
            for kind in section.layers
        }
        theirs = median(partial(run_conventional, padded, material, max(1, steps // 4)), rounds)
        best = max(mine.values(), key=lambda speed: speed.tokens)
        yield {
            "size": name,
            **{kind: speed.tokens for kind, speed in mine.items()},
            "conventional": theirs.tokens,
            "tflops": best.flops / 1e12,
            "utilisation": best.flops / rate,
            "waiting": best.waiting,
        }


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit status."""
    return tool(arguments, help=__doc__, schema=UtilisationSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    section = validate(UtilisationSection, *read_values(arguments))
    logging.set_verbosity_error()
    on_gpu = device().type == "cuda"
    rate = matmul_rate(8192 if on_gpu else 1024)
    print(table.machine(environment()), f"{torch.cuda.get_device_name()}" if on_gpu else "no GPU", sep="\n")
    print(f"matrix products in bfloat16: {rate / 1e12:.2f} TFLOP/s; {section.tokens} tokens a step\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for row in measure(section, read_material(Path(folder)), rate):
            found.append(row)
            print(json.dumps(row), flush=True)
    kinds = [*section.layers, "conventional"]
    head = ["tokens/s", *kinds, "TFLOP/s", "of matrix products", "waiting for data"]
    cells = [
        [
            row["size"],
            *(f"{row[kind]:,.0f}" for kind in kinds),
            f"{row['tflops']:.2f}",
            *(f"{row[share]:.1%}" for share in ("utilisation", "waiting")),
        ]
        for row in found
    ]
    print("\n" + markdown_table([head, *cells]))
    print(json.dumps({"matmul": rate, "rows": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

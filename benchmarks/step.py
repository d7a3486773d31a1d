"""One training step of ours against the conventional one, on the same examples: ratios of real tokens per CPU-second.

Each side is a process of one thread, and they take turns; in every round all get the same rows, so a ratio is that of
the CPU times. Padding is nobody's token.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks import workload as work
from benchmarks.conventional import Conventional, padded_examples
from benchmarks.workload import LEARNING_RATE, SEED, WORKLOADS, Workload
from engine.loop import training_steps
from engine.optim import OptimSection, build_optimizer
from engine.order import Cursor, StepData, shares
from engine.run import RunSection, start_accelerator
from pretrain.examples import DocumentSource
from pretrain.pairs import Tokens


@dataclass(frozen=True)
class Ratio:
    """Ours against one baseline over the rounds."""

    workload: str
    ours: str
    baseline: str
    per_round: list[float]
    tokens_per_second: tuple[float, float]
    """Real tokens per CPU-second, ours and the baseline's; medians."""

    @property
    def median(self) -> float:
        """The ratio."""
        return statistics.median(self.per_round)

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"{self.workload}/{self.ours}/{self.baseline}"


def measure(name: str, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, rounds: int) -> list[Ratio]:
    """All of ours against all baselines on one workload."""
    workload = WORKLOADS[name]
    source = work.source(workload, tokens, tokenizer)
    ours = {
        f"dropout {dropout or 'off'}": _Side(partial(_ours, workload, tokenizer, source, dropout))
        for dropout in workload.dropouts
    }
    theirs = {
        label: _Side(partial(_theirs, workload, tokenizer, source, bf16))
        for label, bf16 in (("fp32", False), ("bf16", True))
    }
    sides = [*ours.values(), *theirs.values()]
    stream = work.rows(workload, source)
    # Ours holds on to memory, so its first two steps pay for all pages; the baseline pays for large blocks in each.
    for side in sides:
        side.turn(
            [next(stream), next(stream)] if side in ours.values() else [next(stream)[: -(-workload.batch_size // 4)]]
        )
        side.seconds.clear()
    sizes = []
    for _ in range(rounds):
        batches = [next(stream) for _ in range(workload.steps)]
        sizes.append(sum(int(rows["length"].sum()) for rows in batches))
        for side in sides:
            side.turn(batches)
    for side in sides:
        side.end()
    return [
        Ratio(
            name,
            our,
            their,
            [b / a for a, b in zip(ours[our].seconds, theirs[their].seconds, strict=True)],
            (ours[our].speed(sizes), theirs[their].speed(sizes)),
        )
        for our, their in itertools.product(ours, theirs)
    ]


Step = Callable[[np.ndarray], Callable[[], Any]]
"""Rows of a plan to the step that is timed; what a tokenized data set on disk would hold is made before."""


class _Side:
    """A process of its own, so that neither side's settings of the memory allocator are the other's."""

    def __init__(self, build: Callable[[], Step]) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, there), daemon=True)
        self._process.start()
        there.close()
        self.seconds: list[float] = []

    def turn(self, batches: list[np.ndarray]) -> None:
        """Train on the batches and note the CPU time."""
        self._here.send(batches)
        self.seconds.append(self._here.recv())

    def speed(self, sizes: list[int]) -> float:
        """Median tokens per CPU-second, given the tokens of each turn."""
        return statistics.median(size / spent for size, spent in zip(sizes, self.seconds, strict=True))

    def end(self) -> None:
        """Free the memory."""
        self._here.send(None)
        self._process.join()


def _serve(build: Callable[[], Step], connection: Connection) -> None:
    prepare = build()
    while (batches := connection.recv()) is not None:
        steps = [prepare(rows) for rows in batches]
        started = time.process_time()
        for step in steps:
            step()
        connection.send(time.process_time() - started)


def _ours(
    workload: Workload,
    tokenizer: PreTrainedTokenizerBase,
    source: DocumentSource,
    dropout: float,
    micro_batch_tokens: int = 8192,
) -> Step:
    """The loop as it is, fed with given rows; collation is part of it."""
    accelerator = start_accelerator(RunSection(threads=1, device="cpu"))
    objective: nn.Module = accelerator.prepare_model(work.objective(workload, tokenizer, dropout).train())
    waiting: list[np.ndarray] = []

    def data() -> Iterator[StepData]:
        for step in itertools.count():
            rows = waiting.pop()
            split = shares(rows["length"].astype(np.int64), micro_batch_tokens, 1, 0)
            batches = [source.collate(rows[part]) for part in split]
            yield StepData(step, batches, len(rows), int(rows["length"].sum()), Cursor())

    steps = training_steps(
        accelerator,
        objective,
        build_optimizer(OptimSection(), objective),
        data(),
        learning_rate=lambda _: LEARNING_RATE,
        max_gradient_norm=1.0,
        seed=SEED,
    )

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        def step() -> None:
            waiting.append(rows)
            next(steps)

        return step

    return prepare


def _theirs(workload: Workload, tokenizer: PreTrainedTokenizerBase, source: DocumentSource, bf16: bool) -> Step:
    torch.manual_seed(SEED)
    config = work.config(workload, tokenizer)
    config.hidden_act = "gelu"  # what a stock configuration has; on a CPU faster than the original's tanh form
    side = Conventional(config, tokenizer, pairs=workload.pairs, bf16=bf16, learning_rate=LEARNING_RATE)

    pad_id = cast(int, tokenizer.pad_token_id)

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        examples = padded_examples(source.lay_out(rows), workload.sequence_length, pad_id, pairs=workload.pairs)
        return lambda: side.step(examples)

    return prepare

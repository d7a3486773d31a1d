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
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, PreTrainedTokenizerBase

from benchmarks.conventional import Conventional, pad, padded_examples, stock_model
from engine.loop import training_steps
from engine.optim import OptimSection, build_optimizer
from engine.order import Cursor, StepData, shares
from engine.run import RunSection, start_accelerator
from pretrain.examples import DocumentSource
from pretrain.model import ModelSection
from pretrain.objectives import bert, mlm
from pretrain.pairs import ROW, Tokens

LEARNING_RATE = 1e-4
_SEED = 1


@dataclass(frozen=True)
class Workload:
    """A model, its examples and how many of them a step takes."""

    pairs: bool
    layers: int
    width: int
    sequence_length: int
    batch_size: int
    steps: int
    """Steps of each side in a round."""
    dropouts: tuple[float, ...] = (0.0, 0.1)
    """Ours is measured without dropout, and with it as the baseline has it."""

    def model(self, dropout: float) -> ModelSection:
        """The encoder's size."""
        return ModelSection(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.width // 64,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )


WORKLOADS = {
    "mlm_4x256_s128": Workload(False, 4, 256, 128, batch_size=16, steps=1),
    "mlm_12x768_s128": Workload(False, 12, 768, 128, batch_size=16, steps=1, dropouts=(0.0,)),
    "nsp_4x256_s512": Workload(True, 4, 256, 512, batch_size=8, steps=1),
    "nsp_4x256_s128": Workload(True, 4, 256, 128, batch_size=16, steps=1),
}


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
    source = _source(workload, tokens, tokenizer)
    ours = {
        f"dropout {dropout or 'off'}": _Side(partial(_ours, workload, tokenizer, source, dropout))
        for dropout in workload.dropouts
    }
    theirs = {
        label: _Side(partial(_theirs, workload, tokenizer, source, bf16))
        for label, bf16 in (("fp32", False), ("bf16", True))
    }
    sides = [*ours.values(), *theirs.values()]
    stream = _rows(workload, source)
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


def _source(workload: Workload, tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> DocumentSource:
    length = workload.sequence_length
    if workload.pairs:
        return bert.source(bert.Config(), tokens, tokenizer, sequence_length=length, seed=_SEED)
    return mlm.source(mlm.Config(), tokens, tokenizer, sequence_length=length, seed=_SEED)


def _rows(workload: Workload, source: DocumentSource) -> Iterator[np.ndarray]:
    """Batches of rows without end. Pairs are BERT's, drawn from the text; the others are full blocks, without padding.

    Full blocks are what ``run_mlm`` makes by concatenating, and kinder to the baseline than padded segments.
    """
    if workload.pairs:
        plan = source.plan(0, 0)
    else:
        body = workload.sequence_length - 2
        plan = np.zeros(len(source.tokens.ids) // body, ROW)
        plan["a_start"], plan["a_length"], plan["length"] = np.arange(len(plan)) * body, body, workload.sequence_length
        plan["key"] = np.arange(len(plan))
    order = np.random.default_rng(_SEED).permutation(len(plan))
    while True:
        for start in range(0, len(order) - workload.batch_size, workload.batch_size):
            yield plan[order[start : start + workload.batch_size]]


def _objective(workload: Workload, tokenizer: PreTrainedTokenizerBase, dropout: float) -> bert.Bert | mlm.Mlm:
    torch.manual_seed(_SEED)
    model = workload.model(dropout)
    return bert.build(bert.Config(), model, tokenizer) if workload.pairs else mlm.build(mlm.Config(), model, tokenizer)


def _ours(
    workload: Workload,
    tokenizer: PreTrainedTokenizerBase,
    source: DocumentSource,
    dropout: float,
    micro_batch_tokens: int = 8192,
) -> Step:
    """The loop as it is, fed with given rows; collation is part of it."""
    accelerator = start_accelerator(RunSection(threads=1, device="cpu"))
    objective: nn.Module = accelerator.prepare_model(_objective(workload, tokenizer, dropout).train())
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
        seed=_SEED,
    )

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        def step() -> None:
            waiting.append(rows)
            next(steps)

        return step

    return prepare


def _config(workload: Workload, tokenizer: PreTrainedTokenizerBase, dropout: float = 0.1) -> BertConfig:
    return mlm.bert_config(workload.model(dropout), tokenizer)


def _theirs(workload: Workload, tokenizer: PreTrainedTokenizerBase, source: DocumentSource, bf16: bool) -> Step:
    torch.manual_seed(_SEED)
    config = _config(workload, tokenizer)
    config.hidden_act = "gelu"  # what a stock configuration has; on a CPU faster than the original's tanh form
    side = Conventional(config, tokenizer, pairs=workload.pairs, bf16=bf16, learning_rate=LEARNING_RATE)

    pad_id = cast(int, tokenizer.pad_token_id)

    def prepare(rows: np.ndarray) -> Callable[[], Any]:
        examples = padded_examples(source.lay_out(rows), workload.sequence_length, pad_id, pairs=workload.pairs)
        return lambda: side.step(examples)

    return prepare


def same_losses(
    tokens: Tokens, tokenizer: PreTrainedTokenizerBase, steps: int = 5, tolerance: float = 1e-5
) -> list[tuple[float, float]]:
    """Train both ways on the same masked pairs from the same weights, in float32 without dropout; ours and theirs.

    Raises ``AssertionError`` where they part by more than the tolerance: a faster step that learns something else.
    """
    workload = replace(WORKLOADS["nsp_4x256_s128"], layers=2, width=128, batch_size=16)
    source = _source(workload, tokens, tokenizer)
    objective = _objective(workload, tokenizer, 0.0)
    stock = stock_model(_config(workload, tokenizer, 0.0), pairs=True)
    stock.load_state_dict(objective.exported().state_dict())
    pad_id = cast(int, tokenizer.pad_token_id)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE) for model in (objective, stock)]
    losses = []
    for rows in itertools.islice(_rows(workload, source), steps):
        batch = source.collate(rows)
        terms = objective(batch)
        means = [term.total * term.weight / batch.counts[term.count] for term in terms.values() if term.weight]
        ours = torch.stack(means).sum()
        lengths = batch.cu_seqlens.diff().tolist()
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
        theirs = stock(
            input_ids=pad(batch.input_ids, lengths, workload.sequence_length, pad_id),
            token_type_ids=pad(batch.token_type_ids, lengths, workload.sequence_length, 0),
            attention_mask=pad(torch.ones_like(labels), lengths, workload.sequence_length, 0),
            labels=pad(labels, lengths, workload.sequence_length, -100),
            next_sentence_label=batch.targets["pair_labels"],
        ).loss
        for loss, optimizer in zip((ours, theirs), optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append((ours.item(), theirs.item()))
    worst = max(abs(a / b - 1) for a, b in losses)
    assert worst <= tolerance, f"the losses part by {worst:.1e}, more than {tolerance:.0e}: {losses}"
    return losses

"""Which examples a step takes, and how ranks and micro-batches share them: a pure function of (seed, step).

The examples of a source form an endless stream: epoch after epoch, the blocks of an epoch in order (the source permutes
what they hold), the rows of a block in a keyed permutation. A place in the stream is a cursor of integers. Phases that
follow each other with one sequence length go through one stream.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Source, sampled
from bertillery.engine.rng import Permutation
from bertillery.engine.schedule import Phase
from bertillery.system.workers import START, begin_worker

AHEAD = 4
"""Steps that each worker has ready at most."""


@dataclass(frozen=True)
class Cursor:
    """A place in a stream of examples."""

    phase: int = 0
    epoch: int = 0
    block: int = 0
    offset: int = 0


@dataclass(frozen=True)
class StepData:
    """One rank's part of one optimizer step."""

    step: int
    micro_batches: list[PackedBatch]
    num_examples: int
    """Examples of the step over all ranks."""
    num_tokens: int
    """Tokens of the step over all ranks."""
    cursor: Cursor
    """Where the next step starts."""


class Stream:
    """The endless stream of a source's examples."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self._held: tuple[tuple[int, int], np.ndarray] | None = None

    def rows(self, epoch: int, block: int) -> np.ndarray:
        """A block's examples in the order in which they are trained."""
        if self._held is None or self._held[0] != (epoch, block):
            plan = self.source.examples(epoch, block)
            order = Permutation(len(plan), self.seed, epoch, block)(np.arange(len(plan))) if len(plan) else []
            self._held = ((epoch, block), plan[order])
        return self._held[1]

    def take(
        self, cursor: Cursor, batch: int, *, in_tokens: bool = False, at_least: int = 1
    ) -> tuple[np.ndarray, Cursor]:
        """The next rows from a cursor on, and the cursor behind them.

        There are ``batch`` of them, or, with ``in_tokens``, as many as have ``batch`` tokens together at most, but
        never fewer than ``at_least``.
        """
        epoch, block, offset = cursor.epoch, cursor.block, cursor.offset
        parts: list[np.ndarray] = []
        room, missing, barren = batch, at_least, 0
        while room > 0 or missing > 0:
            rows = self.rows(epoch, block)
            ahead = rows[offset : offset + max(room, missing)]  # no example is shorter than a token
            ends = np.cumsum(ahead["length"], dtype=np.int64) if in_tokens else np.arange(1, len(ahead) + 1)
            number = max(int(np.searchsorted(ends, room, side="right")), min(missing, len(ahead)))
            parts.append(ahead[:number])
            room -= int(ends[number - 1]) if number else 0
            missing -= number
            offset += number
            if offset < len(rows):
                break
            block, offset = block + 1, 0
            if block == self.source.num_blocks:
                epoch, block = epoch + 1, 0
            barren = 0 if len(rows) else barren + 1
            assert barren <= self.source.num_blocks, "a source without examples must be refused where it is built"
        return np.concatenate(parts), Cursor(cursor.phase, epoch, block, offset)


def shares(lengths: np.ndarray, micro_batch_tokens: int, num_ranks: int, rank: int) -> list[np.ndarray]:
    """Split the examples of a step, of the given lengths, into one rank's micro-batches: arrays of indices.

    All ranks get the same number of micro-batches, each as near to ``micro_batch_tokens`` as equal shares allow.
    Examples are dealt by length, so that a micro-batch holds similar lengths and the ranks' micro-batches of a turn
    the same work.
    """
    assert len(lengths) >= num_ranks, "fewer examples than processes must be refused in the configuration"
    order = np.argsort(-lengths, kind="stable")
    turns = -(-int(lengths.sum()) // (num_ranks * micro_batch_tokens))
    turns = max(1, min(turns, len(lengths) // num_ranks))
    parts = turns * num_ranks
    middles = np.cumsum(lengths[order]) - lengths[order] / 2
    part = (middles * parts / lengths.sum()).astype(np.int64)
    last = -1
    for i, wanted in enumerate(part.tolist()):
        # Where a few long examples would take two shares each, every part still gets one.
        last = min(max(wanted, last, parts - (len(part) - i)), last + 1)
        part[i] = last
    return [order[part == turn * num_ranks + rank] for turn in range(turns)]


class Steps(Dataset[StepData]):
    """Maps a step's number to one rank's data; knows one place in the stream and walks on from there."""

    def __init__(
        self,
        sources: Sequence[Source],
        phases: Sequence[Phase],
        *,
        total_steps: int,
        seed: int,
        micro_batch_tokens: int,
        num_ranks: int = 1,
        rank: int = 0,
        start: tuple[int, Cursor] = (0, Cursor()),
    ) -> None:
        self.phases, self.total_steps = phases, total_steps
        streams = {id(source): Stream(source, seed) for source in sources}
        self.streams = [streams[id(source)] for source in sources]
        self.micro_batch_tokens, self.num_ranks, self.rank = micro_batch_tokens, num_ranks, rank
        self._start = self._place = start
        ends = np.round(np.cumsum([phase.share for phase in phases]) / sum(p.share for p in phases) * total_steps)
        self._phase_ends = ends.astype(np.int64)

    def phase_at(self, step: int) -> int:
        """Index of the phase that a step belongs to."""
        return min(int(np.searchsorted(self._phase_ends, step, side="right")), len(self.phases) - 1)

    def batch_at(self, step: int) -> int:
        """What a step takes: examples, or the most tokens."""
        phase = self.phase_at(step)
        begin, end = int(self._phase_ends[phase - 1]) if phase else 0, int(self._phase_ends[phase])
        return self.phases[phase].batch(step - begin, end - begin)

    def __len__(self) -> int:
        return self.total_steps

    def __getitem__(self, step: int) -> StepData:
        if step < self._place[0]:
            self._place = self._start
        begin, cursor = self._place
        rows = np.empty(0, np.dtype([]))
        for current in range(begin, step + 1):
            at, phase = self.phase_at(current), self.phases[self.phase_at(current)]
            if phase.sequence_length == self.phases[cursor.phase].sequence_length:
                cursor = replace(cursor, phase=at)
            else:
                # Another length has examples of its own; it opens with a fresh epoch, never one that was drawn before.
                cursor = Cursor(at, cursor.epoch + 1)
            rows, cursor = self.streams[at].take(
                cursor, self.batch_at(current), in_tokens=phase.in_tokens, at_least=self.num_ranks
            )
        self._place = (step + 1, cursor)
        source = self.streams[self.phase_at(step)].source
        rows = sampled(source, rows)
        split = shares(rows["length"].astype(np.int64), self.micro_batch_tokens, self.num_ranks, self.rank)
        return StepData(
            step, [source.collate(rows[part]) for part in split], len(rows), int(rows["length"].sum()), cursor
        )


class SerializedSteps(Dataset[bytes]):
    """Steps as they cross from a worker to the process that trains: each one string of bytes.

    Left to itself torch opens shared memory, a file descriptor and a connection for every tensor. A step of many
    micro-batches has thousands, which is slow and more than a process may have open.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> bytes:
        packet = io.BytesIO()
        _Packer(packet, protocol=5).dump(self.steps[step])
        return packet.getvalue()


class _Packer(pickle.Pickler):
    """Pickles tensors as the arrays they were made from."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def load(steps: Steps, *, start: int, num_workers: int, pin_memory: bool) -> Iterator[StepData]:
    """The steps from ``start`` on, prepared ahead by ``num_workers`` processes; their number changes nothing else."""
    loader = DataLoader(
        SerializedSteps(steps) if num_workers else steps,
        batch_size=None,
        sampler=range(start, len(steps)),
        num_workers=num_workers,
        pin_memory=False,
        prefetch_factor=AHEAD if num_workers else None,
        persistent_workers=False,
        # Forked, so that sources need not be picklable. That CUDA is running is no matter, as workers never use it.
        multiprocessing_context=START if num_workers else None,
        worker_init_fn=partial(_begin, os.getpid()),
    )
    for item in loader:
        data: StepData = pickle.loads(item) if num_workers else item
        if pin_memory:
            data.micro_batches[:] = [batch.pin_memory() for batch in data.micro_batches]
        yield data


def _begin(parent: int, worker: int) -> None:
    begin_worker(parent)


def on_device(data: Iterable[StepData], device: torch.device) -> Iterator[StepData]:
    """The steps with their batches on the device.

    To a GPU they travel on a stream of their own. The host queues a step while the device computes the one before, so
    pinned batches are copied beside that instead of after it.
    """
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    for item in data:
        with torch.cuda.stream(beside):  # none: nothing changes
            batches = [batch.to(device) for batch in item.micro_batches]
        if beside is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(beside)
            for batch in batches:
                batch.used_on(computing)
        yield replace(item, micro_batches=batches)

"""Which examples a step takes, and how ranks and micro-batches share them: a pure function of (seed, step).

The examples of a source form an endless stream: epoch after epoch, the blocks of an epoch in order, the rows of a block
in a keyed permutation. A cursor of integers is a place in the stream. Consecutive phases of one sequence length read on
in one stream.
"""

from __future__ import annotations

import copyreg
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
"""Steps that each worker prepares ahead."""


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
    """Of all ranks."""
    num_tokens: int
    """Of all ranks."""
    cursor: Cursor
    """Start of the next step's examples."""


class Stream:
    """The endless stream of a source's examples."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed
        self._held: tuple[tuple[int, int], np.ndarray] | None = None

    def rows(self, epoch: int, block: int) -> np.ndarray:
        """A block's examples in the order in which they are trained."""
        if self._held is None or self._held[0] != (epoch, block):
            rows = self.source.examples(epoch, block)
            order = Permutation(len(rows), self.seed, epoch, block)(np.arange(len(rows))) if len(rows) else []
            self._held = ((epoch, block), rows[order])
        return self._held[1]

    def take(
        self, cursor: Cursor, batch: int, *, in_tokens: bool = False, at_least: int = 1
    ) -> tuple[np.ndarray, Cursor]:
        """The next rows from a cursor on, and the cursor after them.

        Takes ``batch`` rows, or with ``in_tokens`` as many as fit into ``batch`` tokens, but at least ``at_least``.
        """
        epoch, block, offset = cursor.epoch, cursor.block, cursor.offset
        parts: list[np.ndarray] = []
        room, missing, barren = batch, at_least, 0
        while room > 0 or missing > 0:
            rows = self.rows(epoch, block)
            ahead = rows[offset : offset + max(room, missing)]  # an example has at least one token
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
    """Split the examples of a step, given their lengths, into one rank's micro-batches: arrays of indices.

    All ranks get the same number of micro-batches, each as near to ``micro_batch_tokens`` as equal shares allow.
    Examples are sorted by length, so that a micro-batch holds similar lengths and the ranks do equal work in each
    accumulation round.
    """
    assert len(lengths) >= num_ranks, "fewer examples than processes must be refused in the configuration"
    order = np.argsort(-lengths, kind="stable")
    rounds = -(-int(lengths.sum()) // (num_ranks * micro_batch_tokens))
    rounds = max(1, min(rounds, len(lengths) // num_ranks))
    parts = rounds * num_ranks
    middles = np.cumsum(lengths[order]) - lengths[order] / 2
    part = (middles * parts / lengths.sum()).astype(np.int64)
    last = -1
    for i, wanted in enumerate(part.tolist()):
        # A few long examples could take two shares each; every part still gets an example.
        last = min(max(wanted, last, parts - (len(part) - i)), last + 1)
        part[i] = last
    return [order[part == each * num_ranks + rank] for each in range(rounds)]


class Steps(Dataset[StepData]):
    """Maps a step's number to one rank's data, walking on from the last place in the stream."""

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
        """Examples or tokens of a step's batch."""
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
                # Another length has its own examples; it starts a new epoch, whose draws were not used before.
                cursor = Cursor(at, cursor.epoch + 1)
            rows, cursor = self.streams[at].take(
                cursor, self.batch_at(current), in_tokens=phase.in_tokens, at_least=self.num_ranks
            )
        self._place = (step + 1, cursor)
        source = self.streams[self.phase_at(step)].source
        rows = sampled(source, rows, step)
        split = shares(rows["length"].astype(np.int64), self.micro_batch_tokens, self.num_ranks, self.rank)
        return StepData(
            step, [source.collate(rows[part]) for part in split], len(rows), int(rows["length"].sum()), cursor
        )


def _serialized(data: Any) -> bytes:
    """A step's data as one string of bytes, with tensors as arrays, to send from a worker.

    Torch would open shared memory, a file descriptor and a connection for every tensor, and a step of many
    micro-batches has more of them than a process may open.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.dispatch_table = {**copyreg.dispatch_table, torch.Tensor: _tensor_as_array}
    pickler.dump(data)
    return buffer.getvalue()


def _tensor_as_array(tensor: torch.Tensor) -> tuple[Any, tuple[np.ndarray]]:
    return torch.from_numpy, (tensor.numpy(),)


def load(steps: Steps, *, start: int, num_workers: int, pin_memory: bool) -> Iterator[StepData]:
    """The steps from ``start`` on, prepared by ``num_workers`` processes; their number does not change the data."""
    loader = DataLoader(
        steps,
        batch_size=None,
        collate_fn=_serialized if num_workers else None,  # called in the worker
        sampler=range(start, len(steps)),
        num_workers=num_workers,
        pin_memory=False,
        prefetch_factor=AHEAD if num_workers else None,
        persistent_workers=False,
        # Forked, so that sources need not be picklable; workers never use CUDA.
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

    Copies to a GPU use their own CUDA stream: the next step's pinned batches are copied while the device computes.
    """
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    for item in data:
        with torch.cuda.stream(beside):  # no effect on a CPU, where it is None
            batches = [batch.to(device) for batch in item.micro_batches]
        if beside is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(beside)
            for batch in batches:
                batch.used_on(computing)
        yield replace(item, micro_batches=batches)

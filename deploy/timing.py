"""Speed of several models, measured in alternating rounds, so that a slow phase of the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from bertillery.config.section import Section
from bertillery.config.types import Runs, Tokens
from bertillery.models.encoders import reads_token_types

_TURN = 0.2
"""Approximate seconds of a side's turn in a round; a call that takes longer is a turn by itself."""


class SpeedSection(Section):
    """Keys of a speed measurement."""

    lengths: list[Tokens] = Field(default=[32, 128], min_length=1)
    """Tokens of a sequence, at most what the models read."""
    batch_sizes: list[Runs] = Field(default=[1, 32], min_length=1)
    """Sequences of a batch: 1 measures latency, more measure throughput."""
    rounds: int = Field(default=5, ge=5, le=10_000)
    """Turns of each model; the table has the median, and the smallest and the largest ratio."""

    def fitting(self, longest: int) -> tuple[list[int], list[str]]:
        """The lengths, cut to ``longest``, and a note for the reader if that changed one."""
        note = f"No length above {longest} was measured, the longest sequence that all models read."
        return sorted({min(length, longest) for length in self.lengths}), [note] * (max(self.lengths) > longest)

    def measure(
        self,
        sides: Callable[[int, int], Mapping[str, Callable[[], object]]],
        lengths: Sequence[int],
        wait: Callable[[], object] = lambda: None,
    ) -> list[Speed]:
        """Time ``sides(batch_size, length)`` at each of the lengths and batch sizes."""
        shapes = [(length, batch_size) for length in lengths for batch_size in sorted({*self.batch_sizes})]
        return [
            side_by_side(sides(batch_size, length), length=length, batch_size=batch_size, rounds=self.rounds, wait=wait)
            for length, batch_size in shapes
        ]


@dataclass(frozen=True)
class Speed:
    """Times of each side for a batch of one shape."""

    length: int
    batch_size: int
    seconds: dict[str, list[float]]
    """Of a batch, by side and round. The first side is the base of the ratios."""

    @property
    def base(self) -> str:
        """The side that the others are compared with."""
        return next(iter(self.seconds))

    def median(self, side: str) -> float:
        """Seconds of a batch."""
        return statistics.median(self.seconds[side])

    def ratios(self, side: str) -> list[float]:
        """Time of the base over that of a side, in each round."""
        return [base / own for base, own in zip(self.seconds[self.base], self.seconds[side], strict=True)]

    def as_json(self) -> dict[str, Any]:
        """All times and the numbers of the table."""
        shown = {
            side: {
                "seconds": seconds,
                "median_seconds": self.median(side),
                "examples_per_second": self.batch_size / self.median(side),
                "times_as_fast": statistics.median(self.ratios(side)),
                "smallest": min(self.ratios(side)),
                "largest": max(self.ratios(side)),
            }
            for side, seconds in self.seconds.items()
        }
        return {"length": self.length, "batch_size": self.batch_size, "sides": shown}


def forward(model: PreTrainedModel, batch_size: int, length: int) -> Callable[[], object]:
    """A function that runs a forward pass over random tokens."""
    inputs = stock_inputs(model, batch_size, length)

    @torch.inference_mode()
    def call() -> object:
        return model(**inputs)

    return call


def side_by_side(
    sides: Mapping[str, Callable[[], object]],
    *,
    length: int,
    batch_size: int,
    rounds: int,
    wait: Callable[[], object] = lambda: None,
) -> Speed:
    """Time the calls of each side in turns A B C A B C ..., after two warm-up calls of each.

    A turn repeats short calls, so that the resolution of the clock does not matter. ``wait`` returns when the device
    has finished its work.
    """

    def timed(call: Callable[[], object], calls: int) -> float:
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - started) / calls

    calls: dict[str, int] = {}
    for side, call in sides.items():
        timed(call, 1)
        calls[side] = max(1, round(_TURN / timed(call, 1)))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, call in sides.items():
            seconds[side].append(timed(call, calls[side]))
    return Speed(length, batch_size, seconds)


def speed_rows(speeds: Sequence[Speed], base: str) -> list[list[str]]:
    """Rows of a table with its head, one for each shape and side; ``base`` is what the head calls the first side."""
    rows = [["length", "batch", "model", "ms a batch", "examples/s", f"x {base}", "smallest", "largest"]]
    for speed in speeds:
        for side, shown in speed.as_json()["sides"].items():
            keys = ("times_as_fast", "smallest", "largest")
            ratios = ["1", "", ""] if side == speed.base else [f"{shown[key]:.2f}" for key in keys]
            times = [f"{1e3 * shown['median_seconds']:,.2f}", f"{shown['examples_per_second']:,.1f}"]
            rows.append([str(speed.length), str(speed.batch_size), side, *times, *ratios])
    return rows


def has_choices(model: PreTrainedModel) -> bool:
    """Whether its inputs are (batch, choices, length)."""
    return type(model).__name__.endswith("ForMultipleChoice")


def stock_inputs(model: PreTrainedModel, batch_size: int, length: int, *, padded: bool = False) -> dict[str, Tensor]:
    """Random tokens of the vocabulary, none of them padding, as the model's tokenizer would hand them over.

    Each is (batch_size, length), or (batch_size, 1, length) for a model that compares choices. With ``padded`` each
    row but the first holds fewer tokens than the one before. The same arguments give the same tokens.
    """
    config: Any = model.config
    pad = config.pad_token_id or 0
    generator = torch.Generator().manual_seed(1000 * batch_size + length)
    ids = torch.randint(config.vocab_size - 1, (batch_size, length), generator=generator)
    ids += ids >= pad
    tokens = torch.full((batch_size,), length)
    if padded:
        tokens = (length * (batch_size - torch.arange(batch_size)) / batch_size).ceil().long()
    mask = torch.arange(length) < tokens[:, None]
    inputs = {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}
    if reads_token_types(config):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if has_choices(model):
        inputs = {key: value[:, None] for key, value in inputs.items()}
    return {key: value.to(model.device) for key, value in inputs.items()}

"""Length of a training, its phases, and the intervals of logging, saving and evaluating."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Count, Duration, Factor, Length, Runs, Tokens


class Phase(Section):
    """A part of training with one sequence length and a constant or growing batch."""

    usual_batch: ClassVar[dict[str, int]] = {"batch_size": 256}
    """The batch where none is given."""

    share: Factor = 1.0
    """Share of the run's steps."""
    batch_size: Count | None = None
    """Examples in one optimizer step, over all processes and micro-batches; by default 256 (fine-tuning: 32) if
    ``batch_tokens`` is not given."""
    batch_tokens: Count | None = None
    """Instead of ``batch_size``: a step takes as many examples as fit into this number of tokens."""
    batch_from: Count | None = None
    """Batch of the phase's first step, in the unit of the last one; the batch grows linearly between them. By default
    all steps have the same batch."""
    sequence_length: Tokens = 128
    """Longest example in tokens, including special tokens. Consecutive phases of one length share an epoch."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_batch(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("batch_size") is None and values.get("batch_tokens") is None:
            return values | cls.usual_batch
        return values

    @model_validator(mode="after")
    def _sensible(self) -> Phase:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError(
                f"batch_size {self.batch_size} and batch_tokens {self.batch_tokens} are both given; leave one out, or "
                "set it to null"
            )
        if self.first > self.last:
            raise ValueError(f"batch_from {self.first} is above {self._key} {self.last}; give at most {self.last}")
        self.check_processes(1)
        return self

    @property
    def in_tokens(self) -> bool:
        """Whether the batch is counted in tokens, not examples."""
        return self.batch_tokens is not None

    @property
    def last(self) -> int:
        """Batch of the last step, in examples or tokens."""
        size = self.batch_tokens or self.batch_size
        assert size is not None
        return size

    @property
    def first(self) -> int:
        """Batch of the first step, in examples or tokens."""
        return self.batch_from or self.last

    @property
    def _key(self) -> str:
        return "batch_tokens" if self.in_tokens else "batch_size"

    def batch(self, step: int, num_steps: int) -> int:
        """Batch of one of the phase's steps, counted from 0, in examples or tokens.

        Interpolates linearly between first and last step, rounded half up; a single step has the last batch.
        """
        if step >= num_steps - 1:
            return self.last
        return self.first + (2 * (self.last - self.first) * step + num_steps - 1) // (2 * (num_steps - 1))

    def most_examples(self, length: int) -> int:
        """Number of examples of ``length`` tokens in the largest batch, rounded up."""
        return -(-self.last // length) if self.in_tokens else self.last

    def check_processes(self, number: int, name: str = "") -> None:
        """``ConfigError``, beginning with ``name``, if a step may have fewer examples than processes."""
        least = number * (self.sequence_length if self.in_tokens else 1)
        if self.first < least:
            key = self._key if self.batch_from is None else "batch_from"
            what = f"one example of sequence_length {self.sequence_length}" if self.in_tokens else "one example"
            each = f" for each of the {number} processes" if number > 1 else ""
            raise ConfigError(f"{name}{key} {self.first} is less than {what}{each}; give at least {least}")

    def __str__(self) -> str:
        """Batch and sequence length, as in ``32 to 256 x 128`` or ``16,384 tokens x 128``."""
        sizes = " to ".join(f"{size:,}" for size in dict.fromkeys((self.first, self.last)))
        return f"{sizes}{' tokens' if self.in_tokens else ''} x {self.sequence_length}"


@dataclass(frozen=True)
class EpochSize:
    """Examples and tokens in an epoch of a source; fractions in estimates."""

    examples: float
    tokens: float


def steps_per_epoch(phases: Sequence[Phase], epochs: Sequence[EpochSize]) -> Fraction:
    """Average number of steps of an epoch over a whole run; ``epochs`` are those of the phases' sources.

    The average step of a phase takes the mean of its first and last batch, and as much of an epoch. Batches counted in
    tokens are assumed to be full.
    """
    taken = Fraction(0)
    for phase, epoch in zip(phases, epochs, strict=True):
        whole = Fraction(epoch.tokens if phase.in_tokens else epoch.examples)
        taken += Fraction(phase.share) * (phase.first + phase.last) / 2 / whole
    return sum(Fraction(phase.share) for phase in phases) / taken


class TrainSection(Section):
    """Length and schedule of training."""

    steps: Length = Duration("100_000 steps")
    """Length of the run: steps or epochs, rounded down to whole steps."""
    phases: Annotated[list[Phase], Field(min_length=1)] = [Phase()]  # noqa: RUF012 (frozen)
    """Batch and sequence length, one phase after the other."""
    epoch_steps: Literal["exact", "floor", "ceil"] = "exact"
    """Steps of an epoch that is not a whole number of batches: with the fraction (``exact``, as in BERT's code),
    rounded down (``floor``, as in TinyBERT's, which skips an incomplete batch) or up (``ceil``, as in ELECTRA's, which
    pads it)."""
    micro_batch_tokens: Count | Literal["auto"] = 8192
    """Tokens that a process computes at a time; affects memory and speed, and results only by rounding. ``auto`` takes
    the most that fit and logs the number; give that number to repeat a run bit for bit."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Data loading processes; by default 0 on a CPU and 4 on a GPU."""
    log_every: Length = Duration("50 steps")
    """Interval of logging metrics."""
    save_every: Length = Duration("5%")
    """Interval of writing checkpoints."""
    evaluate_every: Length = Duration("10%")
    """Interval of evaluating on held-out data, after which a checkpoint is written."""
    evaluate_examples: Count | None = 2048
    """Maximal number of held-out examples; null takes all."""
    keep: Runs = 2
    """Number of newest checkpoints to keep, besides the best."""
    patience: Runs | None = None
    """Training ends after this many evaluations in a row without a new best; by default it runs in full."""
    export: Literal["last", "best"] = "last"
    """Weights to export: the last ones, or those of the best evaluation."""


@dataclass(frozen=True)
class Schedule:
    """A training section in steps."""

    total: int
    log: int
    save: int
    evaluate: int

    @classmethod
    def of(cls, section: TrainSection, count_steps_per_epoch: Callable[[], Fraction]) -> Schedule:
        """Convert every duration; an epoch is counted only if a duration is given in epochs.

        Intervals are rounded to the nearest step. Rounded down, they could leave a remainder after the last of them.
        """
        durations = [section.steps, section.log_every, section.save_every, section.evaluate_every]
        epoch = count_steps_per_epoch() if any(d.unit == "epochs" for d in durations) else None
        if epoch is not None and section.epoch_steps != "exact":
            epoch = max(1, math.floor(epoch) if section.epoch_steps == "floor" else math.ceil(epoch))
        total = max(1, section.steps.to_steps(steps_per_epoch=epoch))
        every = [round(d.exactly(total_steps=total, steps_per_epoch=epoch)) for d in durations[1:]]
        return cls(total, *(max(1, steps) for steps in every))

    def due(self, step: int, every: int) -> bool:
        """Whether something with the interval ``every`` is due: also at the end."""
        return step % every == 0 or step == self.total

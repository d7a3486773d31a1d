"""How much a step takes, and how long its examples are: the phases of a training.

How long a training is, and what happens how often: its section, and the same in steps.
"""

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
    """A stretch of training with one sequence length, and one batch or one that grows."""

    usual_batch: ClassVar[int] = 256
    """``batch_size`` where neither it nor ``batch_tokens`` is given."""

    share: Factor = 1.0
    """Share of the run's steps."""
    batch_size: Count | None = None
    """Examples in one optimizer step, over all processes and micro-batches; 256 (fine-tuning: 32) where
    ``batch_tokens`` is not given."""
    batch_tokens: Count | None = None
    """In place of ``batch_size``: a step takes the next examples until another one would exceed so many tokens."""
    batch_from: Count | None = None
    """What the phase's first step takes, in examples or tokens as the last one; between them the batch grows
    linearly. Without it all steps take the same."""
    sequence_length: Tokens = 128
    """Longest example in tokens, special tokens included. A phase as long as the one before goes on in its examples."""

    @model_validator(mode="before")
    @classmethod
    def _counts_examples_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("batch_size") is None and values.get("batch_tokens") is None:
            return {**values, "batch_size": cls.usual_batch}
        return values

    @model_validator(mode="after")
    def _sensible(self) -> Phase:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError(
                f"batch_size {self.batch_size} and batch_tokens {self.batch_tokens} are both given; a batch is counted "
                "in examples or in tokens: leave one out, or set it to null"
            )
        if self.first > self.last:
            raise ValueError(f"a batch grows: batch_from {self.first} is above {self._key} {self.last}")
        self.check_processes(1)
        return self

    @property
    def in_tokens(self) -> bool:
        """Whether a batch is counted in tokens; in examples otherwise."""
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

        A line from the first step to the last, rounded to the nearest integer, halves upwards; a single step is the
        last one.
        """
        if step >= num_steps - 1:
            return self.last
        return self.first + (2 * (self.last - self.first) * step + num_steps - 1) // (2 * (num_steps - 1))

    def most_examples(self, length: int) -> int:
        """Examples of ``length`` tokens that make up the largest batch, rounded up."""
        return -(-self.last // length) if self.in_tokens else self.last

    def check_processes(self, number: int, name: str = "") -> None:
        """``ConfigError`` where some step may not have an example for each of so many processes; ``name`` opens it."""
        least = number * (self.sequence_length if self.in_tokens else 1)
        if self.first < least:
            key = self._key if self.batch_from is None else "batch_from"
            what = f"one example of sequence_length {self.sequence_length}" if self.in_tokens else "one example"
            each = f" for each of the {number} processes" if number > 1 else ""
            raise ConfigError(f"{name}{key} {self.first} is less than {what}{each}; give at least {least}")

    def __str__(self) -> str:
        """The batch and the longest example, as in ``32 to 256 x 128`` or ``16,384 tokens x 128``."""
        sizes = " to ".join(f"{size:,}" for size in dict.fromkeys((self.first, self.last)))
        return f"{sizes}{' tokens' * self.in_tokens} x {self.sequence_length}"


@dataclass(frozen=True)
class EpochSize:
    """What there is in an epoch of a source; fractions where it is an estimate."""

    examples: float
    tokens: float


def steps_per_epoch(phases: Sequence[Phase], epochs: Sequence[EpochSize]) -> Fraction:
    """Steps of one epoch, on average over a whole run; ``epochs`` are those of the phases' sources.

    A step of a phase takes, on average, the mean of its first and last batch: such a share of an epoch. With a token
    budget an epoch has as many steps as budgets fit into its tokens, as if each were filled.
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
    """How many steps an epoch counts for where it is no whole number of batches: with its fraction (``exact``, as in
    BERT's code), without (``floor``, as in TinyBERT's, which skips an incomplete batch), or as a whole step (``ceil``,
    as in ELECTRA's, which fills an incomplete batch up with padding)."""
    micro_batch_tokens: Count | Literal["auto"] = 8192
    """Tokens that one process handles at a time: a matter of memory and speed, not of results. ``auto`` takes the most
    that fit, and says how many; a run that is to be repeated bit for bit gives that number."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Processes that prepare batches ahead; 0 on a CPU and 4 on a GPU where not given."""
    log_every: Length = Duration("50 steps")
    """How often metrics are fetched and written."""
    save_every: Length = Duration("5%")
    """How often a checkpoint is written."""
    evaluate_every: Length = Duration("10%")
    """How often held-out numbers are taken (a checkpoint is written before)."""
    evaluate_examples: Count | None = 2048
    """Held-out examples, at most; null takes all."""
    keep: Runs = 2
    """Newest checkpoints kept, beside the best."""
    patience: Runs | None = None
    """Training ends after so many evaluations in a row that were not the best; without it, at its full length."""
    export: Literal["last", "best"] = "last"
    """Weights that leave the run: the last ones, or those of the best evaluation."""


@dataclass(frozen=True)
class Schedule:
    """A training section in steps."""

    total: int
    log: int
    save: int
    evaluate: int

    @classmethod
    def of(cls, section: TrainSection, count_steps_per_epoch: Callable[[], Fraction]) -> Schedule:
        """Convert every duration once; an epoch is counted only where one is given in epochs.

        Intervals are rounded to the nearest step: rounded down, they would leave a remainder behind the last of them.
        """
        durations = [section.steps, section.log_every, section.save_every, section.evaluate_every]
        epoch = count_steps_per_epoch() if any(d.unit == "epochs" for d in durations) else None
        if epoch is not None and section.epoch_steps != "exact":
            epoch = max(1, math.floor(epoch) if section.epoch_steps == "floor" else math.ceil(epoch))
        total = max(1, section.steps.to_steps(steps_per_epoch=epoch))
        every = [round(d.exactly(total_steps=total, steps_per_epoch=epoch)) for d in durations[1:]]
        return cls(total, *(max(1, steps) for steps in every))

    def due(self, step: int, every: int) -> bool:
        """Every so many steps, and at the end."""
        return step % every == 0 or step == self.total

"""How long a training is, and what happens how often: its section, and the same in steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from engine.config import Section
from engine.duration import Duration
from engine.phase import Phase
from engine.ranges import Count, Length, Runs


class TrainSection(Section):
    """Length and rhythm of training."""

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
class Rhythm:
    """A training section in steps."""

    total: int
    log: int
    save: int
    evaluate: int

    @classmethod
    def of(cls, section: TrainSection, count_steps_per_epoch: Callable[[], Fraction]) -> Rhythm:
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

"""Teacher forcing: how often the reference is fed to the decoder, by the step (Bengio et al. 2015, section 2.4)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from bertillery.config.section import Section
from bertillery.config.types import Probability


class TeacherForcingSection(Section):
    """The probability that the reference token, not the model's own best one, is fed at a target position."""

    schedule: Literal["constant", "linear", "exponential", "inverse_sigmoid"] = "constant"
    """``constant``: k. ``linear``: k - slope * i, at least ``minimum``. ``exponential``: k**i. ``inverse_sigmoid``:
    k / (k + exp(i / k)). i is the step, counted from 0."""
    k: float = Field(default=1.0, gt=0, le=1e9)
    """A probability (below 1 for ``exponential``); for ``inverse_sigmoid`` 1 or more: at k * ln(k) steps it is one
    half."""
    slope: float = Field(default=0.0, ge=0, le=1)
    """Decrease of ``linear`` a step."""
    minimum: Probability = 0.0
    """Least value of ``linear``."""

    @model_validator(mode="after")
    def _is_a_probability(self) -> TeacherForcingSection:
        if self.schedule != "inverse_sigmoid" and self.k > 1:
            raise ValueError(f"k {self.k:g}: with schedule={self.schedule} it is a probability, 1 at most")
        if self.schedule == "inverse_sigmoid" and self.k < 1:
            raise ValueError(f"k {self.k:g}: with schedule=inverse_sigmoid it is 1 or more")
        return self

    @property
    def always(self) -> bool:
        """Whether the reference is fed at every step."""
        return self.schedule in ("constant", "linear", "exponential") and self.k == 1 and not self.slope

    def share(self, step: int) -> float:
        """The probability at a step, counted from 0."""
        if self.schedule == "linear":
            return max(self.minimum, self.k - self.slope * step)
        if self.schedule == "exponential":
            return self.k**step
        if self.schedule == "inverse_sigmoid":
            return self.k / (self.k + math.exp(min(step / self.k, 700.0)))  # beyond, exp overflows
        return self.k

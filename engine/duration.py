"""How long and how often: one type for steps, epochs and shares of a run."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from engine.config import ConfigError

_MOST = {"steps": 10**12, "epochs": 10**6, "%": 100}
"""The largest amount of each unit."""


class Duration(str):
    """A length of training: ``"3 epochs"``, ``"10_000 steps"`` (or a bare integer) or ``"5%"`` of the run."""

    _pattern = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(steps?|epochs?|%)?\s*$")

    @property
    def amount(self) -> Fraction:
        """The number in front of the unit, exactly as it is written."""
        match = self._pattern.match(self)
        assert match is not None
        return Fraction(match[1].replace("_", ""))

    @property
    def unit(self) -> str:
        """``steps``, ``epochs`` or ``%``."""
        match = self._pattern.match(self)
        assert match is not None
        return {"s": "steps", "e": "epochs", "%": "%"}[(match[2] or "steps")[0]]

    def to_steps(self, *, total_steps: int | None = None, steps_per_epoch: Fraction | float | None = None) -> int:
        """Convert to whole optimizer steps, rounding down: ``int(examples / batch * epochs)`` and
        ``int(steps * proportion)`` of BERT's ``run_classifier.py``; raises what :meth:`exactly` does."""
        return math.floor(self.exactly(total_steps=total_steps, steps_per_epoch=steps_per_epoch))

    def exactly(self, *, total_steps: int | None = None, steps_per_epoch: Fraction | float | None = None) -> Fraction:
        """The optimizer steps before rounding; ``ConfigError`` where the unit has no meaning here.

        A fraction, not a float: three epochs of 114 5/8 steps are not almost, but exactly 343 7/8.
        """
        if self.unit == "steps":
            return self.amount
        if self.unit == "epochs":
            if steps_per_epoch is None:
                raise ConfigError(f"{str(self)!r}: epochs cannot be used here; give steps or a percentage")
            return self.amount * Fraction(steps_per_epoch)
        if total_steps is None:
            raise ConfigError(f"{str(self)!r}: a percentage cannot be used here; give steps or epochs")
        return self.amount / 100 * total_steps

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Read a duration from a string or an integer number of steps; ``ValueError`` otherwise."""
        text = f"{value} steps" if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not cls._pattern.match(text):
            raise ValueError('a duration is "3 epochs", "10_000 steps" (or 10000), or "5%"')
        found = cls(text.strip())
        most = _MOST[found.unit]
        if found.amount > most:
            raise ValueError(f"a duration has at most {most:,} {found.unit}")
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


def check_positive(duration: Duration) -> Duration:
    """The duration as it is; ``ValueError`` for one of 0."""
    if not duration.amount:
        raise ValueError("a duration of 0 does not mean anything here; give at least 1 step")
    return duration

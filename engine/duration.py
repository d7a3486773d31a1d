"""How long and how often: one type for steps, epochs and shares of a run."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from engine.config import ConfigError


class Duration(str):
    """A length of training: ``"3 epochs"``, ``"10_000 steps"`` (or a bare integer) or ``"5%"`` of the run."""

    _pattern = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(steps?|epochs?|%)?\s*$")

    @property
    def amount(self) -> float:
        """The number in front of the unit."""
        match = self._pattern.match(self)
        assert match is not None
        return float(match[1].replace("_", ""))

    @property
    def unit(self) -> str:
        """``steps``, ``epochs`` or ``%``."""
        match = self._pattern.match(self)
        assert match is not None
        return {"s": "steps", "e": "epochs", "%": "%"}[(match[2] or "steps")[0]]

    def to_steps(self, *, total_steps: int | None = None, steps_per_epoch: float | None = None) -> int:
        """Convert to optimizer steps, rounding to the nearest; ``ConfigError`` where the unit has no meaning here."""
        if self.unit == "steps":
            return round(self.amount)
        if self.unit == "epochs":
            if steps_per_epoch is None:
                raise ConfigError(f"{str(self)!r}: epochs cannot be used here; give steps or a percentage")
            return round(self.amount * steps_per_epoch)
        if total_steps is None:
            raise ConfigError(f"{str(self)!r}: a percentage cannot be used here; give steps or epochs")
        return round(self.amount / 100 * total_steps)

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Read a duration from a string or an integer number of steps; ``ValueError`` otherwise."""
        text = f"{value} steps" if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not cls._pattern.match(text):
            raise ValueError('a duration is "3 epochs", "10_000 steps" (or 10000), or "5%"')
        return cls(text.strip())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

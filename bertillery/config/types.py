"""Types of settings: durations, numbers with their ranges, names.

The upper ends of ranges lie far above any real training. They turn a typing error into a message instead of a process
that runs out of memory.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from bertillery.config.section import ConfigError

Texts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""One text, or a list of them."""
_MOST = {"steps": 10**12, "epochs": 10**6, "%": 100}
"""The largest amount of each unit."""


class Duration(str):
    """A length of training: ``"3 epochs"``, ``"10_000 steps"`` (or a bare integer) or ``"5%"`` of the run."""

    _pattern = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(steps?|epochs?|%)?\s*$")

    @property
    def amount(self) -> Fraction:
        """The number in front of the unit, exactly."""
        return Fraction(self._parts[0].replace("_", ""))

    @property
    def unit(self) -> str:
        """``steps``, ``epochs`` or ``%``."""
        return {"s": "steps", "e": "epochs", "%": "%"}[(self._parts[1] or "steps")[0]]

    @property
    def _parts(self) -> tuple[str, str | None]:
        match = self._pattern.match(self)
        assert match is not None
        return match[1], match[2]

    def to_steps(self, *, total_steps: int | None = None, steps_per_epoch: Fraction | float | None = None) -> int:
        """Whole optimizer steps, rounded down as in BERT's ``run_classifier.py`` (``int(examples / batch * epochs)``,
        ``int(steps * proportion)``); raises what :meth:`exactly` raises."""
        return math.floor(self.exactly(total_steps=total_steps, steps_per_epoch=steps_per_epoch))

    def exactly(self, *, total_steps: int | None = None, steps_per_epoch: Fraction | float | None = None) -> Fraction:
        """Optimizer steps before rounding; ``ConfigError`` if the unit has no meaning here.

        A fraction, because rounding down a float just below a whole number would lose a step.
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

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": cls._pattern.pattern}]}


Count = Annotated[int, Field(ge=1, le=10**12)]
"""Number of examples, tokens, steps or bytes."""
Runs = Annotated[int, Field(ge=1, le=100_000)]
"""Number of runs, trials or checkpoints."""
Processes = Annotated[int, Field(ge=1, le=1024)]
"""Processes or threads of one machine."""
Depth = Annotated[int, Field(ge=1, le=1000)]
"""Number of layers, or index of a layer counted from 1."""
Width = Annotated[int, Field(ge=1, le=2**17)]
"""Width of a layer, or number of its heads."""
Tokens = Annotated[int, Field(ge=1, le=2**20)]
"""Length of a sequence in tokens."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Seed of random numbers."""
LearningRate = Annotated[float, Field(gt=0, le=100)]
"""Learning rate."""
Epsilon = Annotated[float, Field(gt=0, le=1)]
"""Guard against division by 0."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a moving average."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Probability of dropping an activation."""
Probability = Annotated[float, Field(ge=0, le=1)]
"""Probability, 0 and 1 included."""
Share = Annotated[float, Field(gt=0, lt=1)]
"""Part of a whole, without 0 and 1."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Weight of a term in a sum."""
Factor = Annotated[float, Field(gt=0, le=1e12)]
"""Positive factor, divisor or bound."""


def _check_positive(duration: Duration) -> Duration:
    if not duration.amount:
        raise ValueError("a duration of 0 does not mean anything here; give at least 1 step")
    return duration


Length = Annotated[Duration, AfterValidator(_check_positive)]
"""Duration above 0."""

_MOST_BYTES = 200
"""File systems allow 255, and the program adds endings to names."""
_MOST_PARTS = 8
_REFUSED = frozenset("<>&\"'`\\|*?#%:;$/")


def check_name(text: str) -> str:
    """The given name; ``ValueError`` if it cannot be the name of a folder, or has characters with a meaning in paths,
    shells, web pages or tables (names appear in model cards, plots and terminals)."""
    first = text[:1]
    if not (first.isalnum() or first == "_"):
        raise ValueError("a name begins with a letter, a digit or _, and is a folder's name, not a path")
    wrong = sorted({sign for sign in text if sign in _REFUSED or not sign.isprintable()})
    if wrong:
        raise ValueError(f"a name is a folder's name on one line, without {' '.join(map(ascii, wrong))}")
    if text != text.strip():
        raise ValueError("a name does not end with a space")
    if len(text.encode()) > _MOST_BYTES:
        raise ValueError(f"a name has at most {_MOST_BYTES} bytes, this one has {len(text.encode()):,}")
    return text


def check_path_name(text: str) -> str:
    """The same for names joined by ``/``."""
    parts = text.split("/")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"a name has at most {_MOST_PARTS} parts, this one has {len(parts)}")
    for part in parts:
        try:
            check_name(part)
        except ValueError as error:
            raise ValueError(f"{error}; / may stand between such names") from None
    return text


Name = Annotated[str, AfterValidator(check_name)]
"""Name of a folder."""
PathName = Annotated[str, AfterValidator(check_path_name)]
"""Relative path of folder names joined by ``/``."""

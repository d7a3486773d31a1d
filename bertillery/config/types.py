"""How long and how often: one type for steps, epochs and shares of a run.

What numbers a setting may be: each kind of number with the range in which it means something.

The upper ends lie far above what anybody trains with. They are there because a slip of the keyboard, or a file that
came from elsewhere, else ends in a process that the system kills. Numbers that are not finite are no settings at all
(``Section``).

Names that a user gives and that become a part of a path: of runs, tasks, splits and projects.

They also stand in model cards, tables, pictures and on terminals, so a name is one line of plain text that is neither
markup nor a formula.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from bertillery.config.section import ConfigError

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


Count = Annotated[int, Field(ge=1, le=10**12)]
"""How many examples, tokens, steps or bytes."""
Runs = Annotated[int, Field(ge=1, le=100_000)]
"""How many of what is large by itself: runs, trials, checkpoints."""
Processes = Annotated[int, Field(ge=1, le=1024)]
"""Processes or threads of one machine."""
Depth = Annotated[int, Field(ge=1, le=1000)]
"""How many layers, or which one, counted from 1."""
Width = Annotated[int, Field(ge=1, le=2**17)]
"""Of a layer, or the number of its heads."""
Tokens = Annotated[int, Field(ge=1, le=2**20)]
"""Length of a sequence."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What random numbers are drawn by."""
LearningRate = Annotated[float, Field(gt=0, le=100)]
"""A learning rate, or the smallest and the largest of several."""
Epsilon = Annotated[float, Field(gt=0, le=1)]
"""What keeps a division from failing."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Share that is dropped; of all of it nothing would be left."""
Probability = Annotated[float, Field(ge=0, le=1)]
"""Of an event that may never or always happen."""
Share = Annotated[float, Field(gt=0, lt=1)]
"""A part that is neither nothing nor the whole."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a term in a sum; at 0 it does not count."""
Factor = Annotated[float, Field(gt=0, le=1e12)]
"""What something is multiplied or divided by, or cut to."""
Length = Annotated[Duration, AfterValidator(check_positive)]
"""A duration that is not 0."""


_MOST_BYTES = 200
"""Of one part; file systems take 255, and a folder's name gets endings of ours."""
_MOST_PARTS = 8
_REFUSED = frozenset("<>&\"'`\\|*?#%:;$/")


def check_name(text: str) -> str:
    """The name as it is; ``ValueError`` unless it is one folder's name: it begins with a letter, a digit or ``_``, and
    holds no sign that means something in a path, a shell, a web page or a table."""
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
    """The same for a name of several parts with ``/`` between, each of which is a name."""
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
"""A folder's name."""
PathName = Annotated[str, AfterValidator(check_path_name)]
"""Folders' names with ``/`` between them, below a folder that is given otherwise."""

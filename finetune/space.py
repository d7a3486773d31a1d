"""What a search tries: settings with the values that each may take, and trial i as a pure function of (seed, i).

A space is a YAML file of dotted keys. A list is a choice, each value as likely as the others; a range is
``{distribution: log_uniform, low: 1.0e-5, high: 1.0e-3}``, or ``uniform``.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

from bertillery.config.section import CONFIGS, ConfigError, configurations, read_values
from bertillery.engine.rng import Permutation, integers, uniform

SPACES = CONFIGS / "finetune" / "spaces"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; of ``log_uniform`` every decade is as likely as any other."""

    distribution: str
    low: float
    high: float

    def at(self, share: float) -> float:
        """The value below which ``share`` of the distribution lies, to three digits: one that can be typed."""
        if self.distribution == "uniform":
            value = self.low + share * (self.high - self.low)
        else:
            value = self.low * (self.high / self.low) ** share
        return min(self.high, max(self.low, float(f"{value:.3g}")))


class Space:
    """Settings by dotted key: a :class:`Range`, or the list of values to choose from."""

    def __init__(self, settings: dict[str, Range | list[Any]]) -> None:
        # In the order of their names, so that a trial does not depend on that of the file.
        self.settings = dict(sorted(settings.items()))

    @property
    def size(self) -> int | None:
        """Number of points of a grid; None where there is a range, which has no end of them."""
        choices = [values for values in self.settings.values() if isinstance(values, list)]
        return math.prod(map(len, choices)) if len(choices) == len(self.settings) else None

    def trial(self, seed: int, number: int) -> dict[str, Any]:
        """The settings of trial ``number``, counted from 0.

        Of a grid, trials are its points in an order drawn by the seed: as many trials as it has points cover it.
        """
        if self.size is None:
            return {key: self._draw(key, seed, number) for key in self.settings}
        assert number < self.size, "the grid has no such point"
        place, point = int(Permutation(self.size, seed)(number)[0]), {}
        for key, values in self.settings.items():
            assert isinstance(values, list)
            place, index = divmod(place, len(values))
            point[key] = values[index]
        return point

    def _draw(self, key: str, seed: int, number: int) -> Any:
        # Keyed by the setting's name: another setting beside it changes nothing in this one.
        values, name = self.settings[key], zlib.crc32(key.encode())
        if isinstance(values, Range):
            return values.at(float(uniform(seed, number, name)))
        return values[int(integers(len(values), seed, number, name))]


def read_space(name: str) -> tuple[Space, list[str]]:
    """The space in a YAML file, or of a name in ``configs/finetune/spaces``, and what is wrong with it, a line each.

    Settings that are wrong are left out. Raises ``ConfigError`` where there is no such file, or nothing in it.
    """
    path = name if name.endswith((".yaml", ".yml")) else str(configurations(SPACES) / f"{name}.yaml")
    given, _ = read_values([path])
    if not given:
        raise ConfigError(f"{path}: a space has at least one setting, such as optim.learning_rate: [2.0e-5, 5.0e-5]")
    problems = {key: problem for key, value in given.items() if (problem := _problem(key, value))}
    settings = {
        key: Range(**value) if isinstance(value, dict) else value for key, value in given.items() if key not in problems
    }
    return Space(settings), [f"{path}: {key}: {problem}" for key, problem in problems.items()]


def _problem(key: str, value: Any) -> str | None:
    if key.startswith("run."):
        return "where, with which seed and on what a trial runs is not searched; give it beside the space"
    if isinstance(value, list) and value:
        twice = [each for i, each in enumerate(value) if each in value[:i]]
        return f"given {value!r}, where {twice[0]!r} is there twice" if twice else None
    if (
        not isinstance(value, dict)
        or value.keys() != {"distribution", "low", "high"}
        or value["distribution"] not in ("uniform", "log_uniform")
        or not all(isinstance(value[end], int | float) for end in ("low", "high"))
    ):
        return (
            f"given {value!r}; give a list of values to choose from, or "
            "{distribution: uniform or log_uniform, low: <number>, high: <number>}"
        )
    if not value["low"] < value["high"] < math.inf:
        return f"low {value['low']:g} is not below high {value['high']:g}"
    if value["distribution"] == "log_uniform" and value["low"] <= 0:
        return f"low {value['low']:g} has no logarithm; give one above 0, or distribution: uniform"
    return None

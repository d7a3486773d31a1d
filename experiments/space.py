"""The space of a search: settings with their possible values; trial i is a pure function of (seed, i).

A space is a YAML file of dotted keys. A list is a choice, each value equally likely; a range is
``{distribution: log_uniform, low: 1.0e-5, high: 1.0e-3}``, or ``uniform``.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

from bertillery.config.layers import CONFIGS, configurations, read_values
from bertillery.config.section import ConfigError
from bertillery.engine.rng import Permutation, integers, uniform

SPACES = CONFIGS / "finetune" / "spaces"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; with ``log_uniform`` every decade is equally likely."""

    distribution: str
    low: float
    high: float

    def at(self, share: float) -> float:
        """The quantile of ``share`` (0 to 1), rounded to three digits."""
        if self.distribution == "uniform":
            value = self.low + share * (self.high - self.low)
        else:
            value = self.low * (self.high / self.low) ** share
        return min(self.high, max(self.low, float(f"{value:.3g}")))


class Space:
    """Settings by dotted key: a :class:`Range`, or the list of values to choose from."""

    def __init__(self, settings: dict[str, Range | list[Any]]) -> None:
        self.settings = dict(sorted(settings.items()))  # trials do not depend on the order in the file

    @property
    def size(self) -> int | None:
        """Number of points if the space is a grid; None if it has a range."""
        choices = [values for values in self.settings.values() if isinstance(values, list)]
        return math.prod(map(len, choices)) if len(choices) == len(self.settings) else None

    def trial(self, seed: int, number: int) -> dict[str, Any]:
        """The settings of trial ``number``, counted from 0. The trials of a grid are a permutation of its points."""
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
        # Keyed by the name, so that adding a setting does not change the values of the others.
        values, name = self.settings[key], zlib.crc32(key.encode())
        if isinstance(values, Range):
            return values.at(float(uniform(seed, number, name)))
        return values[int(integers(len(values), seed, number, name))]


def read_space(name: str) -> tuple[Space, list[str]]:
    """The space in a YAML file, or named in ``configs/finetune/spaces``, and a line for each wrong setting.

    Wrong settings are left out. Raises ``ConfigError`` if the file is missing or empty.
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

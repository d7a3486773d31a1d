from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from bertillery.config.section import ConfigError, Section, describe, validate
from bertillery.config.types import Duration


class Optim(Section):
    """Inner section."""

    rate: float = 1e-4
    """How fast."""
    kind: Literal["adam", "sgd"] = "adam"


class Top(Section):
    """Outer section."""

    optim: Optim = Optim()
    length: Duration = Duration("3 epochs")
    folder: Path = Path("runs")
    betas: tuple[float, float] = (0.9, 0.999)
    limit: int | None = None
    needed: str


def test_an_unknown_key_far_from_all_lists_them():
    with pytest.raises(ConfigError, match=r"optim\.zzz: unknown key; known keys: rate, kind"):
        validate(Top, {"needed": "x", "optim": {"zzz": 1}})


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Optim().rate = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_describe_names_key_default_and_meaning():
    text = describe(Top)
    assert "optim.rate (float, default 0.0001)\n    How fast." in text
    assert "needed (str, required)" in text
    assert "limit (int | null, default null)" in text


class Phase(Section):
    """One of a list."""

    size: Annotated[int, Field(gt=0)] = 256


class Other(Section):
    """Of which the inner sections have other defaults than their classes."""

    optim: Optim = Optim(rate=5e-5)
    more: Optim | None = None
    phases: list[Phase] = Field(default=[Phase(size=32)])


def test_describe_has_the_defaults_of_the_section_around():
    text = describe(Other)
    assert "\noptim.rate (float, default 5e-05)\n" in f"\n{text}"
    assert "more.rate (float, default 0.0001)" in text
    assert "phases.0.size (int, default 32)" in text

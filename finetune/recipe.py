"""Recipes: the settings with which a kind of encoder is fine-tuned, chosen by what is known of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from transformers import PreTrainedConfig

from bertillery.config.layers import CONFIGS, configurations, read_values
from bertillery.config.section import ConfigError, Section, validate
from bertillery.models.encoders import ONE_STREAM
from bertillery.models.load import read_config
from finetune.task import TaskSection

RECIPES = CONFIGS / "finetune" / "recipes"
_EARLIER_NAMES = {"bert_mini": "briefly_pretrained"}
"""Recipes of runs from before, by the names in their config.yaml."""


class Recipe(Section):
    """One file of ``configs/finetune/recipes``: the encoders it is meant for, and settings."""

    families: list[str]
    """Model types."""
    hidden_sizes: list[int] | None = None
    """Only for encoders of these hidden sizes."""
    hidden_size_below: int | None = None
    """Only for narrower encoders."""
    pretraining_tokens_below: float | None = None
    """Only for encoders whose configuration records fewer tokens of pretraining (``pretraining_tokens``, which every
    pretraining from random weights writes)."""
    all: dict[str, Any] = Field(default={})
    """Settings for every task, by section."""
    kinds: dict[str, Any] = Field(default={})
    """Settings for the tasks of a type, over ``all``."""
    tasks: dict[str, Any] = Field(default={})
    """Settings for single tasks, over both."""

    def reasons(self, encoder: PreTrainedConfig) -> list[str] | None:
        """Why the recipe is meant for the encoder, a reason for each condition; ``None`` if it is not."""
        size, tokens = encoder.hidden_size, getattr(encoder, "pretraining_tokens", None)
        if encoder.model_type not in self.families:
            return None
        found = []
        if self.hidden_sizes is not None:
            found.append((size in self.hidden_sizes, f"hidden size {size}"))
        if self.hidden_size_below is not None:
            found.append((size < self.hidden_size_below, f"hidden size {size}, below {self.hidden_size_below}"))
        if (most := self.pretraining_tokens_below) is not None:
            seen = tokens is not None and tokens < most
            found.append((seen, f"pretrained on {tokens or 0:,} tokens, fewer than {most:,.0f}"))
        return [reason for _, reason in found] if all(met for met, _ in found) else None


def known_recipe(name: Any) -> bool:
    """Whether there is such a recipe, also under its earlier name, or ``none``."""
    return name == "none" or _EARLIER_NAMES.get(name, name) in _recipes()


def choose_recipe(start: str, name: str) -> str:
    """The recipe for the model at ``start``: the one named, if it is meant for the family; for ``auto``, of those meant
    for the model the one with the most conditions.

    Raises ``ConfigError`` that lists the recipes.
    """
    if name == "none":
        return name
    encoder, recipes = read_config(start, roles=ONE_STREAM), _recipes()
    if name == "auto":
        fitting = {stem: reasons for stem, each in recipes.items() if (reasons := each.reasons(encoder)) is not None}
        return max(fitting, key=lambda stem: len(fitting[stem]), default="none")
    known = _EARLIER_NAMES.get(name, name)
    if known not in recipes or encoder.model_type not in recipes[known].families:
        listing = "; ".join(f"{stem} for {', '.join(each.families)}" for stem, each in recipes.items())
        problem = f"is not meant for the {encoder.model_type} model" if known in recipes else "does not exist; model:"
        raise ConfigError(f"recipe: {name!r} {problem} {start}; recipes: {listing}; or recipe=none")
    return name


def describe_recipe(start: str, name: str) -> str:
    """The recipe and the reason for it, as in ``compact: a bert model, hidden size 384, below 768``."""
    encoder = read_config(start, roles=ONE_STREAM)
    chosen, model = choose_recipe(start, "auto"), f"{encoder.model_type} model"
    if name == chosen != "none":
        reasons = _recipes()[name].reasons(encoder) or ["for which no recipe is more specific"]
        return f"{name}: a {', '.join([model, *reasons])}"
    return f"{name}: given; for this {model} recipe=auto takes {chosen}"


def recipe_values(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe for a task with these values: its ``all``, over it those for the task's ``kinds``, and
    over them those for the task of this name."""
    if name == "none":
        return {}
    recipe, schema = _recipes()[_EARLIER_NAMES.get(name, name)], TaskSection.variant(task)
    merged: dict[str, Any] = {}
    layers = [recipe.kinds.get(kind, {}) for kind in schema.recipe_kinds(task)]
    for layer in (recipe.all, *layers, recipe.tasks.get(str(task.get("name")), {})):
        for section, settings in layer.items():
            merged[section] = {**merged.get(section, {}), **settings}
    return schema.fit_recipe(merged, task)


def _recipes() -> dict[str, Recipe]:
    """All recipes by name; ``ConfigError`` for a malformed file."""
    files = sorted(configurations(RECIPES).glob("*.yaml"))
    return {path.stem: validate(Recipe, *read_values([str(path)])) for path in files}

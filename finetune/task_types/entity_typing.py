"""Which types the entity at a marked place of a text has: any number of labels, from the pooled state of [CLS], the
place between two [ENT] (Zhang et al. 2019, ERNIE, section 3.4)."""

from __future__ import annotations

from finetune.mentions import MentionSection, MentionType
from finetune.task import Words
from finetune.task_types import multilabel


class Config(MentionSection, multilabel.Config):
    """A text with a mention, and the types of its entity."""

    usual_markers = ("[ENT]",)
    spans: Words = ["mention"]  # noqa: RUF012 (frozen)
    """Column of the mention's place, ``[start, end]`` in characters of the text."""


class Type(MentionType, multilabel.Type):
    """Labels and predictions are 0 or 1 for each name, (N, L)."""

    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]

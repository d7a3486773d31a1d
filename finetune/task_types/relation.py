"""How two marked places of a text are related: one of several labels, from the pooled state of [CLS], the head
between two [HD] and the tail between two [TL] (Zhang et al. 2019, ERNIE, section 3.4)."""

from __future__ import annotations

from finetune.mentions import MentionSection, MentionType
from finetune.task import Words
from finetune.task_types import classification


class Config(MentionSection, classification.Config):
    """A text with a head and a tail, and the relation between them."""

    usual_markers = ("[HD]", "[TL]")
    spans: Words = ["head", "tail"]  # noqa: RUF012 (frozen)
    """Columns of the head's place and the tail's, each ``[start, end]`` in characters of the text."""


class Type(MentionType, classification.Type):
    """Labels and predictions are class ids (N,)."""

    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]

"""Which layer of the teacher each layer of the student is started from, or compared with."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config import ConfigError


def spread(student: int, teacher: int) -> list[int]:
    """Layers of the teacher, counted from 0, that a student of so many layers is started from: evenly spread from the
    first to the last.

    For 6 of 12 these are 0, 2, 4, 7, 9 and 11, as in DistilBERT's released code (Sanh et al. 2019, section 3).
    """
    if student > teacher:
        raise ConfigError(
            f"model.num_hidden_layers: a student of {student} layers cannot be started from a teacher of {teacher}; "
            "give at most that many, or model.start=random"
        )
    return [round(layer * (teacher - 1) / max(1, student - 1)) for layer in range(student)]


def uniform(student: int, teacher: int) -> list[int]:
    """Layers of the teacher, counted from 1, that the student's are compared with: g(m) = m * teacher / student.

    TinyBERT's map (Jiao et al. 2020, section 4.1): 3, 6, 9 and 12 for 4 of 12. ``ConfigError`` if it does not divide.
    """
    if teacher % student:
        raise ConfigError(
            f"objective.layers: {student} layers of the student do not divide the teacher's {teacher}; say which layer "
            f"of the teacher (from 1 to {teacher}) each of the student's learns from, as in objective.layers="
            f"{[1 + layer for layer in spread(min(student, teacher), teacher)]}"
        )
    return [layer * (teacher // student) for layer in range(1, student + 1)]


def checked(layers: Sequence[int], student: int, *, first: int, last: int, key: str) -> list[int]:
    """A map that was given: one layer of the teacher for each of the student, within bounds, ascending."""
    if len(layers) != student or not all(first <= layer <= last for layer in layers) or sorted(layers) != [*layers]:
        raise ConfigError(
            f"{key}: given {[*layers]}; it names a layer of the teacher, from {first} to {last}, for each of the "
            f"student's {student}, in ascending order"
        )
    return [*layers]

"""Variants of one example: its words replaced by candidates, at random (Jiao et al. 2020, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distill.candidates import Words
from engine.keyed import Keys, integers, key, uniform

_WHETHER, _WHICH = 201, 202
"""What a draw is for; part of its key."""


class Variant(NamedTuple):
    """One of the texts of an example, changed."""

    place: int
    """Which of the texts it stands for, from 0."""
    replaced: int
    """How many of its words differ."""
    text: str
    """Basic tokens with a space between."""


def variants(
    texts: tuple[str, ...],
    given: Sequence[Words],
    originals: Container[tuple[str, ...]],
    *,
    tries: int,
    probability: float,
    keys: Keys,
) -> Iterator[Variant]:
    """Variants of an example of one text or two, at most ``tries`` of each text; the other text stays as it is.

    ``given`` are the words of each text. A variant is left out where it is the text itself, one that was there before,
    or makes the example one of the ``originals``. ``keys`` is the example's key of :mod:`engine.keyed`.
    """
    for place, text in enumerate(given):
        seen = {" ".join(text.words)}
        for words in draw(text, tries, probability, key(keys, place)):
            changed = " ".join(words)
            if changed not in seen and (*texts[:place], changed, *texts[place + 1 :]) not in originals:
                seen.add(changed)
                yield Variant(place, sum(a != b for a, b in zip(words, text.words, strict=True)), changed)


def draw(given: Words, tries: int, probability: float, keys: Keys) -> list[list[str]]:
    """The words of a text in each of the ``tries``: every one with candidates is replaced with the probability, by any
    of them alike.

    ``keys`` is a key of :mod:`engine.keyed`; a draw belongs to it, the try and the word's place.
    """
    places = np.array([*given.candidates], dtype=np.int64)
    numbers = np.array([len(candidates) for candidates in given.candidates.values()], dtype=np.int64)
    own = key(keys, np.arange(tries)[:, None], places)
    replaced, chosen = uniform(own, _WHETHER) < probability, integers(numbers, own, _WHICH)
    drawn = []
    for which, choice in zip(replaced, chosen, strict=True):
        words = [*given.words]
        for place, number in zip(places[which].tolist(), choice[which].tolist(), strict=True):
            words[place] = given.candidates[place][number]
        drawn.append(words)
    return drawn

"""Mentions of entities in text by a dictionary of their labels and aliases: the longest match over words.

The article of an alias ("the Moon") belongs to a mention only where the label has it, too, or the name without it
means something else. In text without capitals a word alone is a mention only by a label: most names that are one
common word are aliases, such as "others" of a film. Where a phrase names several entities, the one with most edges in
the graph is meant; where two have as many, none is. In cased text a phrase links as the dictionary writes it, in upper
case throughout, or with its first letter in upper case; a name with capitals does not link to a word without, and a
single word with such a capital not where a sentence begins, since any word has it there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from knowledge.graph import Graph, Texts

_WORDS = re.compile(r"\w+|[^\w\s]")
_LONGEST = 8
"""Words of a phrase, at most."""
_ARTICLES = ("a", "an", "the")
_SHORTEST = 3
"""Characters of a phrase, at least."""
_FUNCTION_WORDS = frozenset(
    """a about after all also am an and any are as at be been before but by can could did do does each every for from
    had has have he her here him his how i if in into is it its just like made make many may me more most much must my
    new no not now of off on one only or other our out over she should so some such than that the their them then there
    these they this those time to two under up us use used was way we were what when where which who will with would
    you your""".split()  # noqa: SIM905
)
"""Words that are no mention by themselves, whatever they name."""


class Mention(NamedTuple):
    """Words ``start`` to ``end`` (not included), and the entity that they name."""

    start: int
    end: int
    entity: int


def split_words(text: str) -> list[str]:
    """Words and marks, as BERT splits them."""
    return _WORDS.findall(text)


class Linker:
    """A dictionary of phrases."""

    def __init__(self, graph: Graph, *, cased: bool) -> None:
        """``cased`` says whether texts have capitals."""
        self._cased, degrees = cased, graph.degrees
        found: dict[tuple[str, ...], dict[tuple[str, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
        for entity, label in enumerate(graph.labels):
            self._add(found, label, entity)
        for entity, aliases in graph.aliases():
            for alias in aliases:
                if cased or len(split_words(alias)) > 1:
                    self._add(found, alias, entity)
        self._phrases: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = {}
        self._longest: dict[str, int] = {}
        self.ambiguous = 0
        """Phrases that name several entities."""
        for phrase, forms in found.items():
            chosen = [(form, _most(entities, degrees)) for form, entities in sorted(forms.items())]
            self.ambiguous += sum(len(entities) > 1 for entities in forms.values())
            if not cased:  # all forms are one
                chosen = [(phrase, _most(set().union(*forms.values()), degrees))]
            known = [(form, entity) for form, entity in chosen if entity is not None]
            if known:
                self._phrases[phrase] = known
                self._longest[phrase[0]] = max(self._longest.get(phrase[0], 0), len(phrase))
        self._drop_articles(graph.labels)

    def _drop_articles(self, labels: Texts) -> None:
        """Forget aliases with an article where the phrase without it names the same entity."""
        for phrase in [phrase for phrase in self._phrases if phrase[0] in _ARTICLES]:
            without = {entity for _, entity in self._phrases.get(phrase[1:], ())}
            kept = [
                (form, entity)
                for form, entity in self._phrases[phrase]
                if entity not in without or _lower(split_words(labels[entity])) == phrase
            ]
            if kept:
                self._phrases[phrase] = kept
            else:
                del self._phrases[phrase]

    def _add(self, found: dict[tuple[str, ...], dict[tuple[str, ...], set[int]]], text: str, entity: int) -> None:
        form = tuple(split_words(text))
        phrase = _lower(form)
        plain = len(phrase) == 1 and (phrase[0] in _FUNCTION_WORDS or phrase[0].isdigit())
        if 0 < len(phrase) <= _LONGEST and len(text) >= _SHORTEST and not plain:
            found[phrase][form].add(entity)

    def __len__(self) -> int:
        return len(self._phrases)

    def link(self, words: Sequence[str]) -> Iterator[Mention]:
        """The mentions among words, from left to right, none within another."""
        lower = [word.lower() for word in words]
        start = 0
        while start < len(words):
            most = min(self._longest.get(lower[start], 0), len(words) - start)
            for length in range(most, 0, -1):
                if start == 0 and length == 1 and self._cased and words[0].istitle():
                    continue
                entity = self._entity(lower[start : start + length], words[start : start + length])
                if entity is not None:
                    yield Mention(start, start + length, entity)
                    start += length
                    break
            else:
                start += 1

    def _entity(self, phrase: Sequence[str], words: Sequence[str]) -> int | None:
        forms = self._phrases.get(tuple(phrase), ())
        return next((entity for form, entity in forms if not self._cased or _fits(form, words)), None)


def _lower(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.lower() for word in words)


def _most(entities: set[int], degrees: np.ndarray) -> int | None:
    """The entity with most edges; None where two have as many."""
    ranked = sorted(entities, key=lambda entity: (-degrees[entity], entity))
    if len(ranked) > 1 and degrees[ranked[0]] == degrees[ranked[1]]:
        return None
    return ranked[0]


def _fits(form: Sequence[str], words: Sequence[str]) -> bool:
    given = " ".join(form)
    return " ".join(words) in (given, given.upper(), given[:1].upper() + given[1:])

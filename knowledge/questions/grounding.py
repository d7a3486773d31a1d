"""The concepts of a graph that texts name: word patterns of up to four words, also with their words in base form.

Stands for the lemmatizer and matcher of KagNet's released code (Lin et al. 2019, section 3.1).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from knowledge.graph import Graph

LONGEST = 4
"""Words of a pattern."""
MOST = 3
"""Concepts kept of those that one pattern names."""
_WORD = re.compile(r"\w+(?:[.'’-]\w+)*")
_VOWELS = frozenset("aeiouy")
_STOP_WORDS = """
a about above after again against all also am an and any are as at be because been before being below between both but
by can can't cannot could did didn't do does doesn't doing don't down during each etc few for from further get gets
getting go goes going got had has have having he her here hers herself him himself his how i if in into is isn't it
it's its itself just let like likely made make makes many may me might more most much must my myself need needs no nor
not of off often on once one only or other our out over own same shall she should so some something such than that the
their them themselves then there these they this those through to too under until up upon us use used very was we were
what when where which while who whom whose why will with without would you your yours yourself
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""A word of these is no concept by itself."""
_FORMS = """
ate:eat began:begin bent:bend bit:bite blew:blow bought:buy broke:break brought:bring built:build came:come
caught:catch children:child chose:choose drank:drink drew:draw driven:drive drove:drive eaten:eat fed:feed feet:foot
fell:fall felt:feel flew:fly forgot:forget fought:fight found:find gave:give geese:goose gone:go grew:grow heard:hear
held:hold hid:hide kept:keep knew:know knives:knife laid:lay leaves:leaf led:lead left:leave lives:life lost:lose
made:make men:man met:meet mice:mouse paid:pay people:person ran:run rode:ride said:say sang:sing sat:sit saw:see
sent:send shot:shoot slept:sleep sold:sell spent:spend spoke:speak stood:stand stole:steal swam:swim taken:take
taught:teach teeth:tooth thought:think threw:throw told:tell took:take went:go wives:wife wolves:wolf women:woman
won:win wore:wear written:write wrote:write
"""
_IRREGULAR = {form: base for form, _, base in (pair.partition(":") for pair in _FORMS.split())}
"""Base forms that no rule gives."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, dotted names whole."""
    return _WORD.findall(text.lower())


def base_forms(word: str) -> Iterator[str]:
    """What a word may be a form of, the likelier first: plurals, and verbs that end in -ing or -ed."""
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        yield f"{word[:-3]}y"
    if word.endswith("es") and len(word) > 4:
        yield word[:-1]
        yield word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        yield word[:-1]
    if word.endswith("ied") and len(word) > 4:
        yield f"{word[:-3]}y"
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 1 and _VOWELS & {*stem}:
            if len(stem) > 2 and stem[-1] == stem[-2]:
                yield stem[:-1]
            yield f"{stem}e"
            yield stem


class Grounding:
    """The concepts that some texts name.

    Memory is bounded by the texts, not by the graph: labels are streamed, and those that no text can name are dropped.
    """

    def __init__(self, graph: Graph, texts: Iterable[str]) -> None:
        self._base: dict[str, str] = {}
        self._concepts: dict[str, list[int]] = {}
        split = [words(text) for text in dict.fromkeys(texts)]
        self._learn_words(graph, {word for found in split for word in found})
        wanted = {form for found in split for forms in self._patterns(found) for form in forms}
        named: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
        for concept, label in _labels(graph):
            form = " ".join(words(label))
            if form in wanted and form not in STOP_WORDS:
                name = graph.names[concept]
                named[form].append((len(name), name, concept))
        self._concepts = {form: [each[-1] for each in sorted({*found})[:MOST]] for form, found in named.items()}

    def _learn_words(self, graph: Graph, seen: set[str]) -> None:
        """The base form of a word is the first one that labels of the graph have."""
        candidates = {word: [*base_forms(word)] for word in seen}
        known = {*chain.from_iterable(candidates.values())}
        there = {word for _, label in _labels(graph) for word in words(label) if word in known}
        for word, forms in candidates.items():
            self._base[word] = next((form for form in forms if form in there), word)

    def _patterns(self, found: Sequence[str]) -> Iterator[list[str]]:
        """The forms of each run of up to four words: as it stands, with the last word or all of them in base form."""
        bases = [self._base[word] for word in found]
        for begin in range(len(found)):
            for end in range(begin + 1, min(begin + LONGEST, len(found)) + 1):
                run, base = found[begin:end], bases[begin:end]
                yield list(dict.fromkeys(map(" ".join, (run, [*run[:-1], base[-1]], base))))

    def concepts(self, text: str) -> list[int]:
        """The concepts that one of the texts names, each once, in the order in which it names them."""
        found: dict[int, None] = {}
        for forms in self._patterns(words(text)):
            if forms[0] in STOP_WORDS:
                continue
            named = [concept for form in forms for concept in self._concepts.get(form, ())]
            found.update(dict.fromkeys(named[:MOST]))
        return [*found]


def _labels(graph: Graph) -> Iterator[tuple[int, str]]:
    """Every label and alias, with its concept."""
    yield from enumerate(graph.labels)
    for concept, aliases in graph.aliases():
        yield from ((concept, alias) for alias in aliases)

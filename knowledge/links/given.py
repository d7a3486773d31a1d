"""Mentions that a user's own linker found: offsets in characters of a text, the end not included, and the entity's
name.

In a file of documents (.jsonl) they stand in a column beside the text. A prepared corpus keeps no offsets, so the files
are read once more beside it: both have the same sentences in the same order, but for the repetitions that the corpus
leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError
from bertillery.data import files
from bertillery.data.corpus import CorpusSection, resolve
from bertillery.data.encode import document_key, sentences
from bertillery.data.prepared import PreparedCorpus, TokenArrays
from bertillery.models.frame import text_backend


class Mention(NamedTuple):
    """Characters ``start`` to ``end`` (not included) of a text, and the name of the entity that they mention."""

    start: int
    end: int
    entity: str


def read_mentions(cells: Any, text: str) -> list[Mention]:
    """The mentions of a text, ``[[start, end, name], ...]``, in its order. ``ValueError`` for what is none, lies
    outside of the text, or overlaps another."""
    if not isinstance(cells, list):
        raise ValueError(f"mentions are a list of [start, end, name], not {cells!r:.200}")
    found = []
    for cell in cells:
        numbered = isinstance(cell, list) and len(cell) == 3 and all(type(each) is int for each in cell[:2])
        if not numbered or not isinstance(cell[2], str):
            raise ValueError(f"a mention is [start, end, name], not {cell!r:.200}")
        found.append(Mention(*cell))
        if not 0 <= cell[0] < cell[1] <= len(text):
            raise ValueError(f"the mention {cell} is no part of a text of {len(text):,} characters")
    found.sort()
    for first, second in pairwise(found):
        if second.start < first.end:
            raise ValueError(f"the mentions {[*first]} and {[*second]} overlap; give one of them")
    return found


def unknown_entity(name: str, key: str) -> str:
    """What is wrong with a mention of an entity that the graph lacks; ``key`` would leave such mentions out."""
    return (
        f"a mention of {name!r}, and the graph has no such entity; give the graph whose names the mentions have, or "
        f"{key}=skip to leave such mentions out"
    )


def first_tokens(text: str, mentions: Sequence[Mention], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The token of the text in which each mention begins, int64; -1 for one of which no token is left."""
    if not mentions:
        return np.zeros(0, np.int64)
    return _first(text_backend(tokenizer).encode(text, add_special_tokens=False).offsets, mentions)


def _first(offsets: Sequence[tuple[int, int]], mentions: Sequence[Mention]) -> np.ndarray:
    begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    places = np.searchsorted(ends, [mention.start for mention in mentions], side="right")
    there = places < len(ends)
    there[there] = begins[places[there]] < np.array([mention.end for mention in mentions])[there]
    return np.where(there, places, -1)


@dataclass(frozen=True)
class GivenMentions:
    """Where the mentions of a corpus are, and what becomes of those of unknown entities."""

    data: CorpusSection
    """Of the corpus; its files are .jsonl."""
    column: str
    skip: bool = False
    """Whether unknown entities are left out, and not an error."""

    def rows(self, corpus: PreparedCorpus, names: dict[str, int]) -> dict[str, np.ndarray]:
        """For each token of ``train`` and of ``valid`` 0, or what ``names`` has for the entity whose mention begins
        there, int32 (T,). Raises ``InputError`` with file and line for a mention that is none."""
        backend = text_backend(corpus.tokenizer())
        parts = {"train": _Beside(corpus.train), "valid": _Beside(corpus.valid)}
        for is_valid, where, text, mentions in self._documents():
            if not self.skip and (lacking := [each.entity for each in mentions if each.entity not in names]):
                raise InputError(f"{where}: {unknown_entity(lacking[0], 'objective.unknown')}")
            known = [mention for mention in mentions if mention.entity in names]
            part = parts["valid" if is_valid else "train"]
            for ids, offsets, begin, end in _sentences(text, self.data.language, backend):
                inside = [
                    Mention(max(each.start, begin) - begin, min(each.end, end) - begin, each.entity)
                    for each in known
                    if begin <= each.start < end
                ]
                part.take(ids, _first(offsets, inside), [names[each.entity] for each in inside])
        if any(not part.is_done for part in parts.values()):
            given = ", ".join([*self.data.valid, *self.data.path])
            raise InputError(
                f"{given}: not the text that the corpus {corpus.path} was made of; delete this folder: it is made again"
            )
        return {name: part.rows for name, part in parts.items()}

    def _documents(self) -> Iterator[tuple[bool, str, str, list[Mention]]]:
        """Whether a document is held out, its file and line, text and mentions, in the order of the corpus."""
        data = self.data
        for paths in (data.valid, data.path):
            for source in resolve(paths):
                if not isinstance(source, Path) or files.format_of(source) not in (".jsonl", ".json"):
                    raise ConfigError(f"objective.mentions: {source} has no mentions; they stand in .jsonl files")
                decoder = files.Decoder(data.undecodable == "replace", nul=False)
                for number, row in files.json_objects(source, files.read_lines(source, decoder)):
                    where, text = f"{source}:{number}", row.get(data.text) or ""
                    if self.column not in row:
                        raise InputError(f"{where}: no column {self.column!r}; there are: {', '.join(map(repr, row))}")
                    try:
                        mentions = read_mentions(row[self.column] or [], text)
                    except ValueError as error:
                        raise InputError(f"{where}: {error}") from None
                    rank = int.from_bytes(document_key(_paragraphs(text))[:8], "little")
                    is_valid = paths is data.valid or (not data.valid and rank < data.holdout * 2**64)
                    yield is_valid, where, text, mentions


def _paragraphs(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _sentences(
    text: str, language: str, backend: Tokenizer
) -> Iterator[tuple[list[int], list[tuple[int, int]], int, int]]:
    """Token ids of each sentence with tokens, their offsets in it, and the characters of the text that it has."""
    found: list[tuple[str, int]] = []
    start = 0
    for line in text.splitlines(keepends=True):
        paragraph, at = line.strip(), start + len(line) - len(line.lstrip())
        begin = 0
        for sentence in sentences(language, paragraph) if paragraph else ():
            begin = max(begin, paragraph.find(sentence, begin))
            found.append((sentence, at + begin))
            begin += len(sentence)
        start += len(line)
    for (sentence, at), encoding in zip(
        found, backend.encode_batch([sentence for sentence, _ in found], add_special_tokens=False), strict=True
    ):
        if encoding.ids:
            yield encoding.ids, encoding.offsets, at, at + len(sentence)


class _Beside:
    """A part of a corpus, read in its order beside its sources."""

    def __init__(self, tokens: TokenArrays) -> None:
        self.tokens, self.sentence = tokens, 0
        self.rows = np.zeros(len(tokens.ids), np.int32)

    @property
    def is_done(self) -> bool:
        """Whether all sentences have been met."""
        return self.sentence == len(self.tokens.sentences) - 1

    def take(self, ids: list[int], places: np.ndarray, rows: list[int]) -> None:
        """The next sentence of the sources; one that the corpus does not have next was left out there."""
        if self.is_done:
            return
        begin, end = self.tokens.sentences[self.sentence : self.sentence + 2].tolist()
        if end - begin == len(ids) and self.tokens.ids[begin:end].tolist() == ids:
            there = places >= 0
            self.rows[begin + places[there]] = np.array(rows, np.int32)[there]
            self.sentence += 1

"""Mentions of a user's own linker: what is none, and where in a prepared corpus the others begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertillery.config.section import ConfigError, InputError
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.prepared import PreparedCorpus
from bertillery.data.tokenizer import TokenizerSection
from knowledge.links.given import GivenMentions, Mention, first_tokens, read_mentions
from tests.corpora import tiny_tokenizer

WORDS = [f"w{i}" for i in range(200) if i % 3]
NAMES = {word: row for row, word in enumerate(WORDS, 1)}
LONG = " ".join(["w1 w2 w4 w5 w7."] * 8)
"""A paragraph that the corpus keeps once."""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("w1", "mentions are a list"),
        ([[0, 2]], "a mention is [start, end, name], not [0, 2]"),
        ([[0, 2.0, "a"]], "a mention is"),
        ([[0, True, "a"]], "a mention is"),
        ([[0, 2, 7]], "a mention is"),
        ([[3, 9, "a"]], "the mention [3, 9, 'a'] is no part of a text of 8 characters"),
        ([[-1, 2, "a"]], "no part of a text"),
        ([[2, 2, "a"]], "no part of a text"),
        ([[3, 5, "b"], [0, 4, "a"]], "the mentions [0, 4, 'a'] and [3, 5, 'b'] overlap"),
    ],
)
def test_what_is_no_mention(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match="mention") as caught:
        read_mentions(given, "w1 w2 w4")
    assert says in str(caught.value)


def test_mentions_are_in_the_order_of_the_text_and_may_touch() -> None:
    found = read_mentions([[2, 4, "b"], [0, 2, "a"]], "w1w2 w4")
    assert found == [Mention(0, 2, "a"), Mention(2, 4, "b")]


def test_a_mention_belongs_to_its_first_token() -> None:
    text = "w1 W2w3 \u0301 w4"
    found = first_tokens(
        text, read_mentions([[0, 2, "a"], [3, 7, "b"], [8, 9, "c"], [10, 12, "d"]], text), tiny_tokenizer()
    )
    pieces = tiny_tokenizer().tokenize(text)
    assert [pieces[place] if place >= 0 else None for place in found] == ["w1", "w2", None, "w4"]


def written(folder: Path, documents: list[list[str]], seed: int = 0) -> Path:
    """Documents of paragraphs, in which about every third word is a mention of an entity of its own name."""
    rng, lines = np.random.default_rng(seed), []
    for document in documents:
        text, mentions = "  \n".join(f" {paragraph}" for paragraph in document), []
        at = 0
        for word in text.split(" "):
            if (name := word.strip(".\n")) and rng.random() < 0.3:
                start = text.index(name, at)
                mentions.append([start, start + len(name), name.lower()])
            at += len(word) + 1
        lines.append(json.dumps({"body": text, "links": mentions}))
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "d.jsonl"


def documents(number: int) -> list[list[str]]:
    rng = np.random.default_rng(1)
    sentence = lambda: " ".join(rng.choice(WORDS, rng.integers(3, 8))).capitalize() + "."  # noqa: E731
    return [[" ".join(sentence() for _ in range(4)) for _ in range(3)] + [LONG] * (i % 3 == 0) for i in range(number)]


def corpus_of(folder: Path, data: CorpusSection) -> PreparedCorpus:
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return prepare(data, TokenizerSection(path=str(folder / "tokenizer")), folder / "data")


def test_rows_lie_where_the_mentions_begin_whatever_the_corpus_left_out(tmp_path: Path) -> None:
    made = documents(40)
    file = written(tmp_path, [*made, *made[:7]])
    data = CorpusSection(path=[str(file)], text="body", holdout=0.2)
    corpus = corpus_of(tmp_path, data)
    found = GivenMentions(data, "links").rows(corpus, NAMES)
    tokenizer, number = tiny_tokenizer(), 0
    for part in ("train", "valid"):
        rows, ids = found[part], getattr(corpus, part).ids
        assert rows.shape == ids.shape
        places = np.flatnonzero(rows)
        assert tokenizer.convert_ids_to_tokens(ids[places].tolist()) == [WORDS[row - 1] for row in rows[places]]
        number += len(places)
    kept: dict[str, int] = {}
    for row in map(json.loads, file.read_text().splitlines()):
        end = row["body"].find(LONG) if any(LONG in body for body in kept) else -1
        kept.setdefault(row["body"], sum(end < 0 or start < end for start, *_ in row["links"]))
    assert number == sum(kept.values()) > 300
    assert len(corpus.valid.documents) > 3


def test_what_cannot_be_linked_names_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path, documents(12))
    data = CorpusSection(path=[str(file)], text="body", holdout=0.2)
    corpus = corpus_of(tmp_path, data)
    few = {name: row for name, row in NAMES.items() if row < 100}
    with pytest.raises(
        InputError, match=r"jsonl:1: a mention of 'w\d+', and the graph has no such.*objective\.unknown"
    ):
        GivenMentions(data, "links").rows(corpus, few)
    there = GivenMentions(data, "links", skip=True).rows(corpus, few)["train"]
    assert 0 < there.max() < 100
    with pytest.raises(InputError, match=r"d\.jsonl:1: no column 'mentions'; there are: 'body', 'links'"):
        GivenMentions(data, "mentions").rows(corpus, NAMES)
    lines = file.read_text().splitlines()
    (tmp_path / "d.jsonl").write_text("\n".join([*lines[:2], json.dumps({"body": "w1", "links": [[0, 3, "w1"]]})]))
    with pytest.raises(InputError, match=r"d\.jsonl:3: the mention \[0, 3, 'w1'\] is no part"):
        GivenMentions(data, "links").rows(corpus, NAMES)
    (tmp_path / "d.jsonl").write_text("\n".join(lines[:2]))
    with pytest.raises(InputError, match=r"not the text that the corpus .* was made of"):
        GivenMentions(data, "links").rows(corpus, NAMES)
    (tmp_path / "d.txt").write_text("w1 w2")
    with pytest.raises(ConfigError, match=r"objective\.mentions: .*d\.txt has no mentions"):
        GivenMentions(CorpusSection(path=[str(tmp_path / "d.txt")]), "links").rows(corpus, NAMES)

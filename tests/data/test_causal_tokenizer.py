"""Tokenizers of causal models: every text is read back, and the vocabulary depends on the text alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from bertillery.config.section import ConfigError
from bertillery.data.causal_tokenizer import END_OF_TEXT, piece_bytes, train_byte_bpe, train_characters
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.tokenizer import TokenizerSection
from tests.corpora import tiny_tokenizer, write_text

ROOT = Path(__file__).resolve().parents[2]
SECTION = TokenizerSection(type="byte_bpe", vocab_size=400, sample_bytes=10**6)
STRANGE = [
    "the cat 한국어 naïve é", "\t\r\n  lone  spaces ", "🙂👍🏽 emoji", "漢字かな", "a\u0000b", "I'll I'LL",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt").read_text().split("\n\n")


@pytest.fixture(scope="module")
def byte_bpe(texts: list[str]) -> Any:
    return train_byte_bpe(texts, SECTION)


@pytest.mark.parametrize("train", [train_byte_bpe, train_characters])
def test_every_text_is_read_back(train: Any, texts: list[str], tmp_path: Path) -> None:
    """Also what the training text lacks; after a reload, too; with as many bytes as the text has."""
    train(texts, SECTION).save_pretrained(tmp_path)
    rng = random.Random(0)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    strange = [*STRANGE, *("".join(map(chr, rng.sample(points, 50))) for _ in range(20))]
    for tokenizer in (train(texts, SECTION), AutoTokenizer.from_pretrained(tmp_path)):
        sizes = piece_bytes(tokenizer)
        assert sizes is not None
        for text in strange:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert sizes[ids].sum() == len(text.encode())


def test_the_vocabulary_is_gpt2s(byte_bpe: Any) -> None:
    """256 bytes, merges within words that keep their space, contractions split case-sensitively, one special token."""
    vocabulary = byte_bpe.get_vocab()
    assert len(vocabulary) == 400
    assert sum(len(piece) == 1 for piece in vocabulary) == 256
    assert vocabulary[END_OF_TEXT] == 0 == byte_bpe.eos_token_id == byte_bpe.bos_token_id == byte_bpe.pad_token_id
    assert byte_bpe.all_special_tokens == [END_OF_TEXT]
    assert all("Ġ" not in piece[1:] for piece in vocabulary)
    assert [byte_bpe.decode([i]) for i in byte_bpe("I'll")["input_ids"]][:2] == ["I", "'"]
    assert byte_bpe.backend_tokenizer.pre_tokenizer.pre_tokenize_str("I'll I'LL")[1][0] == "'ll"
    assert byte_bpe.backend_tokenizer.pre_tokenizer.pre_tokenize_str("I'll I'LL")[3][0] == "'"


def test_hash_seeds_and_the_order_of_texts_do_not_matter(tmp_path: Path, texts: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from tests.data.test_causal_tokenizer import *\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "print(train_byte_bpe(texts, SECTION).backend_tokenizer.to_str())\n"
        "print(train_characters(texts, SECTION).backend_tokenizer.to_str())\n"
    )
    found = []
    for seed, order in (("1", texts), ("2", texts[::-1])):
        (tmp_path / "texts.json").write_text(json.dumps(order))
        command = [sys.executable, "-c", code, str(tmp_path / "texts.json")]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1]


def test_characters(texts: list[str]) -> None:
    """A character that the text lacks, or that is too rare for the vocabulary, is its bytes."""
    tokenizer: Any = train_characters(texts, SECTION)
    assert len(tokenizer.get_vocab()) == 257 + len({*"".join(texts)})
    assert tokenizer.unk_token is None
    assert tokenizer.convert_ids_to_tokens(tokenizer("The한")["input_ids"]) == [
        "T", "h", "e", "<0xED>", "<0x95>", "<0x9C>",
    ]  # fmt: skip
    small: Any = train_characters(["aab" * 9 + "é"], SECTION.model_copy(update={"vocab_size": 259}))
    assert small.convert_ids_to_tokens(small("abé")["input_ids"]) == ["a", "b", "<0xC3>", "<0xA9>"]


def test_an_unknown_token_has_no_length_in_bytes() -> None:
    """Nothing is counted for a tokenizer that loses text."""
    assert piece_bytes(tiny_tokenizer(64)) is None


@pytest.mark.parametrize(("kind", "least"), [("byte_bpe", 257), ("characters", 258)])
def test_a_vocabulary_has_room_for_all_bytes(kind: Any, least: int) -> None:
    TokenizerSection(type=kind, vocab_size=least)
    with pytest.raises(ValueError, match=f"256 bytes and an end-of-text token; give at least {least}"):
        TokenizerSection(type=kind, vocab_size=least - 1)


def test_too_large_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="asked 400 pieces, the corpus supports 2"):
        train_byte_bpe(["aaaa"], SECTION)


@pytest.mark.parametrize("documents", ["blank_line", "file"])
def test_documents_are_kept_as_they_are_written(tmp_path: Path, documents: str) -> None:
    """Line feeds, indentation and blank lines within a document, in text files and in rows."""
    parts = [f"def f{n}(x):\n    return  x +\t{n}\n" + "\n" * (documents == "file") + "  # end" for n in range(9)]
    for name, kept in (("train", parts[1:]), ("valid", parts[:1])):
        if documents == "blank_line":
            (tmp_path / f"{name}.txt").write_text("\n\n".join(kept) + "\n")
        else:
            for number, part in enumerate(kept):
                (tmp_path / f"{name}{number}.txt").write_text(part + "\n")
    rows = [{"text": "a\n\n  b\u2028c"}, {"text": "é" * 100 + "\nd"}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    section = CorpusSection(
        path=[str(tmp_path / "train*.txt"), str(tmp_path / "more.jsonl")],
        valid=[str(tmp_path / "valid*.txt")],
        documents=documents,  # pyright: ignore[reportArgumentType]
        units="documents",
    )
    tokenizer = TokenizerSection(type="byte_bpe", vocab_size=270, min_frequency=1)
    corpus = prepare(section, tokenizer, tmp_path / "data", workers=1)
    for part, kept in ((corpus.train, [*parts[1:], *(row["text"] for row in rows)]), (corpus.valid, parts[:1])):
        starts = part.sentences[part.documents]
        ids = np.split(np.asarray(part.ids), starts[1:-1])
        assert sorted(corpus.tokenizer().decode(each) for each in ids) == sorted(kept)  # pyright: ignore
    assert corpus.tokenizer().eos_token == END_OF_TEXT

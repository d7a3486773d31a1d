"""Synthetic corpora and tokenizers that the tests make for themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import BertTokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass
class Tokens:
    ids: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray


def random_tokens(
    num_documents: int,
    *,
    sentences: tuple[int, int] = (10, 40),
    length: tuple[int, int] = (10, 30),
    vocab_size: int = 30522,
    seed: int = 0,
) -> Tokens:
    """Documents of a uniform number of sentences of a uniform number of random tokens (both ends included)."""
    rng = np.random.default_rng(seed)
    per_document = rng.integers(sentences[0], sentences[1] + 1, num_documents)
    per_sentence = rng.integers(length[0], length[1] + 1, per_document.sum())
    ids = rng.integers(len(SPECIALS), vocab_size, per_sentence.sum())
    return Tokens(ids, np.append(0, np.cumsum(per_sentence)), np.append(0, np.cumsum(per_document)))


def counting_tokens(num_documents: int, **settings: tuple[int, int]) -> Tokens:
    """As ``random_tokens``, but every token is its own position, so that a token says where it is from."""
    tokens = random_tokens(num_documents, **settings)  # type: ignore[arg-type]
    return Tokens(np.arange(len(tokens.ids)), tokens.sentences, tokens.documents)


def tiny_tokenizer(vocab_size: int = 512) -> BertTokenizer:
    """A WordPiece tokenizer over made-up words; every third piece continues a word."""
    words = [("##" if i % 3 == 0 else "") + f"w{i}" for i in range(vocab_size - len(SPECIALS))]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(SPECIALS + words)})


def learnable_tokens(num_documents: int = 64, vocab_size: int = 512, seed: int = 0) -> Tokens:
    """Text with structure: each document counts on from a start of its own, so neighbours tell a masked token."""
    tokens = random_tokens(num_documents, sentences=(4, 10), length=(4, 12), vocab_size=vocab_size, seed=seed)
    document = np.repeat(np.arange(num_documents), np.diff(tokens.sentences[tokens.documents]))
    place = np.arange(len(tokens.ids)) - tokens.sentences[tokens.documents[document]]
    ids = len(SPECIALS) + (document * 37 + place) % (vocab_size - len(SPECIALS))
    return Tokens(ids, tokens.sentences, tokens.documents)


def write_text(path: Path, num_documents: int = 40, seed: int = 0) -> Path:
    """English-like text with a topic to each document: a paragraph a line, a blank line between documents."""
    rng = np.random.default_rng(seed)
    names = ["river", "engine", "garden", "market", "harbour", "library", "mountain", "kitchen", "station", "theatre"]
    verbs = ["opens", "closes", "grows", "moves", "waits", "changes", "returns", "begins"]
    kinds = ["old", "small", "quiet", "bright", "distant", "famous", "empty", "northern"]
    documents = []
    for number in range(num_documents):
        topic = names[number % len(names)]
        lines = []
        for _ in range(rng.integers(2, 5)):
            sentences = [
                f"The {rng.choice(kinds)} {topic} {rng.choice(verbs)} when the {rng.choice(kinds)} "
                f"{rng.choice(names)} {rng.choice(verbs)} in {rng.integers(1800, 2000)}."
                for _ in range(rng.integers(2, 6))
            ]
            lines.append(" ".join(sentences))
        documents.append("\n".join(lines))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def unspaced_text(num_documents: int, characters: int = 1500, seed: int = 0) -> list[str]:
    """Documents of one paragraph of several sentences without spaces; a few ideographs are frequent, most are rare."""
    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(characters) + 3)
    points = 0x4E00 + rng.permutation(characters)
    sentence = lambda: "".join(map(chr, rng.choice(points, rng.integers(15, 40), p=share / share.sum()))) + "。"  # noqa: E731
    return ["".join(sentence() for _ in range(5)) for _ in range(num_documents)]


def korean_text(num_documents: int, seed: int = 0) -> list[list[str]]:
    """Documents of Korean sentences about a topic each, grammatical though of little sense; a sentence an entry."""
    rng = np.random.default_rng(seed)
    names = ["강물", "엔진", "정원", "시장", "항구", "도서관", "산길", "부엌", "기차역", "극장", "자전거", "우체국"]
    verbs = ["열린다", "닫힌다", "자란다", "움직인다", "기다린다", "바뀐다", "돌아온다", "시작된다"]
    links = ["열리고", "닫히며", "자라서", "움직이면"]
    kinds = ["오래된", "작은", "조용한", "밝은", "머나먼", "유명한", "텅 빈", "북쪽의"]
    times = ["아침에", "저녁마다", "비가 오면", "눈이 내리면", "봄이 오기 전에", "겨울이 지나면"]

    def subject(name: str) -> str:
        return name + ("가" if (ord(name[-1]) - 0xAC00) % 28 == 0 else "이")  # after a vowel, or a consonant

    return [
        [
            f"{rng.choice(times)} {rng.choice(kinds)} {subject(names[number % len(names)])} {rng.choice(links)} "
            f"{rng.choice(kinds)} {subject(rng.choice(names))} {rng.choice(verbs)}."
            for _ in range(rng.integers(4, 12))
        ]
        for number in range(num_documents)
    ]

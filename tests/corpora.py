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

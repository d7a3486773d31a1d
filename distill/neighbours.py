"""The words nearest to a word: in a GloVe file, or among the pieces of a model's vocabulary.

Legend: V words that have a vector, D its size, Q words asked for.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import ConfigError
from engine.packed import DAMAGED, open_packed

_ROWS = 100_000
"""Of a GloVe file, which begins with the most frequent words (TinyBERT's ``data_augmentation.py``)."""
_WRITINGS = 3
"""A file may have a word itself in lower, title and upper case."""
_AT_ONCE = 64


class Neighbours(ABC):
    """Words with a vector each, and those that are nearest to a word."""

    def __init__(self, words: list[str], vectors: Tensor) -> None:
        """``vectors`` (V, D), of any length, say where the words are."""
        self.words = words
        self._directions = F.normalize(vectors.float(), dim=1)

    @abstractmethod
    def vector(self, word: str) -> Tensor | None:
        """(D,), of any length; None where the word has none."""

    def nearest(self, words: Iterable[str], number: int) -> dict[str, list[str]]:
        """For each word the ``number`` others of the largest cosine, nearest first; none for a word without a vector.

        Other writings of the word itself are left out. What is near a word in title case is given in title case.
        """
        vectors = {word: self.vector(word) for word in words}
        known = [(word, vector) for word, vector in vectors.items() if vector is not None]
        found: dict[str, list[str]] = {word: [] for word in vectors}
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            cosines = (
                torch.stack([vector for _, vector in some]).float() @ self._directions.T
            )  # (Q, V), but for a factor
            top = cosines.topk(min(number + _WRITINGS, len(self.words))).indices.tolist()
            for (word, _), rows in zip(some, top, strict=True):
                near = [self.words[row] for row in rows]
                others = [other for other in near if other.lower() != word.lower()][:number]
                found[word] = [other.title() for other in others] if word.istitle() else others
        return found


class VectorFile(Neighbours):
    """The first 100,000 words of a GloVe file: a word and its numbers to a line."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises what :func:`read_vectors` does."""
        words, vectors = read_vectors(path)
        super().__init__(words, torch.from_numpy(vectors).to(device))
        self._row = {word: row for row, word in enumerate(words)}

    def vector(self, word: str) -> Tensor | None:
        """That of the word as it is written, or else of its lower case."""
        row = self._row.get(word, self._row.get(word.lower()))
        return None if row is None else self._directions[row]


class Pieces(Neighbours):
    """Pieces of a vocabulary that are words, where a model's input embeddings put them."""

    def __init__(self, words: dict[str, int], embeddings: Tensor, encode: Callable[[str], np.ndarray]) -> None:
        """``words`` are the neighbours there may be and their rows of the ``embeddings``; ``encode`` gives a word's
        rows."""
        rows = torch.tensor([*words.values()], dtype=torch.int64, device=embeddings.device)
        super().__init__([*words], embeddings[rows])
        self._embeddings, self._encode = embeddings, encode

    def vector(self, word: str) -> Tensor | None:
        """The mean of its pieces' embeddings."""
        rows = torch.from_numpy(self._encode(word).astype(np.int64)).to(self._embeddings.device)
        return self._embeddings[rows].mean(0) if len(rows) else None


def fingerprint(path: Path) -> str:
    """Hash of a file of vectors; ``ConfigError`` where it is not there."""
    if not path.is_file():
        raise ConfigError(
            f"augment.vectors: no file {str(path)!r}; give one of GloVe's, with a word and its numbers to a line, or "
            "leave vectors out to take neighbours from the model's own vocabulary"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Words and their vectors (V, D), float32, of the first 100,000 lines of a GloVe file, which may be compressed.

    Lines of something with a space in it, as a few of GloVe's have, are passed over. Raises ``ConfigError`` where the
    file is empty or damaged, or, with the line, where one holds no numbers or not as many as the first.
    """
    words: list[str] = []
    vectors: list[np.ndarray] = []
    size = 0
    try:
        with io.TextIOWrapper(open_packed(path), encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in zip(range(1, _ROWS + 1), lines, strict=False):
                fields = line.rstrip("\r\n").split(" ")
                size = size or len(fields) - 1
                found = _numbers(f"{path}:{number}", fields, size)
                if found is not None:
                    words.append(fields[0])
                    vectors.append(found)
    except DAMAGED as error:
        raise ConfigError(f"augment.vectors: {path}: damaged or cut short ({error}); fetch it again") from error
    if not words:
        raise ConfigError(
            f"augment.vectors: {path}: is empty; give a GloVe file, with a word and its numbers to a line"
        )
    return words, np.stack(vectors)


def _numbers(where: str, fields: list[str], size: int) -> np.ndarray | None:
    """The vector at the end of a line; None for that of something with a space in it."""
    if size and len(fields) > size + 1 and not any(map(_is_number, fields[1:-size])):
        return None
    if not size or len(fields) != size + 1:
        wanted = f", the first line {size}" if size else "; a line is a word and its numbers, with a space between"
        raise ConfigError(f"augment.vectors: {where}: {len(fields) - 1} numbers{wanted}")
    try:
        vector = np.array(fields[1:], dtype=np.float32)
    except ValueError:
        vector = np.full(size, np.nan, dtype=np.float32)
    if not np.isfinite(vector).all():
        wrong = next((field for field in fields[1:] if not _is_number(field)), "one of them")
        raise ConfigError(
            f"augment.vectors: {where}: {wrong!r} is no number; a line is a word and its numbers, with a space between"
        )
    return vector


def _is_number(field: str) -> bool:
    try:
        return bool(np.isfinite(float(field)))
    except ValueError:
        return False

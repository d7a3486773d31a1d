"""Candidates for the words of a text, which data augmentation replaces (Jiao et al. 2020, Algorithm 1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from tokenizers import models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.data.files import Decoder, read_lines
from bertillery.data.tokenizer import is_unigram
from bertillery.engine.batch import pack, ranges
from bertillery.engine.loader import shares
from bertillery.models.encoders import longest_sequence, mlm_logits
from bertillery.models.frame import template
from bertillery.system.files import sha256
from finetune.examples import Sequences, tokenize

_CONTRACTED = (
    "s t d m ll re ve ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren "
    "won wouldn"
)
STOP_WORDS = ENGLISH_STOP_WORDS.union(_CONTRACTED.split(" "))
"""Words that are never replaced: scikit-learn's list and the parts of contractions, of which the apostrophe is split
off as a word."""
_WORD = re.compile(r"[A-Z]?[a-z]+")
_BATCH_TOKENS = 8192
_VECTORS = 100_000
"""Lines read of a GloVe file, which begins with the most frequent words (as ``data_augmentation.py`` does)."""
_WRITINGS = 3
"""A GloVe file may have a word itself in lower, title and upper case."""
_LOOKED_UP = 64
"""Words whose neighbours are computed at a time."""


def is_replaceable(word: str) -> bool:
    """Whether a basic token may be replaced: letters a to z, the first perhaps a capital, and not a stop word."""
    return _WORD.fullmatch(word) is not None and word.lower() not in STOP_WORDS


def fingerprint(vectors: Path) -> str:
    """Hash of a GloVe file; ``ConfigError`` if it does not exist."""
    if not vectors.is_file():
        raise ConfigError(
            f"augment.vectors: no file {str(vectors)!r}; give one of GloVe's, with a word and its numbers to a line, "
            "or leave vectors out to take neighbours from the model's own vocabulary"
        )
    return sha256(vectors)


def read_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Words and their vectors (V, D), float32, of the first 100,000 lines of a GloVe file, which may be compressed.

    Lines whose word contains a space, of which GloVe has a few, are skipped. Raises ``InputError`` for an empty or
    damaged file and, with the line number, for a line without as many numbers as the first.
    """
    words: list[str] = []
    vectors: list[np.ndarray] = []
    size, rule = 0, "a line is a word and its numbers, with a space between"
    lines = read_lines(path, Decoder(replace=True), cr=False)
    for number, line in zip(range(1, _VECTORS + 1), lines, strict=False):
        word, *fields = line.rstrip("\r\n").split(" ")
        values = np.array([*map(_number, fields)], dtype=np.float32)
        size, finite = size or len(values), np.isfinite(values)
        if size and len(values) > size and not finite[:-size].any():
            continue
        if not size or len(values) != size:
            wanted = f", the first line {size}" if size else f"; {rule}"
            raise ConfigError(f"augment.vectors: {path}:{number}: {len(values)} numbers{wanted}")
        if not finite.all():
            raise ConfigError(f"augment.vectors: {path}:{number}: {fields[finite.argmin()]!r} is no number; {rule}")
        words.append(word)
        vectors.append(values)
    if not words:
        raise ConfigError(
            f"augment.vectors: {path}: is empty; give a GloVe file, with a word and its numbers to a line"
        )
    return words, np.stack(vectors)


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return np.nan


@dataclass(frozen=True)
class Neighbours:
    """The nearest words of a vocabulary to a given word, by cosine."""

    words: list[str]
    directions: Tensor
    """(V, D) float32, of length 1: where the words are."""
    vector: Callable[[str], Tensor | None]
    """The vector (D,) of a word, of any length; None if it has none."""

    @classmethod
    def in_file(cls, path: Path, device: torch.device) -> Neighbours:
        """Those of a GloVe file, which a word is looked up in as it is written, then in lower case.

        Raises as :func:`read_vectors` does.
        """
        words, vectors = read_vectors(path)
        rows, directions = {w: row for row, w in enumerate(words)}, F.normalize(torch.from_numpy(vectors).to(device))

        def vector(word: str) -> Tensor | None:
            row = rows.get(word, rows.get(word.lower()))
            return None if row is None else directions[row]

        return cls(words, directions, vector)

    @classmethod
    def in_vocabulary(
        cls, words: dict[str, int], embeddings: Tensor, encode: Callable[[str], np.ndarray]
    ) -> Neighbours:
        """``words`` and their rows of the input ``embeddings``. The vector of a word is the mean over its pieces,
        whose rows ``encode`` gives."""

        def vector(word: str) -> Tensor | None:
            rows = torch.from_numpy(encode(word).astype(np.int64)).to(embeddings.device)
            return embeddings[rows].mean(0) if len(rows) else None

        rows = torch.tensor([*words.values()], dtype=torch.int64, device=embeddings.device)
        return cls([*words], F.normalize(embeddings[rows].float()), vector)

    def nearest(self, words: Iterable[str], number: int) -> dict[str, list[str]]:
        """For each word up to ``number`` others, nearest first; none for a word without a vector.

        Other writings of the word itself are left out. Neighbours of a word in title case are in title case.
        """
        vectors = {word: self.vector(word) for word in words}
        known = [(word, vector) for word, vector in vectors.items() if vector is not None]
        found: dict[str, list[str]] = {word: [] for word in vectors}
        for start in range(0, len(known), _LOOKED_UP):
            some = known[start : start + _LOOKED_UP]
            cosines = torch.stack([vector for _, vector in some]).float() @ self.directions.T  # (Q, V), up to a factor
            top = cosines.topk(min(number + _WRITINGS, len(self.words))).indices.tolist()
            for (word, _), rows in zip(some, top, strict=True):
                others = [other for row in rows if (other := self.words[row]).lower() != word.lower()][:number]
                found[word] = [other.title() for other in others] if word.istitle() else others
        return found


@dataclass(frozen=True)
class Words:
    """A text in basic tokens, and the candidates for its replaceable words."""

    words: list[str]
    candidates: dict[int, list[str]]
    """By the word's index, in ascending order; at least one each."""


class Candidates:
    """Candidates for the words of texts (Jiao et al. 2020, Algorithm 1).

    A word of one piece is masked in ``[CLS] text [SEP] text [SEP]``, whose second text stays whole. Its candidates are
    the model's K most probable pieces, without special tokens and pieces that do not begin a word; the word itself is
    often one of them. The candidates for a word of several pieces are its K nearest words in a GloVe file or, without a
    file, among the replaceable words of the model's vocabulary, by the cosine of input embeddings (the paper uses GloVe
    only). A word without candidates is its own.

    Basic tokens are BERT's, of the text as the model's tokenizer normalises it (an uncased one lowers its case).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        number: int,
        vectors: Path | None,
        device: torch.device,
    ) -> None:
        """``model`` is a stock ``*ForMaskedLM`` in evaluation mode with the packed attention; ``number`` is K.

        Raises ``ConfigError`` for a vocabulary other than WordPiece and Unigram, and as :func:`read_vectors` does.
        """
        self.openings = _openings(tokenizer, model.config.vocab_size)
        """(V) The word that each piece begins; empty for a piece that begins none."""
        self._model, self._tokenizer, self._device = cast(Any, model).to(device), tokenizer, device
        self._number, self._template = number, template(tokenizer, 2)
        self._room = self._template.room(longest_sequence(model.config))
        self._near: dict[str, list[str]] = {}
        if vectors is None:
            words = {word: piece for piece, word in enumerate(self.openings) if is_replaceable(word)}
            embeddings = cast(Any, model.get_input_embeddings()).weight.detach()
            self._neighbours = Neighbours.in_vocabulary(words, embeddings, lambda word: tokenize([word], tokenizer).ids)
        else:
            self._neighbours = Neighbours.in_file(vectors, device)

    def split(self, text: str) -> list[str]:
        """A text in basic tokens."""
        normalizer = cast(Any, self._tokenizer).backend_tokenizer.normalizer
        text = text if normalizer is None else normalizer.normalize_str(text).replace("▁", " ")
        return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]

    def of(self, texts: Sequence[str]) -> list[Words]:
        """Words and candidates of each text.

        A text that is too long for the model is cut: first the end of the unmasked copy, then that of both. Words of
        one piece that are cut off are their own candidate.
        """
        split = [self.split(text) for text in texts]
        flat = [word for words in split for word in words]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        which = np.array([numbers[word] for word in flat], dtype=np.int64)
        pieces = tokenize([*numbers], self._tokenizer)
        replaceable = np.array([is_replaceable(word) for word in numbers], dtype=bool)[which]
        sizes = pieces.lengths[which]
        ids = pieces.ids[np.repeat(pieces.starts[which], sizes) + ranges(sizes)]
        text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        lengths = np.bincount(text, weights=sizes, minlength=len(texts)).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        offsets = np.cumsum(sizes) - sizes - starts[text]
        first = np.minimum(lengths, self._room)
        kept = np.stack([first, np.minimum(lengths, self._room - first)])
        masked = np.flatnonzero(replaceable & (sizes == 1) & (offsets < self._room))
        sequences = Sequences(self._template, ids, np.stack([starts, starts])[:, text[masked]], kept[:, text[masked]])
        found = dict(zip(masked.tolist(), self._predict(sequences, offsets[masked]), strict=True))
        several = [(index, flat[index]) for index in np.flatnonzero(replaceable & (sizes > 1)).tolist()]
        unknown = [word for _, word in several if word not in self._near]
        self._near |= self._neighbours.nearest(unknown, self._number)
        found |= {index: self._near[word] for index, word in several}
        result, begin = [], 0
        for words in split:
            places = [place for place in range(len(words)) if replaceable[begin + place]]
            result.append(Words(words, {place: found.get(begin + place) or [words[place]] for place in places}))
            begin += len(words)
        return result

    @torch.no_grad()
    def _predict(self, sequences: Sequences, offsets: np.ndarray) -> list[list[str]]:
        """Candidates for the token at each of the ``offsets`` (M,) in the first text of each of M sequences."""
        found: list[list[str]] = [[] for _ in offsets]
        number = min(self._number, len(self.openings))
        offsets = offsets + len(self._template.parts[0])
        for part in shares(sequences.lengths, _BATCH_TOKENS, 1, 0) if len(offsets) else []:
            ids, types = sequences.lay_out(part)
            lengths = sequences.lengths[part]
            rows = np.cumsum(lengths) - lengths + offsets[part]
            ids[rows] = self._tokenizer.mask_token_id
            batch = pack(ids, types, lengths, targets={}, counts={}).to(self._device)
            logits = mlm_logits(self._model, batch.input, torch.from_numpy(rows).to(self._device)).float()
            for row, top in zip(part.tolist(), logits.topk(number).indices.tolist(), strict=True):
                found[row] = [self.openings[piece] for piece in top if self.openings[piece]]
        return found


def _openings(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    kind = cast(Any, tokenizer).backend_tokenizer.model
    if not isinstance(kind, models.WordPiece | models.Unigram):
        raise ConfigError(
            f"augment.model: its vocabulary is of type {type(kind).__name__}, which does not mark the beginning of "
            "words; give a masked language model with a WordPiece or Unigram vocabulary, such as BERT or ALBERT"
        )
    openings = [""] * vocab_size
    for piece, number in tokenizer.get_vocab().items():
        begins = piece.startswith("▁") if is_unigram(tokenizer) else not piece.startswith("##")
        openings[number] = piece.removeprefix("▁" if is_unigram(tokenizer) else "") if begins else ""
    for special in tokenizer.all_special_ids:
        openings[special] = ""
    return openings

"""Tokenizers: deterministic WordPiece training, which pieces open a word, and fast exact encoding.

Unigram training is in :mod:`bertillery.data.unigram`.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Count
from bertillery.models.frame import text_backend
from bertillery.models.load import vocabulary_size

_MARKS = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~–£€')
_PLAIN = _MARKS | frozenset("abcdefghijklmnopqrstuvwxyz")
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""Special tokens of a trained vocabulary, at ids 0 to 4."""
_ALPHABET, _COVERAGE = 1000, 0.9995
"""An alphabet has this many characters, or more if they make up a smaller share of the text, as in Chinese and Japanese
(SentencePiece advises the share for such scripts). The rest, 1 in 2,000, become [UNK]."""
_SMALLEST = 64
_LEAST = {"byte_bpe": 257, "characters": 258}
"""Pieces at least, where all bytes and an end-of-text token are among them."""
_CACHED_WORDS = 400_000


class TokenizerSection(Section):
    """Which tokenizer: an existing one, or one trained on the corpus."""

    type: Literal["wordpiece", "unigram", "byte_bpe", "characters"] = "wordpiece"
    """What is trained: BERT's WordPiece, ALBERT's Unigram (SentencePiece), GPT-2's byte-level BPE, or a vocabulary of
    the characters of the text and all bytes. The first two are for masked models, the last two for causal ones."""
    path: str | None = None
    """Directory or Hub name of an existing tokenizer; none is trained then."""
    vocab_size: int = Field(default=30522, ge=_SMALLEST, le=10**7)
    """Pieces of a trained vocabulary, special tokens included."""
    lowercase: bool = True
    """Lowercase and strip accents, as BERT uncased and ALBERT do; this also takes Hangul syllables apart."""
    min_frequency: Count = 2
    """How often two pieces must meet before they are merged (wordpiece), or a piece must occur (unigram)."""
    sample_bytes: Count = 64_000_000
    """Text to train on; of a larger corpus, a sample of its documents."""

    @model_validator(mode="after")
    def _holds_all_bytes(self) -> TokenizerSection:
        least = _LEAST.get(self.type, 0)
        if self.path is None and self.vocab_size < least:
            has = f"{self.type} has 256 bytes and an end-of-text token"
            raise ValueError(f"vocab_size {self.vocab_size}: {has}; give at least {least}")
        return self


def is_unigram(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a mark opens a word ("▁", Unigram) instead of continuing it ("##", WordPiece).

    The vocabulary does not decide this: either may contain the other's mark as an ordinary character.
    """
    return isinstance(cast(Any, tokenizer).backend_tokenizer.model, models.Unigram)


def starts_of_words(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Which tokens open a word, (V,) bool, by the marks of the tokenizer's model.

    Byte-level BPE marks the space before a word, as RoBERTa's; what follows without one, such as a full stop, belongs
    to the word before. A Unigram vocabulary is treated as in ALBERT's code: a piece opens a word if it begins with "▁"
    or "<", is a punctuation mark, or has a character that is neither an English letter nor a mark (the apostrophe is
    none), such as a digit or a letter of another script. Raises ``ConfigError`` for a tokenizer whose pieces do not
    mark words.
    """
    parts = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    type_, continuing = parts["model"]["type"], parts["model"].get("continuing_subword_prefix")
    splitter = json.dumps([parts["normalizer"], parts["pre_tokenizer"]], ensure_ascii=False)
    found = cast(list[str | None], tokenizer.convert_ids_to_tokens([*range(vocabulary_size(tokenizer))]))
    pieces = [piece or "" for piece in found]
    if type_ == "Unigram":
        opens = [p.startswith(("▁", "<")) or p in _MARKS or not _PLAIN.issuperset(p.lower()) for p in pieces]
    elif type_ == "WordLevel":
        opens = [True] * len(pieces)
    elif type_ in ("WordPiece", "BPE") and continuing:
        opens = [not piece.startswith(continuing) for piece in pieces]
    elif type_ == "BPE" and '"ByteLevel"' in splitter:
        opens = [piece.startswith(("Ġ", "Ċ", "ĉ", "č")) for piece in pieces]  # space, line feed, tab, carriage return
    elif type_ == "BPE" and '"▁"' in splitter:
        opens = [piece.startswith("▁") for piece in pieces]
    else:
        raise ConfigError(
            f"objective.masking.whole_words: the pieces of this {type_} tokenizer do not mark where a word begins; "
            "take a WordPiece, Unigram or byte-level BPE tokenizer, or set objective.masking.whole_words=false"
        )
    starts = np.array(opens)
    if tokenizer.unk_token_id is not None:
        starts[cast(int, tokenizer.unk_token_id)] = True
    return starts


def train_wordpiece(texts: Iterable[str], section: TokenizerSection) -> PreTrainedTokenizerBase:
    """Train a BERT tokenizer; the same texts in any order give the same vocabulary.

    Raises ``ConfigError`` when the texts do not support a vocabulary of the size asked for.
    """
    texts, size = list(texts), section.vocab_size
    normalizer = normalizers.BertNormalizer(lowercase=section.lowercase)
    characters = _characters(texts, normalizer)
    vocabulary_of = cache(lambda number: _wordpieces(texts, normalizer, sorted(characters[:number]), section))
    # A small vocabulary keeps half its pieces for what is longer than a character.
    least = min(len(characters), (size - len(SPECIALS)) // 4)
    vocabulary = vocabulary_of(fewest(least, len(characters), lambda number: len(vocabulary_of(number)) >= size))
    if len(vocabulary) < size:
        raise too_few_pieces(section, len(vocabulary))
    # One character more can be two pieces more, of which one was still wanted.
    vocabulary = {piece: number for piece, number in vocabulary.items() if number < size}
    # A fresh tokenizer, because to the trained one all its special tokens are added tokens.
    return BertTokenizer(vocab=vocabulary, do_lower_case=section.lowercase, model_max_length=512)


def fewest(least: int, most: int, suffices: Callable[[int], bool]) -> int:
    """The smallest number of characters from ``least`` to ``most`` that suffices; ``most`` if none does.

    If one suffices, so do all larger ones: with more characters, a text has more different pieces.
    """
    if suffices(least):
        return least
    return bisect_left(range(most), True, min(least + 1, most), key=suffices) if suffices(most) else most


def too_few_pieces(section: TokenizerSection, supported: int) -> ConfigError:
    """The error for a text with only ``supported`` pieces; a vocabulary of that size can be trained."""
    possible = f"set tokenizer.vocab_size to {supported} or less" if supported >= _SMALLEST else "give more text"
    return ConfigError(
        f"tokenizer.vocab_size: asked {section.vocab_size} pieces, the corpus supports {supported}; {possible}"
    )


def _wordpieces(
    texts: Sequence[str], normalizer: Any, alphabet: list[str], section: TokenizerSection
) -> dict[str, int]:
    """The ids of a vocabulary trained over an alphabet; smaller than asked if the texts have no more pieces.

    The trainer numbers the alphabet in the order of a hash table, and breaks ties between merges by these numbers. It
    is deterministic if the alphabet and the continuation pieces are given in a fixed order.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    # Punctuation and ideographs stand alone, so they have no continuation pieces.
    within = [normalizer.normalize_str(f"a{character}a") for character in alphabet]
    continuing = [alphabet[i] for i, word in enumerate(within) if len(splitter.pre_tokenize_str(word)) == 1]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=SPECIALS + ["##" + character for character in continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _characters(texts: Sequence[str], normalizer: Any) -> list[str]:
    """The characters of an alphabet, by falling frequency, then by code point."""
    counts = np.zeros(0x110000, np.int64)
    for start in range(0, len(texts), 1000):
        text = normalizer.normalize_str(" ".join(texts[start : start + 1000]))
        counts += np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32), minlength=len(counts))
    points = [int(point) for point in np.flatnonzero(counts) if not chr(point).isspace()]
    points.sort(key=lambda point: -counts[point])
    covered = np.cumsum(counts[points])
    enough = int(np.searchsorted(covered, _COVERAGE * counts[points].sum())) + 1
    return [chr(point) for point in points[: max(_ALPHABET, enough)]]


class WordEncoder:
    """Text to ids without special tokens, exactly as the tokenizer does it and several times as fast.

    A string between two spaces is encoded once and looked up afterwards. BERT's and ALBERT's normalizers and
    pre-tokenizers never look across a space, so this is exact for them; any other tokenizer is given every text. A
    special token that is spelt out is text (:func:`bertillery.models.frame.text_backend`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = backend = text_backend(tokenizer)
        self.dtype = np.dtype(np.uint16 if vocabulary_size(tokenizer) <= 65536 else np.uint32)
        """The type that holds every id."""
        self._unknown: Any = tokenizer.unk_token_id
        plain, behind_space = (backend.encode(text, add_special_tokens=False).ids for text in ("a", " a"))
        self.space_matters = plain != behind_space
        """Whether a leading space changes the tokens of a text, as with byte-level BPE."""
        added = list(backend.get_added_tokens_decoder().values())
        is_bert = isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer) and isinstance(
            backend.normalizer, normalizers.BertNormalizer
        )
        # Added tokens are found first, which a cache of words allows only if none of them has a space.
        separable = not any(token.normalized or " " in token.content for token in added)
        self._words: _Words | None = None
        if separable and is_bert:
            self._words = _BertWords(backend, self.dtype, [token.content for token in added])
        elif separable and _is_alberts(backend):
            self._words = _Words(backend, self.dtype)

    def unknown_characters(self, texts: Sequence[str], ids: np.ndarray, lengths: np.ndarray) -> int:
        """Characters in unknown tokens; ``ids`` (T,) and ``lengths`` (texts,) are those of :meth:`encode_bytes`."""
        if self._unknown is None:
            return 0
        places = np.flatnonzero(ids == self._unknown)
        which = np.unique(np.searchsorted(np.cumsum(lengths), places, side="right"))
        encodings = self._backend.encode_batch([texts[i] for i in which], add_special_tokens=False)
        return sum(
            end - start
            for encoding in encodings
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown
        )

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """Ids of each text, without special tokens, as the bytes of an array of ``dtype``."""
        if self._words is None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [array(self.dtype.char, encoding.ids).tobytes() for encoding in encodings]
        lookup = self._words.__getitem__
        return [b"".join(map(lookup, text.split(" "))) for text in texts]


def _is_alberts(backend: Tokenizer) -> bool:
    """Whether text is split at white space first, by the steps of transformers' ``AlbertTokenizer``."""
    parts = json.loads(backend.to_str())
    steps = (parts["pre_tokenizer"] or {}).get("pretokenizers", [])
    types = {step["type"] for step in (parts["normalizer"] or {}).get("normalizers", [])}
    return (
        [step["type"] for step in steps] == ["WhitespaceSplit", "Metaspace"]
        and steps[1]["prepend_scheme"] == "always"
        and types <= {"Replace", "NFKD", "StripAccents", "Lowercase"}
    )


class _Words(dict[str, bytes]):
    """A cache of the ids of words; emptied when full, because the frequent ones return at once."""

    def __init__(self, backend: Tokenizer, dtype: np.dtype) -> None:
        super().__init__()
        self._backend, self._char = backend, dtype.char

    def __missing__(self, word: str) -> bytes:
        return self._keep(word, self._backend.encode(word, add_special_tokens=False).ids)

    def _keep(self, word: str, ids: Sequence[int]) -> bytes:
        if len(self) >= _CACHED_WORDS:
            self.clear()
        self[word] = value = array(self._char, ids).tobytes()
        return value


class _BertWords(_Words):
    """The same for BERT, where printable ASCII splits into runs of letters and digits, and single marks."""

    _pieces = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")

    def __init__(self, backend: Tokenizer, dtype: np.dtype, added: list[str]) -> None:
        super().__init__(backend, dtype)
        self._model, self._added = backend.model, added
        self._lowercase = cast(normalizers.BertNormalizer, backend.normalizer).lowercase

    def __missing__(self, word: str) -> bytes:
        if not word.isascii() or not word.isprintable() or any(token in word for token in self._added):
            return super().__missing__(word)
        pieces = self._pieces.findall(word)
        if len(pieces) == 1:
            return self._keep(word, [t.id for t in self._model.tokenize(word.lower() if self._lowercase else word)])
        return self._keep(word, array(self._char, b"".join(map(self.__getitem__, pieces))))

"""What may stand in the place of a word: what a masked language model expects there, or the words that are near to it.

Legend: W words of some texts, M of them that are predicted, K candidates of each, V pieces of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from distill.neighbours import Neighbours, Pieces, VectorFile
from engine.batch import pack, ranges
from engine.config import ConfigError
from engine.encoders import longest_sequence, word_logits
from engine.frame import template
from engine.load import check_vocabulary, load, load_tokenizer
from engine.order import shares
from finetune.examples import Sequences, tokenize
from pretrain.tokenizer import is_unigram

_CONTRACTED = (
    "s t d m ll re ve ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren "
    "won wouldn"
)
STOP_WORDS = ENGLISH_STOP_WORDS.union(_CONTRACTED.split(" "))
"""Words that stay: scikit-learn's list, and what is left of contractions when the apostrophe is a word of its own.
TinyBERT's code has a list of its own, which is shorter."""
_WORD = re.compile(r"[A-Z]?[a-z]+")
_BATCH_TOKENS = 8192


def is_replaceable(word: str) -> bool:
    """Whether a basic token may be replaced: one of the letters a to z, the first perhaps a capital, no stop-word."""
    return _WORD.fullmatch(word) is not None and word.lower() not in STOP_WORDS


def load_word_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model for :class:`Candidates` and its tokenizer, from a directory or the Hub.

    Raises ``ConfigError`` where there is none, its weights lack the head, or its tokenizer is not for them.
    """
    model, report = load(AutoModelForMaskedLM, name)
    tokenizer: Any = load_tokenizer(name, "augment.model")
    if report.fresh:
        raise ConfigError(
            f"augment.model: {name} is no masked language model, it lacks {', '.join(report.fresh[:3])}; "
            "give one with the head it was pretrained with"
        )
    check_vocabulary(tokenizer, model.config, name, "augment.model")
    return model, tokenizer


@dataclass(frozen=True)
class Words:
    """A text in basic tokens, and the candidates for those that may be replaced."""

    words: list[str]
    candidates: dict[int, list[str]]
    """By the word's place, in ascending order; at least one each."""


class Candidates:
    """Candidates for the words of texts (Jiao et al. 2020, Algorithm 1).

    A word of one piece is masked in ``[CLS] text [SEP] text [SEP]``, where the second text stays whole, and the
    model's K most probable pieces, less special tokens and those that open no word, are its candidates; the word itself
    is often one. A model without token types or trained on single texts reads the same sequence. A word of several
    pieces has the K nearest words of a GloVe file, or, where there is none, of the vocabulary's own words that may be
    replaced themselves, by the cosine between input embeddings (that of the word is the mean of its pieces'; the paper
    has GloVe alone). A word for which nothing is found has itself.

    Basic tokens are BERT's, of the text as the model's tokenizer normalises it (lower case for an uncased one).
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

        Raises ``ConfigError`` for a vocabulary that is neither WordPiece nor Unigram, and what
        :func:`distill.neighbours.read_vectors` does.
        """
        self.openings = _openings(tokenizer, model.config.vocab_size)
        """(V) What each piece is as a word; empty for one that opens none."""
        self._model, self._tokenizer, self._device = cast(Any, model).to(device), tokenizer, device
        self._number = number
        self._template = template(tokenizer, 2)
        self._room = self._template.room(longest_sequence(model.config))
        self._neighbours = self._own_words() if vectors is None else VectorFile(vectors, device)
        self._near: dict[str, list[str]] = {}

    def _own_words(self) -> Neighbours:
        words = {word: piece for piece, word in enumerate(self.openings) if is_replaceable(word)}
        embeddings = cast(Any, self._model.get_input_embeddings()).weight.detach()
        return Pieces(words, embeddings, lambda word: tokenize([word], self._tokenizer).ids)

    def split(self, text: str) -> list[str]:
        """A text in basic tokens."""
        normalizer = cast(Any, self._tokenizer).backend_tokenizer.normalizer
        text = text if normalizer is None else normalizer.normalize_str(text).replace("▁", " ")
        return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]

    def of(self, texts: Sequence[str]) -> list[Words]:
        """Words and candidates of each text.

        What lies beyond the longest sequence of the model is not predicted: of a long text the unmasked copy loses its
        end first, then both do. Words of one piece that are cut off have themselves as their candidate.
        """
        split = [self.split(text) for text in texts]
        flat = [word for words in split for word in words]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        kind = np.array([numbers[word] for word in flat], dtype=np.int64)
        pieces = tokenize([*numbers], self._tokenizer)
        replaceable = np.array([is_replaceable(word) for word in numbers], dtype=bool)[kind]
        sizes = pieces.lengths[kind]
        ids = pieces.ids[np.repeat(pieces.starts[kind], sizes) + ranges(sizes)]
        text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        lengths = np.bincount(text, weights=sizes, minlength=len(texts)).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        offsets = np.cumsum(sizes) - sizes - starts[text]
        first = np.minimum(lengths, self._room)
        kept = np.stack([first, np.minimum(lengths, self._room - first)])
        masked = np.flatnonzero(replaceable & (sizes == 1) & (offsets < self._room))
        sequences = Sequences(self._template, ids, np.stack([starts, starts])[:, text[masked]], kept[:, text[masked]])
        found = dict(zip(masked.tolist(), self._predict(sequences, offsets[masked]), strict=True))
        several = np.flatnonzero(replaceable & (sizes > 1)).tolist()
        found |= dict(zip(several, self._look_up([flat[place] for place in several]), strict=True))
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
            logits = word_logits(self._model, batch, torch.from_numpy(rows).to(self._device))
            for row, top in zip(part.tolist(), logits.topk(number).indices.tolist(), strict=True):
                found[row] = [self.openings[piece] for piece in top if self.openings[piece]]
        return found

    def _look_up(self, words: list[str]) -> list[list[str]]:
        """Neighbours of each word, sought once."""
        self._near |= self._neighbours.nearest((word for word in words if word not in self._near), self._number)
        return [self._near[word] for word in words]


def _openings(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """What each piece is as a word: all but those that continue one ("##"), or those that open one ("▁")."""
    kind = cast(Any, tokenizer).backend_tokenizer.model
    if not isinstance(kind, models.WordPiece | models.Unigram):
        raise ConfigError(
            f"augment.model: its vocabulary is of type {type(kind).__name__}, which does not mark words in a way that "
            "augmentation knows; give a masked language model with a WordPiece or Unigram vocabulary, as BERT's and "
            "ALBERT's are"
        )
    openings = [""] * vocab_size
    for piece, number in tokenizer.get_vocab().items():
        if is_unigram(tokenizer):
            openings[number] = piece[1:] if piece.startswith("▁") else ""
        else:
            openings[number] = "" if piece.startswith("##") else piece
    for special in tokenizer.all_special_ids:
        openings[special] = ""
    return openings

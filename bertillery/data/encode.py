"""Documents to token ids, in worker processes: sentences, their tokens, and keys that identify repetitions."""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]  (defined by its extension module)

from bertillery.data.tokenizer import WordEncoder
from bertillery.models.load import load_tokenizer
from bertillery.system.workers import pool

HELD_OUT = -1
Document = tuple[int, list[str]]
"""The number of the corpus it belongs to, or ``HELD_OUT``, and its paragraphs."""
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 512, 1_000_000
MIN_REPEATED = 80
"""Characters; a shorter paragraph ("References.") repeats by chance and is kept."""
_INITIAL = re.compile(r"([A-Z]\s*)[^\S\x00-\x7f](?=\.)")
"""sentencex 1.0.32 panics at a capital and a full stop with a space of several bytes between, as in "C\xa0."."""


@dataclass(frozen=True)
class Encoded:
    """A batch of D documents, P paragraphs, S sentences and T tokens."""

    corpus: np.ndarray
    """(D,) the number of the corpus of each document, or ``HELD_OUT``."""
    paragraphs: np.ndarray
    """(D,) number of paragraphs of each document."""
    sentences: np.ndarray
    """(P,) number of sentences of each paragraph."""
    lengths: np.ndarray
    """(S,) number of tokens of each sentence, never 0."""
    ids: np.ndarray
    """(T,)"""
    document_keys: list[bytes]
    paragraph_keys: list[bytes | None]
    """None for a paragraph shorter than ``MIN_REPEATED``."""
    characters: int
    unknown: int
    """Characters that lie in unknown tokens."""


def document_key(paragraphs: list[str]) -> bytes:
    """A hash of 128 bits."""
    return hashlib.blake2b("\n".join(paragraphs).encode(), digest_size=16).digest()


def _paragraph_key(text: str) -> bytes:
    # Personalised, so that the key of a document of one paragraph differs from that of its paragraph.
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"paragraph").digest()


def batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents into batches of about a megabyte."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document[1]))
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def sentences(language: str, paragraph: str) -> list[str]:
    """The sentences of a paragraph, stripped; the whole paragraph if the splitter fails."""
    try:
        return [text.strip() for text in segment(language, _INITIAL.sub(r"\1 ", paragraph))]
    except BaseException as error:  # a panic in Rust is no Exception, and cannot be sent back from a worker process
        if type(error).__name__ != "PanicException":
            raise
        return [paragraph]


class Encoder:
    """Splits batches of documents into sentences and encodes them."""

    def __init__(self, tokenizer: Path, language: str | None) -> None:
        """Without a ``language`` each paragraph is one unit, as it is written."""
        self._words = WordEncoder(load_tokenizer(str(tokenizer), role=None))
        self._language = language

    def __call__(self, documents: list[Document]) -> Encoded:
        """Encode one batch."""
        paragraphs = [paragraph for _, document in documents for paragraph in document]
        language = self._language
        split = [[text] if language is None else sentences(language, text) for text in paragraphs]
        texts = [sentence for sentences in split for sentence in sentences]
        if self._words.space_matters:
            # Without a space the first word of a sentence would continue the sentence before.
            begin = np.cumsum([0, *(len(document) for _, document in documents)])[:-1]
            first = {*np.cumsum([0, *map(len, split)])[begin].tolist()}
            texts = [f" {text}" if text and at not in first else text for at, text in enumerate(texts)]
        pieces = self._words.encode_bytes(texts)
        lengths = np.array([len(sentence) for sentence in pieces], np.int64) // self._words.dtype.itemsize
        ids = np.frombuffer(b"".join(pieces), self._words.dtype)
        # A sentence of control characters only has no tokens.
        empty = np.concatenate([[0], np.cumsum(lengths == 0)])
        ends = np.cumsum([0, *map(len, split)])
        return Encoded(
            np.array([corpus for corpus, _ in documents]),
            np.array([len(document) for _, document in documents]),
            np.diff(ends) - np.diff(empty[ends]),
            lengths[lengths > 0],
            ids,
            [document_key(document) for _, document in documents],
            [_paragraph_key(text) if len(text) >= MIN_REPEATED else None for text in paragraphs],
            sum(map(len, paragraphs)),
            self._words.unknown_characters(texts, ids, lengths),
        )


def encode_batches(
    batches: Iterable[list[Document]], tokenizer: Path, language: str | None, workers: int
) -> Iterator[Encoded]:
    """Encode batches in order; the result does not depend on the number of processes."""
    batches = iter(batches)
    first = list(islice(batches, 2))
    batches = chain(first, batches)
    if workers == 1 or len(first) < 2:
        yield from map(Encoder(tokenizer, language), batches)
        return
    # The tokenizers library warns in each forked process otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with pool(workers, _start, tokenizer, language) as processes:
        waiting: deque[Future[Encoded]] = deque()
        try:
            for batch in batches:
                waiting.append(processes.submit(_encode, batch))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            processes.shutdown(cancel_futures=True)


_encoder: Encoder | None = None  # of a worker process


def _start(tokenizer: Path, language: str | None) -> None:
    global _encoder
    _encoder = Encoder(tokenizer, language)


def _encode(documents: list[Document]) -> Encoded:
    assert _encoder is not None
    return _encoder(documents)

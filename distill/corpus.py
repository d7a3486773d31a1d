"""One part of a prepared corpus as what the methods read: examples of which nothing is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch, pack
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.objectives import bert
from pretrain.pairs import full_segments, next_sentence_pairs


@dataclass(frozen=True)
class Part:
    """Training or held-out text."""

    tokens: Any
    """:class:`bertillery.data.prepared.TokenArrays`, or the like."""
    unigrams: np.ndarray
    """(V,) int64: how often each token occurs in the training text."""


def unmasked(examples: FlatExamples) -> PackedBatch:
    """The packed batch of examples as they are."""
    return pack(examples.input_ids, examples.token_type_ids, examples.lengths, targets={}, counts={})


def unmasked_pairs(
    part: Part, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """BERT's sentence pairs (:func:`pretrain.pairs.next_sentence_pairs`); ``ConfigError`` where it raises one."""
    bert.check_corpus(part.tokens, remedy="take a method that reads no pairs: objective.type=minilm or distilbert")
    return DocumentSource(
        part.tokens,
        tokenizer,
        seed=seed,
        draw=partial(next_sentence_pairs, sequence_length=sequence_length, short_probability=0.1),
        finish=unmasked,
    )


def unmasked_segments(
    part: Part, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Segments of whole sentences (:func:`pretrain.pairs.full_segments`)."""
    return DocumentSource(
        part.tokens,
        tokenizer,
        seed=seed,
        draw=partial(full_segments, sequence_length=sequence_length),
        finish=unmasked,
        num_texts=1,
    )

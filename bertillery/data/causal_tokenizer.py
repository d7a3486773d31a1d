"""Tokenizers of causal language models: byte-level BPE as in GPT-2, and characters.

Both have an end-of-text token, which also begins a text and pads a batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertillery.data.tokenizer import TokenizerSection, too_few_pieces
from bertillery.models.load import vocabulary_size

END_OF_TEXT = "<|endoftext|>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Pieces that stand for a byte of a character that a vocabulary of characters lacks."""


def train_byte_bpe(texts: Sequence[str], section: TokenizerSection) -> PreTrainedTokenizerBase:
    """Train GPT-2's tokenizer: merges of bytes within words, which keep the space before them (Radford et al. 2019,
    section 2.2). All 256 bytes are pieces, so that every text is read back exactly.

    The same texts in any order give the same vocabulary. Raises ``ConfigError`` when the texts do not support a
    vocabulary of the size asked for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(ByteLevel.alphabet()),  # without it, bytes that the texts lack would be dropped
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    if len(model["vocab"]) < section.vocab_size:
        raise too_few_pieces(section, len(model["vocab"]))
    merges = [tuple(merge) for merge in model["merges"]]
    return GPT2Tokenizer(vocab=model["vocab"], merges=cast(Any, merges), pad_token=END_OF_TEXT)


def train_characters(texts: Sequence[str], section: TokenizerSection) -> PreTrainedTokenizerBase:
    """A vocabulary of the characters of the texts, the most frequent ones where it has no room for all, and of the 256
    bytes, to which other characters are taken apart, so that every text is read back exactly."""
    counts = np.zeros(0x110000, np.int64)
    for start in range(0, len(texts), 1000):
        text = "".join(texts[start : start + 1000])
        counts += np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32), minlength=len(counts))
    found = sorted(np.flatnonzero(counts).tolist(), key=lambda point: (-counts[point], point))
    kept = sorted(found[: section.vocab_size - 1 - len(_BYTES)])
    vocabulary = {piece: number for number, piece in enumerate([END_OF_TEXT, *_BYTES, *map(chr, kept)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def piece_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """How many bytes of UTF-8 each token stands for, int64 (V,), special tokens none; ``None`` for a tokenizer whose
    pieces do not add up to the text, as where some of it becomes an unknown token of no known length."""
    parts = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    pieces = cast(list[str | None], tokenizer.convert_ids_to_tokens([*range(vocabulary_size(tokenizer))]))
    special, decoder = set(tokenizer.all_special_tokens), parts["decoder"] or {}
    if decoder.get("type") == "ByteLevel":
        sizes = [len(piece or "") for piece in pieces]  # a character of such a piece stands for a byte
    elif [step["type"] for step in decoder.get("decoders", [])] == ["ByteFallback", "Fuse"]:
        sizes = [1 if piece in _BYTES else len((piece or "").encode()) for piece in pieces]
    else:
        return None
    return np.array([0 if piece in special else size for piece, size in zip(pieces, sizes, strict=True)], np.int64)

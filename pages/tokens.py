"""A text as a model reads it, and its tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bertillery.config.section import InputError
from bertillery.engine.batch import Entities, Stream, pack_stream
from bertillery.models.encoders import longest_sequence


@dataclass(frozen=True)
class Read:
    """One sequence."""

    ids: list[int]
    types: list[int]
    """0 for the first text, 1 for the second."""
    special: list[bool]
    """Whether a token is of the frame."""
    tokens: list[str]
    entities: list[int] | None = None
    """For each token 0, or the row of the entity that is shown to the model there."""

    @property
    def stream(self) -> Stream:
        """As a batch of this sequence alone."""
        found = repeated(self.ids, self.types, 1)
        if self.entities is None:
            return found
        return replace(found, beside=Entities.aligned(np.array(self.entities, np.int64), np.array([len(self.ids)])))


def repeated(ids: Sequence[int], types: Sequence[int], times: int) -> Stream:
    """A batch of copies of a sequence."""
    flat = np.tile(np.array(ids, np.int64), times)
    return pack_stream(flat, np.full(times, len(ids)), np.tile(np.array(types, np.int64), times))


def read(tokenizer: Any, config: Any, text: str, pair: str | None, *, begin: int | None = None) -> Read:
    """Text, and a second one, in the tokenizer's frame, or behind the token ``begin`` without a frame.

    Raises ``InputError`` for a text without tokens, and for one that is longer than the model reads.
    """
    for key, each in (("text", text), ("pair", pair or "")):
        if not each.isascii() and any("\ud800" <= character <= "\udfff" for character in each):
            raise InputError(f"{key}: {each!r} holds bytes that are no UTF-8; give text")
    if begin is not None:
        ids = [begin, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        types, special = [0] * len(ids), [True] + [False] * (len(ids) - 1)
    else:
        found = tokenizer(text, pair, return_token_type_ids=True, return_special_tokens_mask=True)
        ids, types = [*found["input_ids"]], [*found["token_type_ids"]]
        special = [bool(each) for each in found["special_tokens_mask"]]
    most = longest_sequence(config)
    if len(ids) > most:
        raise InputError(f"text: it has {len(ids):,} tokens, and the model reads {most:,} at most; give a shorter one")
    if all(special):
        raise InputError(f"text: {text!r} has no token for this model; give a text with words")
    return Read(ids, types, special, [shown(tokenizer, each) for each in ids])


def shown(tokenizer: Any, token: int) -> str:
    """A token as text; its bytes may be half a character, then the piece as it is in the vocabulary."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False)).strip()
    return text if text and "�" not in text else str(tokenizer.convert_ids_to_tokens(token))

"""One vocabulary for source and target, trained on the sentences of both, or one for each of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field, model_validator
from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Count
from bertillery.data import unigram
from bertillery.data.tokenizer import TokenizerSection, too_few_pieces
from bertillery.models.folder import file_of
from bertillery.models.frame import text_backend
from bertillery.models.load import check_vocabulary, load_tokenizer

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""Special tokens, at ids 0, 1 and 2. The decoder starts with the first; every source and every target ends with the
second. Bytes have no unknown characters, and so no third token."""
TARGET = "target"
"""Folder of the target's own vocabulary, within that of the source's."""
_IN_BYTES = 0.5
"""Share of pieces that are less than a character at which a byte-level tokenizer is refused: it has hardly seen the
alphabet."""
_UNREADABLE = 0.001
"""Share of unknown pieces at which a tokenizer is refused: texts of its own languages have one in some thousand."""


class VocabularySection(Section):
    """The pieces that source and target are made of."""

    type: Literal["bpe", "unigram"] = "bpe"
    """What is trained: byte-level BPE, which reads back every text exactly, or Unigram (SentencePiece)."""
    path: str | None = None
    """Directory or Hub name of an existing tokenizer, with an end-of-sequence and a padding token; none is trained
    then. One in the folder ``target`` within it is the target's."""
    vocab_size: int = Field(default=10_000, ge=258, le=10**7)
    """Pieces of a trained vocabulary, special tokens included."""
    separate: bool = False
    """Train a vocabulary of its own for each side, of this size each: for languages that share no words. An export has
    the target's in the folder ``target``."""
    min_frequency: Count = 2
    """How often two pieces must meet before they are merged (bpe), or a piece must occur (unigram)."""

    @model_validator(mode="after")
    def _trains_or_opens(self) -> VocabularySection:
        if self.separate and self.path is not None:
            raise ValueError(
                f"separate: the directory {self.path} says whether there are two vocabularies (by a folder "
                f"{TARGET}); leave this key out"
            )
        return self


def train_vocabulary(texts: Sequence[str], section: VocabularySection) -> PreTrainedTokenizerBase:
    """A tokenizer that ends each text with the end-of-sequence token; the same texts give the same one.

    Raises ``ConfigError`` if the texts do not support a vocabulary of this size.
    """
    if section.type == "unigram":
        return _framed(_unigram(texts, section), unknown=True)
    tokenizer = Tokenizer(models.BPE())
    # A sentence's first word is the same piece as in its middle; the space before it is taken off again.
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=section.min_frequency,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < section.vocab_size:
        raise too_few_pieces(_asked(section), tokenizer.get_vocab_size())
    return _framed(tokenizer, unknown=False)


def _asked(section: VocabularySection, extra: int = 0) -> TokenizerSection:
    size = section.vocab_size + extra
    return TokenizerSection(
        type="unigram", vocab_size=size, lowercase=False, min_frequency=section.min_frequency, sample_bytes=10**12
    )


def _unigram(texts: Sequence[str], section: VocabularySection) -> Tokenizer:
    """The pieces that ALBERT's trainer finds, without the two special tokens more that it has."""
    trained: Any = unigram.train_unigram(texts, _asked(section, len(unigram.SPECIALS) - 3))
    parts = json.loads(trained.backend_tokenizer.to_str())
    scored = parts["model"]["vocab"][len(unigram.SPECIALS) :]
    parts["model"] |= {"vocab": [[token, 0.0] for token in (PAD, END, UNKNOWN)] + scored, "unk_id": 2}
    parts |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(parts))


def _framed(tokenizer: Tokenizer, *, unknown: bool) -> PreTrainedTokenizerBase:
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        **({"unk_token": UNKNOWN} if unknown else {}),
        clean_up_tokenization_spaces=False,
    )
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, made.eos_token_id)]
    )
    return made


def open_target(start: str, tokenizer: PreTrainedTokenizerBase, key: str) -> PreTrainedTokenizerBase | None:
    """The target's own vocabulary beside the source's ``tokenizer``, both of ``start``, which the setting ``key``
    names; None where there is one for both. ``ConfigError`` where the two begin and end texts differently."""
    files = [file_of(start, f"{TARGET}/{name}") for name in ("tokenizer.json", "tokenizer_config.json")]
    if files[0] is None:
        return None
    found = load_tokenizer(str(files[0].parent), key, role="encoder-decoder")
    ids = [(each.pad_token_id, each.eos_token_id) for each in (tokenizer, found)]
    if ids[0] != ids[1]:
        raise ConfigError(
            f"{key}: the padding and the end-of-sequence token have the numbers {ids[0]} in {start} and {ids[1]} in "
            f"its folder {TARGET}; a model has one number for each: give two vocabularies that agree"
        )
    return found


def check_vocabularies(
    tokenizer: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase | None,
    config: PreTrainedConfig,
    start: str,
    key: str,
) -> None:
    """``ConfigError`` unless the vocabularies in ``start``, given as ``key``, are those of the model there."""
    check_vocabulary(tokenizer, config, start, key)
    shared = getattr(config, "share_encoder_decoder_embeddings", True)
    if shared != (target is None):
        has, lacks = ("one vocabulary for both sides", "a") if shared else ("two vocabularies", "no")
        raise ConfigError(
            f"{key}: the model in {start} has {has} (share_encoder_decoder_embeddings in its config.json), and there "
            f"is {lacks} folder {TARGET} with a tokenizer; give a whole export"
        )
    if target is not None:
        check_vocabulary(target, config, f"{start}/{TARGET}", key, size="decoder_vocab_size")


def check_alphabet(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str, key: str) -> None:
    """``ConfigError`` where the tokenizer that the setting ``key`` names cannot read the texts (``what``): one piece in
    a thousand is unknown to it or, if its pieces are bytes, every second one is less than a character."""
    found = text_backend(tokenizer).encode_batch_fast(list(texts[:2000]), add_special_tokens=False)
    pieces = Counter(number for encoding in found for number in encoding.ids)
    unknown, decode = cast(int | None, tokenizer.unk_token_id), cast(Any, tokenizer).decode
    if unknown is None:
        lost, allowed = sum(count for piece, count in pieces.items() if "\ufffd" in decode([piece])), _IN_BYTES
    else:
        lost, allowed = pieces[unknown], _UNREADABLE
    share = lost / max(1, pieces.total())
    if share < allowed:
        return
    known = {sign for piece in tokenizer.get_vocab().values() for sign in decode([piece])}
    strange = sorted({sign for text in texts[:2000] for sign in text if not sign.isspace()} - known)[:10]
    instead = "leave the key out" if key == "tokenizer.path" else "take a configuration (configs/translation) as model"
    how = "unknown to this tokenizer" if unknown is not None else "parts of characters to this tokenizer"
    raise ConfigError(
        f"{key}: {share:.1%} of the pieces of {what} are {how} (it lacks {' '.join(strange)}); give one that was "
        f"trained on this language, or {instead} to train one"
    )

"""A trained translation model and its tokenizer, opened for use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.engine.batch import pack_stream
from bertillery.engine.loader import shares
from bertillery.models.encoders import longest_sequence
from bertillery.models.frame import text_backend
from bertillery.models.load import load_encoder_decoder, load_tokenizer, read_config
from bertillery.models.seq2seq import EncoderDecoder, encoder_decoder
from translation.search import DecodeSection, Hypothesis, search
from translation.vocabulary import check_vocabularies, open_target


@dataclass(frozen=True)
class TranslationModel:
    """An encoder-decoder in evaluation mode."""

    start: str
    """Directory or Hub id."""
    model: Any
    tokenizer: PreTrainedTokenizerBase
    target_tokenizer: PreTrainedTokenizerBase
    """The same one, unless the target has a vocabulary of its own."""
    network: EncoderDecoder
    positions: int
    """The most tokens of a source, the end-of-sequence token included, and of a translation."""

    @classmethod
    def open(cls, start: str) -> TranslationModel:
        """Load from a directory or the Hub; ``ConfigError`` for a model that does not translate, and for a tokenizer of
        another vocabulary."""
        config = read_config(start, roles=("encoder-decoder",))
        tokenizer = load_tokenizer(start, "model", role="encoder-decoder")
        target = open_target(start, tokenizer, "model")
        check_vocabularies(tokenizer, target, config, start, "model")
        model = load_encoder_decoder(start, {}).eval()
        return cls(start, model, tokenizer, target or tokenizer, encoder_decoder(model), longest_sequence(config))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text with the end-of-sequence token; ``InputError`` that names the first text that is too
        long."""
        end: Any = self.tokenizer.eos_token_id
        found = text_backend(self.tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)
        sources = [[*encoding.ids, end] for encoding in found]
        for number, ids in enumerate(sources, 1):
            if len(ids) > self.positions:
                raise InputError(
                    f"text {number} has {len(ids):,} tokens, and {self.start} reads {self.positions:,} at most; give "
                    "single sentences"
                )
        return sources

    def search_settings(self, given: DecodeSection) -> DecodeSection:
        """The keys that were given, over the model's own settings, with which its run searched."""
        return given.over(self.model.generation_config)

    def translate(
        self, texts: Sequence[str], section: DecodeSection, *, n_best: int = 1, batch_tokens: int = 4096
    ) -> list[list[tuple[str, Hypothesis]]]:
        """The best translations of each text, best first, computed in batches of similar length."""
        sources, found = self.encode(texts), [[]] * len(texts)
        for part, hypotheses in self._searched(sources, section.within(self.positions), n_best, batch_tokens):
            for number, each in zip(part, hypotheses, strict=True):
                found[number] = [(self._text(one.ids), one) for one in each]
        return found

    def _searched(
        self, sources: Sequence[list[int]], section: DecodeSection, n_best: int, batch_tokens: int
    ) -> Iterator[tuple[list[int], list[list[Hypothesis]]]]:
        config = self.model.config
        for part in shares(np.array([len(ids) for ids in sources]), batch_tokens, 1, 0) if sources else []:
            lengths = np.array([len(sources[number]) for number in part])
            stream = pack_stream(np.concatenate([sources[number] for number in part]), lengths)
            ends = {"start": config.decoder_start_token_id, "end": config.eos_token_id}
            yield part.tolist(), search(self.network, stream, section, n_best=n_best, **ends)

    def _text(self, ids: Sequence[int]) -> str:
        tokenizer: Any = self.target_tokenizer
        return str(tokenizer.decode([*ids], skip_special_tokens=True))

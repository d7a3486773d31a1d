"""A causal language model and its tokenizer, opened for use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from bertillery.config.section import InputError
from bertillery.models.encoders import longest_sequence
from bertillery.models.layers.attention import NAME as PACKED
from bertillery.models.load import check_vocabulary, load, load_tokenizer


@dataclass(frozen=True)
class CausalModel:
    """A stock causal language model in evaluation mode, with the packed attention."""

    start: str
    """Directory or Hub id."""
    model: Any
    tokenizer: Any
    positions: int
    """The most tokens that it can read."""
    end: int
    """Id of the end-of-text token, which also begins a text."""

    @classmethod
    def open(cls, start: str) -> CausalModel:
        """Load from a directory or the Hub; ``InputError`` for an encoder, for weights without a language model
        head, and for a tokenizer without an end-of-text token or of another vocabulary."""
        model, report = load(AutoModelForCausalLM, start, roles=("decoder",))
        if report.fresh:
            raise InputError(f"model: {start} has no language model head ({report}); give a pretrained causal model")
        tokenizer = load_tokenizer(start, "model", role="decoder")
        check_vocabulary(tokenizer, model.config, start, "model")
        end: Any = tokenizer.eos_token_id
        return cls(start, model, tokenizer, longest_sequence(model.config), int(end))

    @property
    def name(self) -> str:
        """A short name for folders and pictures, from the path."""
        parts = [part for part in Path(self.start).parts if part not in ("export", "/", ".", "..")]
        return parts[-1] if parts else "model"

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens around it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # lengths are checked here

    @contextmanager
    def stock_attention(self) -> Iterator[None]:
        """Attention that keeps keys and values, as generation needs it, in place of the packed one."""
        self.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(PACKED)

    def check_fits(self, sizes: Sequence[int], new: int) -> None:
        """``InputError`` that names the first of the prompts, of these numbers of tokens, that is too long for ``new``
        more."""
        for number, size in enumerate(sizes, 1):
            if size + new > self.positions:
                raise InputError(
                    f"prompt {number} has {size} tokens, and with max_new_tokens={new} that is more than the "
                    f"{self.positions} positions of {self.start}; shorten it, or give fewer new tokens"
                )

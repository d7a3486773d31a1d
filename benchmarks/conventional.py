"""The baseline: one training step as the official example scripts make it, from stock parts only.

Examples padded to the maximum, ``DataCollatorForLanguageModeling``, SDPA attention, the vocabulary head on every
position with -100 for what is not predicted, torch's plain AdamW, gradients clipped to 1.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from pretrain.examples import FlatExamples

Example = dict[str, Any]


class Conventional:
    """Model, collator and optimizer; ``step`` is everything from a list of examples to the updated weights."""

    def __init__(
        self, config: BertConfig, tokenizer: PreTrainedTokenizerBase, *, pairs: bool, bf16: bool, learning_rate: float
    ) -> None:
        self.model = stock_model(config, pairs=pairs).train()
        self.collator = DataCollatorForLanguageModeling(cast(Any, tokenizer), mlm_probability=0.15)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=0.01)
        self.bf16 = bf16

    def step(self, examples: list[Example]) -> None:
        """Collate, forward, backward, clip, update."""
        inputs = self.collator(examples)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def stock_model(config: BertConfig, *, pairs: bool) -> nn.Module:
    """The library's class for the task, with the library's attention."""
    config = BertConfig(**{**config.to_dict(), "attn_implementation": "sdpa"})
    return BertForPreTraining(config) if pairs else BertForMaskedLM(config)


def padded_examples(flat: FlatExamples, sequence_length: int, pad_id: int, *, pairs: bool) -> list[Example]:
    """What a tokenized data set of the example scripts holds, padded to the maximum: one dictionary of lists each."""
    examples = []
    ends = np.cumsum(flat.lengths)
    for end, length, label in zip(ends, flat.lengths, flat.labels, strict=True):
        rows, missing = slice(end - length, end), sequence_length - int(length)
        example: Example = {
            "input_ids": [*flat.input_ids[rows].tolist(), *[pad_id] * missing],
            "token_type_ids": [*flat.token_type_ids[rows].tolist(), *[0] * missing],
            "attention_mask": [1] * int(length) + [0] * missing,
            "special_tokens_mask": [*flat.special[rows].astype(int).tolist(), *[1] * missing],
        }
        examples.append(example | ({"next_sentence_label": int(label)} if pairs else {}))
    return examples


def pad(values: Tensor, lengths: list[int], sequence_length: int, fill: int) -> Tensor:
    """A flat (T,) tensor as rows (B, sequence_length)."""
    padded = values.new_full((len(lengths), sequence_length), fill)
    for row, part in zip(padded, values.split(lengths), strict=True):
        row[: len(part)] = part
    return padded

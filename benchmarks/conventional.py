"""The baseline: one training step as the official example scripts make it, from stock parts only.

Examples padded to the maximum, ``DataCollatorForLanguageModeling``, SDPA attention, the vocabulary head on every
position with -100 for what is not predicted, torch's plain AdamW, gradients clipped to 1, dropout 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AlbertForPreTraining,
    BertForMaskedLM,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from benchmarks.material import Material
from benchmarks.turns import Step
from benchmarks.workload import LEARNING_RATE, SEED, Workload
from pretrain.examples import FlatExamples
from pretrain.objectives import albert
from pretrain.objectives.mlm import bert_config

DROPOUT = 0.1
Example = dict[str, Any]
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Baseline:
    """What the baselines do not have in common."""

    trained: nn.Module
    examples: Callable[[np.ndarray], list[Example]]
    """Rows to what a tokenized data set of the script holds."""
    collate: Callable[[list[Example]], Any]
    loss: Callable[[Inputs], Tensor]


def step(
    make: Callable[[Workload, Material, Any], Baseline],
    *given: Any,
    bf16: bool,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (a constant)
) -> Step:
    """Everything from a list of examples to the updated weights; ``given`` are workload, material and source."""
    torch.manual_seed(SEED)
    baseline = make(*given)
    trained = baseline.trained.train().to(device)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)

    def prepare(rows: np.ndarray) -> Callable[[], int]:
        examples = baseline.examples(rows)

        def step() -> int:
            inputs = baseline.collate(examples)
            tokens = int(inputs["attention_mask"].sum())
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = baseline.loss({name: value.to(device) for name, value in inputs.items()})
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return tokens

        return step

    return prepare


def stock(config: Any, attention: str = "sdpa") -> Any:
    """A configuration with the library's attention and its usual GELU, which a CPU computes faster than the tanh form
    of the original."""
    return type(config)(**{**config.to_dict(), "attn_implementation": attention, "hidden_act": "gelu"})


def language_model(workload: Workload, material: Material, source: Any) -> Baseline:
    """``run_mlm``, and the same with BERT's or ALBERT's pairs. ALBERT's n-grams are ours alone: the stock collator
    masks single tokens."""
    tokenizer = material.tokenizer
    bert = stock(bert_config(workload.model(DROPOUT), tokenizer))
    if workload.learns == "albert":
        config = albert.albert_config(albert.Config(), workload.model(DROPOUT), tokenizer)
        model, label = AlbertForPreTraining(stock(config)), "sentence_order_label"
    else:
        pairs = workload.learns == "bert"
        model, label = (BertForPreTraining(bert), "next_sentence_label") if pairs else (BertForMaskedLM(bert), None)
    return Baseline(
        model,
        lambda rows: listed(source.lay_out(rows), tokenizer, pad_to=workload.sequence_length, label=label),
        masking(tokenizer),
        lambda inputs: model(**inputs).loss,
    )


def masking(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForLanguageModeling:
    """The stock collator, 15 % masked."""
    return DataCollatorForLanguageModeling(cast(Any, tokenizer), mlm_probability=0.15)


def listed(
    flat: FlatExamples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_to: int | None = None,
    label: str | None = None,
    special: bool = True,
) -> list[Example]:
    """One dictionary of lists each, as ``datasets`` returns them: padded to ``pad_to``, or left to the collator.

    ``label`` names the column of the labels, ``special`` adds the column that the masking collator reads.
    """
    pad_id = cast(int, tokenizer.pad_token_id)
    found = []
    ends = np.cumsum(flat.lengths)
    for end, length, value in zip(ends, flat.lengths, flat.labels, strict=True):
        rows, missing = slice(end - length, end), (pad_to or int(length)) - int(length)
        example: Example = {
            "input_ids": [*flat.input_ids[rows].tolist(), *[pad_id] * missing],
            "token_type_ids": [*flat.token_type_ids[rows].tolist(), *[0] * missing],
            "attention_mask": [1] * int(length) + [0] * missing,
        }
        if special:
            example["special_tokens_mask"] = [*flat.special[rows].astype(int).tolist(), *[1] * missing]
        if label:
            example[label] = int(value)
        found.append(example)
    return found

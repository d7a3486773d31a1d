"""``python -m prompting.generate model=<directory> prompt="Once upon a time"``: continues texts with a causal model.

By default it samples from the 40 most probable tokens at temperature 0.8; ``temperature=0`` is greedy. Prompts are
batched, with padding on the left, and each continuation is what the prompt alone would give, up to the random draws.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bertillery.config.section import Section
from bertillery.config.types import Count, Probability, Runs, Seed, Texts
from bertillery.run.command import given_texts, quoted, tool
from bertillery.system.files import write_text
from bertillery.system.printable import printable
from prompting.model import CausalModel


class GenerateSection(Section):
    """Keys of generation."""

    model: str
    """Directory or Hub id of a causal language model."""
    prompt: Texts = Field(default=[])
    """Texts to continue; by default the environment variable PROMPT, which `make generate PROMPT=...` sets. An empty
    text begins a document."""
    file: Path | None = None
    """Prompts from a file, one a line."""
    max_new_tokens: Count = 64
    """Tokens to add at most; the end-of-text token ends a continuation."""
    temperature: float = Field(default=0.8, ge=0, le=100)
    """Divides the logits; 0 takes the most probable token always."""
    top_k: int = Field(default=40, ge=0, le=10**7)
    """Sample from so many most probable tokens; 0 from all."""
    top_p: Probability = 1.0
    """Then from the fewest of these whose probabilities reach this sum. GPT-2's own code stops one token before."""
    samples: Runs = 1
    """Continuations of each prompt."""
    seed: Seed = 12345
    """Of the random draws."""
    batch_size: Count = 16
    """Prompts that run together."""
    output: Path | None = None
    """A jsonl file for prompts and continuations, which are printed in any case."""


def main(arguments: Sequence[str]) -> int:
    """Generate and print; returns the exit status. A prompt is text, whatever YAML would make of it."""
    arguments = quoted(arguments, "prompt")
    return tool(arguments, help=__doc__, schema=GenerateSection, action=_run)


def _run(section: GenerateSection) -> int:
    prompts = given_texts(section.prompt, section.file, key="prompt", what="a prompt")
    causal, rows = CausalModel.open(section.model), []
    causal.check_fits([len(causal.ids(prompt)) + 1 for prompt in prompts], section.max_new_tokens)
    torch.manual_seed(section.seed)
    for prompt, found in generate(causal, prompts, section):
        rows.append({"prompt": prompt, "continuations": found})
        for text in found:
            print(f"{printable(prompt)}|{printable(text)}\n", flush=True)
    if section.output is not None:
        write_text(section.output, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
        print(f"continuations  {section.output}")
    return 0


def generate(causal: CausalModel, prompts: Sequence[str], section: GenerateSection) -> Iterator[tuple[str, list[str]]]:
    """Each prompt with its continuations, by transformers' own ``generate``."""
    sequences = [[causal.end, *causal.ids(prompt)] for prompt in prompts]
    yield from zip(prompts, continuations(causal, sequences, section), strict=True)


def continuations(
    causal: CausalModel, sequences: Sequence[Sequence[int]], section: GenerateSection
) -> Iterator[list[str]]:
    """The continuations of each sequence of tokens, in batches of sequences that follow each other."""
    how: dict[str, Any] = {"do_sample": section.temperature > 0}
    if how["do_sample"]:
        how |= {"temperature": section.temperature, "top_k": section.top_k or None, "top_p": section.top_p}
    for start in range(0, len(sequences), section.batch_size):
        batch = sequences[start : start + section.batch_size]
        ids, mask = left_padded(batch, causal.end)
        with torch.inference_mode(), causal.stock_attention():
            found = causal.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=section.max_new_tokens,
                num_return_sequences=section.samples,
                eos_token_id=causal.end,
                pad_token_id=causal.end,
                **how,
            )
        texts = causal.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
        for number in range(len(batch)):
            yield texts[number * section.samples : (number + 1) * section.samples]


def left_padded(sequences: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, longest) with padding before each sequence: the next token follows the last column of all.

    ``generate`` counts positions from the mask; the plain forward pass of GPT-2 does not (:func:`positions`).
    """
    longest = max(map(len, sequences))
    ids = torch.tensor([[padding] * (longest - len(one)) + [*one] for one in sequences])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in sequences])
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Position of each token, from 0 at the first that the mask (B, T) shows."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

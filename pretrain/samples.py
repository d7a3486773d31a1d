"""Samples of a trained model: guesses for masked tokens, continuations of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from bertillery.data.prepared import TokenArrays
from bertillery.models.encoders import longest_sequence
from bertillery.models.export import warnings_of_transformers
from bertillery.system.printable import printable

_SENTENCES = [
    "The function returns a [MASK] of strings.",
    "If the file does not [MASK], an error is raised.",
    "The default [MASK] is None.",
    "This method must be [MASK] before training.",
]
_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 3, 12, 24
_TOP_K = 40


def fill_masks(export: Path) -> list[dict[str, str]]:
    """The exported model's three best guesses for [MASK] in a few sentences, through transformers' own pipeline."""
    with warnings_of_transformers():  # the pipeline's model does not use the pooler and says so
        fill: Any = pipeline("fill-mask", model=str(export), device="cpu", top_k=3, trust_remote_code=False)
    rows = []
    with torch.no_grad():
        for sentence in _SENTENCES:
            guesses = fill(sentence.replace("[MASK]", fill.tokenizer.mask_token))
            names = ("best", "second", "third")
            shown = {n: f"{each['token_str']} ({each['score']:.0%})" for n, each in zip(names, guesses, strict=True)}
            rows.append({"sentence": sentence, **shown})
    return rows


def show_guesses(rows: Sequence[Mapping[str, str]]) -> str:
    """Sentences with the guesses for their masked token, as lines of text."""
    lines = []
    for row in rows:
        sentence, *guesses = row.values()
        lines += [f"  {printable(sentence)}", f"    {', '.join(map(printable, guesses))}"]
    return "\n".join(lines)


def continue_texts(export: Path, held_out: TokenArrays, *, seed: int) -> list[dict[str, str]]:
    """The beginnings of some held-out documents, and how the exported model continues each: ``greedy``, and
    ``sampled`` from its 40 most probable tokens at temperature 0.8, through transformers' own ``generate``."""
    with warnings_of_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(export, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=False).eval()
    starts = np.asarray(held_out.sentences)[np.asarray(held_out.documents[: _PROMPTS + 1])]
    room = longest_sequence(model.config) - 1
    size, new = min(_PROMPT_TOKENS, room // 2), min(_NEW_TOKENS, room // 2)
    rows = []
    for number, (begin, end) in enumerate(pairwise(starts)):
        prompt = np.append(tokenizer.eos_token_id, held_out.ids[begin : min(begin + size, end)]).astype(np.int64)
        ids = torch.from_numpy(prompt)[None]
        row = {"prompt": str(tokenizer.decode(prompt[1:]))}
        for name, how in (("greedy", {}), ("sampled", {"do_sample": True, "top_k": _TOP_K, "temperature": 0.8})):
            torch.manual_seed(seed + number)
            with warnings_of_transformers(), torch.no_grad():
                found = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **{"do_sample": False} | how
                )
            row[name] = str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
        rows.append(row)
    return rows


def show_samples(rows: Sequence[Mapping[str, str]]) -> str:
    """Prompts with their continuations, as lines of text."""
    lines = []
    for row in rows:
        lines += [f"  {printable(row['prompt'])}", f"    greedy   {printable(row['greedy'])}"]
        lines += [f"    sampled  {printable(row['sampled'])}"]
    return "\n".join(lines)

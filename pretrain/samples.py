"""Samples of a trained model on held-out text: guesses for hidden words, continuations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from bertillery.config.section import ConfigError
from bertillery.data.prepared import TokenArrays
from bertillery.data.tokenizer import starts_of_words
from bertillery.models.encoders import longest_sequence
from bertillery.models.export import warnings_of_transformers
from bertillery.models.frame import template
from bertillery.models.load import vocabulary_size
from bertillery.system.printable import printable

_SENTENCES, _SHORTEST, _LONGEST = 4, 6, 32
"""How many held-out sentences are shown, the tokens of the shortest, and the most that are shown of one."""
_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 3, 12, 24
_TOP_K = 40


def fill_masks(export: Path, held_out: TokenArrays) -> list[dict[str, str]]:
    """The exported model's three best guesses for a hidden word, in a sentence of each of the first held-out documents.

    A sentence has at least 6 tokens, of which the first 32 are shown. The word is the token nearest to their middle
    that is a whole word of letters, or any token of letters if the tokenizer does not mark where words begin. Without
    such a sentence there are none.
    """
    with warnings_of_transformers():  # the model does not use the pooler and says so
        tokenizer: Any = AutoTokenizer.from_pretrained(export, trust_remote_code=False)
        model: Any = AutoModelForMaskedLM.from_pretrained(export, trust_remote_code=False).eval()
    frame, opens = template(tokenizer, 1), np.ones(vocabulary_size(tokenizer), dtype=bool)
    with suppress(ConfigError):
        opens = starts_of_words(tokenizer)
    longest = min(_LONGEST, frame.room(longest_sequence(model.config)))
    rows = []
    for ids, place in islice(_hidden_words(held_out, tokenizer, opens, longest), _SENTENCES):
        text = ids.copy()
        text[place] = tokenizer.mask_token_id
        sequence = np.concatenate((frame.parts[0], text, frame.parts[1])).astype(np.int64)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(sequence)[None]).logits[0, len(frame.parts[0]) + place]
        best = logits.softmax(-1).topk(3)
        guesses = [
            f"{tokenizer.decode([token]).strip()} ({share:.0%})"
            for share, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        shown = {"sentence": str(tokenizer.decode(text)), "hidden": tokenizer.decode(ids[[place]]).strip()}
        rows.append(shown | dict(zip(("best", "second", "third"), guesses, strict=True)))
    return rows


def _hidden_words(
    held_out: TokenArrays, tokenizer: Any, opens: np.ndarray, longest: int
) -> Iterator[tuple[np.ndarray, int]]:
    """A sentence (S,) of each document that has one, cut to ``longest`` tokens, and the place of the word to hide."""
    bounds = np.asarray(held_out.sentences)
    for first, behind in pairwise(np.asarray(held_out.documents).tolist()):
        for begin, end in pairwise(bounds[first : behind + 1].tolist()):
            ids = np.asarray(held_out.ids[begin : min(end, begin + longest)]).astype(np.int64)
            if len(ids) < _SHORTEST:
                continue
            whole = opens[ids] & np.append(opens[ids[1:]], True)
            words = [place for place in np.flatnonzero(whole) if tokenizer.decode(ids[[place]]).strip().isalpha()]
            if words:
                yield ids, int(min(words, key=lambda place: abs(2 * place - len(ids))))
                break


def show_guesses(rows: Sequence[Mapping[str, str]]) -> str:
    """Sentences with the word that is hidden and the guesses for it, as lines of text."""
    lines = []
    for row in rows:
        sentence, hidden, *guesses = map(printable, row.values())
        lines += [f"  {sentence}", f"    {', '.join(guesses)}; it is: {hidden}"]
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

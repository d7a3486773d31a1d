"""JoeyNMT's side of translation, where the package can be imported: its own model, loss, batches and search.

Its special tokens differ from ours: unknown, padding, begin and end are 0 to 3, so that pieces are moved up by two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from benchmarks.contest import Step
from benchmarks.conventional import DROPOUT
from benchmarks.workload import LEARNING_RATE, SEED
from translation.architecture import TransformerSection
from translation.examples import TranslationExamples
from translation.search import DecodeSection

INSTALLED = find_spec("joeynmt") is not None
_PAD, _BEGIN, _END, _MOVED = 1, 2, 3, 2


def _model(section: TransformerSection, tokenizer: PreTrainedTokenizerBase, dropout: float) -> Any:
    names = {"unk": "<unk>", "pad": "<pad>", "bos": "<s>", "eos": "</s>"}
    special: dict[str, Any] = {f"{key}_token": name for key, name in names.items()}
    special |= {f"{key}_id": number for number, key in enumerate(names)} | {"sep_token": None, "lang_tags": []}
    pieces = sorted(set(tokenizer.get_vocab()) - {*names.values()})
    vocabulary = import_module("joeynmt.vocabulary").Vocabulary(pieces, SimpleNamespace(**special))
    side = {
        "type": "transformer", "num_heads": section.num_attention_heads, "hidden_size": section.hidden_size,
        "ff_size": section.intermediate_size, "layer_norm": section.norm, "activation": "relu", "dropout": dropout,
        "embeddings": {"embedding_dim": section.hidden_size, "scale": True},
    }  # fmt: skip
    sides = {name: side | {"num_layers": getattr(section, f"{name}_layers")} for name in ("encoder", "decoder")}
    initial = dict.fromkeys(("initializer", "embed_initializer"), "xavier_uniform")
    tied = {"tied_embeddings": True, "tied_softmax": True}
    torch.manual_seed(SEED)
    model = import_module("joeynmt.model").build_model({**sides, **tied, **initial}, vocabulary, vocabulary)
    model.loss_function = ("crossentropy", 0.1)
    return model


def _batch(sources: Sequence[Tensor], targets: Sequence[Tensor] | None) -> Any:
    """Padded, as its collator pads."""
    pad = partial(pad_sequence, batch_first=True, padding_value=_PAD)
    lengths = torch.tensor([len(each) for each in sources])
    return import_module("joeynmt.batch").Batch(
        pad([*sources]), lengths, None, None if targets is None else pad([*targets]), None,
        torch.arange(len(sources)), torch.device("cpu"), _PAD, _END, is_train=targets is not None,
    )  # fmt: skip


def _moved(ids: Sequence[int]) -> list[int]:
    """Our ids of a sentence as its ids; the last one ends it."""
    return [*(number + _MOVED for number in ids[:-1]), _END]


def _sides(examples: TranslationExamples, rows: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
    def split(side: Any) -> list[list[int]]:
        ids, lengths = side.take(rows["index"])
        return [each.tolist() for each in np.split(ids, np.cumsum(lengths)[:-1])]

    sources = [torch.tensor(_moved(ids)) for ids in split(examples.source)]
    return sources, [torch.tensor([_BEGIN, *_moved(ids)]) for ids in split(examples.target)]


def step(section: TransformerSection, examples: TranslationExamples) -> Step:
    """A training step in float32; returns the number of target tokens."""
    return _step(_model(section, examples.tokenizer, DROPOUT), examples, lambda _: LEARNING_RATE)


def _step(model: Any, examples: TranslationExamples, learning_rate: Callable[[int], float]) -> Step:
    """What its ``TrainManager`` does."""
    optimizer = torch.optim.Adam(model.parameters())
    rates = map(learning_rate, itertools.count())

    def run(sides: tuple[list[Tensor], list[Tensor]]) -> int:
        batch = _batch(*sides)
        optimizer.param_groups[0]["lr"] = next(rates)
        model.train()
        batch.sort_by_src_length()
        loss, *_ = model(return_type="loss", **vars(batch))
        batch.normalize(loss, normalization="tokens").backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
        return batch.ntokens

    return lambda rows: partial(run, _sides(examples, rows))


def search(
    section: TransformerSection,
    examples: TranslationExamples,
    teach: Callable[[Callable[[Callable[[int], float]], Step]], None],
    decoding: DecodeSection,
    at_once: int,
) -> Step:
    """Its beam search on padded batches of ``at_once`` sentences, by a model that ``teach`` has trained by the step
    that it is given; an item is some sentences."""
    tokenizer: Any = examples.tokenizer
    model = _model(section, tokenizer, 0.0)
    teach(partial(_step, model, examples))
    model.eval()
    find = import_module("joeynmt.search").search

    def run(texts: list[str]) -> int:
        found: list[str] = []
        for start in range(0, len(texts), at_once):
            encoded = cast(list[list[int]], tokenizer(texts[start : start + at_once])["input_ids"])
            batch = _batch([torch.tensor(_moved(ids)) for ids in encoded], None)
            back = batch.sort_by_src_length()
            ids, _, _ = find(model, batch, decoding.max_length, decoding.beam, decoding.length_penalty)
            pieces = [[int(each) - _MOVED for each in row if each > _END] for row in ids[back]]
            found += tokenizer.batch_decode(pieces)
        return len(found)

    return lambda texts: partial(run, texts)

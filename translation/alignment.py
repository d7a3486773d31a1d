"""What a decoder attends to: cross-attention weights of source and target pieces as heat maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bertillery.models.seq2seq import encoder_decoder
from bertillery.report.plot import figure, plain, save
from translation.examples import TranslationExamples

_PAIRS = 4
_TITLE = "attention of each target piece to the source"


@torch.no_grad()
def draw_alignments(model: PreTrainedModel, examples: TranslationExamples, folder: Path) -> list[Path]:
    """Draw the weights of the first pairs, with references as targets: ``alignments.png``, a row for each pair and in
    it each layer, the last one first, as the mean over its heads; and where there are several heads ``heads.png``, of
    the first pair each layer's heads. Returns the pictures: none for a model without attention."""
    pairs = _pairs(model, examples)
    if not pairs:
        return []
    means = [each for pair in pairs.values() for each in _means(pair)]
    weights, pieces = next(iter(pairs.values()))
    layers, heads = weights.shape[:2]
    title = f"{_TITLE}, mean over heads" if heads > 1 else _TITLE
    pictures = [_draw(means, title, layers, folder / "alignments.png")]
    if heads > 1:
        of_heads = [
            (f"layer {layer + 1}, head {head + 1}", weights[layer, head], pieces)
            for layer in range(layers)
            for head in range(heads)
        ]
        pictures.append(_draw(of_heads, _TITLE, heads, folder / "heads.png"))
    return pictures


@torch.no_grad()
def draw_each(model: PreTrainedModel, examples: TranslationExamples, folder: Path) -> dict[int, Path]:
    """A picture for each of these pairs, by the number of the example; none for a model without attention."""
    return {
        index: _draw(_means(pair), _TITLE, len(pair[0]), folder / f"{index}.png")
        for index, pair in _pairs(model, examples).items()
    }


Pair = tuple[np.ndarray, tuple[list[str], list[str]]]
"""Weights (layers, heads, target, source), and the pieces of source and target."""


def _pairs(model: PreTrainedModel, examples: TranslationExamples) -> dict[int, Pair]:
    """The first pairs by the numbers of their examples; none for a model without attention."""
    if getattr(model.config, "attention", "") == "none":
        return {}
    rows = examples.examples(0, 0)[:_PAIRS]
    batch, training = examples.collate(rows).to(model.device), model.training
    weights = encoder_decoder(model.eval()).alignments(batch.streams["source"], batch.streams["target"])
    model.train(training)
    found = zip(rows["index"].tolist(), weights, strict=True)
    return {index: (each, _pieces(examples, index)) for index, each in found}


def _means(pair: Pair) -> list[Map]:
    """The mean over heads of each layer, the last one first."""
    weights, pieces = pair
    layers = len(weights)
    return [(f"layer {n + 1}" * (layers > 1), weights[n].mean(0), pieces) for n in reversed(range(layers))]


Map = tuple[str, np.ndarray, tuple[list[str], list[str]]]
"""A title, weights (target, source), and the pieces of source and target."""


def _draw(maps: list[Map], title: str, columns: int, path: Path) -> Path:
    axes = figure(len(maps), title, columns=columns, panel=(4.4, 4.4))
    for axis, (name, weights, (source, target)) in zip(axes, maps, strict=True):
        axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(source)), source, rotation=90, fontsize=6)
        axis.set_yticks(range(len(target)), target, fontsize=6)
        axis.set_title(name, fontsize=8)
    save(axes, path)
    return path


def _pieces(examples: TranslationExamples, index: int) -> tuple[list[str], list[str]]:
    """Of the source and the target of a pair, as text; bytes of a piece may be half a character."""

    def shown(tokenizer: Any, side: Any) -> list[str]:
        ids = side.take(np.array([index]))[0].tolist()
        return [
            plain(tokenizer.decode([piece]).strip() or str(tokenizer.convert_ids_to_tokens(piece))) for piece in ids
        ]

    return shown(examples.tokenizer, examples.source), shown(examples.target_tokenizer, examples.target)

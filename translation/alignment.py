"""What a decoder attends to: cross-attention weights of source and target pieces as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bertillery.models.seq2seq import encoder_decoder
from bertillery.report.plot import figure, plain, save
from translation.examples import TranslationExamples

_SHOWN = 4
_TITLE, _PANEL = "attention of each target piece to the source", (4.4, 4.4)


def draw_alignments(model: PreTrainedModel, examples: TranslationExamples, path: Path) -> Path | None:
    """Draw the weights of the first pairs, with references as targets: a row for each pair, and in it for each layer,
    the last one first, the mean over its heads. None for a model without attention."""
    pairs = _pairs(model, examples)
    if not pairs:
        return None
    layers = len(pairs[0].weights)
    axes = figure(len(pairs) * layers, _TITLE, columns=layers, panel=_PANEL)
    for row, pair in enumerate(pairs):
        pair.draw(axes[row * layers : (row + 1) * layers])
    save(axes, path)
    return path


def draw_each(model: PreTrainedModel, examples: TranslationExamples, folder: Path) -> dict[int, Path]:
    """A picture for each of these pairs, by the number of the example; none for a model without attention."""
    drawn = {}
    for pair in _pairs(model, examples):
        axes = figure(len(pair.weights), _TITLE, panel=_PANEL)
        pair.draw(axes)
        drawn[pair.index] = folder / f"{pair.index}.png"
        save(axes, drawn[pair.index])
    return drawn


@dataclass(frozen=True)
class _Pair:
    index: int
    weights: np.ndarray
    """(layers, heads, target pieces, source pieces)."""
    source: list[str]
    target: list[str]

    def draw(self, axes: Sequence[Any]) -> None:
        """In an axis for each layer, the last layer first."""
        for axis, (layer, weights) in zip(axes, reversed([*enumerate(self.weights, 1)]), strict=True):
            axis.imshow(weights.mean(0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(self.source)), self.source, rotation=90, fontsize=6)
            axis.set_yticks(range(len(self.target)), self.target, fontsize=6)
            axis.set_title(f"layer {layer}" if len(self.weights) > 1 else "", fontsize=8)


@torch.no_grad()
def _pairs(model: PreTrainedModel, examples: TranslationExamples) -> list[_Pair]:
    """The first pairs with the weights of a model's attention; none without attention."""
    if getattr(model.config, "attention", "") == "none":
        return []
    rows = examples.examples(0, 0)[:_SHOWN]
    batch, tokenizer, found = examples.collate(rows), examples.tokenizer, []
    weights = encoder_decoder(model).alignments(batch.streams["source"], batch.streams["target"])
    for index, each in zip(rows["index"].tolist(), weights, strict=True):
        sides = [side.take(np.array([index]))[0] for side in (examples.source, examples.target)]
        source, target = ([plain(_shown(tokenizer, piece)) for piece in ids] for ids in sides)
        found.append(_Pair(index, each, source, target))
    return found


def _shown(tokenizer: Any, piece: int) -> str:
    """A piece as text; its bytes may be half a character."""
    return tokenizer.decode([int(piece)]).strip() or str(tokenizer.convert_ids_to_tokens(int(piece)))

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


@torch.no_grad()
def draw_alignments(model: PreTrainedModel, examples: TranslationExamples, path: Path) -> Path | None:
    """Draw the weights of the first pairs, with references as targets: a row for each pair, and in it for each layer,
    the last one first, the mean over its heads. None for a model without attention."""
    if getattr(model.config, "attention", "") == "none":
        return None
    rows = examples.examples(0, 0)[:_PAIRS]
    batch = examples.collate(rows)
    weights = encoder_decoder(model).alignments(batch.streams["source"], batch.streams["target"])
    tokenizer, layers = examples.tokenizer, len(weights[0])
    axes = figure(len(rows) * layers, "attention of each target piece to the source", columns=layers, panel=(4.4, 4.4))
    for row, (index, each) in enumerate(zip(rows["index"], weights, strict=True)):
        sides = [side.take(np.array([index]))[0] for side in (examples.source, examples.target)]
        source, target = ([plain(_shown(tokenizer, piece)) for piece in ids] for ids in sides)
        for layer in range(layers):
            axis = axes[row * layers + layer]
            axis.imshow(each[layers - 1 - layer].mean(0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(source)), source, rotation=90, fontsize=6)
            axis.set_yticks(range(len(target)), target, fontsize=6)
            axis.set_title(f"layer {layers - layer}" if layers > 1 else "", fontsize=8)
    save(axes, path)
    return path


def _shown(tokenizer: Any, piece: int) -> str:
    """A piece as text; its bytes may be half a character."""
    return tokenizer.decode([int(piece)]).strip() or str(tokenizer.convert_ids_to_tokens(int(piece)))

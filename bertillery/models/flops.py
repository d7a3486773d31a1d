"""The arithmetic of encoders and heads: twice the multiply-adds of a forward pass, matrix products only."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from bertillery.engine.batch import Stream
from bertillery.models.encoders import family, intermediate_size


def encoder_flops(config: PreTrainedConfig, stream: Stream) -> float:
    """The layers (projections, feed-forward, scores and values; causal ones count as bidirectional ones do) and the
    projection of narrower embeddings."""
    width, kind = config.hidden_size, family(config)
    inner, embedding_size = intermediate_size(config), getattr(config, "embedding_size", width)
    per_token = 2 * (4 * width**2 + 2 * width * inner)
    layers = config.num_hidden_layers * (per_token * stream.num_tokens + 4 * width * stream.squared_lengths)
    projected = embedding_size != width or kind.square_projection
    return layers + projected * 2.0 * stream.num_tokens * embedding_size * width


def head_flops(width: int, vocab_size: int, rows: int, embedding_size: int | None = None) -> float:
    """The masked-word head over ``rows`` positions: one dense layer and the vocabulary projection."""
    embedding_size = embedding_size or width
    return 2.0 * rows * (width * embedding_size + embedding_size * vocab_size)


def model_flops(model: PreTrainedModel, stream: Stream) -> float:
    """A stock model's forward pass: the encoder, the pooler, and whatever head there is.

    Heads are linear layers. Those that answer for a sequence see its first token only, the others all tokens.
    """
    base, total = model.base_model, encoder_flops(model.config, stream)
    pooler = getattr(base, "pooler", None)
    encoder = {*base.modules()} - {*(pooler.modules() if pooler is not None else ())}
    of_sequences = type(model).__name__.endswith(("ForSequenceClassification", "ForMultipleChoice"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module not in encoder:
            pooled = of_sequences or not _READ_POOLED.isdisjoint(name.split("."))
            total += 2.0 * module.weight.numel() * (stream.num_sequences if pooled else stream.num_tokens)
    return total


_READ_POOLED = {"pooler", "seq_relationship", "sop_classifier"}
"""Parts of models with a head for words, too, that see one row of a sequence."""

"""Encoder-decoders on packed sources and targets: the states that are trained, and decoding step by step.

Legend: B sentences, S tokens of their sources, T tokens of their targets, H width, V vocabulary; k hypotheses of a
sentence, t tokens of each so far, h heads of D dimensions.

The Transformer is transformers' own, :class:`MarianMTModel` with LayerNorms behind the residual connections (Vaswani et
al. 2017) or :class:`PegasusForConditionalGeneration` with LayerNorms before them. Its layers run as they are. The
stacks around them are written out here, since the stock ones number positions through the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bertillery.engine.batch import Stream
from bertillery.engine.layout import CrossLayout
from bertillery.models.layers.attention import NAME
from bertillery.models.layers.dropout import dropout


class EncoderDecoder(Protocol):
    """What training and decoding ask of an encoder-decoder."""

    def decoder_states(
        self,
        source: Stream,
        target: Stream,
        cross_layout: CrossLayout,
        forced: Tensor | None = None,
        truncate: int | None = None,
    ) -> Tensor:
        """States (T, H) before the vocabulary projection, of every token that enters the decoder.

        ``forced`` (T,) says where the reference is fed; elsewhere the model's own best token is. ``None``: everywhere.
        Gradients go back through at most ``truncate`` states of a recurrent decoder.
        """
        ...

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """Logits (M, V) of states (M, H)."""
        ...

    def alignments(self, source: Stream, target: Stream) -> list[np.ndarray]:
        """Cross-attention weights of each sentence, (layers, heads, its target, its source)."""
        ...

    def begin(self, source: Stream) -> Any:
        """The state of decoding B sentences, with one hypothesis each. Each source is encoded once."""
        ...

    def step(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """Logarithms of the probabilities (B, k, V), float32, of what follows when ``tokens`` (B, k) are appended to
        the hypotheses, and the new state."""
        ...

    def select(self, state: Any, sentences: Tensor, beams: Tensor) -> Any:
        """The state in which hypothesis j of sentence i continues hypothesis ``beams[i, j]`` (B', k') of the sentence
        that was number ``sentences[i]`` (B',): those that are left, in their order."""
        ...


def encoder_decoder(model: PreTrainedModel) -> EncoderDecoder:
    """The model as training and decoding use it: itself, if it is one of ours, or the stock Transformer."""
    own: Any = model
    return own if hasattr(own, "decoder_states") else Transformer(model)


@dataclass(frozen=True)
class _Decoding:
    """Keys and values of the hypotheses' own tokens and of the sources, for each layer."""

    own: tuple[tuple[Tensor, Tensor], ...] | None
    """(B, k, h, t, D) each; None before the first token."""
    source: tuple[tuple[Tensor, Tensor], ...]
    """(B, h, s, D) each, padded to the longest source."""
    padding: Tensor | None
    """(B, 1, 1, s), -inf behind the end of a source; None where all are of one length."""


class Transformer:
    """A stock Marian or Pegasus."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()

    def decoder_states(
        self,
        source: Stream,
        target: Stream,
        cross_layout: CrossLayout,
        forced: Tensor | None = None,
        truncate: int | None = None,
    ) -> Tensor:
        """The same; the reference is always fed, since all positions are computed at once, and there is no state to cut
        a gradient at."""
        if forced is not None or truncate is not None:
            raise ValueError("a Transformer computes all target positions at once: the reference is always fed")
        memory = self.source_states(source)[None]
        hidden = self._embedded(self.decoder, target.ids, target.positions)[None]
        hidden = dropout(hidden, self.model.config.dropout, training=self.model.training)
        for layer in self.decoder.layers:
            hidden = layer(hidden, encoder_hidden_states=memory, layout=target.layout, cross_layout=cross_layout)
        return self._normed(self.decoder, hidden)[0]

    def source_states(self, source: Stream) -> Tensor:
        """States (S, H) of the sources."""
        hidden = self._embedded(self.encoder, source.ids, source.positions)[None]
        hidden = dropout(hidden, self.model.config.dropout, training=self.model.training)
        for layer in self.encoder.layers:
            hidden = layer(hidden, None, layout=source.layout)
        return self._normed(self.encoder, hidden)[0]

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """From the embeddings, with Marian's bias of zeros left out."""
        return self.model.lm_head(states)

    @torch.no_grad()
    def alignments(self, source: Stream, target: Stream) -> list[np.ndarray]:
        """From the stock model, sentence by sentence."""
        found = []
        with _stock_attention(self.model):
            for i in range(source.num_sequences):
                rows = (stream.ids[stream.offsets[i] : stream.offsets[i + 1]][None] for stream in (source, target))
                ids, decoder_ids = rows
                outputs = self.model(input_ids=ids, decoder_input_ids=decoder_ids, output_attentions=True)
                found.append(torch.cat(outputs.cross_attentions).float().cpu().numpy())
        return found

    def begin(self, source: Stream) -> _Decoding:
        """Keys and values of each source are computed once, and all hypotheses read them."""
        lengths = source.offsets.diff()
        memory = self.source_states(source)
        rows = torch.repeat_interleave(torch.arange(len(lengths), device=memory.device), lengths)
        longest = int(source.lengths.max())
        known = []
        for layer in self.decoder.layers:
            attention = layer.encoder_attn
            pair = []
            for projection in (attention.k_proj, attention.v_proj):
                padded = memory.new_zeros(len(lengths), longest, memory.shape[1])
                padded[rows, source.positions] = projection(memory).to(padded.dtype)
                pair.append(padded.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).contiguous())
            known.append((pair[0], pair[1]))
        behind = torch.arange(longest, device=memory.device) >= lengths[:, None]
        padding = torch.zeros(behind.shape, dtype=memory.dtype, device=memory.device).masked_fill(behind, -torch.inf)
        return _Decoding(None, tuple(known), padding[:, None, None] if source.lengths.min() < longest else None)

    def step(self, state: _Decoding, tokens: Tensor) -> tuple[Tensor, _Decoding]:
        """One token further; all hypotheses of a sentence are queries of one product with its source."""
        place = 0 if state.own is None else state.own[0][0].shape[3]
        hidden = self._embedded(self.decoder, tokens, torch.full_like(tokens, place))
        own = []
        for number, layer in enumerate(self.decoder.layers):
            known = None if state.own is None else state.own[number]
            hidden, pair = _step(layer, hidden, known, state.source[number], state.padding, self._before)
            own.append(pair)
        logits = self.vocabulary_logits(self._normed(self.decoder, hidden)).float()
        return logits.log_softmax(-1), replace(state, own=tuple(own))

    def select(self, state: _Decoding, sentences: Tensor, beams: Tensor) -> _Decoding:
        """The sources are copied only where sentences are dropped."""
        source, padding = state.source, state.padding
        if len(sentences) != len(source[0][0]):
            source = tuple((key[sentences], value[sentences]) for key, value in source)
            padding = None if padding is None else padding[sentences]
        assert state.own is not None
        chosen = sentences[:, None], beams
        return _Decoding(tuple((key[chosen], value[chosen]) for key, value in state.own), source, padding)

    @property
    def _before(self) -> bool:
        """Whether LayerNorms stand before the residual connections."""
        return hasattr(self.decoder, "layer_norm")

    def _embedded(self, stack: Any, ids: Tensor, positions: Tensor) -> Tensor:
        return stack.embed_tokens(ids) * stack.embed_scale + F.embedding(positions, stack.embed_positions.weight)

    def _normed(self, stack: Any, hidden: Tensor) -> Tensor:
        return stack.layer_norm(hidden) if self._before else hidden


def _step(
    layer: Any,
    hidden: Tensor,
    known: tuple[Tensor, Tensor] | None,
    source: tuple[Tensor, Tensor],
    padding: Tensor | None,
    before: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A decoder layer for one token (B, k, H) of each hypothesis, and its keys and values with the token's."""

    def residual(norm: Any, hidden: Tensor, function: Any) -> Tensor:
        return hidden + function(norm(hidden)) if before else norm(hidden + function(hidden))

    pair: list[Tensor] = []

    def itself(x: Tensor) -> Tensor:
        attention = layer.self_attn
        query, *own = (
            projection(x).unflatten(-1, (attention.num_heads, 1, -1))  # (B, k, h, 1, D)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        pair.extend(own if known is None else [torch.cat(both, 3) for both in zip(known, own, strict=True)])
        query, key, value = (part.flatten(0, 1) for part in (query, *pair))
        found = F.scaled_dot_product_attention(query, key, value)
        return attention.out_proj(found.view(x.shape))

    def across(x: Tensor) -> Tensor:
        attention = layer.encoder_attn
        query = attention.q_proj(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, h, k, D)
        found = F.scaled_dot_product_attention(query, *source, padding)
        return attention.out_proj(found.transpose(1, 2).flatten(2))

    hidden = residual(layer.self_attn_layer_norm, hidden, itself)
    hidden = residual(layer.encoder_attn_layer_norm, hidden, across)
    hidden = residual(layer.final_layer_norm, hidden, lambda x: layer.fc2(layer.activation_fn(layer.fc1(x))))
    return hidden, (pair[0], pair[1])


@contextmanager
def _stock_attention(model: Any) -> Iterator[None]:
    """Let the model compute attention as transformers does, and return its weights."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)

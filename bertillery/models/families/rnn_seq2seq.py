"""A recurrent encoder-decoder with attention: the models of Sutskever et al. 2014 (arXiv 1409.3215), Bahdanau et al.
2015 (arXiv 1409.0473) and Luong et al. 2015 (arXiv 1508.04025).

Source, target and output share one table of embeddings, or target and output where the target has a vocabulary of its
own. The form is Luong's: the decoder's state looks for its context
after it has read a token, and both make the *attentional vector* tanh(W [context; state]), from which the next token is
predicted. A decoder without attention predicts from its state.

Legend: N sentences, S source tokens and T target tokens (of a batch if flat, of the longest sentence if padded), V
vocabulary; E width of embeddings, H of the decoder's state, D of the encoder's (both directions together), L layers;
P tensors of a recurrent state, 2 for an LSTM and 1 otherwise; k hypotheses of a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from bertillery.config.section import ConfigError, InputError
from bertillery.engine.batch import Stream
from bertillery.engine.layout import CrossLayout
from bertillery.models.encoders import Family
from bertillery.models.layers.attention import padded_buckets
from bertillery.models.layers.recurrence import Cell, Recurrence, TimeMajor, reversed_rows, time_major

Score = Literal["none", "dot", "general", "concat", "additive"]


class RnnSeq2SeqConfig(PreTrainedConfig):
    """Sizes and variants. Raises ``ConfigError`` for those that contradict each other."""

    model_type = "rnn_seq2seq"
    family: ClassVar[Family] = Family(
        hidden_dropout=("dropout",),
        attention_dropout=(),
        classifier_dropout=(),
        token_types=False,
        role="encoder-decoder",
    )

    vocab_size: int = 8000
    share_encoder_decoder_embeddings: bool = True
    """Whether source and target have one vocabulary; the name is Marian's, like the next one."""
    decoder_vocab_size: int | None = None
    """Of the target, if the two do not share theirs."""
    embedding_size: int = 256
    hidden_size: int = 512
    """Of the decoder's state, H."""
    encoder_hidden_size: int = 256
    """Of each direction."""
    bidirectional: bool = True
    num_hidden_layers: int = 1
    """Of the encoder and of the decoder."""
    cell: Cell = "gru"
    attention: Score = "general"
    """How well a decoder's state h and an encoder's state s match: h·s, h·Ws, or v·tanh(W[h; s]), where ``additive``
    takes the decoder's state before the token is read, as Bahdanau does, and ``concat`` the one after it."""
    input_feeding: bool = False
    """Whether the attentional vector is read together with the next token (Luong, section 3.3)."""
    reverse_source: bool = False
    """Whether the encoder reads the source from its end (Sutskever, section 3.3); the end-of-sequence token stays last.
    Nothing but the encoder sees the other order."""
    dropout: float = 0.1
    """Of embeddings, between layers, and of what predicts the next token."""
    initializer_range: float = 0.1
    """All parameters are drawn uniformly from [-r, r]; 0.1 is Luong's."""
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        problems = [
            f"{name}: given {given!r}, one of {', '.join(get_args(allowed))} is allowed"
            for name, given, allowed in (("cell", self.cell, Cell), ("attention", self.attention, Score))
            if given not in get_args(allowed)
        ]
        if self.attention == "dot" and self.memory_size != self.hidden_size:
            width = f"2 x {self.encoder_hidden_size} = " * self.bidirectional + str(self.memory_size)
            problems.append(
                f"attention: dot needs encoder and decoder states of one width, given {width} for the encoder and a "
                f"hidden_size of {self.hidden_size} for the decoder; make them equal, or use general"
            )
        if self.input_feeding and self.attention == "none":
            problems.append("input_feeding: there is no attentional vector to feed with attention none; choose another")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def memory_size(self) -> int:
        """D."""
        return self.encoder_hidden_size * (1 + self.bidirectional)


@dataclass
class EncodedSource(BaseModelOutput):
    """What ``forward`` of the encoder returns."""

    start: Tensor | None = None
    """(N, P, L, H), the decoder's first state."""


class Memory(NamedTuple):
    """What a decoder attends to: padded sources in their original order, once for each sentence."""

    states: Tensor
    """(N, S, D)."""
    keys: Tensor
    """(N, S, D or H), what scores need of the states."""
    bias: Tensor
    """(N, 1, S): 0 for tokens, -inf for padding."""


class DecoderState(NamedTuple):
    """What the next step of a decoder depends on, for k hypotheses of each sentence."""

    recurrent: Tensor
    """(N, k, P, L, H)."""
    attentional: Tensor
    """(N, k, H), the latest attentional vector; 0 before the first step."""
    memory: Memory | None
    """None without attention."""


class RnnEncoder(nn.Module):
    """The embeddings of the source, the encoder, and the bridge from its last states to the decoder's first ones."""

    main_input_name = "input_ids"

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.reverse, self.eos = config.reverse_source, config.eos_token_id
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrence = Recurrence(
            config, config.embedding_size, config.encoder_hidden_size, bidirectional=config.bidirectional
        )
        parts = 2 if config.cell == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(config.memory_size, config.hidden_size) for _ in range(parts))

    def encode(self, ids: Tensor, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
        """States (S, D) of a flat batch of ``ids`` (S,), and the decoder's first state (N, P, L, H).

        Each layer of the decoder starts from the last states, of both directions, of the encoder's layer of the same
        number; the layers share the bridge. Raises ``InputError`` for a source without a token.
        """
        if lengths.min() < 1:
            raise InputError(f"source {lengths.argmin()} of the batch has no token; leave empty sources out")
        inputs, rows = self.dropout(self.embeddings(ids)), None
        if self.reverse:
            offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)))).to(ids.device)
            rows = reversed_rows(ids, offsets, self.eos)
            inputs = inputs[rows]
        order = time_major(lengths, ids.device)
        outputs, last = self.recurrence(order.packed(inputs))
        states = outputs.data[order.places]
        start = [bridge(part).tanh() for bridge, part in zip(self.bridges, last.unbind(1), strict=True)]
        return states if rows is None else states[rows], torch.stack(start, 1)

    @can_return_tuple
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> EncodedSource:
        """Encode padded sources (N, S); states of padding are 0."""
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        states, start = self.encode(input_ids[real], real.sum(1).cpu().numpy())
        cells = real.flatten().nonzero()[:, 0]
        return EncodedSource(last_hidden_state=_padded(states, cells, *real.shape), start=start)


def _padded(rows: Tensor, cells: Tensor, n: int, s: int) -> Tensor:
    """Flat rows (S, ...) at their ``cells`` of a rectangle (n, s, ...), which is 0 elsewhere."""
    return rows.new_zeros(n * s, *rows.shape[1:]).index_copy(0, cells, rows).view(n, s, *rows.shape[1:])


class RnnAttention(nn.Module):
    """Scores of encoder states, and their softmax over a source."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.score = config.attention
        width = config.hidden_size
        if self.score != "dot":
            self.key = nn.Linear(config.memory_size, width, bias=False)
        if self.score in ("concat", "additive"):
            # W [h; s], as two products: that of the source is the same at every step.
            self.query = nn.Linear(width, width, bias=False)
            self.value = nn.Linear(width, 1, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """What scores need of encoder states (..., D), whatever the query."""
        return states if self.score == "dot" else self.key(states)

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """Weights (n, t, s) of decoder states (n, t, H) for keys (n, s, ...); ``bias`` (n, 1, s) is -inf at padding,
        whose weights are 0."""
        if self.score in ("concat", "additive"):
            scores = self.value((self.query(queries)[:, :, None] + keys[:, None]).tanh())[..., 0]
        else:
            scores = queries @ keys.transpose(1, 2)
        return (scores if bias is None else scores + bias).softmax(-1)


class RnnSeq2SeqForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Encoder, decoder and output layer."""

    config_class, base_model_prefix, main_input_name = RnnSeq2SeqConfig, "", "input_ids"
    config: RnnSeq2SeqConfig
    _tied_weights_keys: ClassVar[Any] = {"lm_head.weight": "encoder.embeddings.weight"}

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = RnnEncoder(config)
        inputs = config.embedding_size + config.hidden_size * config.input_feeding
        self.recurrence = Recurrence(config, inputs, config.hidden_size, bidirectional=False)
        if config.attention != "none":
            self.attention = RnnAttention(config)
            self.combine = nn.Linear(config.memory_size + config.hidden_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(config.hidden_size, config.embedding_size, bias=False)
        size = config.vocab_size
        if not config.share_encoder_decoder_embeddings:
            size = config.decoder_vocab_size or size
            self.target_embeddings = nn.Embedding(size, config.embedding_size)
            own: Any = self  # of the instance, as in Marian
            own._tied_weights_keys = {"lm_head.weight": "target_embeddings.weight"}
        self.lm_head = nn.Linear(config.embedding_size, size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        bound = self.config.initializer_range
        for parameter in module.parameters(recurse=False):
            initialization.uniform_(parameter, -bound, bound)

    def get_input_embeddings(self) -> nn.Module:
        """The table of the source, which target and output share unless they have their own."""
        return self.encoder.embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace it."""
        self.encoder.embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def embed_target(self, ids: Tensor) -> Tensor:
        """(..., E), with dropout."""
        shared = self.config.share_encoder_decoder_embeddings
        return self.dropout((self.encoder.embeddings if shared else self.target_embeddings)(ids))

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What ``generate`` encodes a source with."""
        return self.encoder

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """Logits (M, V) of states (M, E) that :meth:`decoder_states` made."""
        return self.lm_head(states)

    # Training, on packed batches

    def decoder_states(
        self,
        source: Stream,
        target: Stream,
        cross_layout: CrossLayout,
        forced: Tensor | None = None,
        truncate: int | None = None,
    ) -> Tensor:
        """States (T, E) just before the vocabulary logits, for every token of ``target``, the decoder's input, which
        attends to ``source`` by ``cross_layout``.

        ``forced`` (T,) bool says where the decoder reads the target's own token; elsewhere it reads what it finds most
        probable itself, through which no gradient flows (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099). The
        first token of a sequence is always read. None means everywhere, and is computed in one go unless attentional
        vectors are fed.

        With ``truncate`` the decoder's state goes on after every so many tokens, but no gradient flows back beyond:
        back-propagation through time is truncated (Williams and Peng 1990). The source's states keep theirs.
        """
        lengths, source_lengths = target.lengths, source.lengths
        states, start = self.encoder.encode(source.ids, source_lengths)
        order = time_major(lengths, target.ids.device)
        if forced is None and not self.config.input_feeding:
            vectors = self._in_one_go(target, order, states, start, cross_layout, truncate)
        else:
            state = self._first(start, self._memory(states, source_lengths))
            state = _sentences(state, order.order)
            sampled = None if forced is None else [~each for each in order.steps(forced)]
            found, _ = self._in_steps(order.steps(target.ids), state, sampled, truncate)
            vectors = torch.cat(found)[order.places]
        return self.projection(vectors)

    def _in_one_go(
        self,
        target: Stream,
        order: TimeMajor,
        memory: Tensor,
        start: Tensor,
        cross_layout: CrossLayout,
        truncate: int | None,
    ) -> Tensor:
        """Attentional vectors (T, H); attention is computed in padded buckets of ``memory`` (S, D)."""
        inputs = self.embed_target(target.ids)
        if truncate is None:
            states = self.recurrence(order.packed(inputs), start)[0].data
        else:
            states = torch.cat([*self.recurrence.pieces(order, inputs, start, truncate)])
        hidden = states[order.places]
        if self.config.attention == "none":
            return self.dropout(hidden)
        queries = hidden
        if self.config.attention == "additive":
            queries = hidden.roll(1, 0).index_copy(0, target.first_rows, start[:, 0, -1].to(hidden.dtype))
            if truncate is not None:
                cut = (target.positions % truncate == 0) & (target.positions > 0)
                queries = torch.where(cut[:, None], queries.detach(), queries)
        of_queries, of_keys = cross_layout.queries, cross_layout.keys
        keys = padded_buckets(self.attention.keys(memory), of_keys)
        buckets = zip(padded_buckets(queries, of_queries), keys, padded_buckets(memory, of_keys), strict=True)
        contexts = []
        for (query, key, value), bias in zip(buckets, of_keys.biases, strict=True):
            weights = self.attention(query, key, None if bias is None else bias[:, 0])
            contexts.append((weights.to(value.dtype) @ value).flatten(0, 1))
        return self._attentional(torch.cat(contexts)[of_queries.scatter], hidden)

    def _in_steps(
        self,
        tokens: Sequence[Tensor],
        state: DecoderState,
        sampled: Sequence[Tensor] | None = None,
        truncate: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Attentional vectors (n, H) and attention weights (n, S) of each step.

        ``tokens`` (n,) of a step belong to the first n sentences, which are no more than in the step before; where
        ``sampled`` (n,), the decoder reads its own most probable token. No gradient flows from one group of
        ``truncate`` steps to the one before it.
        """
        vectors: list[Tensor] = []
        weights: list[Tensor | None] = []
        for step, ids in enumerate(tokens):
            if len(ids) < len(state.recurrent):  # each slice costs a copy in the backward pass
                state = _sentences(state, slice(len(ids)))
            if step and truncate is not None and step % truncate == 0:
                state = state._replace(recurrent=state.recurrent.detach(), attentional=state.attentional.detach())
            if step and sampled is not None:
                with torch.no_grad():
                    own = self.vocabulary_logits(self.projection(vectors[-1][: len(ids)][sampled[step]])).argmax(-1)
                ids = ids.masked_scatter(sampled[step], own)
            vector, weight, state = self._step(self.embed_target(ids)[:, None], state)
            vectors.append(vector[:, 0])
            weights.append(None if weight is None else weight[:, 0])
        return vectors, weights

    def _step(self, embedded: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None, DecoderState]:
        """Attentional vectors (N, k, H), weights (N, k, S) and the next state, from embedded tokens (N, k, E)."""
        if self.config.input_feeding:
            embedded = torch.cat([embedded, state.attentional], -1)
        outputs, last = self.recurrence(embedded.flatten(0, 1)[None], state.recurrent.flatten(0, 1))
        hidden = outputs[0].view(*embedded.shape[:2], -1)
        before = state.recurrent[:, :, 0, -1]
        vectors, weights = self._attend(hidden, before, state.memory)
        return vectors, weights, DecoderState(last.view(state.recurrent.shape), vectors, state.memory)

    def _attend(self, hidden: Tensor, before: Tensor, memory: Memory | None) -> tuple[Tensor, Tensor | None]:
        """Attentional vectors (n, t, H) of states (n, t, H), and weights (n, t, S); ``before`` (n, t, H) are the
        states one token earlier."""
        if memory is None:
            return self.dropout(hidden), None
        weights = self.attention(before if self.config.attention == "additive" else hidden, memory.keys, memory.bias)
        return self._attentional(weights.to(memory.states.dtype) @ memory.states, hidden), weights

    def _attentional(self, context: Tensor, hidden: Tensor) -> Tensor:
        return self.dropout(self.combine(torch.cat([context, hidden], -1)).tanh())

    def _memory(self, states: Tensor, lengths: np.ndarray) -> Memory | None:
        """Of flat states (S, D)."""
        if self.config.attention == "none":
            return None
        real = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(states.device)
        cells = real.flatten().nonzero()[:, 0]
        keys = _padded(self.attention.keys(states), cells, *real.shape)
        return Memory(_padded(states, cells, *real.shape), keys, _bias(real))

    def _first(self, start: Tensor, memory: Memory | None) -> DecoderState:
        return DecoderState(start[:, None], start.new_zeros(len(start), 1, self.config.hidden_size), memory)

    @torch.no_grad()
    def alignments(self, source: Stream, target: Stream) -> list[np.ndarray]:
        """The attention weights (1, 1, T_i, S_i), of one layer and one head, of each pair of sentences when the decoder
        reads the ``target``. Columns are in the order of the source's tokens, also where the encoder reads backwards.

        Raises ``ConfigError`` for a model without attention.
        """
        if self.config.attention == "none":
            raise ConfigError("this model has no attention (attention none in its config.json), and no alignment")
        lengths, source_lengths = target.lengths, source.lengths
        states, start = self.encoder.encode(source.ids, source_lengths)
        order = time_major(lengths, target.ids.device)
        state = _sentences(self._first(start, self._memory(states, source_lengths)), order.order)
        _, weights = self._in_steps(order.steps(target.ids), state)
        rows = torch.cat([weight for weight in weights if weight is not None])[order.places].float().cpu().numpy()
        pairs = zip(np.split(rows, np.cumsum(lengths)[:-1]), source_lengths, strict=True)
        return [matrix[None, None, :, :length] for matrix, length in pairs]

    def truncated_states(self, ids: Tensor, steps: int) -> Iterator[Tensor]:
        """The decoder as a language model of long streams ``ids`` (N, T): its states (N, ``steps``, E) just before the
        vocabulary logits, piece by piece.

        The recurrent state passes from one piece to the next, the gradient does not: back-propagation through time is
        truncated (Williams and Peng 1990), and a piece can be trained on before the next one is computed. Raises
        ``ConfigError`` for a model with attention, which has no source here.
        """
        if self.config.attention != "none":
            raise ConfigError(f"a language model has no source to attend to; given attention {self.config.attention}")
        state = None
        for piece in ids.split(steps, 1):
            inputs = self.embed_target(piece).transpose(0, 1)
            hidden, state = self.recurrence(inputs, None if state is None else state.detach())
            yield self.projection(self.dropout(hidden.transpose(0, 1)))

    # Search

    def begin(self, source: Stream) -> DecoderState:
        """The state before the first step: one hypothesis of each sentence, which is encoded here once."""
        lengths = source.lengths
        states, start = self.encoder.encode(source.ids, lengths)
        return self._first(start, self._memory(states, lengths))

    def step(self, state: DecoderState, tokens: Tensor) -> tuple[Tensor, DecoderState]:
        """Log-probabilities (N, k, V) of the next tokens in float32, after each hypothesis has read its one of
        ``tokens`` (N, k); and the state after it."""
        vectors, _, state = self._step(self.embed_target(tokens), state)
        return self.vocabulary_logits(self.projection(vectors)).float().log_softmax(-1), state

    def select(self, state: DecoderState, sentences: Tensor, beams: Tensor) -> DecoderState:
        """The state in which hypothesis j of sentence i continues hypothesis ``beams[i, j]`` (N2, k2) of the sentence
        that was number ``sentences[i]`` (N2,): those that are left, in their order."""
        rows, memory = (sentences[:, None], beams), state.memory
        if memory is not None and len(sentences) < len(memory.states):
            memory = Memory(*(each[sentences] for each in memory))
        return DecoderState(state.recurrent[rows], state.attentional[rows], memory)

    # The library's interface, on padded batches

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Logits (N, T, V) for sources (N, S) and the decoder's input (N, T), both padded at the end; without the
        latter for the labels (N, T) shifted to the right. Cross attention is one layer of one head, (N, 1, T, S).

        The loss is the mean cross-entropy of the labels that are not -100.
        """
        if encoder_outputs is None:
            assert input_ids is not None, "give input_ids or encoder_outputs"
            encoder_outputs = self.encoder(input_ids, attention_mask)
        ids = decoder_input_ids
        if ids is None:
            if labels is None:
                raise InputError("give decoder_input_ids, or labels, from which they are made")
            config: Any = self.config
            first = torch.full_like(labels[:, :1], config.decoder_start_token_id)
            ids = torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == -100, config.pad_token_id)], 1)
        states, start = encoder_outputs.last_hidden_state, encoder_outputs.start
        memory = None
        if self.config.attention != "none":
            real = states.new_ones(states.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask > 0
            memory = Memory(states, self.attention.keys(states), _bias(real))
        if self.config.input_feeding:
            found, of_steps = self._in_steps(ids.unbind(1), self._first(start, memory))
            vectors, weights = torch.stack(found, 1), torch.stack([w for w in of_steps if w is not None], 1)
        else:
            hidden = self.recurrence(self.embed_target(ids).transpose(0, 1), start)[0].transpose(0, 1)
            before = torch.cat([start[:, :1, -1].to(hidden.dtype), hidden[:, :-1]], 1)
            vectors, weights = self._attend(hidden, before, memory)
        logits = self.vocabulary_logits(self.projection(vectors))
        return Seq2SeqLMOutput(
            loss=None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()),
            logits=logits,
            cross_attentions=None if weights is None else (weights[:, None],),
            encoder_last_hidden_state=states,
        )

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, encoder_outputs: Any = None, **_: Any
    ) -> dict[str, Any]:
        """The whole prefix, which ``generate`` computes again at every step, whatever it thinks of a cache."""
        return {"decoder_input_ids": input_ids, "attention_mask": attention_mask, "encoder_outputs": encoder_outputs}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


def _bias(real: Tensor) -> Tensor:
    """(N, 1, S): 0 where ``real`` (N, S), -inf elsewhere."""
    return torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)[:, None]


def _sentences(state: DecoderState, rows: Any) -> DecoderState:
    """The state of some sentences, with all of their hypotheses."""
    memory = None if state.memory is None else Memory(*(each[rows] for each in state.memory))
    return DecoderState(state.recurrent[rows], state.attentional[rows], memory)


AutoConfig.register("rnn_seq2seq", RnnSeq2SeqConfig)
AutoModelForSeq2SeqLM.register(RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration)

"""Models of several families, and the stock heads on top of them, on a packed batch.

Legend: B sequences, T tokens of all of them together, H width.

The models are transformers' own. :data:`FAMILIES`, :data:`DECODERS` and
:data:`ENCODER_DECODERS` hold what differs between families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bertillery.config.section import ConfigError
from bertillery.engine.batch import Stream
from bertillery.models.layers.attention import NAME, Recorded
from bertillery.models.layers.dropout import dropout

Role = Literal["encoder", "decoder", "encoder-decoder"]
"""What a model computes: states of tokens that all see each other; of tokens that see earlier ones; or of a target that
sees earlier ones and all of a source (:mod:`bertillery.models.seq2seq`)."""
ONE_STREAM: tuple[Role, ...] = ("encoder", "decoder")
"""Roles of models that read one text."""
ANY: tuple[Role, ...] = (*ONE_STREAM, "encoder-decoder")
"""All roles."""

_ARTICLES = {"encoder": "an encoder", "decoder": "a decoder", "encoder-decoder": "an encoder-decoder"}


@dataclass(frozen=True)
class Family:
    """Names in the configuration and ways of counting; the defaults are BERT's.

    A config class of ours has one as its class attribute ``family``.
    """

    hidden_dropout: tuple[str, ...] = ("hidden_dropout_prob",)
    attention_dropout: tuple[str, ...] = ("attention_probs_dropout_prob",)
    classifier_dropout: tuple[str, ...] = ("classifier_dropout",)
    intermediate_size: str = "intermediate_size"
    """Key of the feed-forward width; a value of None there means four times the hidden size."""
    token_types: bool = True
    """Whether the first and the second segment have embeddings."""
    positions_after_padding: bool = False
    """Whether positions start after the id of the padding token, as fairseq's do, and not at 0."""
    square_projection: bool = False
    """Whether embeddings as wide as the model pass through a projection, too."""
    role: Role = "encoder"
    beside: type | None = None
    """The class of what its models read beside the tokens, whose ``inputs`` they take; None for nothing."""

    @property
    def causal(self) -> bool:
        """Whether it is a decoder: no token sees a later one."""
        return self.role == "decoder"


_ROBERTA = Family(token_types=False, positions_after_padding=True)
_TRANSFORMER = Family(
    hidden_dropout=("dropout",), intermediate_size="encoder_ffn_dim", token_types=False, role="encoder-decoder"
)

FAMILIES = {
    "bert": Family(),
    "albert": Family(classifier_dropout=("classifier_dropout_prob",), square_projection=True),
    # The second is the dropout of the head that compares choices.
    "electra": Family(classifier_dropout=("classifier_dropout", "summary_last_dropout")),
    "distilbert": Family(
        hidden_dropout=("dropout",),
        attention_dropout=("attention_dropout",),
        classifier_dropout=("seq_classif_dropout", "qa_dropout"),
        intermediate_size="hidden_dim",
        token_types=False,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}
"""Encoders of transformers, by ``config.model_type``."""

DECODERS = {
    "gpt2": Family(
        hidden_dropout=("embd_pdrop", "resid_pdrop"),
        attention_dropout=("attn_pdrop",),
        classifier_dropout=("summary_first_dropout", "classifier_dropout"),
        intermediate_size="n_inner",
        token_types=False,
        role="decoder",
    )
}
"""Decoders of transformers."""

ENCODER_DECODERS = {"marian": _TRANSFORMER, "pegasus": _TRANSFORMER}
"""Encoder-decoders of transformers: the Transformer with LayerNorms behind, and before, the residual connections."""

_KNOWN = {**FAMILIES, **DECODERS, **ENCODER_DECODERS}


def _described(model_type: str) -> Family | None:
    """The family of a type, also of a config class of ours that is registered with ``AutoConfig``."""
    own = getattr(CONFIG_MAPPING[model_type], "family", None) if model_type in CONFIG_MAPPING else None
    return own or _KNOWN.get(model_type)


def check_model_type(model_type: str, roles: Sequence[Role] = ("encoder",)) -> None:
    """``ConfigError`` for a type of model that cannot read packed batches, or has none of the ``roles``."""
    found = _described(model_type)
    if found is not None and found.role in roles:
        return
    why = "cannot read packed batches" if found is None else f"is {_ARTICLES[found.role]}"
    registered = {name: getattr(config, "family", None) for name, config in CONFIG_MAPPING._extra_content.items()}
    known = {**_KNOWN, **registered}
    raise ConfigError(
        f"a model of type {model_type!r} {why}; give {' or '.join(_ARTICLES[role] for role in roles)} of one of these "
        "types: "
        f"{', '.join(name for name, each in known.items() if each is not None and each.role in roles)}"
    )


def family(config: PreTrainedConfig) -> Family:
    """The family of a model; ``ConfigError`` for a model that packed batches are not for."""
    found = _described(config.model_type)
    if found is None:
        check_model_type(config.model_type)
    assert found is not None
    if getattr(config, "is_decoder", False) and not found.causal:
        raise ConfigError(f"this {config.model_type} is a decoder (is_decoder in its config.json); give an encoder")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"this {config.model_type} has relative positions (position_embedding_type in its config.json), which "
            "transformers 5 and packed batches do not have; give an encoder with absolute positions"
        )
    return found


def intermediate_size(config: Any) -> int:
    """Width of the feed-forward layers."""
    return getattr(config, family(config).intermediate_size) or 4 * config.hidden_size


def labels_of(config: PreTrainedConfig) -> dict[int, str]:
    """The names of a model's labels by their numbers, in the order of the numbers; the order in a file says nothing."""
    labels: dict[Any, str] = config.id2label or {}
    return dict(sorted((int(key), name) for key, name in labels.items()))


def reads_token_types(config: PreTrainedConfig) -> bool:
    """Whether the model has embeddings for two segments; for an unknown type, by ``type_vocab_size``."""
    found = _described(config.model_type) or Family()
    return found.token_types and getattr(config, "type_vocab_size", 1) > 1


def longest_sequence(config: PreTrainedConfig) -> int:
    """The most tokens that a sequence may have; a number beyond all texts for a model without positions."""
    return getattr(config, "max_position_embeddings", VERY_LARGE_INTEGER) - _first_position(config)


def _first_position(config: Any) -> int:
    found = _described(config.model_type)
    return config.pad_token_id + 1 if found is not None and found.positions_after_padding else 0


def model_inputs(config: PreTrainedConfig, stream: Stream) -> dict[str, Any]:
    """Keyword arguments for a model whose attention is ``packed``; tensors are (1, T).

    A model gets what its family reads: no token types if it has no embeddings for them (GPT-2 would add those of
    tokens), and no cache if it is a decoder. Raises ``ConfigError`` for an unknown family.
    """
    inputs: dict[str, Any] = {
        "input_ids": stream.ids[None],
        "position_ids": (stream.positions + _first_position(config))[None],
        "layout": stream.layout,
    }
    if family(config).causal:
        inputs["use_cache"] = False
    if reads_token_types(config):
        types = stream.token_type_ids
        inputs["token_type_ids"] = (torch.zeros_like(stream.ids) if types is None else types)[None]
    reads = family(config).beside
    if reads is not None and isinstance(stream.beside, reads):
        inputs |= stream.beside.inputs()
    return inputs


def encode(model: PreTrainedModel, stream: Stream, *, record: list[Recorded] | None = None) -> Tensor:
    """Hidden states (T, H) of the last layer, from the encoder of a model loaded with the ``packed`` attention.

    To ``record``, where it is given, each layer appends its queries, keys and values.
    """
    return _run(model, stream, record=record).last_hidden_state[0]


def encode_layers(
    model: PreTrainedModel, stream: Stream, *, record: list[Recorded] | None = None
) -> tuple[Tensor, ...]:
    """Hidden states (T, H) that enter the first layer (the embeddings, projected where they are narrower), and those
    that leave each layer."""
    return tuple(hidden[0] for hidden in _run(model, stream, record=record, output_hidden_states=True).hidden_states)


def _run(model: PreTrainedModel, stream: Stream, *, record: list[Recorded] | None = None, **options: Any) -> Any:
    inputs = model_inputs(model.config, stream)
    if model.config._attn_implementation != NAME:  # any other takes the layout and does not use it
        raise ConfigError(
            f"{type(model).__name__} has {model.config._attn_implementation} attention, in which the sequences of a "
            f"packed batch would see each other; load it with attn_implementation={NAME!r}"
        )
    if record is not None:
        inputs["record"] = _Appending(record)
    return model.base_model(**inputs, **options, return_dict=True)


class _Appending:
    """What reaches every layer as it is: of a list, torch gives a copy to a layer whose weights are split."""

    def __init__(self, items: list[Recorded]) -> None:
        self.append = items.append


def sequence_logits(model: PreTrainedModel, stream: Stream, *, orders: int = 1) -> Tensor:
    """Logits (B, number of labels), float32, of a stock ``*ForSequenceClassification``, from the first token of a
    sequence, or, in a decoder, from the last one, which has seen the others.

    With 2 ``orders``, every two sequences are a pair in both orders, whose states a decoder adds: (B / 2, number of
    labels).
    """
    if family(model.config).causal:
        return _extract_logits(model, stream, orders=orders)
    return _head(model, stream, _first_states(model, stream)).logits.float()


def choice_logits(model: PreTrainedModel, stream: Stream, *, question: Tensor | None = None) -> Tensor:
    """Logits (B,), float32, of a stock ``*ForMultipleChoice``, or of a decoder with one label; each choice is a
    sequence, and ``question`` (B,) says of which question."""
    if family(model.config).causal:
        return _extract_logits(model, stream, example=question)[:, 0]
    return _head(model, stream, _first_states(model, stream)).logits[:, 0].float()


def token_logits(model: PreTrainedModel, stream: Stream) -> Tensor:
    """Logits (T, number of labels), float32, of a stock ``*ForTokenClassification``."""
    return _head(model, stream, encode(model, stream)[None]).logits[0].float()


def span_logits(model: PreTrainedModel, stream: Stream) -> Tensor:
    """Logits (T, 2), float32, of start and end, of a stock ``*ForQuestionAnswering``."""
    outputs = _head(model, stream, encode(model, stream)[None])
    return torch.stack((outputs.start_logits[0], outputs.end_logits[0]), dim=-1).float()


def mlm_logits(model: PreTrainedModel, stream: Stream, positions: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Logits (M, vocabulary) of a stock ``*ForMaskedLM`` at the rows ``positions`` (M,) of the batch.

    ``hidden`` (T, H) is what :func:`encode` returned, where that is known already.
    """
    hidden = encode(model, stream) if hidden is None else hidden
    return _head(model, stream, hidden[positions][None]).logits[0]


def pair_logits(model: PreTrainedModel, stream: Stream) -> Tensor | None:
    """Logits (B, 2), float32, of the head for pairs in a stock ``*ForPreTraining`` (next sentences, their order): 0 is
    a pair as it stood in the text. None for a model without one."""
    outputs = _head(model, stream, _first_states(model, stream))
    found = [outputs[name] for name in ("seq_relationship_logits", "sop_logits") if name in outputs]
    return found[0].float() if found else None


def replaced_logits(model: PreTrainedModel, stream: Stream) -> Tensor:
    """Logits (T,), float32, that each token was replaced, of a stock ``ElectraForPreTraining``."""
    return _head(model, stream, encode(model, stream)[None]).logits[0].float()


def _extract_logits(
    model: PreTrainedModel, stream: Stream, *, example: Tensor | None = None, orders: int = 1
) -> Tensor:
    """Those of GPT-1's head: dropout and one linear layer on the state at the last token of a sequence, or on the sum
    of the states of a pair's orders (Radford et al. 2018, section 3.3).

    In training the sequences of an ``example`` (B,) lose the same elements of their states, as in the released code.
    """
    states = encode(model, stream)[stream.last_rows]
    if orders > 1:
        states = states.unflatten(0, (-1, orders)).sum(1)
    rate = getattr(model.config, family(model.config).classifier_dropout[0]) or 0.0
    if model.training and rate:
        noise = dropout(torch.ones_like(states), rate, training=True)
        states = states * (noise if example is None else noise[example])
    head: Any = model
    return head.score(states).float()


def _first_states(model: PreTrainedModel, stream: Stream) -> Tensor:
    """(B, 1, H): every [CLS] as a sequence of one token, of which the stock heads take the first."""
    return encode(model, stream)[stream.first_rows][:, None]


def _head(model: PreTrainedModel, stream: Stream, hidden: Tensor) -> Any:
    """What the model's own ``forward`` makes of hidden states (sequences, tokens, H) that are known already."""
    outputs = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=_pooled(model.base_model, hidden))
    forward: Any = type(model).forward
    # Of the ids only the second size counts, to heads that compare choices: one choice to a row.
    return forward(_Encoded(model, outputs), input_ids=stream.ids[None, None], return_dict=True)


def _pooled(base: Any, hidden: Tensor) -> Tensor | None:
    if getattr(base, "pooler", None) is None:
        return None
    if hasattr(base, "pooler_activation"):  # ALBERT's pooler is a bare linear layer
        return base.pooler_activation(base.pooler(hidden[:, 0]))
    return base.pooler(hidden)


class _Encoded:
    """A model whose encoder has run: all of its attributes, but the encoder, if called, returns what it is known to."""

    def __init__(self, model: PreTrainedModel, outputs: BaseModelOutputWithPooling) -> None:
        self._model, self._outputs = model, outputs

    def __getattr__(self, name: str) -> Any:
        if name == self._model.base_model_prefix:
            return lambda *_, **__: self._outputs
        return getattr(self._model, name)

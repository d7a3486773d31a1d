"""Stock encoders of several families, and the stock heads on top of them, on a packed batch.

Legend: B sequences, T tokens of all of them together, H width.

The models are transformers' own. What the families call or count differently is kept here, in :data:`FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from bertillery.config.section import ConfigError
from bertillery.engine.batch import Stream
from bertillery.models.attention import Recorded


@dataclass(frozen=True)
class Family:
    """Names in the configuration and ways of counting; the defaults are BERT's."""

    hidden_dropout: tuple[str, ...] = ("hidden_dropout_prob",)
    attention_dropout: tuple[str, ...] = ("attention_probs_dropout_prob",)
    classifier_dropout: tuple[str, ...] = ("classifier_dropout",)
    intermediate_size: str = "intermediate_size"
    token_types: bool = True
    """Whether the first and the second segment have embeddings."""
    positions_after_padding: bool = False
    """Whether positions start behind the id of the padding token, as fairseq's do, and not at 0."""
    square_projection: bool = False
    """Whether embeddings as wide as the model pass through a projection, too."""


_ROBERTA = Family(token_types=False, positions_after_padding=True)

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
"""By ``config.model_type``."""


def check_model_type(model_type: str) -> None:
    """``ConfigError`` for a type of model that is not known: packed batches are not for it, and its code is not run."""
    if model_type not in FAMILIES:
        raise ConfigError(
            f"a model of type {model_type!r} cannot read packed batches; there are: {', '.join(FAMILIES)}; "
            "give an encoder of one of these types"
        )


def family(config: PreTrainedConfig) -> Family:
    """The family of a model; ``ConfigError`` for a model that packed batches are not for."""
    check_model_type(config.model_type)
    if getattr(config, "is_decoder", False):
        raise ConfigError(f"this {config.model_type} is a decoder (is_decoder in its config.json); give an encoder")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"this {config.model_type} has relative positions (position_embedding_type in its config.json), which "
            "transformers 5 and packed batches have not; give an encoder with absolute positions"
        )
    return FAMILIES[config.model_type]


def labels_of(config: PreTrainedConfig) -> dict[int, str]:
    """The names of a model's labels by their numbers, in the order of the numbers; the order in a file says nothing."""
    labels: dict[Any, str] = config.id2label or {}
    return dict(sorted((int(key), name) for key, name in labels.items()))


def reads_token_types(config: PreTrainedConfig) -> bool:
    """Whether the model tells a first and a second segment apart."""
    return family(config).token_types and getattr(config, "type_vocab_size", 1) > 1


def longest_sequence(config: PreTrainedConfig) -> int:
    """The most tokens that a sequence may have."""
    return config.max_position_embeddings - _first_position(config)


def _first_position(config: PreTrainedConfig) -> int:
    return config.pad_token_id + 1 if family(config).positions_after_padding else 0


def model_inputs(config: PreTrainedConfig, stream: Stream) -> dict[str, Any]:
    """Keyword arguments for a stock model whose attention is ``packed``; tensors are (1, T). A family is sent what it
    has: no token types where it has no embeddings for them (GPT-2 would add those of other tokens)."""
    inputs: dict[str, Any] = {
        "input_ids": stream.ids[None],
        "position_ids": (stream.positions + _first_position(config))[None],
        "layout": stream.layout,
    }
    if reads_token_types(config):
        types = stream.token_type_ids
        inputs["token_type_ids"] = (torch.zeros_like(stream.ids) if types is None else types)[None]
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
    if record is not None:
        inputs["record"] = _Appending(record)
    return model.base_model(**inputs, **options, return_dict=True)


class _Appending:
    """What reaches every layer as it is: of a list, torch gives a copy to a layer whose weights are split."""

    def __init__(self, items: list[Recorded]) -> None:
        self.append = items.append


def sequence_logits(model: PreTrainedModel, stream: Stream, hidden: Tensor | None = None) -> Tensor:
    """Logits (B, number of labels), float32, of a stock ``*ForSequenceClassification``.

    Here and below ``hidden`` (T, H) is what :func:`encode` returned, where that is known already.
    """
    return _head(model, stream, _first_states(model, stream, hidden)).logits.float()


def choice_logits(model: PreTrainedModel, stream: Stream, hidden: Tensor | None = None) -> Tensor:
    """Logits (B,), float32, of a stock ``*ForMultipleChoice``; each choice is a sequence."""
    return _head(model, stream, _first_states(model, stream, hidden)).logits[:, 0].float()


def token_logits(model: PreTrainedModel, stream: Stream, hidden: Tensor | None = None) -> Tensor:
    """Logits (T, number of labels), float32, of a stock ``*ForTokenClassification``."""
    hidden = encode(model, stream) if hidden is None else hidden
    return _head(model, stream, hidden[None]).logits[0].float()


def span_logits(model: PreTrainedModel, stream: Stream, hidden: Tensor | None = None) -> Tensor:
    """Logits (T, 2), float32, of start and end, of a stock ``*ForQuestionAnswering``."""
    hidden = encode(model, stream) if hidden is None else hidden
    outputs = _head(model, stream, hidden[None])
    return torch.stack((outputs.start_logits[0], outputs.end_logits[0]), dim=-1).float()


def mlm_logits(model: PreTrainedModel, stream: Stream, positions: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Logits (M, vocabulary), float32, of a stock ``*ForMaskedLM`` at the rows ``positions`` (M,) of the batch."""
    hidden = encode(model, stream) if hidden is None else hidden
    return _head(model, stream, hidden[positions][None]).logits[0].float()


def _first_states(model: PreTrainedModel, stream: Stream, hidden: Tensor | None) -> Tensor:
    """(B, 1, H): every [CLS] as a sequence of one token, of which the stock heads take the first."""
    hidden = encode(model, stream) if hidden is None else hidden
    return hidden[stream.first_rows][:, None]


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

"""Encoder-decoders by their configuration: the Transformer with LayerNorms behind or before the residual connections,
and the RNN with and without attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import nn
from transformers import (
    MarianConfig,
    MarianMTModel,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Depth, Dropout, Epsilon, Name, Tokens, Width
from bertillery.models.families.rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from bertillery.models.layers.attention import NAME
from bertillery.models.load import load_encoder_decoder, vocabulary_size


class ModelSection(Section):
    """Which model: a new one of a size, or an existing one to train on (``from``)."""

    name: Name | None = None
    """The model's name in the folder of the run."""

    @classmethod
    def variant(cls, values: Any) -> type[ModelSection]:
        """The section of an existing model where there is ``from``, else of the architecture."""
        if cls is not ModelSection or not isinstance(values, Mapping):
            return cls
        if values.get("from") is not None:
            return ExistingSection
        return {"rnn": RnnSection}.get(str(values.get("architecture")), TransformerSection)

    @model_validator(mode="wrap")
    @classmethod
    def _as_its_kind(cls, values: Any, handler: ModelWrapValidatorHandler[ModelSection]) -> ModelSection:
        chosen = cls.variant(values)
        if isinstance(values, Mapping) and values.get("from", "") is None:
            values = {key: value for key, value in values.items() if key != "from"}
        return handler(values) if chosen is cls else chosen.model_validate(values)

    def build(
        self, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase | None = None
    ) -> PreTrainedModel:
        """The model with the packed attention, drawn from torch's global generator; ``target`` is a vocabulary of the
        target's own."""
        raise NotImplementedError

    @property
    def longest(self) -> int | None:
        """Positions of source and of target; None if there is no limit, or it is not known yet."""
        return None

    def check_separate(self) -> None:
        """``ConfigError`` where the model cannot have two vocabularies."""


class TransformerSection(ModelSection):
    """A Transformer of these sizes; the defaults are Base (Vaswani et al. 2017, table 3)."""

    architecture: Literal["transformer"] = "transformer"
    """``transformer`` or ``rnn``."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorms behind the residual connections, as in the paper, or before them, which needs no warm-up (Xiong et al.
    2020, arXiv 2002.04745)."""
    encoder_layers: Depth = 6
    """Layers of the encoder."""
    decoder_layers: Depth = 6
    """Layers of the decoder."""
    hidden_size: Width = 512
    """Width of embeddings and layers."""
    intermediate_size: Width = 2048
    """Width of the feed-forward layers, with ReLU."""
    num_attention_heads: Width = 8
    """Heads of each attention."""
    dropout: Dropout = 0.1
    """Dropout of embeddings and of what is added to the residual connections."""
    attention_dropout: Dropout = 0.0
    """Dropout of attention probabilities."""
    activation_dropout: Dropout = 0.0
    """Dropout within the feed-forward layers."""
    max_position_embeddings: Tokens = 512
    """Most tokens of a source, and of a target."""
    initializer: Literal["glorot", "normal"] = "glorot"
    """Matrices are drawn uniformly within Glorot's bounds, and embeddings with a deviation of 1 / sqrt(width), as in
    the papers' code; or all with the deviation 0.02, as in transformers."""

    @model_validator(mode="after")
    def _heads_fit(self) -> TransformerSection:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is odd; sines and cosines share it evenly")
        return self

    @property
    def longest(self) -> int:
        """Positions."""
        return self.max_position_embeddings

    def check_separate(self) -> None:
        """The same."""
        if self.norm == "pre":
            raise ConfigError(
                "tokenizer.separate: with norm=pre the model is PegasusForConditionalGeneration, in which source and "
                "target share their embeddings; give norm=post, or one vocabulary for both"
            )

    def build(
        self, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase | None = None
    ) -> PreTrainedModel:
        """``MarianMTModel``, or with ``norm: pre`` ``PegasusForConditionalGeneration``."""
        settings: dict[str, Any] = {
            **vocabulary_sizes(tokenizer, target),
            "d_model": self.hidden_size,
            **{f"{side}_layers": getattr(self, f"{side}_layers") for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": self.intermediate_size for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": self.num_attention_heads for side in ("encoder", "decoder")},
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "activation_function": "relu",
            "scale_embedding": True,
            "max_position_embeddings": self.max_position_embeddings,
            **ends(tokenizer),
            "attn_implementation": NAME,
        }
        if self.norm == "post":
            model = MarianMTModel(MarianConfig(**settings))
        else:
            del settings["share_encoder_decoder_embeddings"]
            model = PegasusForConditionalGeneration(PegasusConfig(**settings))
        if self.initializer == "glorot":
            draw_glorot(model)
        return model


class RnnSection(ModelSection):
    """A recurrent encoder and decoder (Sutskever et al. 2014), with attention (Bahdanau et al. 2015, Luong et al.
    2015)."""

    architecture: Literal["rnn"] = "rnn"
    """``transformer`` or ``rnn``."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Kind of cell."""
    embedding_size: Width = 256
    """Width of the embeddings, which target and output share, and with one vocabulary the source, too."""
    hidden_size: Width = 512
    """Width of the decoder's state."""
    encoder_hidden_size: Width = 256
    """Width of the encoder's state, in each direction."""
    bidirectional: bool = True
    """Whether the encoder reads the source in both directions."""
    num_hidden_layers: Depth = 1
    """Layers of each side."""
    attention: Literal["none", "dot", "general", "concat", "additive"] = "general"
    """How decoder states are compared with encoder states: not at all, Luong's three scores, or Bahdanau's."""
    input_feeding: bool = False
    """Whether the last attentional state enters the next step (Luong et al. 2015, section 3.3)."""
    reverse_source: bool = False
    """Whether sources are read backwards (Sutskever et al. 2014, section 3.3)."""
    dropout: Dropout = 0.3
    """Dropout of embeddings and of states before the output."""
    initializer_range: Epsilon = 0.08
    """Weights are drawn uniformly from -range to range."""

    def build(
        self, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase | None = None
    ) -> PreTrainedModel:
        """A model of ours, which ``import bertillery`` registers with the Auto classes."""
        config = RnnSeq2SeqConfig(**vocabulary_sizes(tokenizer, target), **self._settings, **ends(tokenizer))
        return RnnSeq2SeqForConditionalGeneration(config)

    @property
    def _settings(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name", "architecture"})

    @model_validator(mode="after")
    def _sizes_fit(self) -> RnnSection:
        RnnSeq2SeqConfig(**self._settings)
        return self


class ExistingSection(ModelSection):
    """An existing model, trained further."""

    from_: str = Field(alias="from")
    """Directory of a translation model, such as the ``export`` of a run."""
    dropout: Dropout | None = None
    """Dropout instead of the model's own."""

    def build(
        self, tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase | None = None
    ) -> PreTrainedModel:
        """With the weights of the directory."""
        return load_encoder_decoder(self.from_, {} if self.dropout is None else {"dropout": self.dropout})


def vocabulary_sizes(tokenizer: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What a configuration says of one vocabulary or of two; the keys are Marian's."""
    found: dict[str, Any] = {
        "vocab_size": vocabulary_size(tokenizer),
        "share_encoder_decoder_embeddings": target is None,
    }
    return found if target is None else found | {"decoder_vocab_size": vocabulary_size(target)}


def ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The ids that begin and end a translation: padding begins it, and no token is forced at the longest length."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    return {
        "pad_token_id": pad,
        "eos_token_id": end,
        "bos_token_id": None,
        "decoder_start_token_id": pad,
        "forced_eos_token_id": None,
    }


@torch.no_grad()
def draw_glorot(model: nn.Module) -> None:
    """Draw matrices uniformly within Glorot's bounds, and embeddings from a normal distribution with a deviation of
    1 / sqrt(width), in place; biases are 0 and sinusoids stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    config: Any = model.config
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight.requires_grad}
    for weight in tables.values():
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        weight[config.pad_token_id] = 0  # every target begins with it, at its first position

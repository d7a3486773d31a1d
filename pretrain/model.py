"""The size of an encoder and its initialisation."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator
from torch import nn
from transformers import BertConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from bertillery.config.section import Section
from bertillery.config.types import Depth, Dropout, Epsilon, Tokens, Width
from bertillery.models.init import truncated_normal_
from bertillery.models.layers.attention import NAME
from bertillery.models.load import vocabulary_size

C = TypeVar("C", bound=PreTrainedConfig)


_MISPRINTS = {
    (2048, 24): "; table 2.1 of GPT-3's paper misprints 1.3B, which has 16 heads of 128 (configuration gpt3_xl)",
    (5140, 40): "; table 2.1 of GPT-3's paper misprints 13B, whose width is 40 x 128 = 5120 (configuration gpt3_13b)",
}
"""What is known of hidden sizes and numbers of heads that do not fit."""


class ModelSection(Section):
    """Size of the encoder, in the terms of transformers' configurations. Defaults are BERT-Base."""

    from_: str | None = Field(default=None, alias="from")
    """Initialises from a checkpoint, a directory or a Hub name, which then decides the sizes and the tokenizer."""
    num_hidden_layers: Depth = 12
    """Transformer layers."""
    hidden_size: Width = 768
    """Width."""
    num_attention_heads: Width = 12
    """Must divide the width."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layers; 4 times the width where not given."""
    hidden_act: str = "gelu_pytorch_tanh"
    """BERT's and ALBERT's code use the tanh approximation of GELU, ELECTRA's the exact one ("gelu")."""
    hidden_dropout_prob: Dropout = 0.1
    """Dropout of embeddings and layer outputs; 0 trains faster and is what many pretrain small encoders with."""
    attention_probs_dropout_prob: Dropout = 0.1
    """Dropout of attention probabilities."""
    initializer_range: Epsilon = 0.02
    """Deviation of the weights at the start; 0.02 is BERT's at any width."""
    layer_norm_eps: Epsilon = 1e-12
    """Added to the variance in every LayerNorm."""
    max_position_embeddings: Tokens = 512
    """Rows of the position table: the longest sequence the model can ever read."""

    @field_validator("hidden_act")
    @classmethod
    def _activation_is_known(cls, name: str) -> str:
        if name not in ACT2FN:
            raise ValueError(f"no activation function that transformers has; there are: {', '.join(sorted(ACT2FN))}")
        return name

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSection:
        if self.hidden_size % self.num_attention_heads:
            known = _MISPRINTS.get((self.hidden_size, self.num_attention_heads), "")
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
                + known
            )
        return self

    def sizes(self) -> dict[str, int | float | str]:
        """Keyword arguments for a transformers configuration."""
        return self.model_dump(exclude={"from_"}) | {
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size
        }


def packed_config(config_class: type[C], sizes: ModelSection, tokenizer: PreTrainedTokenizerBase, **more: Any) -> C:
    """A transformers configuration of these sizes, with two segments and the packed attention."""
    settings: dict[str, Any] = {
        "vocab_size": vocabulary_size(tokenizer),
        "type_vocab_size": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "attn_implementation": NAME,
    }
    return config_class(**settings, **sizes.sizes(), **more)


def bert_config(sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    """BERT's configuration of these sizes."""
    return packed_config(BertConfig, sizes, tokenizer)


def initialize(model: nn.Module, std: float) -> None:
    """Truncated normal weights (cut at two standard deviations) and zero biases, as in BERT's code.

    Transformers draws from the untruncated normal. LayerNorms keep 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            truncated_normal_(module.weight, std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

"""Drop-ins for layers of stock models: they change no parameter, and reach every layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, OpenAIGPTConfig, OpenAIGPTModel
from transformers.activations import gelu_new
from transformers.pytorch_utils import Conv1D

from bertillery.models.layers.dropout import Dropout
from bertillery.models.layers.gelu import TanhGelu
from bertillery.models.layers.linear import Linear, TransposedLinear
from bertillery.models.layers.prepare import prepare_layers

SIZES = {"vocab_size": 50, "n_embd": 8, "n_layer": 2, "n_head": 2}
MODELS = {
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            hidden_act="gelu_pytorch_tanh",
        )
    ),
    "gpt2": lambda: GPT2Model(GPT2Config(**SIZES)),
    "gpt1": lambda: OpenAIGPTModel(OpenAIGPTConfig(**SIZES)),
}


@pytest.mark.parametrize("family", MODELS)
def test_drop_ins_change_no_parameter_and_no_output(family: str) -> None:
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    ids = torch.arange(12).view(2, 6)
    names, before = list(model.state_dict()), model(ids).last_hidden_state
    prepare_layers(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(ids).last_hidden_state, before)
    kinds = [type(module) for module in model.modules()]
    assert not {nn.Dropout, nn.Linear, Conv1D} & {*kinds}
    assert TanhGelu in kinds
    assert Dropout in kinds
    assert Linear in kinds or TransposedLinear in kinds


def test_the_activation_that_all_of_gpt_1_share_is_left_to_others() -> None:
    model = MODELS["gpt1"]()
    assert any(module is gelu_new for module in model.modules())
    prepare_layers(model)
    assert not any(module is gelu_new for module in model.modules())
    assert type(gelu_new) is not TanhGelu

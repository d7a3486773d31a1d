"""Stock models made ready for training: the original's dropout, and layers that are fast on CPUs."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN
from transformers.models.albert.modeling_albert import AlbertLayer
from transformers.pytorch_utils import Conv1D

from bertillery.models.layers.dropout import Dropout, DroppingAlbertLayer
from bertillery.models.layers.gelu import TanhGelu
from bertillery.models.layers.linear import Linear, TransposedLinear

_DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: Dropout,
    nn.Linear: Linear,
    Conv1D: TransposedLinear,
    AlbertLayer: DroppingAlbertLayer,
}
_TANH_GELU = tuple(type(ACT2FN[name]) for name in ("gelu_new", "gelu_pytorch_tanh"))


def prepare_layers(model: nn.Module) -> None:
    """Replace layers of a model by drop-ins, in place: dropout, linear layers, the tanh form of GELU, ALBERT's layers.

    Parameters, names, mode and what is exported stay the same.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in _TANH_GELU:  # GPT-1's models share one
                setattr(module, name, TanhGelu().train(child.training))
        module.__class__ = _DROP_INS.get(type(module), type(module))

"""Layers compiled by torch, one at a time."""

from __future__ import annotations

from torch import nn


def compile_layers(objective: nn.Module) -> None:
    """Compile every layer of the encoders in place; names, and what is saved, stay as they are.

    Batches have other numbers of tokens all the time, so shapes are symbols, and one compilation serves all layers of
    a size. Between layers, and in heads, nothing is gained that would be worth the time that compiling takes.
    """
    for module in list(objective.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=True)

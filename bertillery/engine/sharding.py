"""Encoders that do not fit one device: parameters, gradients and optimizer state split over all processes (FSDP2).

Of each tensor every process holds a share of the rows. A layer's tensors are put together where it computes, forward
and backward, and given up behind it; gradients are summed and split again after every micro-batch, since to wait for
the last one would keep them whole. Weights are put together in float32 and cast by autocast as those of an unsplit run
are, which this one therefore equals to rounding; the price is that under bfloat16 a copy of the weights, 2 bytes each,
is kept on every device from the forward to the backward pass.

It is torch's ``fully_shard`` itself: accelerate's way to it starts on GPUs alone, and wants the optimizer before the
parameters that it is to hold. The model is built in every process' own memory before it is split.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.export import register_dataclass

from bertillery.engine.objective import Objective, Term

Sharding = Literal["none", "full"]

register_dataclass(Term)  # torch before 2.13 looks into no other dataclass for what a backward pass begins with


def prepared(accelerator: Accelerator, objective: Objective, sharding: Sharding) -> nn.Module:
    """The objective, ready to be trained by all processes: a whole one in each, or split in place.

    Build the optimizer after it, of the same ``objective``: its parameters are others then.
    """
    if sharding == "none":
        return accelerator.prepare_model(objective)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in own_layers(objective):
        fully_shard(layer, mesh=mesh)
    # Split again after the forward pass, as the layers are: outside of a pass nothing is whole.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)
    for name in objective.entries:
        register_fsdp_forward_method(objective, name)
    return accelerator.prepare_model(objective, evaluation_mode=True)  # no copies to keep equal, only autocast


def own_layers(objective: nn.Module) -> list[nn.Module]:
    """The layers to be put together one at a time; all other tensors are, once, for the whole of a pass.

    With the others stay a layer that is all there is (ALBERT's, used again and again), layers with tensors in common,
    and one that is trained in part, which a loss may look into without using what it returns.
    """
    stacks = [module for module in objective.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    layers = [layer for stack in stacks for layer in stack]
    users = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    return [
        layer
        for layer in layers
        if all(users[id(parameter)] == 1 for parameter in layer.parameters())
        and len({parameter.requires_grad for parameter in layer.parameters()}) == 1
    ]


def is_split(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be split; then all processes have to ask, at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor], *, is_main: bool) -> dict[str, Tensor]:
    """The tensors, split ones whole and in the main process' own memory; the other processes help, and get none.

    One is put together at a time, so that a device never holds more than the largest.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if is_main:
            found[name] = (complete.cpu() if isinstance(tensor, DTensor) else complete).contiguous()
    return found


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of what this process holds of ``value``, which is whole, if it is split as ``like`` is."""
    if isinstance(like, DTensor):
        value = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # nothing is sent
        return torch.empty_like(value).copy_(value)
    return value.clone()


def assemble(model: nn.Module, *, is_main: bool) -> None:
    """Replace split parameters by whole ones in the main process' own memory; all processes call it.

    It is for what is exported: no training can follow.
    """
    held = {id(tensor): tensor for tensor in model.parameters() if isinstance(tensor, DTensor)}
    complete = gathered({str(key): tensor for key, tensor in held.items()}, is_main=is_main)
    made = {int(key): nn.Parameter(tensor) for key, tensor in complete.items()}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in made:
                setattr(module, name, made[id(parameter)])  # what was one tensor is one again

"""Models that do not fit one device: parameters, gradients and optimizer state split over all processes (FSDP2).

Every process holds a share of the rows of each tensor. A layer's tensors are gathered while it computes, forward and
backward. Gradients are summed and split after every micro-batch; until the last one they would be whole. Weights are
gathered in float32 and cast by autocast as in an unsplit run, so that results are equal to rounding. The cost under
bfloat16 is a copy of the weights, 2 bytes each, on every device from the forward to the backward pass.

This uses torch's ``fully_shard``: accelerate supports it on GPUs only, and wants the optimizer before the split
parameters exist. Each process builds the whole model in its memory before it is split.
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

register_dataclass(Term)  # torch before 2.13 finds tensors to differentiate in registered dataclasses only


def prepared(accelerator: Accelerator, objective: Objective, sharding: Sharding) -> nn.Module:
    """The objective, ready for training by all processes: a copy in each, or split in place.

    Build the optimizer of the same ``objective`` afterwards, because splitting replaces its parameters.
    """
    if sharding == "none":
        return accelerator.prepare_model(objective)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in own_layers(objective):
        fully_shard(layer, mesh=mesh)
    # Split again after the forward pass, like the layers.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)
    for name in objective.entries:
        register_fsdp_forward_method(objective, name)
    return accelerator.prepare_model(objective, evaluation_mode=True)  # autocast without DDP


def own_layers(objective: nn.Module) -> list[nn.Module]:
    """The layers to gather one at a time; all other tensors are gathered once for a whole pass.

    The others include a single layer (ALBERT's, which is used repeatedly), layers that share tensors, and a layer that
    is trained in part, whose inner values a loss may read without using its output.
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
    """Whether this process holds only a part of the tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split; all processes must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: dict[str, Tensor], *, is_main: bool) -> dict[str, Tensor]:
    """The tensors, whole, in the main process; split ones are moved to its CPU memory. All processes call it; the
    others get an empty dictionary.

    One tensor is gathered at a time, so that a device never holds more than the largest.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if is_main:
            found[name] = (complete.cpu() if isinstance(tensor, DTensor) else complete).contiguous()
    return found


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A copy of this process's part of the whole ``value``, split in the same way as ``like``."""
    if isinstance(like, DTensor):
        value = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # sends nothing
        return torch.empty_like(value).copy_(value)
    return value.clone()


def assemble(model: nn.Module, *, is_main: bool) -> None:
    """Replace split parameters by whole ones in the main process's CPU memory, for the export. All processes call it;
    the model cannot be trained afterwards."""
    held = {id(tensor): tensor for tensor in model.parameters() if isinstance(tensor, DTensor)}
    complete = gathered({str(key): tensor for key, tensor in held.items()}, is_main=is_main)
    made = {int(key): nn.Parameter(tensor) for key, tensor in complete.items()}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in made:
                setattr(module, name, made[id(parameter)])  # keeps shared parameters shared

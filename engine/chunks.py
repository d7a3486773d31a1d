"""Sums over rows whose intermediate results, such as logits over a vocabulary, are too large to be held for all rows.

A chunk of rows is carried through to its sum *and back to its gradient* at once, so that one chunk's intermediate
results exist at a time and nothing is computed twice. What is kept until the backward pass is the gradient itself, of
the size of the rows and the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Sums = Callable[..., Tensor]
"""Rows (R, ...) of each input to sums (K,), of which the first has a gradient and the others are only reported."""


def sums_over_chunks(sums: Sums, inputs: Sequence[Tensor], parameters: Sequence[Tensor], rows: int) -> Tensor:
    """``sums`` (K,) of the ``inputs`` (R, ...), made of ``rows`` of them at a time.

    Among the ``parameters`` must be all that ``sums`` depends on and that want a gradient. Where the rows fit into one
    chunk this is ``sums(*inputs)`` itself. There is no second derivative.
    """
    if len(inputs[0]) <= rows:
        return sums(*inputs)
    if not torch.is_grad_enabled():
        return torch.stack([sums(*chunk) for chunk in _chunks(inputs, rows)]).sum(0)
    return _AtOnce.apply(sums, rows, len(inputs), *inputs, *parameters)


def _chunks(inputs: Sequence[Tensor], rows: int) -> Any:
    return zip(*(tensor.split(rows) for tensor in inputs), strict=True)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Sums, rows: int, num_inputs: int, *tensors: Tensor) -> Tensor:
        inputs, parameters = tensors[:num_inputs], tensors[num_inputs:]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        of_inputs: list[tuple[Tensor, ...]] = []
        of_parameters: dict[int, Tensor] = {}
        totals = []
        for parts in _chunks(inputs, rows):
            chunk = [part.detach().requires_grad_(x.requires_grad) for part, x in zip(parts, inputs, strict=True)]
            with torch.enable_grad():
                values = sums(*chunk)
                first = values[0]
            leaves = [part for part in chunk if part.requires_grad]
            found = torch.autograd.grad(first, [*leaves, *trained], allow_unused=True)
            of_inputs.append(found[: len(leaves)])
            for parameter, gradient in zip(trained, found[len(leaves) :], strict=True):
                if gradient is not None:
                    before = of_parameters.get(id(parameter))
                    of_parameters[id(parameter)] = gradient if before is None else before.add_(gradient)
            totals.append(values.detach())
        whole = iter([torch.cat(parts) for parts in zip(*of_inputs, strict=True)])
        ctx.gradients = [next(whole) if tensor.requires_grad else None for tensor in inputs]
        ctx.gradients += [of_parameters.get(id(parameter)) for parameter in parameters]
        return torch.stack(totals).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        upstream = grads[0][0]
        return None, None, None, *(None if known is None else known * upstream for known in ctx.gradients)

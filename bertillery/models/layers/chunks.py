"""What is made for every row and would be too large for all of them at once: logits over a vocabulary.

A chunk of rows is carried through to its loss *and back to its gradient* before the next one is begun, so that one
chunk's logits exist at a time and nothing is computed twice. What is kept until the backward pass is the gradient
itself, of the size of the rows and the parameters.

Legend: M rows, R rows of a chunk, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bertillery.models.layers.cross_entropy import cross_entropies

LOGITS = 1 << 28
"""Logits of masked words that are held at a time, at most: 1 GiB in float32, and as much again a few times over."""

Function = Callable[..., tuple[Tensor, ...]]
"""Some rows (R, ...) of each input to their loss, a scalar, and to what else is to be known of them."""


def in_chunks(
    function: Function, *inputs: Tensor, parameters: Iterable[Tensor], width: int, most: int
) -> tuple[Any, ...]:
    """The sum of the losses of all rows of the inputs (M, ...); then, of each further result, those of the chunks.

    ``function`` sees as many rows at a time as hold at most ``most`` numbers, ``width`` each. Among the ``parameters``
    must be all that the loss depends on and that want a gradient. A single chunk is a plain call. There is no second
    derivative, and what is beside the loss has no first.
    """
    rows = max(1, most // width)
    if len(inputs[0]) <= rows:
        loss, *others = function(*inputs)
        return loss, *((other,) for other in others)
    known: list[tuple[Tensor, ...]] = []
    tensors = *inputs, *parameters
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        total = _AtOnce.apply(function, rows, known, len(inputs), *tensors)
    else:
        results = [function(*chunk) for chunk in _chunks(inputs, rows)]
        total = torch.stack([loss for loss, *_ in results]).sum()
        known.extend(tuple(others) for _, *others in results)
    return total, *zip(*known, strict=True)


def _chunks(inputs: Sequence[Tensor], rows: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(rows) for tensor in inputs), strict=True)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, rows: int, known: list[Any], num_inputs: int, *tensors: Tensor) -> Tensor:
        inputs, parameters = tensors[:num_inputs], tensors[num_inputs:]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        of_inputs: list[tuple[Tensor, ...]] = []
        of_parameters: dict[int, Tensor] = {}
        losses = []
        for parts in _chunks(inputs, rows):
            chunk = [part.detach().requires_grad_(x.requires_grad) for part, x in zip(parts, inputs, strict=True)]
            with torch.enable_grad():
                loss, *others = function(*chunk)
            leaves = [part for part in chunk if part.requires_grad]
            found = torch.autograd.grad(loss, [*leaves, *trained], allow_unused=True)
            of_inputs.append(found[: len(leaves)])
            for parameter, gradient in zip(trained, found[len(leaves) :], strict=True):
                if gradient is not None:
                    before = of_parameters.get(id(parameter))
                    of_parameters[id(parameter)] = gradient if before is None else before.add_(gradient)
            losses.append(loss.detach())
            known.append(tuple(other.detach() for other in others))
        whole = iter([torch.cat(parts) for parts in zip(*of_inputs, strict=True)])
        ctx.gradients = [next(whole) if tensor.requires_grad else None for tensor in inputs]
        ctx.gradients += [of_parameters.get(id(parameter)) for parameter in parameters]
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if gradient is None else gradient * grads[0] for gradient in ctx.gradients)
        return None, None, None, None, *scaled


def word_sums(
    head: Callable[[Tensor], Tensor], hidden: Tensor, words: Tensor, *, parameters: Iterable[Tensor], vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the ``words`` (M,) in nats, and how many are guessed right, summed over hidden states (M, H).

    ``head`` makes logits (R, V) of (R, H) with its ``parameters``. They are compared in float32 whatever the precision
    of the model.
    """

    def sums(hidden: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        losses, _, right = cross_entropies(head(hidden), words)
        return losses.sum(), right.sum()

    loss, rights = in_chunks(sums, hidden, words, parameters=parameters, width=vocab_size, most=LOGITS)
    return loss, torch.stack(rights).sum()

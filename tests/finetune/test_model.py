from __future__ import annotations

import torch

from finetune.model import best_within, log_softmax_within


def test_softmax_within_is_the_softmax_of_each_owner() -> None:
    """Value and gradient, also where the owners' logits are far apart."""
    torch.manual_seed(0)
    sizes, offsets = [3, 1, 40, 7], [0.0, 500.0, -500.0, 9.0]
    owner = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    for width in ((), (2,)):
        parts = [torch.randn(n, *width) + offset for n, offset in zip(sizes, offsets, strict=True)]
        logits = torch.cat(parts).requires_grad_()
        alone = torch.cat([part.log_softmax(0) for part in logits.split(sizes)])
        got = log_softmax_within(logits, owner, 4)
        torch.testing.assert_close(got, alone)
        weights = torch.randn_like(got)
        (wanted,) = torch.autograd.grad((alone * weights).sum(), logits)
        (given,) = torch.autograd.grad((got * weights).sum(), logits)
        torch.testing.assert_close(given, wanted)


def test_best_within_is_the_first_of_the_best() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, -2.0, 0.0, 0.0])
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    assert best_within(logits, owner, 3).tolist() == [1, 3, 4]

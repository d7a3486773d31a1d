"""The loop: all stages train with it, and it knows no loss by name.

One optimizer step: take the step's examples, make the counts of all micro-batches and ranks known to all, run each
micro-batch and divide its sums by the global counts, clip, set the learning rate, update unless anything is not
finite. The host never waits for the device, except where it has to be certain. What else happens now and then (log,
save, evaluate) is in :mod:`bertillery.run.trainer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from bertillery.engine.loader import Cursor, StepData, on_device
from bertillery.engine.objective import Objective, Term
from bertillery.engine.optim import clip_gradients
from bertillery.engine.rng import key
from bertillery.engine.sharding import is_split


class DivergedError(RuntimeError):
    """A loss or gradient is not finite; the weights are those before the step."""


@dataclass(frozen=True)
class StepInfo:
    """What one optimizer step did."""

    step: int
    """Updates done so far, this one included."""
    terms: list[tuple[dict[str, Term], dict[str, int]]]
    """This rank's sums (on the device) and counts, per micro-batch."""
    learning_rate: float
    gradient_norm: Tensor
    """Global norm before clipping, on the device."""
    num_examples: int
    num_tokens: int
    flops: float
    """Of this rank."""
    cursor: Cursor
    """Where the next step's examples start."""
    stop: bool
    """Some rank was asked to stop; all ranks see it after the same step."""


class HostSum:
    """Adds small integers over all ranks on the host, without waiting for the device."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    def __call__(self, values: dict[str, int]) -> dict[str, int]:
        """The values summed over the ranks, which all give the same names."""
        if self._group is None:
            return values
        summed = torch.tensor([values[name] for name in sorted(values)], dtype=torch.int64)
        dist.all_reduce(summed, group=self._group)
        return dict(zip(sorted(values), summed.tolist(), strict=True))


class Watch:
    """Finds the first step whose gradient is not finite, without the host waiting for the device.

    That step raises a flag on the device which nothing lowers, and an optimizer that is shown the flag leaves weights
    and moments as they are. Each step's copy of it travels to the host behind the step's work and is read when the next
    step is queued already, so that the device always has something to do.
    """

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros((), device=device)
        """(), float32: 1 since some step was broken, 0 before; what torch's optimizers call ``found_inf``."""
        self._unread: deque[tuple[Tensor, torch.cuda.Event | None, Callable[[], str]]] = deque()

    def see(self, norm: Tensor, message: Callable[[], str]) -> None:
        """Note a step's gradient norm, and what to say if it is not finite; raises for the step before, as ``read``."""
        self.read()
        self.flag = torch.maximum(self.flag, (~torch.isfinite(norm)).float())
        # To the host without waiting means to page-locked memory; the event is how to know that it has arrived.
        copy, arrived = self.flag.to("cpu", non_blocking=True), None
        if self.flag.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(self.flag.device))
        self._unread.append((copy, arrived, message))

    def read(self) -> None:
        """Wait for the device and raise ``DivergedError`` for the first broken step, if there was one."""
        while self._unread:
            copy, arrived, message = self._unread.popleft()
            if arrived is not None:
                arrived.synchronize()
            if copy.item():
                raise DivergedError(message())


def always(step: int) -> bool:
    """At every step."""
    return True


def training_steps(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Iterable[StepData],
    *,
    learning_rate: Callable[[int], float],
    max_gradient_norm: float,
    clipping: str = "global",
    loss_reduction: str = "mean",
    seed: int,
    stop_requested: Callable[[], bool] = lambda: False,
    certain: Callable[[int], bool] = always,
) -> Iterator[StepInfo]:
    """Train on the data, one optimizer step at a time; ``objective`` is prepared by the accelerator.

    ``certain`` says of a number of updates, alike on all ranks, whether they must be known to be sound when they are
    yielded: wherever they are looked at, saved or evaluated. The device is waited for there, where a rank was asked to
    stop, and at the end of the data. Otherwise it is known one step later.

    Raises ``DivergedError`` for the first gradient that is not finite; weights and moments stay those before that step.
    """
    host_sum, plain, watch = HostSum(), accelerator.unwrap_model(objective), Watch(accelerator.device)
    assert isinstance(plain, Objective)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    split = any(map(is_split, parameters))  # torch's optimizers take no flag with them; what needs it waits for more
    for item in on_device(data, accelerator.device):
        counts = host_sum(_counts(item) | {"stop": int(stop_requested())})
        # Dropout depends on seed, step and rank alone: nothing to store, nothing to replay on resume.
        torch.manual_seed(int(key(seed, item.step, accelerator.process_index) >> 1))
        done, flops = [], 0.0
        for turn, batch in enumerate(item.micro_batches):
            last = turn == len(item.micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(objective):
                terms = objective(batch)
                accelerator.backward(share_of_loss(terms, counts, loss_reduction) * accelerator.num_processes)
            done.append(({n: replace(t, total=t.total.detach()) for n, t in terms.items()}, batch.counts))
            flops += plain.flops(batch)
        norm = clip_gradients(parameters, max_gradient_norm, clipping)
        rate = learning_rate(item.step)
        watch.see(norm, partial(_diverged, item.step, rate, norm, done))
        sure = certain(item.step + 1) or counts["stop"] > 0 or split
        if sure:
            watch.read()
        # All three optimizers (bertillery.engine.optim) make no update where this is 1.
        cast(Any, optimizer).found_inf = None if sure else watch.flag
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield StepInfo(
            step=item.step + 1,
            terms=done,
            learning_rate=rate,
            gradient_norm=norm,
            num_examples=item.num_examples,
            num_tokens=item.num_tokens,
            flops=flops,
            cursor=item.cursor,
            stop=counts["stop"] > 0,
        )
    watch.read()


def _counts(item: StepData) -> dict[str, int]:
    total: dict[str, int] = {}
    for batch in item.micro_batches:
        for name, count in batch.counts.items():
            total[name] = total.get(name, 0) + count
    return total


def share_of_loss(terms: dict[str, Term], counts: dict[str, int], reduction: str = "mean") -> Tensor:
    """This micro-batch's share of the step's loss, the mean of what the counts count, or the sum. A step without any
    target of a kind gives 0 for it, not 0/0."""
    divisors = {name: max(1, count) if reduction == "mean" else 1 for name, count in counts.items()}
    shares = [term.total * (term.weight / divisors[term.count]) for term in terms.values() if term.weight]
    return torch.stack(shares).sum()


def _diverged(step: int, rate: float, norm: Tensor, done: list[tuple[dict[str, Term], dict[str, int]]]) -> str:
    broken = sorted({name for terms, _ in done for name, term in terms.items() if not torch.isfinite(term.total).all()})
    what = f"the loss {', '.join(broken)}" if broken else "the gradient"
    return (
        f"step {step + 1}: {what} is not finite (gradient norm {norm.item()}, learning rate {rate:.3g}); "
        "the weights were not updated. "
        "A lower optim.learning_rate, a longer optim.warmup or run.precision=fp32 usually helps"
    )

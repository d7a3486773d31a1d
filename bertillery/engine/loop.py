"""The training loop of all stages; it knows no loss by name.

One optimizer step: take the step's examples, sum the counts of all micro-batches and ranks, run each micro-batch and
divide its sums by the global counts, clip, set the learning rate, and update unless something is not finite. The host
waits for the device only where the caller asks for certainty. Logging, saving and evaluating are in
:mod:`bertillery.run.trainer`.
"""

from __future__ import annotations

from collections import Counter, deque
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
from bertillery.engine.tables import table_gradients


class DivergedError(RuntimeError):
    """A loss or gradient is not finite; the weights are those from before the step."""


@dataclass(frozen=True)
class StepInfo:
    """Record of one optimizer step."""

    step: int
    """Number of updates so far, including this one."""
    terms: list[tuple[dict[str, Term], dict[str, int]]]
    """This rank's sums (on the device) and counts of each micro-batch."""
    learning_rate: float
    gradient_norm: Tensor
    """Global norm before clipping, on the device."""
    num_examples: int
    num_tokens: int
    flops: float
    """Floating-point operations of this rank."""
    cursor: Cursor
    """Start of the next step's examples."""
    stop: bool
    """Whether any rank was asked to stop; all ranks learn it after the same step."""


class HostSum:
    """Sums integers over all ranks on the host, without waiting for the device."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    def __call__(self, values: dict[str, int]) -> dict[str, int]:
        """Sums over the ranks; all ranks must give the same names."""
        if self._group is None:
            return values
        summed = torch.tensor([values[name] for name in sorted(values)], dtype=torch.int64)
        dist.all_reduce(summed, group=self._group)
        return dict(zip(sorted(values), summed.tolist(), strict=True))


class Watch:
    """Finds the first step with a gradient that is not finite, without waiting for the device.

    That step sets a flag on the device, and an optimizer that reads the flag leaves weights and moments unchanged. Each
    step's copy of the flag is read on the host after the next step is queued, so that the device never idles.
    """

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros((), device=device)
        """(), float32: 1 from the first broken step on, else 0; torch's optimizers call it ``found_inf``."""
        self._unread: deque[tuple[Tensor, torch.cuda.Event | None, Callable[[], str]]] = deque()

    def see(self, norm: Tensor, message: Callable[[], str]) -> None:
        """Add a step's gradient norm, with the message in case it is not finite; first calls :meth:`read`."""
        self.read()
        self.flag = torch.maximum(self.flag, (~torch.isfinite(norm)).float())
        # A copy that does not wait goes to page-locked memory; the event tells when it is complete.
        copy, arrived = self.flag.to("cpu", non_blocking=True), None
        if self.flag.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(self.flag.device))
        self._unread.append((copy, arrived, message))

    def read(self) -> None:
        """Wait for the device; raises ``DivergedError`` for the first broken step."""
        while self._unread:
            copy, arrived, message = self._unread.popleft()
            if arrived is not None:
                arrived.synchronize()
            if copy.item():
                raise DivergedError(message())


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
    certain: Callable[[int], bool] = lambda step: True,
) -> Iterator[StepInfo]:
    """Train on the data, one optimizer step at a time; ``objective`` has been prepared by the accelerator.

    ``certain`` tells, equally on all ranks, whether a step must be known to be finite when it is yielded: where it is
    logged, saved or evaluated. The host waits for the device there, when a rank was asked to stop, and at the end of
    the data. Other steps are checked one step later.

    Raises ``DivergedError`` for the first gradient that is not finite; weights and moments stay as before that step.
    """
    host_sum, plain, watch = HostSum(), accelerator.unwrap_model(objective), Watch(accelerator.device)
    assert isinstance(plain, Objective)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    split = any(map(is_split, parameters))  # torch's optimizers do not read the flag for split parameters
    with table_gradients(objective, accelerator.device) as tables:
        for item in on_device(data, accelerator.device):
            counts = host_sum(_counts(item) | {"stop": int(stop_requested())})
            # Dropout depends only on seed, step and rank, so that a resumed run needs no generator state.
            _set_seed(accelerator.device, int(key(seed, item.step, accelerator.process_index) >> 1))
            done, flops = [], 0.0
            for number, batch in enumerate(item.micro_batches, 1):
                last = number == len(item.micro_batches)
                with nullcontext() if last else accelerator.no_sync(objective):
                    terms = objective(batch)
                    accelerator.backward(share_of_loss(terms, counts, loss_reduction) * accelerator.num_processes)
                done.append(({n: replace(t, total=t.total.detach()) for n, t in terms.items()}, batch.counts))
                flops += plain.flops(batch)
            tables.collect()
            norm = clip_gradients(parameters, max_gradient_norm, clipping)
            rate = learning_rate(item.step)
            watch.see(norm, partial(_diverged, item.step, rate, norm, done))
            sure = certain(item.step + 1) or counts["stop"] > 0 or split
            if sure:
                watch.read()
            with tables.dense():
                _update(optimizer, rate, None if sure else watch.flag)
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


def _update(optimizer: torch.optim.Optimizer, rate: float, broken: Tensor | None) -> None:
    """All three optimizers (:mod:`bertillery.engine.optim`) change nothing where ``broken`` is 1."""
    cast(Any, optimizer).found_inf = broken
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_share"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _set_seed(device: torch.device, seed: int) -> None:
    """As ``torch.manual_seed``, which asks for every kind of device, and takes a millisecond for it."""
    if device.type in ("cpu", "cuda"):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _counts(item: StepData) -> dict[str, int]:
    total: Counter[str] = Counter()
    for batch in item.micro_batches:
        total.update(batch.counts)
    return dict(total)


def share_of_loss(terms: dict[str, Term], counts: dict[str, int], reduction: str = "mean") -> Tensor:
    """This micro-batch's share of the step's loss: sums over the step's counts, or sums. A count of 0 gives 0."""
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

"""Metrics of a running training: means, speed, memory, and the progress bar."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from bertillery.engine.evaluate import Sums
from bertillery.engine.loop import StepInfo
from bertillery.engine.objective import Objective

_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 125e12, "RTX 4090": 165e12}
"""Dense bfloat16 peak of devices, from the vendor's data sheets, for model FLOPs utilisation."""


class Meter:
    """Adds up the records of steps; fetches them from the device only when read."""

    def __init__(
        self, accelerator: Accelerator, objective: Objective, earlier: Mapping[str, Any] | None = None
    ) -> None:
        """``earlier`` is a saved :meth:`state`, empty if a resumed run has none. It is added to the current interval's
        means; speeds are of this process."""
        self._accelerator, self._objective = accelerator, objective
        self._all_tokens, self._all_seconds = (earlier["tokens"], earlier["seconds"]) if earlier else (0, 0.0)
        self.trained_tokens: int | None = 0 if earlier is None else earlier.get("trained_tokens")
        """Tokens of all steps; ``None`` in a run that was begun by a version that did not count them."""
        self.trained_examples: int | None = 0 if earlier is None else earlier.get("trained_examples")
        """Examples of all steps, likewise."""
        # Each rank's own sums; those of additional ranks are distributed over the present ones.
        self._start(earlier["sums"][accelerator.process_index :: accelerator.num_processes] if earlier else ())

    def _start(self, sums: Sequence[Mapping[str, Any]] = ()) -> None:
        self._sums, self._tokens, self._examples, self._flops, self._steps = Sums(sums), 0, 0, 0.0, 0
        self._since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Sums for the checkpoint, so that an interval's means do not depend on a resume. All processes call it."""
        sums = gather_object([self._sums.state()])
        speed = {"tokens": self._all_tokens, "seconds": self._all_seconds}  # of whole intervals
        trained = {"trained_tokens": self.trained_tokens, "trained_examples": self.trained_examples}
        return {"sums": sums, **speed, **trained}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, saving or evaluating, from training time."""
        if self._accelerator.device.type == "cuda":
            torch.cuda.synchronize(self._accelerator.device)  # queued steps are training time
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def add(self, info: StepInfo) -> None:
        """Add one step."""
        for terms, counts in info.terms:
            self._sums.add(terms, counts)
        self._tokens += info.num_tokens
        if self.trained_tokens is not None:
            self.trained_tokens += info.num_tokens
        if self.trained_examples is not None:
            self.trained_examples += info.num_examples
        self._examples += info.num_examples
        self._flops += info.flops
        self._steps += 1

    def read(self, info: StepInfo) -> dict[str, float]:
        """Metrics since the last reading."""
        values = {f"train/{name}": value for name, value in self._sums.means(self._accelerator).items()}
        seconds = time.perf_counter() - self._since
        self._all_tokens += self._tokens
        self._all_seconds += seconds
        values |= {
            **self.trained,
            "learning_rate": info.learning_rate,
            "gradient_norm": info.gradient_norm.item(),
            "tokens_per_second": self._tokens / seconds,
            "examples_per_second": self._examples / seconds,
            "seconds_per_step": seconds / self._steps,
            "model_tflops_per_device": self._flops / seconds / 1e12,
            "memory_gib": memory_gib(self._accelerator.device),
        }
        beside = self._objective.seconds_beside()
        values |= {f"share_of_{name}": spent / seconds for name, spent in beside.items()}
        peak = _peak_flops(self._accelerator.device)
        if peak is not None:
            values["model_flops_utilisation"] = self._flops / seconds / peak
        self._start()
        return values

    @property
    def trained(self) -> dict[str, float]:
        """Tokens and examples of all steps so far, where they are known: what curves may be drawn over."""
        counts = {"tokens": self.trained_tokens, "examples": self.trained_examples}
        return {name: count for name, count in counts.items() if count is not None}

    @property
    def overall(self) -> float:
        """Tokens per second of the whole training."""
        return self._all_tokens / self._all_seconds if self._all_seconds else 0.0


def memory_gib(device: torch.device) -> float:
    """Peak memory: the device's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)


_BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {remaining} left{postfix}"
_BESIDE = 5 + 6 + 3 + 13 + 2
"""Columns of the bar without numbers of steps and losses: percentage, a short bar, spaces, time left, comma."""


def fitting(parts: Sequence[str], room: int) -> str:
    """As many of the first parts as fit into so many columns, with commas between, and at least one."""
    shown = list(parts[:1])
    for part in parts[1:]:
        if len(", ".join([*shown, part])) > room:
            break
        shown.append(part)
    return ", ".join(shown)


class Progress:
    """A progress bar with losses, tokens/s and remaining time on a terminal; plain lines elsewhere."""

    def __init__(self, total: int, done: int, is_main: bool) -> None:
        self._total, self._is_main = total, is_main
        self._interactive = is_main and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, disable=not self._interactive, dynamic_ncols=True, bar_format=_BAR)
        self._began, self._first = time.perf_counter(), done

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, info: StepInfo) -> None:
        """Advance the bar by a step."""
        self._step = info.step
        self._bar.update()

    def show(self, values: dict[str, float]) -> None:
        """Show losses and speed."""
        losses = {n.removeprefix("train/"): v for n, v in values.items() if n.startswith("train/")}
        speed = f"{values['tokens_per_second']:,.0f} tokens/s"
        terms = [f"{name} {value:.3f}" for name, value in losses.items()]
        text = "  ".join([*terms, speed])
        if self._interactive:
            room = shutil.get_terminal_size().columns - _BESIDE - 2 * len(str(self._total))
            self._bar.set_postfix_str(fitting([*terms[:1], speed, *terms[1:]], room))
        elif self._is_main:
            left = (time.perf_counter() - self._began) / (self._step - self._first) * (self._total - self._step)
            print(f"step {self._step:,}/{self._total:,}  {text}  {left / 60:.1f} min left", flush=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._is_main:
            self._bar.write(text) if self._interactive else print(text, flush=True)

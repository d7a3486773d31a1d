"""The frozen model that a student learns from, outside everything that is trained or saved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective

M = TypeVar("M", bound=nn.Module)


class Teacher(Generic[M]):
    """Holds a module in evaluation mode, without gradients.

    The holder is not a module, so the teacher is in no ``state_dict`` and no optimizer, and ``train()`` does not switch
    on its dropout (which TinyBERT's released code left on). It computes in the precision of the training, under whose
    autocast it is called.
    """

    def __init__(self, module: M) -> None:
        self.module = module.eval().requires_grad_(False)
        self._device: torch.device | None = None
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def asked(self, batch: PackedBatch) -> Iterator[M]:
        """The module on the device of the batch, without a graph for what it computes. In training it is timed."""
        device, training = batch.input.ids.device, torch.is_grad_enabled()
        if device != self._device:
            self.module.to(device)
            self._device = device
        begin, end = self._mark(device), None
        try:
            with torch.no_grad():
                yield self.module
        finally:
            end = self._mark(device)
            if training and isinstance(begin, float) and isinstance(end, float):
                self._seconds += end - begin
            elif training and isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                self._events.append((begin, end))

    @staticmethod
    def _mark(device: torch.device) -> float | torch.cuda.Event:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take_seconds(self) -> float:
        """Seconds of training since the last call; on a GPU this waits for the teacher to finish."""
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds


class Taught(Objective):
    """Base of the methods that compare two encoders on the same batch."""

    def __init__(self, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def exported(self) -> PreTrainedModel:
        """The student."""
        return self.student

    def seconds_beside(self) -> dict[str, float]:
        """The teacher's."""
        return {"teacher": self.teacher.take_seconds()}

    def baselines(self, batches: Any, unigrams: Any, values: Mapping[str, float]) -> dict[str, float]:
        """The teacher's values of the terms that are also measured for it, as ``teacher_*``."""
        return {name: values[f"teacher_{name}"] for name in values if f"teacher_{name}" in values}

"""Evaluation on a fixed set of held-out examples, each seen once with any number of processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bertillery.engine.batch import PackedBatch
from bertillery.engine.loader import Cursor, Stream, shares
from bertillery.engine.objective import Shown, Source, Term, sampled


class Sums:
    """Sums of terms on the device and of counts on the host, over batches."""

    def __init__(self, earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        """``earlier`` are saved :meth:`state` values to add to."""
        self._earlier: dict[str, list[float]] = {}
        self._totals: dict[str, Tensor] = {}
        self._terms: dict[str, tuple[str, float, Callable[[list[float], float], float]]] = {}
        self._counts: dict[str, int] = {}
        for state in earlier:
            for name, total in state["totals"].items():
                known = self._earlier.get(name, [0.0] * len(total))
                self._earlier[name] = [a + b for a, b in zip(known, total, strict=True)]
            for name, count in state["counts"].items():
                self._counts[name] = self._counts.get(name, 0) + count

    def add(self, terms: dict[str, Term], counts: dict[str, int]) -> None:
        """Add a micro-batch, without waiting for the device."""
        for name, term in terms.items():
            total = term.total.detach().double()
            if name in self._earlier:
                self._totals[name] = total.new_tensor(self._earlier.pop(name)).view_as(total)
            self._totals[name] = self._totals[name] + total if name in self._totals else total
            self._terms[name] = (term.count, term.weight, term.value)
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def state(self) -> dict[str, Any]:
        """This rank's totals and counts, exact in JSON; waits for the device."""
        totals = {name: total.flatten().tolist() for name, total in self._totals.items()}
        return {"totals": {**self._earlier, **totals}, "counts": dict(self._counts)}

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Values of all terms over all ranks and their weighted sum ``loss``, with one fetch from the device."""
        names, counted = sorted(self._totals), sorted(self._counts)
        totals = [self._totals[name].flatten() for name in names]
        counts = torch.tensor([self._counts[name] for name in counted], dtype=torch.float64, device=accelerator.device)
        fetched = accelerator.reduce(torch.cat([*totals, counts]), "sum")
        assert isinstance(fetched, Tensor)
        *sums, last = fetched.cpu().split([*map(len, totals), len(counted)])
        count_of = dict(zip(counted, last.tolist(), strict=True))
        values, loss = {}, 0.0
        for name, parts in zip(names, sums, strict=True):
            count, weight, value = self._terms[name]
            values[name] = value(parts.tolist(), count_of[count])
            loss += weight * values[name]
        return {"loss": loss, **values}


class HeldOut:
    """A fixed set of held-out examples."""

    _seed = 20181011
    """Independent of the run's seed, so that runs are evaluated on the same examples."""

    def __init__(self, source: Source, *, num_examples: int | None, micro_batch_tokens: int = 8192) -> None:
        stream = Stream(source, self._seed)
        available = len(stream.rows(0, 0))
        self._source = source
        self.micro_batch_tokens = micro_batch_tokens
        """A training sets it to its own."""
        rows, _ = stream.take(Cursor(), min(num_examples or available, available))
        self.rows = sampled(source, rows)
        self.shown: dict[str, Shown] = {}
        """How reports show the objective's terms that have a title, in the objective's order. Known after
        :meth:`evaluate` or :meth:`look_at`."""

    def score(self, values: dict[str, float]) -> float:
        """Score of an evaluation, higher is better; selects the best checkpoint."""
        return -values["loss"]

    def better(self) -> dict[str, Literal["lower", "higher"]]:
        """Which values of an evaluation are better, by name; known after :meth:`evaluate`."""
        return {"loss": "lower", **{name: shown.direction for name, shown in self.shown.items()}}

    def batches(self, num_ranks: int = 1, rank: int = 0) -> list[PackedBatch]:
        """One rank's part of the examples, the same number of batches for every rank.

        Of fewer examples than ranks each rank gets all, which gives the same means.
        """
        lengths = self.rows["length"].astype("int64")
        if len(lengths) < num_ranks:
            num_ranks, rank = 1, 0
        parts = shares(lengths, self.micro_batch_tokens, num_ranks, rank)
        return [self._source.collate(self.rows[part]) for part in parts]

    def evaluate(self, accelerator: Accelerator, objective: nn.Module) -> dict[str, float]:
        """Means of the objective's terms over the set, in eval mode; the same on every rank."""
        return self._sums(accelerator, objective).means(accelerator)

    def look_at(self, accelerator: Accelerator, objective: nn.Module) -> None:
        """Learn :attr:`shown` from one batch: a resumed run may have nothing left to evaluate. All ranks call it."""
        self._sums(accelerator, objective, most=1)

    def seconds(self, accelerator: Accelerator, objective: nn.Module) -> float:
        """What :meth:`evaluate` will take, from its first batch. All ranks call it."""
        began = time.perf_counter()
        self._sums(accelerator, objective, most=1).means(accelerator)  # waits for the device
        tokens = int(self.rows["length"].sum()) / accelerator.num_processes
        return math.ceil(tokens / self.micro_batch_tokens) * (time.perf_counter() - began)

    @torch.no_grad()
    def _sums(self, accelerator: Accelerator, objective: nn.Module, most: int | None = None) -> Sums:
        training, sums = objective.training, Sums()
        objective.eval()
        for batch in self.batches(accelerator.num_processes, accelerator.process_index)[:most]:
            with accelerator.autocast():
                terms = objective(batch.to(accelerator.device))
            sums.add(terms, batch.counts)
            self.shown = {name: term.shown for name, term in terms.items() if term.title}
        objective.train(training)
        return sums

"""Interface of the loop to losses and data: named sums, the counts that normalise them, and sources of examples."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertillery.config.section import ConfigError, describe
from bertillery.engine.batch import PackedBatch


def mean(sums: list[float], count: float) -> float:
    """The sum over the count; 0 for a count of 0."""
    return sums[0] / max(1.0, count)


@dataclass(frozen=True)
class Shown:
    """How reports show a term."""

    title: str
    direction: Literal["lower", "higher"]
    """Which values are better."""
    baseline: str
    """What reaches the baseline, such as ``majority class``; empty where the term has no baseline."""


@dataclass(frozen=True)
class Term:
    """One sum over a micro-batch."""

    total: Tensor
    """A sum, not a mean: a scalar, or for a term that is only reported a vector of sums."""
    count: str
    """Name in ``PackedBatch.counts`` of the divisor, itself summed over all micro-batches and ranks."""
    weight: float = 1.0
    """Weight in the loss; 0 for a term that is only reported, such as an accuracy."""
    value: Callable[[list[float], float], float] = mean
    """The reported number, from the sums and the count of all micro-batches and ranks, if it is not a mean, such as a
    precision. Terms in the loss are means."""
    title: str = ""
    """Name in tables and plots, with the unit, as in ``MLM loss (nats)``. A term without one is a metric only, left
    out of reports."""
    direction: Literal["lower", "higher"] = "lower"
    """Which values are better."""
    baseline: str = ""
    """What reaches the baseline that reports put beside the term, such as ``majority class``; empty: no baseline."""

    @property
    def shown(self) -> Shown:
        """How reports show the term."""
        return Shown(self.title, self.direction, self.baseline)


def whole_loss(terms: Mapping[str, Term]) -> str | None:
    """The name of the term that is the loss, and so the same number, or None where the loss is a sum of several."""
    weighted = [(name, term.weight) for name, term in terms.items() if term.weight]
    return weighted[0][0] if len(weighted) == 1 and weighted[0][1] == 1 else None


class Objective(nn.Module, ABC):
    """Owns everything that is trained; a frozen teacher stays outside ``state_dict``."""

    entries: ClassVar[tuple[str, ...]] = ()
    """Methods besides ``forward`` that run the networks and are called from outside."""

    @abstractmethod
    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Sums over the batch by name, with the same names in every batch."""

    @abstractmethod
    def exported(self) -> PreTrainedModel:
        """The model to export."""

    def auxiliary_models(self) -> dict[str, PreTrainedModel]:
        """Further models to export, by their folder in the export."""
        return {}

    def carried(self) -> dict[str, nn.Module]:
        """Trained modules outside the models that a later stage trains on, by their name in the export."""
        return {}

    def seconds_beside(self) -> dict[str, float]:
        """Seconds spent on networks that are not trained, such as a teacher, since the last call, by name."""
        return {}

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """What the baselines of the terms reach on held-out batches, by the terms' names: the numbers of reports.

        ``unigrams`` (V,) counts the tokens of the training text; ``values`` are the objective's own held-out values.
        """
        return {}

    @abstractmethod
    def flops(self, batch: PackedBatch) -> float:
        """Floating-point operations of a training step on the batch: matrix products, forward and backward."""


class Source(Protocol):
    """Examples, drawn in blocks that fit into memory."""

    num_blocks: int

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """The block's examples as rows of a structured array with at least ``length`` (tokens of all streams) and
        ``key`` (uint64)."""
        ...

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The packed batch of the rows; depends on the rows alone."""
        ...


@runtime_checkable
class StepSampling(Protocol):
    """A source that samples something over a whole step, such as which tokens are masked, or by the step's number."""

    def sample_step(self, rows: np.ndarray, step: int | None) -> np.ndarray:
        """The rows of a step with the sampled values written into them; ``collate`` sees only some of the rows.

        ``step`` is counted from 0, and None for rows that are not trained on."""
        ...


def sampled(source: Source, rows: np.ndarray, step: int | None = None) -> np.ndarray:
    """The rows of a step after batch-level sampling, if their source has any."""
    return source.sample_step(rows, step) if isinstance(source, StepSampling) else rows


def objective_module(package: str, section: Mapping[str, Any]) -> Any:
    """The module ``package.<type>`` of a section such as ``{type: bert}``; ``ConfigError`` lists the modules."""
    names = _names(package)
    name = section.get("type")
    if name not in names:
        raise ConfigError(f"objective.type: given {name!r}; there are: {', '.join(names)} (one file each in {package})")
    return importlib.import_module(f"{package}.{name}")


def describe_objectives(package: str, section: str = "Config") -> str:
    """The keys of all objectives of the package with such a section, for ``--help``."""
    modules = {name: importlib.import_module(f"{package}.{name}") for name in _names(package)}
    found = {name: getattr(module, section) for name, module in modules.items() if hasattr(module, section)}
    return "\n\n".join(f"with objective.type={name}:\n{describe(keys, 'objective.')}" for name, keys in found.items())


def _names(package: str) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))

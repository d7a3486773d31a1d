"""What the loop knows of a loss: named sums, and the counts that normalise them."""

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
    """The value of most terms; 0 where nothing was counted."""
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
    """Sum, never a mean: a scalar, or, for what is only reported, a vector of sums."""
    count: str
    """Name in ``PackedBatch.counts`` of what the total is divided by, over all micro-batches and ranks."""
    weight: float = 1.0
    """Share in the loss; 0 for what is only reported, such as an accuracy."""
    value: Callable[[list[float], float], float] = mean
    """The number to report, from the sums and the count of all micro-batches and ranks: for what is no mean, such as a
    precision. What is in the loss is a mean."""
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


class Objective(nn.Module, ABC):
    """Owns everything that is trained; a frozen teacher, where there is one, stays outside ``state_dict``."""

    entries: ClassVar[tuple[str, ...]] = ()
    """Methods beside ``forward`` that run the networks and are called from outside."""

    @abstractmethod
    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Sums of the batch by name. The same names in every batch."""

    @abstractmethod
    def exported(self) -> PreTrainedModel:
        """The stock model that leaves the run."""

    def auxiliary_models(self) -> dict[str, PreTrainedModel]:
        """Further stock models that leave the run, by the folder within the export they go to."""
        return {}

    def carried(self) -> dict[str, nn.Module]:
        """What is trained beside the models and trained further by a later stage, by its name in the export."""
        return {}

    def seconds_beside(self) -> dict[str, float]:
        """Seconds of training spent on something that is not trained, such as a teacher, since this was last asked."""
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
        """Floating-point operations of a training step on the batch (forward and backward, matrix products only)."""


class Source(Protocol):
    """Examples, drawn block by block; a block is what fits into memory comfortably."""

    num_blocks: int

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """The block's examples as rows of a structured array with at least ``length`` (tokens of all streams) and
        ``key`` (uint64)."""
        ...

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The packed batch of some rows: a function of the rows alone."""
        ...


@runtime_checkable
class StepSampling(Protocol):
    """A source whose examples of one step decide something together, such as how many tokens of all are masked."""

    def sample_step(self, rows: np.ndarray) -> np.ndarray:
        """All rows of a step, with what they decided written into them; ``collate`` sees some of them at a time."""
        ...


def sampled(source: Source, rows: np.ndarray) -> np.ndarray:
    """The rows of a step as their source wants them before they are shared out."""
    return source.sample_step(rows) if isinstance(source, StepSampling) else rows


def objective_module(package: str, section: Mapping[str, Any]) -> Any:
    """The module ``package.<type>`` that a section such as ``{type: bert}`` names; there is no registry to keep.

    Raises ``ConfigError`` that lists the modules there are.
    """
    names = _names(package)
    name = section.get("type")
    if name not in names:
        raise ConfigError(f"objective.type: given {name!r}; there are: {', '.join(names)} (one file each in {package})")
    return importlib.import_module(f"{package}.{name}")


def describe_objectives(package: str, section: str = "Config") -> str:
    """The keys of all objectives of the package that have such a section, for ``--help``."""
    modules = {name: importlib.import_module(f"{package}.{name}") for name in _names(package)}
    found = {name: getattr(module, section) for name, module in modules.items() if hasattr(module, section)}
    return "\n\n".join(f"with objective.type={name}:\n{describe(keys, 'objective.')}" for name, keys in found.items())


def _names(package: str) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))

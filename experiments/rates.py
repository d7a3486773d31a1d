"""``python -m experiments.rates a.yaml ... lowest=1e-7 highest=1e-1 steps=100``: a learning-rate range test.

Smith 2017 (arXiv 1506.01186, section 3.3): how the loss changes while the learning rate grows by the same factor from
step to step. All other keys are those of pretraining, fine-tuning or distillation; data, order, loop, optimizer and
clipping are the same as in that training. The folder ``<name of the run>-rate-range`` keeps the numbers alone.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from bertillery.config.layers import dump, take
from bertillery.config.section import Section
from bertillery.config.types import LearningRate
from bertillery.engine.evaluate import Sums
from bertillery.engine.loop import DivergedError
from bertillery.report.plot import figure, save
from bertillery.run.command import cli
from bertillery.run.directory import RunDirectory
from bertillery.run.stage import Stage, StageConfig, beside
from bertillery.run.trainer import Trainer
from bertillery.system.files import write_text
from experiments.jobs import command_of

_MEMORY = 0.9
"""Decay of the smoothed loss, an average over about ten steps."""
_SKIPPED = 10
"""First steps without suggestions: too few losses in the average."""
_TOO_HIGH = 4.0
"""The test ends when the smoothed loss exceeds its minimum by this factor."""


class RangeSection(Section):
    """Which rates are tried; all other keys are those of the training."""

    lowest: LearningRate = 1e-7
    """Learning rate of the first step."""
    highest: LearningRate = 1e-1
    """Learning rate of the last step."""
    steps: int = Field(default=100, ge=20, le=10**6)
    """Steps from the lowest to the highest."""

    @model_validator(mode="after")
    def _in_order(self) -> RangeSection:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest:g} is not below highest={self.highest:g}")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lowest * (self.highest / self.lowest) ** (step / (self.steps - 1))


@dataclass(frozen=True)
class RangeTest:
    """Rates and losses of N steps."""

    rates: np.ndarray
    """Learning rate of each step, (N,)."""
    losses: np.ndarray
    """Training loss of each step, before its update, (N,)."""
    ended: str
    """Why it ended."""

    @property
    def smoothed(self) -> np.ndarray:
        """The losses, :func:`smooth`, (N,)."""
        return smooth(self.losses)

    @property
    def lowest(self) -> int:
        """Step with the lowest smoothed loss."""
        start = min(_SKIPPED, len(self.losses) - 1)
        return start + int(self.smoothed[start:].argmin())

    @property
    def steepest(self) -> int | None:
        """Step at which the smoothed loss falls most per growth of the rate; None if it never fell.

        A fall exceeds four standard deviations of the average, estimated from the differences between successive
        losses. Without that threshold, about one in ten tests would find a fall in noise.
        """
        values, lowest = self.smoothed, self.lowest
        noise = np.diff(self.losses[: lowest + 1]).std() / math.sqrt(2) * math.sqrt((1 - _MEMORY) / (1 + _MEMORY))
        # Slopes over a tenth of the steps: noise dominates the difference between neighbours.
        half = max(1, len(values) // 20)
        middles = np.arange(_SKIPPED + half, min(lowest, len(values) - 1 - half) + 1)
        if not len(middles) or values[_SKIPPED] - values[lowest] <= 4 * noise:
            return None
        return int(middles[(values[middles + half] - values[middles - half]).argmin()])


def smooth(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """Exponential moving average with Adam's bias correction (arXiv 1412.6980, section 3)."""
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = _MEMORY * average + (1 - _MEMORY) * float(loss)
        smoothed.append(average / (1 - _MEMORY**step))
    return np.array(smoothed)


def range_test(trainer: Trainer, section: RangeSection, show: Callable[[str], None] = lambda line: None) -> RangeTest:
    """Train for ``section.steps`` steps, or until the loss is far above its minimum or not finite.

    All processes call it.
    """
    # The training itself may be shorter than the test.
    trainer.schedule = replace(trainer.schedule, total=max(trainer.schedule.total, section.steps))
    losses: list[float] = []
    ended = "all steps were done"
    try:
        for info in islice(trainer.steps(section.rate, lambda: False), section.steps):
            sums = Sums()
            for found, counts in info.terms:
                sums.add(found, counts)
            losses.append(sums.means(trainer.accelerator)["loss"])
            smoothed = smooth(losses)
            if len(losses) % max(1, section.steps // 10) == 0:
                place = f"step {len(losses)}/{section.steps}  learning rate {info.learning_rate:.2e}"
                show(f"{place}  loss {smoothed[-1]:.4f}")
            if not smoothed[-1] <= _TOO_HIGH * smoothed.min():
                ended = f"the loss was above {_TOO_HIGH:g} times its minimum"
                break
    except DivergedError:
        ended = "loss or gradient were not finite"
    rates = np.array([section.rate(step) for step in range(len(losses))])
    return RangeTest(rates, np.array(losses), ended)


def suggestions(test: RangeTest) -> str:
    """The two rates that the test suggests, each with its rule, as lines of text."""
    if test.steepest is None:
        return "none: the loss did not fall by more than its noise; take more steps, or other rates"
    lines = [f"{test.rates[test.steepest]:.1e}  where the loss falls most steeply"]
    if test.lowest < len(test.rates) - 1:
        rising = test.rates[test.lowest]
        lines.append(f"{rising / 10:.1e}  a tenth of {rising:.1e}, from which on it rises")
    else:
        lines.append("it fell to the end: highest=... can be larger")
    return "\n            ".join(lines)


def write_range(test: RangeTest, folder: Path, title: str) -> None:
    """Write ``rates.jsonl``, a line for each step, and ``rate_range.png`` to the folder, replacing older ones."""
    columns = test.rates.tolist(), test.losses.tolist(), test.smoothed.tolist()
    lines = [
        json.dumps({"step": step, "learning_rate": rate, "loss": loss, "smoothed": smoothed})
        for step, (rate, loss, smoothed) in enumerate(zip(*columns, strict=True))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "rates.jsonl", "".join(f"{line}\n" for line in lines))
    with beside(f"the picture {folder / 'rate_range.png'}"):
        _draw(test, folder / "rate_range.png", title)


def _draw(test: RangeTest, picture: Path, title: str) -> None:
    (axis,) = axes = figure(1, title, panel=(6.4, 4.0))
    axis.plot(test.rates, test.losses, ".", color="tab:blue", alpha=0.3, label="loss of a step")
    axis.plot(test.rates, test.smoothed, color="tab:blue", label="smoothed")
    if test.steepest is not None:
        axis.axvline(test.rates[test.steepest], color="tab:green", linestyle="--", label="falls most steeply")
        if test.lowest < len(test.rates) - 1:
            axis.axvline(test.rates[test.lowest], color="tab:red", linestyle=":", label="rises from here on")
            axis.axvline(test.rates[test.lowest] / 10, color="tab:orange", linestyle="--", label="a tenth of that")
    # Limits from the first half: the last losses may be hundreds of times larger.
    low, high = float(test.smoothed.min()), float(test.smoothed[: max(1, len(test.rates) // 2)].max())
    margin = max(high - low, 1e-3 * abs(high))
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss", ylim=(low - margin, high + 2 * margin))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(axes, picture)


def main(arguments: Sequence[str]) -> int:
    """Run the test; returns the exit status."""

    def action() -> int:
        section, config = _settings(arguments)
        run = config.run.model_copy(update={"name": f"{config.run.name}-rate-range"})
        _, rest = take(RangeSection, arguments)
        return _run(command_of(rest).stage(config.model_copy(update={"run": run})), section)

    return cli(arguments, help=__doc__, schema=RangeSection, action=action, settings=_settings)


def _settings(arguments: Sequence[str]) -> tuple[RangeSection, StageConfig]:
    section, rest = take(RangeSection, arguments)
    return section, command_of(rest).load(rest)


def _run(stage: Stage, section: RangeSection) -> int:
    trainer = stage.start()
    stage.say(f"\nlearning rates {section.lowest:g} to {section.highest:g} in {section.steps} steps\n")
    test = range_test(trainer, section, stage.say)
    if not len(test.losses):
        raise DivergedError("the first step, before any update, has no finite loss or gradient: see model and data")
    if stage.accelerator.is_main_process:
        with RunDirectory(stage.path).held():
            write_range(test, stage.path, f"{stage.name}: {test.ended}")
            write_text(stage.path / "config.yaml", dump(stage.config))
        stage.say(
            f"\nended       {test.ended}\nsuggested   {suggestions(test)}\n\n"
            f"picture     {stage.path / 'rate_range.png'}\nnumbers     {stage.path / 'rates.jsonl'}\n\n"
            "next        the same training with optim.learning_rate=<one of these>"
        )
    stage.accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

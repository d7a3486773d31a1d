"""Results of evaluations in context: numbers with their errors, as a table and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table

_FROM_ONE = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
"""Metrics that are no share of anything: shown as they are, and not drawn."""


@dataclass(frozen=True)
class Outcome:
    """One run over all items."""

    shots: int
    seed: int
    num_items: int
    metrics: dict[str, float]
    """Shares from 0 to 1, or perplexities."""
    errors: dict[str, float]
    """Standard error of metrics, from the number of items."""
    ties: int = 0
    """Items whose best answers are equally likely; the first of them counts."""
    fewer: int = 0
    """Items whose prompts had room for fewer worked examples."""
    left_out: int = 0
    """Worked examples for which these prompts had no room, in all."""
    cut: int = 0
    """Items that were longer than the model reads, also without worked examples, and were cut from the left."""
    answers: list[str] = field(default_factory=list)
    """What the model wrote, where it writes."""


def standard_error(values: Sequence[float]) -> float:
    """Of a mean; 0 for one value, of which there is no spread."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def results_table(name: str, outcomes: Sequence[Outcome], floors: Mapping[str, float]) -> str:
    """A row for each number of worked examples: each metric with its deviation over seeds and, in brackets, its
    standard error over items. Below the table stand the floors."""
    metrics, number = list(outcomes[0].metrics), outcomes[0].num_items
    rows = [["shots", *metrics, "ties", "fewer shots fit", "cut"]]
    for shots in dict.fromkeys(outcome.shots for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.shots == shots]
        cells = [_cell(metric, mine) for metric in metrics]
        ties, cut = (str(max(getattr(outcome, each) for outcome in mine)) for each in ("ties", "cut"))
        rows.append([str(shots), *cells, ties, _fewer(max(mine, key=lambda outcome: outcome.fewer)), cut])
    beside = ", ".join(f"{floor} {100 * value:.1f}" for floor, value in floors.items())
    return f"{name}, {number:,} items\n\n{markdown_table(rows)}" + (f"\n\n{beside}" if beside else "")


def _fewer(outcome: Outcome) -> str:
    """How many prompts had no room for all worked examples, and for how many these had, on average."""
    if not outcome.fewer:
        return "0"
    return f"{outcome.fewer} ({outcome.shots - outcome.left_out / outcome.fewer:.1f} of {outcome.shots} did)"


def _cell(metric: str, outcomes: Sequence[Outcome]) -> str:
    values = [outcome.metrics[metric] for outcome in outcomes]
    scale, digits = (1, 3 if metric == "bits_per_byte" else 2) if metric in _FROM_ONE else (100, 1)
    spread = f" +- {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    errors = [outcome.errors[metric] for outcome in outcomes if metric in outcome.errors]
    error = f" ({scale * mean(errors):.{digits}f})" if errors else ""
    return f"{scale * mean(values):.{digits}f}{spread}{error}"


def draw(picture: Path, title: str, outcomes: Sequence[Outcome], floors: Mapping[str, float]) -> None:
    """Metrics over the number of worked examples, a point for each seed, with the floors."""
    (axis,) = figure(1, title, panel=(5.2, 3.6))
    names = [name for name in outcomes[0].metrics if name not in _FROM_ONE] or list(outcomes[0].metrics)
    scale = 1 if names[0] in _FROM_ONE else 100
    for name in names:
        by_shots = {
            o.shots: [scale * each.metrics[name] for each in outcomes if each.shots == o.shots] for o in outcomes
        }
        means = [mean(values) for values in by_shots.values()]
        (line,) = axis.plot([*by_shots], means, "o-", label=name.replace("_", " "))
        for shots, values in by_shots.items():
            axis.plot([shots] * len(values), values, ".", color=line.get_color(), alpha=0.5)
    for (name, value), style in zip(floors.items(), ("--", ":", "-.", (0, (1, 4))), strict=False):
        axis.axhline(100 * value, color="gray", linestyle=style, linewidth=0.8, label=name)
    axis.set_xlabel("worked examples")
    axis.set_ylabel("%" if scale == 100 else "")
    axis.legend(fontsize=7)
    save([axis], picture)

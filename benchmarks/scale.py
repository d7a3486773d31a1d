"""What does not grow with the data, and what grows with processes: ``python -m benchmarks.scale key=value ...``.

Prints tables, keeps everything in ``benchmarks/results/``, and draws it. Every size is measured in a process of its
own, one thread. Text is made up: words by Zipf's law. Its tokenizer is trained once, on the smallest text, which also
shows most of what is opened once, whatever the size.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pydantic import PositiveFloat, PositiveInt

from benchmarks import table
from benchmarks.processes import physical_cores, two_beside_one
from benchmarks.scale_data import write_text
from benchmarks.scale_measures import PLACES, apart, first_batches, prepare_and_take, train_tokenizer
from bertillery.config.section import Section, read_values, validate
from bertillery.data.corpus import CorpusSection
from bertillery.data.tokenizer import TokenizerSection
from bertillery.report.plot import figure, save
from bertillery.run.command import tool
from bertillery.system.environment import environment

RESULTS = Path(__file__).parent / "results"


class ScaleSection(Section):
    """What is measured."""

    parts: list[Literal["prepare", "resume", "processes"]] = ["prepare", "resume", "processes"]  # noqa: RUF012 (frozen)
    """Preparing and drawing from texts, finding a place in streams, one process and two."""
    megabytes: list[PositiveFloat] = [0.5, 5, 50]  # noqa: RUF012
    """Sizes of the texts."""
    examples: list[PositiveInt] = [10**6, 10**7, 10**8, 10**9]  # noqa: RUF012
    """Sizes of the streams."""
    rounds: PositiveInt = 5
    """Measurements of everything short, of which the median is taken, and of trainings."""
    steps: PositiveInt = 20
    """Of each training."""
    picture: Path | None = None
    """Where to draw."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, keep and draw; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ScaleSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    section = validate(ScaleSection, *read_values(arguments))
    about = environment() | {"physical_cores": physical_cores()}
    print(f"{table.machine(about)}; {about['physical_cores']} cores of their own", flush=True)
    results: dict[str, Any] = {"environment": about}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "prepare" in section.parts:
            results["prepare"] = _prepare(section.megabytes, folder, section.rounds)
        if "resume" in section.parts:
            results["resume"] = _resume(section.examples, section.rounds)
        if "processes" in section.parts:
            results["processes"] = two_beside_one(folder, section.rounds, section.steps, about)
    kept = RESULTS / f"scale-{time.strftime('%Y%m%d-%H%M%S')}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{kept}")
    if section.picture:
        draw(results, section.picture)
    return 0


def _prepare(sizes: list[float], folder: Path, rounds: int) -> list[dict[str, float]]:
    print(f"\n{'text':>10}{'characters/s':>14}{'peak':>10}{'draw, a step':>16}{'pack, a step':>16}", flush=True)
    tokenizer, rows = None, []
    for size in sizes:
        file = write_text(folder / f"{size}.txt", size)
        if tokenizer is None:
            data, section = CorpusSection(path=[str(file)], holdout=0.1), TokenizerSection(vocab_size=4000)
            tokenizer = str(apart(train_tokenizer, data, section, folder / "first"))
        row = {"megabytes": size, **apart(prepare_and_take, file, tokenizer, folder / "data", rounds)}
        rows.append(row)
        print(
            f"{size:>7g} MB{row['characters_per_second']:>14,.0f}{row['memory_mib']:>6,.0f} MiB"
            f"{1e3 * row['draw_seconds']:>13.2f} ms{1e3 * row['pack_seconds']:>13.2f} ms",
            flush=True,
        )
        file.unlink()
    return rows


def _resume(numbers: list[int], rounds: int) -> list[dict[str, float]]:
    print(f"\nfirst batch from a cursor at\n{'examples':>16}", *(f"{place:>13}" for place in PLACES), "      peak")
    rows = []
    for number in numbers:
        row = {"examples": number, **apart(first_batches, number, rounds)}
        rows.append(row)
        seconds = "".join(f"{1e3 * row[place]:>11.1f} ms" for place in PLACES)
        print(f"{number:>16,} {seconds}{row['memory_mib']:>6,.0f} MiB", flush=True)
    return rows


def draw(results: dict[str, Any], picture: Path) -> None:
    """A panel for each quantity, from zero upwards, so that what is flat looks flat."""
    panels: list[tuple[str, str, dict[str, tuple[list[float], list[float]]]]] = []

    def panel(rows: list[dict[str, float]], along: str, across: str, lines: dict[str, str], scale: float = 1) -> None:
        x = [row[along] for row in rows]
        panels.append((along, across, {name: (x, [scale * row[key] for row in rows]) for name, key in lines.items()}))

    if rows := results.get("prepare"):
        panel(rows, "megabytes", "preparing, million characters/s", {"": "characters_per_second"}, 1e-6)
        panel(rows, "megabytes", "preparing, peak MiB", {"": "memory_mib"})
        panel(rows, "megabytes", "a step's batch, ms", {"drawing": "draw_seconds", "packing": "pack_seconds"}, 1e3)
    if rows := results.get("resume"):
        panel(rows, "examples", "first batch from a cursor, ms", {place: place for place in PLACES}, 1e3)
    if found := results.get("processes"):
        x = [float(turn) for turn in range(1, len(found["ratios"]) + 1)]
        panels.append(("round", "efficiency of two processes", {"": (x, [ratio / 2 for ratio in found["ratios"]])}))
    axes = figure(len(panels), f"{results['environment']['cpu']}, one thread each", columns=3)
    for axis, (along, across, lines) in zip(axes, panels, strict=True):
        for name, (x, y) in lines.items():
            axis.plot(x, y, "o-", label=name)
        axis.set(xlabel=along, ylabel=across, xscale="linear" if along == "round" else "log")
        axis.set_ylim(bottom=0)
        axis.set_xticks(x := next(iter(lines.values()))[0], [f"{value:g}" for value in x])
        axis.minorticks_off()
        if len(lines) > 1:
            axis.legend(fontsize=8)
    save(axes, picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

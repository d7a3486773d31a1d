"""Ours beside the conventional method: ``python -m benchmarks key=value ...``.

Prints a table and writes it, as JSON and as Markdown, to ``benchmarks/results/``; the last line is one JSON object with
every ratio. One thread is measured in CPU-seconds, which other load on the machine hardly affects, more threads in
seconds of the clock. Text is read from the folder in ``BERTILLERY_DATA``; without it, random tokens replace it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from pydantic import Field, PositiveInt, field_validator
from transformers.utils import logging

from benchmarks import contests, scoring, translation
from benchmarks.contest import Contest, Ratio, apart, measure
from benchmarks.material import Material, read_material
from benchmarks.same import Losses, same_losses
from benchmarks.translation import Pairs
from benchmarks.workload import WORKLOADS
from bertillery.config.section import Section
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.system.environment import environment

RESULTS = Path(__file__).parent / "results"
NAMES = (
    *WORKLOADS,
    "examples",
    *(name.replace("glue", "evaluation") for name in WORKLOADS if name.startswith("glue")),
    *("translation_tiny", "translation_beam5", "scoring"),
    *("checkpoint_save", "checkpoint_load", "start_up", "text_to_ids"),
)
"""All contests in the order of measurement."""
_HEAD = ("workload", "threads", "ours", "baseline", "ratio", "min", "max", "ours", "baseline")
_WIDTHS = (22, 8, 21, 18, 6, 6, 6, 11, 11)


class BenchSection(Section):
    """The measurements."""

    workloads: list[str] = []  # noqa: RUF012 (frozen)
    """Names or their beginnings, such as ``nsp``, ``glue`` or ``checkpoint``; by default all."""
    rounds: PositiveInt = 5
    """Rounds of each side."""
    threads: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2]  # noqa: RUF012
    """Numbers of threads, one measurement each."""

    @field_validator("workloads")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        unknown = [part for part in names if not any(name.startswith(part) for name in NAMES)]
        if unknown:
            raise ValueError(f"no such workload: {', '.join(unknown)}; there are: {', '.join(NAMES)}")
        return names

    @property
    def names(self) -> list[str]:
        """The chosen contests, in order."""
        return [name for name in NAMES if name.startswith(tuple(self.workloads or [""]))]


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write the results; returns the exit status."""
    return tool(arguments, help=__doc__, schema=BenchSection, action=_run)


def _run(options: BenchSection) -> int:
    began = time.monotonic()
    # Sides are forked from this process, which must not start threads before.
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    about = environment()
    print(machine(about))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = read_material(folder)
        rates = {name: apart(partial(matmul_rate, dtype)) for name, dtype in _TYPES.items()}
        losses = apart(partial(same_losses, material))
        facts = _facts(options, material, rates, losses)
        print("\n".join(facts) + f"\n\n{_line(_HEAD)}", flush=True)
        ratios = [*_measured([contest(name, material, folder) for name in options.names], options)]
    results = {"environment": about, "facts": facts, "losses": losses, "matmul": rates}
    rows = [asdict(ratio) | {"median": ratio.median} for ratio in ratios]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(results | {"ratios": rows}, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(document(about, facts, ratios), encoding="utf-8")
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes; results in {file.with_suffix('')}")
    print(json.dumps({ratio.name: round(ratio.median, 3) for ratio in ratios}))
    return 0


def contest(name: str, material: Material, folder: Path) -> Contest:
    """The contest with this name; ``folder`` takes its files."""
    if name in WORKLOADS:
        return contests.training(name, WORKLOADS[name], material)
    if name.startswith("evaluation"):
        return contests.evaluation(name, WORKLOADS[name.replace("evaluation", "glue")], material)
    if name.startswith("checkpoint"):
        return contests.checkpoint(name, WORKLOADS["mlm_12x768_s128"], material, folder)
    made: dict[str, Callable[[], Contest]] = {
        "examples": lambda: contests.examples(material),
        "translation_tiny": lambda: translation.training(name, Pairs()),
        "translation_beam5": lambda: translation.beam_search(name, Pairs(), folder),
        "scoring": lambda: scoring.scoring(folder),
        "start_up": lambda: contests.start_up(folder),
        "text_to_ids": lambda: contests.text_to_ids(material),
    }
    return made[name]()


def _measured(found: Sequence[Contest], options: BenchSection) -> Iterator[Ratio]:
    for turn, threads in enumerate(options.threads):
        for each in found:
            if each.threaded or turn == 0:
                for ratio in measure(each, options.rounds, threads if each.threaded else 1):
                    print(_line(cells(ratio)), flush=True)
                    yield ratio


_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def matmul_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations per CPU-second in products of two square matrices, on one thread: the best repeat."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - started)
    return 2 * size**3 / best


def _facts(options: BenchSection, material: Material, rates: dict[str, float], losses: dict[str, Losses]) -> list[str]:
    more = "; with more threads in seconds of the clock" if max(options.threads) > 1 else ""
    apart = {name: max(abs(ours / theirs - 1) for ours, theirs in pairs) for name, pairs in losses.items()}
    return [
        f"text: {material.text or 'random tokens'}; medians of {options.rounds} rounds, with the smallest and largest",
        f"one thread is measured in CPU-seconds{more}; real tokens only",
        "matrix products on one thread: " + ", ".join(f"{r / 1e12:.3f} TFLOP/s in {n}" for n, r in rates.items()),
        "losses on the same batches differ by: " + ", ".join(f"{worst:.0e} ({n})" for n, worst in apart.items()),
    ]


def cells(ratio: Ratio) -> list[str]:
    """A row of the table; the last two cells are tokens or sentences per second, or the seconds of one execution."""
    numbers = (ratio.median, min(ratio.per_round), max(ratio.per_round))
    rates = [f"{1 / rate:.2f} s" if ratio.unit == "times" else f"{rate:,.{rate < 100:d}f}/s" for rate in ratio.rates]
    names = [ratio.contest, f"{ratio.threads} {ratio.clock}", ratio.ours, ratio.baseline]
    return [*names, *(f"{number:.2f}" for number in numbers), *rates]


def _line(row: Sequence[str]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:4], _WIDTHS[:4], strict=True)]
    return " ".join([*left, *(cell.rjust(width) for cell, width in zip(row[4:], _WIDTHS[4:], strict=True))])


def machine(about: dict[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    changed = " with changes" if about["changed"] else ""
    return (
        f"{about['cpu']}, {about['cores']} cores; torch {about['torch']}, transformers {about['transformers']}, "
        f"commit {about['commit']}{changed}"
    )


def document(about: dict[str, Any], facts: Sequence[str], ratios: Sequence[Ratio]) -> str:
    """All results as Markdown."""
    lines = [f"{line}  " for line in (machine(about), *facts)]
    return "\n".join([*lines, "", markdown_table([[*_HEAD], *map(cells, ratios)]), ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

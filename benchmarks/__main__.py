"""Ours and the conventional way: ``python -m benchmarks key=value ...``.

Prints a table and keeps it, as JSON and as Markdown, in ``benchmarks/results/``; the last line is one JSON object with
every ratio. One thread is measured in CPU-seconds, which other load on the machine hardly touches; more threads in
seconds of the clock. Text is taken from the folder in ``BERTILLERY_DATA``; without one, random tokens stand in.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from pydantic import Field, PositiveInt, field_validator
from transformers.utils import logging

from benchmarks import other, sizes, step, table
from benchmarks import prepare as text_to_ids
from benchmarks.material import Material, read_material
from benchmarks.same import Losses, same_losses
from benchmarks.turns import Contest, Ratio, apart, measure
from benchmarks.workload import SIZES, WORKLOADS
from bertillery.config.section import Section, read_values, validate
from bertillery.run.command import tool
from bertillery.system.environment import environment

RESULTS = Path(__file__).parent / "results"
TEXT_TO_IDS = "text_to_ids"
NAMES = (
    *WORKLOADS,
    "examples",
    *(name.replace("glue", "evaluation") for name in WORKLOADS if name.startswith("glue")),
    *("checkpoint_save", "checkpoint_load", "start_up", TEXT_TO_IDS),
    *SIZES,
)
"""Everything there is, in the order in which it is measured."""
_BEFORE, _PREPARING, _TEXT_TO_IDS, _WARMING = 45.0, 45.0, 15.0, 0.7
"""Seconds that text, vocabulary and checks take before the first round; seconds before text to ids, and of a round of
it; what warming up takes of a round."""


class BenchSection(Section):
    """What is measured."""

    workloads: list[str] = []  # noqa: RUF012 (frozen)
    """Names, or how they begin: ``nsp``, ``glue``, ``checkpoint``. Where none is given everything but ``sizes``, which
    draws a picture of tokens a second over sizes."""
    rounds: PositiveInt = 5
    """Turns of each side."""
    threads: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2]  # noqa: RUF012
    """One after the other."""
    picture: Path = RESULTS / "sizes.png"
    """Of the sizes."""

    @field_validator("workloads")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        unknown = [part for part in names if not any(name.startswith(part) for name in NAMES)]
        if unknown:
            raise ValueError(f"no such workload: {', '.join(unknown)}; there are: {', '.join(NAMES)}")
        return names

    @property
    def names(self) -> list[str]:
        """Of what is measured, in order."""
        asked = tuple(self.workloads)
        return [name for name in NAMES if (name.startswith(asked) if asked else name not in SIZES)]


def main(arguments: Sequence[str]) -> int:
    """Measure, print and keep; returns the exit status."""
    return tool(arguments, help=__doc__, schema=BenchSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    began, options = time.monotonic(), validate(BenchSection, *read_values(arguments))
    # Sides are forked from this process; one that never started a thread can be.
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    about, rates = environment(), sizes.matmul_rates()
    print(table.machine(about))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = read_material(folder)
        contests = [contest(name, material, folder) for name in options.names if name != TEXT_TO_IDS]
        print(f"about {_minutes(contests, options, rates['fp32']):.0f} minutes\n", flush=True)
        losses = apart(partial(same_losses, material))
        facts = _facts(options, material, rates, losses)
        print("\n".join(facts) + f"\n\n{table.line()}", flush=True)
        ratios = [*_measured(contests, options)]
        _draw([ratio for ratio in ratios if ratio.contest in SIZES], options, material)
        encoding = None
        if TEXT_TO_IDS in options.names:
            encoding = text_to_ids.measure(options.rounds)
            ratios.append(text_to_ids.as_ratio(encoding))
            print(table.line(table.cells(ratios[-1])))
    results = {"environment": about, "facts": facts, "losses": losses, "matmul": rates, "text_to_ids": encoding}
    rows = [asdict(ratio) | {"median": ratio.median} for ratio in ratios]
    kept = _keep(json.dumps(results | {"ratios": rows}, indent=1), table.document(about, facts, ratios))
    print(f"\ntook {(time.monotonic() - began) / 60:.1f} minutes; kept in {kept}")
    print(json.dumps({ratio.name: round(ratio.median, 3) for ratio in ratios}))
    return 0


def contest(name: str, material: Material, folder: Path) -> Contest:
    """What is done in turns, by its name; ``folder`` takes what is written."""
    if name in WORKLOADS | SIZES:
        return step.contest(name, (WORKLOADS | SIZES)[name], material)
    if name.startswith("evaluation"):
        return other.evaluation(name, WORKLOADS[name.replace("evaluation", "glue")], material)
    if name.startswith("checkpoint"):
        return other.checkpoint(name, WORKLOADS["mlm_12x768_s128"], material, folder)
    return other.start_up(folder) if name == "start_up" else other.examples(material)


def _measured(contests: Sequence[Contest], options: BenchSection) -> Iterator[Ratio]:
    for turn, threads in enumerate(options.threads):
        for each in contests:
            if each.threaded or turn == 0:
                for ratio in measure(each, options.rounds, threads if each.threaded else 1):
                    print(table.line(table.cells(ratio)), flush=True)
                    yield ratio


def _draw(ratios: list[Ratio], options: BenchSection, material: Material) -> None:
    """The picture of the sizes, where they were measured, with the first number of threads."""
    threads = options.threads[0]
    ratios = [ratio for ratio in ratios if ratio.threads == threads]
    if ratios:
        rate = sizes.matmul_rates(threads)[ratios[0].ours.split()[0]]
        flops = {ratio.contest: sizes.flops_per_token(ratio.contest, material) for ratio in ratios}
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        sizes.draw(ratios, flops, rate, options.picture)
        print(f"drawn in {options.picture}")


def _facts(options: BenchSection, material: Material, rates: dict[str, float], losses: dict[str, Losses]) -> list[str]:
    more = "; with more threads in seconds of the clock" if max(options.threads) > 1 else ""
    parted = {name: max(abs(ours / theirs - 1) for ours, theirs in pairs) for name, pairs in losses.items()}
    return [
        f"text: {material.text or 'random tokens'}; medians of {options.rounds} rounds, with the smallest and largest",
        f"one thread is measured in CPU-seconds{more}; real tokens only",
        "matrix products on one thread: " + ", ".join(f"{r / 1e12:.3f} TFLOP/s in {n}" for n, r in rates.items()),
        "losses on the same batches part by: " + ", ".join(f"{worst:.0e} ({n})" for n, worst in parted.items()),
    ]


def _minutes(contests: Sequence[Contest], options: BenchSection, rate: float) -> float:
    """What the measurement will take, from what a round took on the reference machine."""
    threaded = {True: len(options.threads), False: 1}
    spent = sum((_WARMING + options.rounds) * each.seconds * threaded[each.threaded] for each in contests)
    spent += _BEFORE + (_PREPARING + _TEXT_TO_IDS * options.rounds) * (TEXT_TO_IDS in options.names)
    return spent * sizes.REFERENCE / rate / 60


def _keep(results: str, document: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(results + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(document, encoding="utf-8")
    return file.with_suffix("")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

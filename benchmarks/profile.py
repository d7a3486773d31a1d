"""``python -m benchmarks.profile key=value``: where the time of a training step goes, ours and conventional.

One thread, torch's profiler, the same rows for all sides; milliseconds of the CPU per thousand real tokens by kind of
operation. The profiler itself slows small operations, on all sides alike.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from pydantic import field_validator
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from benchmarks.__main__ import machine
from benchmarks.contest import Build, apart
from benchmarks.contests import training
from benchmarks.material import read_material
from benchmarks.workload import WORKLOADS
from bertillery.config.section import Section
from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.system.environment import environment

KINDS = {
    "matrix products": ("mm", "addmm", "linear", "_linear_pointwise"),
    "attention": ("bmm", "baddbmm", "_softmax", "_softmax_backward_data", "flash_attention"),
    "MLM loss": ("_log_softmax", "log_softmax", "_log_softmax_backward_data", "nll_loss", "argmax"),
    "activations": ("gelu", "gelu_backward", "tanh", "tanh_backward"),
    "normalisation": ("native_layer_norm", "native_layer_norm_backward"),
    "dropout": ("bernoulli_", "native_dropout", "native_dropout_backward", "random_", "bitwise_and_"),
    "copies, casts": ("copy_", "fill_", "cat", "index_select", "index", "index_copy_", "clone", "contiguous"),
    "optimizer": ("_fused_adamw_", "_foreach", "linalg_vector_norm", "addcdiv_", "addcmul_", "lerp_"),
}
"""Prefixes of the names of torch's operations."""
FUNCTIONS = {"_CrossEntropies": "MLM loss", "_Divergences": "MLM loss", "_TanhGelu": "activations"}
"""Functions of ours, by the beginning of their names, of which all operations are of one kind."""
OTHER = "other arithmetic"
PYTHON = "Python, examples"
_WARM, _STEPS = 2, 4


def kind_of(operation: str, within: Sequence[str] = ()) -> str:
    """The kind of a torch operation; the longest prefix decides, or what it is ``within``."""
    for start, kind in FUNCTIONS.items():
        if any(name.startswith(start) for name in within):
            return kind
    name = operation.rpartition("::")[2].removeprefix("_scaled_dot_product_")
    found = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if name.startswith(start)]
    return max(found)[1] if found else OTHER


def spent(build: Build, batches: list[Any]) -> dict[str, float]:
    """Milliseconds of the CPU per thousand tokens, by kind."""
    step = build()
    steps = [step(rows) for rows in batches]
    for each in steps[:_WARM]:
        each()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.profiler.record_function("all"):
        tokens = sum(each() for each in steps[_WARM:])
    total: defaultdict[str, float] = defaultdict(float)
    whole = 0.0
    for event in profiler.events() or ():
        if event.name == "all":
            whole = event.cpu_time_total
        elif event.name.startswith(("aten::", "mkldnn::")):
            total[kind_of(event.name, [*_callers(event)])] += event.self_cpu_time_total
    total[PYTHON] = max(0.0, whole - sum(total.values()))
    return {kind: microseconds / tokens for kind, microseconds in total.items()}


def _callers(event: Any) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name.removeprefix("autograd::engine::evaluate_function: ")


class ProfileSection(Section):
    """The profile."""

    workload: str = "mlm_4x256_s128"
    """A training of ``make bench``."""
    picture: Path | None = None
    """Where the chart goes; by default there is none."""

    @field_validator("workload")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in WORKLOADS:
            raise ValueError(f"no such workload: {name}; there are: {', '.join(WORKLOADS)}")
        return name


def main(arguments: Sequence[str]) -> int:
    """Measure and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ProfileSection, action=_run)


def _run(section: ProfileSection) -> int:
    name = section.workload
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        contest = training(name, WORKLOADS[name], read_material(Path(folder)))
        batches = [*islice(contest.items, _WARM + _STEPS)]
        sides = {f"conventional, {label}": build for label, build in contest.theirs.items()}
        sides |= {f"ours, {label}": build for label, build in contest.ours.items()}
        found = {label: apart(partial(spent, build, batches)) for label, build in sides.items()}
    kinds = [*KINDS, OTHER, PYTHON]
    cells = [[kind, *(f"{side.get(kind, 0):.1f}" for side in found.values())] for kind in kinds]
    cells.append(["all", *(f"{sum(side.values()):.1f}" for side in found.values())])
    print(machine(environment()))
    print(f"{name}: milliseconds of the CPU per thousand real tokens\n")
    print(markdown_table([["", *found], *cells]))
    if section.picture:
        draw(found, kinds, name, section.picture)
    return 0


def draw(found: dict[str, dict[str, float]], kinds: list[str], title: str, picture: Path) -> None:
    (axis,) = figure(1, title, panel=(9, 1.2 + 0.5 * len(found)))
    left = dict.fromkeys(found, 0.0)
    for kind in kinds:
        axis.barh([*found], [side.get(kind, 0) for side in found.values()], left=[*left.values()], label=kind)
        left = {label: left[label] + side.get(kind, 0) for label, side in found.items()}
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds of the CPU per thousand real tokens")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save([axis], picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Training steps: of each workload ours, in its variants, against the conventional one in float32 and in bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.conventional import language_model
from benchmarks.conventional import step as conventional_step
from benchmarks.conventional_distill import distilbert, tinybert
from benchmarks.conventional_electra import electra
from benchmarks.conventional_glue import classifier
from benchmarks.material import Material
from benchmarks.turns import Contest
from benchmarks.workload import Workload, rows

BASELINES: dict[str, Any] = {"electra": electra, "distilbert": distilbert, "tinybert": tinybert}
PRECISIONS = {"fp32": False, "bf16": True}


def baseline(workload: Workload) -> Any:
    """The conventional way of a workload."""
    return classifier if workload.stage == "finetune" else BASELINES.get(workload.learns, language_model)


def contest(name: str, workload: Workload, material: Material) -> Contest:
    """One training step; an item is the rows of a step, the unit a real token."""
    source = ours.source(workload, material)
    given, make = (workload, material, source), baseline(workload)
    return Contest(
        named(name, workload, material),
        ours={variant.label: partial(ours.step, *given, variant) for variant in workload.variants},
        theirs={label: partial(conventional_step, make, *given, bf16=bf16) for label, bf16 in PRECISIONS.items()},
        items=rows(workload, source),
        steps=workload.steps,
        part=quarter,
        seconds=workload.seconds,
    )


def named(name: str, workload: Workload, material: Material) -> str:
    """The name, which says so where a task's sentences are made up."""
    real = workload.stage != "finetune" or material.has(workload.learns)
    return name if real else f"{name}_made_up"


def quarter(rows: np.ndarray) -> np.ndarray:
    """A quarter of the examples."""
    return rows[: -(-len(rows) // 4)]

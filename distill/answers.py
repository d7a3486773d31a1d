"""What a teacher answers to the examples of a split, asked once and kept on disk.

A split without variants is read again in every epoch, and by every seed, and a frozen teacher's answers stay the same.

Legend: N examples, M rows of logits for all of them, K logits of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from bertillery.config.section import InputError
from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.loader import shares
from bertillery.run.inputs import digest
from bertillery.system.files import make_once
from distill.soft_targets import TAUGHT
from distill.teacher import Teacher
from finetune.examples import Examples
from finetune.predict import Predictor, in_order

_BATCH_TOKENS = 8192
_VERSION = 1


class AnsweredExamples:
    """Examples whose batches carry the teacher's logits (M, K), float32, as the target ``taught``."""

    def __init__(self, examples: Examples, logits: np.ndarray) -> None:
        self._examples, self._logits = examples, logits
        sizes = examples.num_outputs(np.arange(examples.num_examples))
        self._first = np.cumsum(sizes) - sizes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is not whole yet
            raise AttributeError(name)
        return getattr(self._examples, name)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The packed batch of some rows."""
        batch, index = self._examples.collate(rows), rows["index"]
        sizes = self._examples.num_outputs(index)
        logits = self._logits[np.repeat(self._first[index], sizes) + ranges(sizes)]
        return replace(batch, targets={**batch.targets, TAUGHT: torch.from_numpy(logits)})


def answered(
    examples: Examples, teacher: Teacher[Predictor], made_from: Iterable[Any], *, cache: Path, accelerator: Accelerator
) -> AnsweredExamples:
    """The examples with the answers of the teacher, or those that it gave before, in ``cache``.

    ``made_from`` tells teachers, texts and their lengths apart. One process asks, others wait. Raises ``InputError``
    where what is there is damaged.
    """
    precision = accelerator.mixed_precision, accelerator.device.type
    folder = cache / f"answers-{digest([_VERSION, *precision, *made_from])[:16]}"

    def make(partial: Path) -> Path:
        made = partial / "answers"
        made.mkdir(exist_ok=True)
        np.save(made / "logits.npy", _asked(examples, teacher, accelerator))
        return made

    make_once(folder, make, doing="is asking the teacher")
    try:
        logits = np.load(folder / "logits.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be read ({error}); delete it, and it is made again") from None
    return AnsweredExamples(examples, logits)


@torch.no_grad()
def _asked(examples: Examples, teacher: Teacher[Predictor], accelerator: Accelerator) -> np.ndarray:
    """(M, K), float32."""
    rows, parts = examples.examples(0, 0), []
    for part in shares(rows["length"].astype(np.int64), _BATCH_TOKENS, 1, 0):
        batch = examples.collate(rows[part]).to(accelerator.device)
        with accelerator.autocast(), teacher.asked(batch) as module:
            parts.append((part, module.logits(batch).float().cpu().numpy()))
    return in_order(parts, examples.num_outputs(rows["index"]))

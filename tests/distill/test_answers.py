"""Answers of a teacher that are asked once: those of each batch, kept on disk, and the same training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bertillery.config.section import InputError
from bertillery.engine.batch import pack
from distill.answers import AnsweredExamples, answered
from distill.soft_targets import TAUGHT
from distill.teacher import Teacher
from finetune.examples import Examples
from tests.distill.test_soft_targets import predictor


class Numbered(Examples):
    """Sequences of drawn tokens, one to three outputs an example, as a question has choices."""

    def __init__(self, kind: str) -> None:
        draw = np.random.default_rng(0)
        self.kind, self.per_example = kind, draw.integers(1, 4, 30) if kind == "choice" else np.ones(30, np.int64)
        number = int(self.per_example.sum())
        self.texts = [draw.integers(5, 90, size) for size in draw.integers(3, 20, number)]
        self._first = np.cumsum(self.per_example) - self.per_example
        lengths = np.add.reduceat([len(text) for text in self.texts], self._first)
        super(Examples, self).__init__(lengths, None, cut=0, seed=0)

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """How many choices there are."""
        found = {"choices": self.per_example[index]} if self.kind == "choice" else {}
        return found, {"examples": len(index)}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One for each choice."""
        return self.per_example[index]

    def collate(self, rows: np.ndarray) -> Any:
        """The texts of some examples."""
        texts = [self.texts[each] for each in self.members(rows["index"])]
        targets, counts = self.targets(rows["index"])
        ids = np.concatenate(texts)
        return pack(ids, np.zeros_like(ids), np.array([*map(len, texts)]), targets=targets, counts=counts)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize("kind", ["classification", "choice", "regression"])
def test_a_batch_carries_what_the_teacher_answers_to_it(kind: str, tmp_path: Path, accelerator: Accelerator) -> None:
    """Whatever the order of the rows; the teacher is asked again by no one."""
    teacher, examples = Teacher(predictor(kind, 1)), Numbered(kind)
    found = answered(examples, teacher, ["a"], cache=tmp_path, accelerator=accelerator)
    rows = examples.examples(0, 0)[[7, 3, 29, 0, 11]]
    batch = found.collate(rows)
    with torch.no_grad():
        expected = teacher.module.logits(examples.collate(rows))
    torch.testing.assert_close(batch.targets[TAUGHT], expected, atol=1e-5, rtol=1e-5)
    assert found.num_examples == 30
    silent: Any = SimpleNamespace(asked=lambda batch: pytest.fail("asked again"))
    again = answered(examples, silent, ["a"], cache=tmp_path, accelerator=accelerator)
    assert torch.equal(again.collate(rows).targets[TAUGHT], batch.targets[TAUGHT])


def test_others_are_asked_anew_and_a_damaged_file_is_said(tmp_path: Path, accelerator: Accelerator) -> None:
    examples = Numbered("classification")
    values: list[AnsweredExamples] = [
        answered(examples, Teacher(predictor("classification", seed)), [seed], cache=tmp_path, accelerator=accelerator)
        for seed in (1, 2)
    ]
    first, second = (each.collate(examples.examples(0, 0)).targets[TAUGHT] for each in values)
    assert not torch.allclose(first, second)
    for file in tmp_path.glob("answers-*/logits.npy"):
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"answers-.*cannot be read .*delete it"):
        answered(examples, Teacher(predictor("classification", 1)), [1], cache=tmp_path, accelerator=accelerator)

"""Metrics of a split are over every example once, whatever the number of processes and of micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bertillery.models.load import load
from bertillery.run.device import RunSection, start_accelerator
from finetune import predict as evaluate
from finetune.examples import TextExamples
from finetune.metrics import scores
from finetune.predict import predict
from finetune.task_types.classification import Objective
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import sentences, write_encoder


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> Objective:
    encoder = write_encoder(tmp_path_factory.mktemp("encoder"))
    torch.manual_seed(1)
    model, _ = load(AutoModelForSequenceClassification, encoder, num_labels=2)
    return Objective(model)


class Rank:
    """An accelerator's part of a group: it notes what would be gathered."""

    def __init__(self, accelerator: Any, index: int, number: int) -> None:
        self._accelerator, self.process_index, self.num_processes = accelerator, index, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def test_three_processes_give_the_f1_of_one(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 examples, as many as MRPC's development set has, are 136 each; 409 are not a multiple of three."""
    accelerator = start_accelerator(RunSection(threads=1, precision="fp32"))
    for number in (408, 409):
        labels = np.random.default_rng(0).integers(0, 2, number)
        source = TextExamples((sentences(number, 0),), labels, tiny_tokenizer(64), max_length=64, seed=1)
        rows = source.examples(0, 0)
        whole, means = predict(accelerator, objective, source, rows, micro_batch_tokens=100_000)
        parts: list[Any] = []
        monkeypatch.setattr(evaluate, "gather_object", lambda mine, parts=parts: [*parts, *mine])
        for index in range(3):
            rank: Any = Rank(accelerator, index, 3)
            mine: list[Any] = []
            monkeypatch.setattr(
                evaluate, "gather_object", lambda given, mine=mine, parts=parts: mine.extend(given) or [*parts, *given]
            )
            outputs, _ = predict(rank, objective, source, rows, micro_batch_tokens=300)
            parts += mine
        monkeypatch.undo()
        seen = np.concatenate([part for part, _ in parts])
        assert sorted(seen.tolist()) == list(range(number)), "every example once"
        np.testing.assert_allclose(outputs, whole, atol=1e-6)
        found = [scores(["f1", "accuracy"], each.argmax(-1), labels) for each in (whole, outputs)]
        assert found[0] == found[1]
        assert means["accuracy"] == pytest.approx(found[0]["accuracy"])


def test_fewer_examples_than_processes(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process predicts all of them, so that none is left without a part in what is gathered."""
    accelerator = start_accelerator(RunSection(threads=1, precision="fp32"))
    source = TextExamples((sentences(2, 0),), np.array([0, 1]), tiny_tokenizer(64), max_length=64, seed=1)
    whole, means = predict(accelerator, objective, source, source.examples(0, 0), micro_batch_tokens=64)
    monkeypatch.setattr(evaluate, "gather_object", lambda mine: [*mine, *mine, *mine])
    for index in range(3):
        rank: Any = Rank(accelerator, index, 3)
        outputs, same = predict(rank, objective, source, source.examples(0, 0), micro_batch_tokens=64)
        np.testing.assert_array_equal(outputs, whole)
        assert same == means

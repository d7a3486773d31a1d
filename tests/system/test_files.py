"""What is said where a file cannot be written."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from bertillery.config.section import validate
from bertillery.models.export import export_model
from bertillery.report.plot import figure, save
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.views import Listing
from bertillery.system.files import write_text
from experiments.glue import FILES, write_submission
from finetune.data.splits import Split
from finetune.report import write_predictions
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted
from tests.corpora import tiny_tokenizer


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond a thousand bytes; the system's message for that names none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def text(folder: Path) -> None:
    write_text(folder / "a.md", "a" * 2000)


def metrics(folder: Path) -> None:
    tracker = Tracker(
        validate(TrackingSection, {"wandb": "off"}), folder, listing=Listing("a"), config={}, is_main=True
    )
    for step in range(100):
        tracker.log(step, {"loss": 1.0})


def export(folder: Path) -> None:
    tokenizer = tiny_tokenizer(64)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    export_model(BertModel(config), tokenizer, folder / "export", card="")


def picture(folder: Path) -> None:
    save(figure(1, "a"), folder / "a.png")


def predictions(folder: Path) -> None:
    section = validate(
        TaskSection,
        {"name": "a", "type": "classification", "text": ["t"], "label": "l", "labels": ["x", "y"],
         "metrics": ["accuracy"], "files": {"train": ["a"], "validation": ["b"]}},
    )  # fmt: skip
    labels, zeros = np.arange(200) % 2, np.zeros((200, 2), np.float32)
    split = Split("validation", (["t"] * 200,), labels, np.arange(200))
    write_predictions(folder / "predictions", {"validation": Predicted(split, zeros, labels)}, task_type_of(section))


def submission(folder: Path) -> None:
    values = {name: np.full(file.num_rows, file.majority) for name, file in FILES.items()}
    write_submission(folder / "submission", values)


@pytest.mark.parametrize("write", [text, metrics, export, picture, predictions, submission])
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as caught, full_disk():
        write(tmp_path)
    assert caught.value.errno

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.__main__ import main
from tests.finetune.tasks import write_encoder, write_task


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, ``runs/finetune/mood`` below the folder of its task, with two checkpoints."""
    folder = tmp_path_factory.mktemp("finetuned")
    encoder = write_encoder(folder / "encoder")
    task = write_task(folder / "task", sizes=(24, 17, 5))
    given = [
        str(task), f"model.from={encoder}", "recipe=none", f"run.dir={folder}/runs", "run.name=mood",
        f"run.data_dir={folder}/data", "run.device=cpu", "run.precision=fp32", "train.steps=8", "train.save_every=4",
        "train.keep=2", "train.evaluate_every=8", "task.metrics=[accuracy, macro_f1, roc_auc]",
    ]  # fmt: skip
    assert main(given) == 0
    return folder / "runs/finetune/mood"


def rows_of(file: Path) -> list[dict[str, object]]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

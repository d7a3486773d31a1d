"""Tiny models of several families in directories, with model cards written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForSequenceClassification

from tests.models.families import tiny_config

LABELS = ("no", "yes", "maybe")
Found = dict[tuple[str, str], dict[str, float]]


def labelled(labels: tuple[str, ...] = LABELS) -> dict[str, Any]:
    """Settings of a configuration."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def classifier(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_config(kind, **{**labelled(), **settings})).eval()


def saved(model: Any, folder: Path, found: Found | None = None, **more: Any) -> Path:
    """The model's directory; with what it ``found`` by data set and split, a card says so, and ``more`` beside it."""
    model.save_pretrained(folder)
    if found is not None:
        results = [
            {
                "task": {"type": "text-classification"},
                "dataset": {"name": name, "type": f"somebody/{name}", "split": split},
                "metrics": [{"type": metric, "name": metric, "value": value} for metric, value in metrics.items()],
            }
            for (name, split), metrics in found.items()
        ]
        head = yaml.safe_dump({"model-index": [{"name": folder.name, "results": results}], **more}, sort_keys=False)
        (folder / "README.md").write_text(f"---\n{head}---\n\n# a model\n", encoding="utf-8")
    return folder

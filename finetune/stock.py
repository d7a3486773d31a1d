"""Stock models as a user would run them: opened by the class their configuration names, fed padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from bertillery.config.section import InputError
from bertillery.models.encoders import labels_of, reads_token_types
from bertillery.models.export import warnings_of_transformers
from bertillery.models.folder import check_size, reading, safely
from bertillery.models.joint_spans import joint_head
from bertillery.models.load import read_config
from finetune.config import model_name
from finetune.task_types.base import problem_of


def open_stock(folder: Path) -> PreTrainedModel:
    """The model of a directory that ``save_pretrained`` wrote, in evaluation mode, as ``from_pretrained`` gives it.

    Raises ``InputError`` where there is none, it is of no known family, or its files lack a weight: a head drawn anew
    would be measured, but scored by a card that speaks of another.
    """
    if not (folder / "config.json").is_file():
        what = "no config.json in this folder" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; give a model directory, such as the export/ of a run")
    config: Any = read_config(folder)
    if joint_head(config):
        raise InputError(
            f"{folder}: its joint head for answers is none of transformers' own, and is neither compared nor exported "
            "to ONNX; fine-tune with task.spans.head=independent"
        )
    name = (config.architectures or [""])[0]
    found = getattr(transformers, name, None)
    model_class: Any = found if isinstance(found, type) and issubclass(found, PreTrainedModel) else AutoModel
    check_size(str(folder), config)
    with warnings_of_transformers(), reading(f"{folder}: its weights cannot be read", "export the model again"):
        model, info = model_class.from_pretrained(
            folder, config=config, output_loading_info=True, **safely(str(folder))
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{folder}: config.json says {name or 'nothing of a head'}, but the weights lack {', '.join(missing[:4])}; "
            "give a folder whose config.json and weights belong together"
        )
    return model.eval()


def has_choices(model: PreTrainedModel) -> bool:
    """Whether its inputs are (batch, choices, length)."""
    return type(model).__name__.endswith("ForMultipleChoice")


def stock_inputs(model: PreTrainedModel, batch_size: int, length: int, *, padded: bool = False) -> dict[str, Tensor]:
    """Random tokens of the vocabulary, none of them padding, as the model's tokenizer would hand them over.

    Each is (batch_size, length), or (batch_size, 1, length) for a model that compares choices. With ``padded`` each
    row but the first holds fewer tokens than the one before. The same arguments give the same tokens.
    """
    config: Any = model.config
    pad = config.pad_token_id or 0
    generator = torch.Generator().manual_seed(1000 * batch_size + length)
    ids = torch.randint(config.vocab_size - 1, (batch_size, length), generator=generator)
    ids += ids >= pad
    tokens = torch.full((batch_size,), length)
    if padded:
        tokens = (length * (batch_size - torch.arange(batch_size)) / batch_size).ceil().long()
    mask = torch.arange(length) < tokens[:, None]
    inputs = {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}
    if reads_token_types(config):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if has_choices(model):
        inputs = {key: value[:, None] for key, value in inputs.items()}
    return {key: value.to(model.device) for key, value in inputs.items()}


def head_kind(config: PreTrainedConfig) -> str:
    """What the model answers, in transformers' terms; ``no task`` for what is pretrained, whatever its heads are."""
    kind = (config.architectures or [""])[0].partition("For")[2]
    if kind == "SequenceClassification":
        return f"{kind} ({problem_of(config)})"
    return kind if kind in ("TokenClassification", "MultipleChoice", "QuestionAnswering") else "no task"


def head_in_words(config: PreTrainedConfig) -> str:
    """What the model answers with: its kind of head, and the labels by their numbers where it has any."""
    kind = head_kind(config)
    if kind in ("no task", "MultipleChoice", "QuestionAnswering"):
        return kind
    return f"{kind} with the labels {', '.join(f'{name}={number}' for number, name in labels_of(config).items())}"


def names_of(folders: Sequence[Path]) -> list[str]:
    """What the models are called: by their runs, and by as much of their paths as tells them apart."""
    names = [model_name(str(folder)) for folder in folders]
    for depth in range(2, 9):
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            return names
        parts = [folder.resolve().parts for folder in folders]
        parts = [part[:-1] if part[-1] == "export" else part for part in parts]
        names = ["/".join(part[-depth:]) if name in twice else name for name, part in zip(names, parts, strict=True)]
    return [str(folder) for folder in folders]

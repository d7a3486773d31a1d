"""Heads on top of encoders: what they answer, how fresh ones are drawn, softmaxes over rows that belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bertillery.models.encoders import labels_of
from bertillery.models.init import truncated_normal_


def draw_head(model: PreTrainedModel, fresh: Sequence[str]) -> None:
    """Draw the parameters named ``fresh`` as BERT's ``run_classifier.py`` does: truncated normal, biases 0.

    A head with a ``draw`` of its own draws its matrices by that. LayerNorms, which families call by different names,
    keep 1 and 0.
    """
    parameters, usual = dict(model.named_parameters()), partial(truncated_normal_, std=model.config.initializer_range)
    draw: Callable[[Tensor], Tensor] = getattr(model, "draw", usual)
    head = {*head_parameters(model)}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for name in fresh:
        if name in parameters and name.rpartition(".")[0] not in norms:
            if name.endswith("bias"):
                nn.init.zeros_(parameters[name])
            else:
                (draw if name in head else usual)(parameters[name])


def add_rows(model: PreTrainedModel, number: int) -> None:
    """Enlarge the table of embeddings to ``number`` rows, the new ones drawn from a normal distribution as in GPT-1's
    code."""
    table: Any = model.get_input_embeddings()
    known = len(table.weight)
    if number > known:
        model.resize_token_embeddings(number, mean_resizing=False)
        enlarged: Any = model.get_input_embeddings()
        with torch.no_grad():
            nn.init.normal_(enlarged.weight[known:], std=model.config.initializer_range)


def begin_at(model: PreTrainedModel, score: float) -> None:
    """Let a head with one output, and small weights, answer about ``score`` to everything."""
    parameters = dict(model.named_parameters())
    (bias,) = [parameters[name] for name in head_parameters(model) if parameters[name].shape == (1,)]
    nn.init.constant_(bias, score)


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Names of the parameters outside the encoder."""
    return [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]


def log_softmax_within(logits: Tensor, owner: Tensor, number: int) -> Tensor:
    """Logarithms of the softmax of (M, ...) logits over the rows of each owner; ``owner`` (M,) is below ``number``."""
    index = owner.reshape(-1, *[1] * (logits.ndim - 1)).expand_as(logits)
    empty = logits.new_full((number, *logits.shape[1:]), -torch.inf)
    highest = empty.scatter_reduce(0, index, logits.detach(), "amax")
    shifted = logits - highest[owner]
    sums = torch.zeros_like(empty).index_add(0, owner, shifted.exp())
    return shifted - sums.log()[owner]


def best_within(logits: Tensor, owner: Tensor, number: int) -> Tensor:
    """The row (number,) of (M,) logits that is highest among those of each owner, the first one of equals."""
    highest = logits.new_full((number,), -torch.inf).scatter_reduce(0, owner, logits, "amax")
    rows = torch.arange(len(logits), device=logits.device)
    rows = rows.where(logits == highest[owner], len(logits))
    return rows.new_full((number,), len(logits)).scatter_reduce(0, owner, rows, "amin")


def problem_of(config: PreTrainedConfig) -> str:
    """The ``problem_type`` of a sequence classifier; where its configuration has none, that which transformers'
    pipeline assumes: one label of several, or a score where there is one output."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


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

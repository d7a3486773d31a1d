"""What KagNet makes of a question and its choices: its choice, the concepts that they name, the paths it attends to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertillery.config.section import InputError
from bertillery.models.encoders import encode
from bertillery.models.layers.attention import Recorded
from bertillery.run.device import RunSection
from bertillery.system.invocation import settings
from deploy.trained import ALONE, Trained, UseSection
from finetune.data.splits import Split
from finetune.task_types import graph_choice
from finetune.task_types.base import Predicted
from knowledge.questions.grounding import Grounding
from pages.attention import attention_blocks, weights
from pages.blocks import Block, Paragraph, Section, Table
from pages.links import data_dir_of
from pages.tokens import read


def kagnet_sections(
    start: str, question: str, choices: Sequence[str], *, task: dict[str, Any] | None = None
) -> list[Section]:
    """Of an export of ``task.type: graph_choice``, with the graph of its run, or the one that keys of ``task`` name.

    ``InputError`` for less than two choices, and where the graph is not there.
    """
    if len(choices) < 2:
        raise InputError(
            f"pair: {start} is a KagNet, which compares the choices of a question; give the question as text and two "
            f"choices or more, with bars between: {settings('inspect', PAIR='a dog | a cat')}"
        )
    own = {**ALONE, "files": {"data": ["none, rows are given"]}}
    run = RunSection(device="cpu", precision="fp32", data_dir=data_dir_of(start))
    use = UseSection(model=start, task=task or {}, run=run)
    trained = Trained.open(use, named=False, own=own)
    kind = trained.task_type
    assert isinstance(kind, graph_choice.Type)
    split = Split("given", ([question], [[*choices]]), None, np.array(["0"], dtype=object))
    with tempfile.TemporaryDirectory() as folder:
        kind.data_dir = Path(folder)  # of the paths alone: the graph is open
        predicted, _ = trained.predict(split)
        return [
            Section("Decision", [_decision(predicted, choices)]),
            Section("Concepts", [_concepts(kind, question, choices)]),
            Section("Paths", [_paths(kind, predicted)]),
            Section("Attention", [*_attention(trained, question, choices[int(predicted.predictions[0])])]),
        ]


def _decision(predicted: Predicted, choices: Sequence[str]) -> Table:
    shares = zip(choices, predicted.outputs[:, 0].tolist(), strict=True)
    rows = [[choice, f"{share:.1%}"] for choice, share in sorted(shares, key=lambda each: -each[1])]
    return Table("Choices", [["", "probability"], *rows])


def _concepts(kind: graph_choice.Type, question: str, choices: Sequence[str]) -> Table:
    grounding, labels = Grounding(kind.graph, [question, *choices]), kind.graph.labels
    rows = [
        [text, ", ".join(labels[concept] for concept in grounding.concepts(text)) or "none"]
        for text in (question, *choices)
    ]
    note = "Paths begin at a concept of the question and end at one of a choice; one of both is none of the question's."
    return Table("Concepts of the graph that each text names", [["text", "concepts"], *rows], note=note)


def _paths(kind: graph_choice.Type, predicted: Predicted) -> Table:
    rows = [["choice", "path", "share of the attention"]]
    for choice, paths in kind.strongest_paths(predicted, 0).items():
        rows += [[choice, path, f"{share:.1%}"] for path, share in paths] or [[choice, "none: read as text alone", ""]]
    note = "The share of a pair of concepts among all pairs of the choice, times that of the path among the pair's."
    return Table(f"The {graph_choice.STRONGEST} paths of each choice with the highest attention", rows, note=note)


def _attention(trained: Trained, question: str, choice: str) -> Iterator[Block]:
    """Of the encoder in the model, which reads the question with the most probable choice."""
    network = trained.objective
    assert isinstance(network, graph_choice.Objective)
    record: list[Recorded] = []
    text = read(trained.tokenizer, network.encoder.config, question, choice)
    encode(network.encoder, text.stream, record=record)
    yield Paragraph(f"Of the encoder, which reads the question with: {choice}")
    yield from attention_blocks([*weights(record, causal=False)], text.tokens, text.tokens, "all")

"""Fine-tuning and evaluation as ``run_glue`` has them: the stock classifier, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from transformers import BertForSequenceClassification, DataCollatorWithPadding

from benchmarks.conventional import DROPOUT, Baseline, listed, stock
from benchmarks.material import Material
from benchmarks.turns import Step
from benchmarks.workload import SEED, Workload
from finetune.examples import TextExamples
from pretrain.examples import FlatExamples
from pretrain.objectives.mlm import bert_config


def classifier(workload: Workload, material: Material, source: TextExamples) -> Baseline:
    """Labels of texts."""
    model = BertForSequenceClassification(stock(bert_config(workload.model(DROPOUT), material.tokenizer)))
    return Baseline(
        model,
        lambda rows: listed(flat(source, rows), material.tokenizer, label="label", special=False),
        DataCollatorWithPadding(cast(Any, material.tokenizer)),
        lambda inputs: model(**inputs).loss,
    )


def evaluation(workload: Workload, material: Material, source: TextExamples, *, bf16: bool) -> Step:
    """The loop of ``Trainer.predict`` over rows in their order, ``batch_size`` at a time."""
    torch.manual_seed(SEED)
    baseline, size = classifier(workload, material, source), workload.batch_size
    model = baseline.trained.eval()

    def prepare(rows: np.ndarray) -> Callable[[], int]:
        examples = baseline.examples(rows)

        def predict() -> int:
            logits, losses, tokens = [], [], 0
            for start in range(0, len(examples), size):
                inputs = baseline.collate(examples[start : start + size])
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    outputs: Any = model(**inputs)
                logits.append(outputs.logits.float().numpy())
                losses.append(outputs.loss.item())
                tokens += int(inputs["attention_mask"].sum())
            assert len(np.concatenate(logits)) == len(rows)
            return tokens

        return predict

    return prepare


def flat(source: TextExamples, rows: np.ndarray) -> FlatExamples:
    """Examples of a task as those of a corpus are held."""
    which = source.members(rows["index"])
    ids, types = source.sequences.lay_out(which)
    assert source.labels is not None
    nothing = np.zeros(len(ids), dtype=bool)
    return FlatExamples(ids, types, rows["length"], nothing, rows["key"], source.labels[rows["index"]])

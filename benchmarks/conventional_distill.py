"""Distillation as the released scripts have it, with stock models: padded batches, all of the teacher's outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForMaskedLM, BertModel, DistilBertForMaskedLM, default_data_collator

from benchmarks.conventional import DROPOUT, Baseline, Inputs, listed, masking, stock
from benchmarks.material import Material
from benchmarks.workload import Workload
from distill.student import StudentSection, student_config
from pretrain.objectives.mlm import bert_config


def distilbert(workload: Workload, material: Material, source: Any) -> Baseline:
    """``distiller.py``: both models' logits at every real position side by side, T = 2, weights 5, 2 and 1. Its batches
    are of like lengths, padded to the longest; the masks are the stock collator's."""
    tokenizer, temperature = material.tokenizer, 2.0
    teacher = BertForMaskedLM(stock(bert_config(workload.model(DROPOUT), tokenizer))).eval().requires_grad_(False)
    section = StudentSection(type="distilbert", num_hidden_layers=workload.layers // 2)
    student = DistilBertForMaskedLM._from_config(student_config(section, teacher.config), attn_implementation="sdpa")

    def loss(inputs: Inputs) -> Tensor:
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        mine = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with torch.no_grad():
            theirs = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        real = mask.bool()[:, :, None].expand_as(mine.logits)
        width = mine.logits.shape[-1]
        known, taught = (logits.masked_select(real).view(-1, width) for logits in (mine.logits, theirs.logits))
        soft = [(logits / temperature).float() for logits in (known, taught)]
        divergence = F.kl_div(soft[0].log_softmax(-1), soft[1].softmax(-1), reduction="batchmean") * temperature**2
        words = F.cross_entropy(mine.logits.view(-1, width).float(), labels.view(-1), ignore_index=-100)
        hidden = [output.hidden_states[-1] for output in (mine, theirs)]
        inside = mask.bool()[:, :, None].expand_as(hidden[0])
        rows = [states.masked_select(inside).view(-1, states.shape[-1]).float() for states in hidden]
        angle = F.cosine_embedding_loss(rows[0], rows[1], rows[0].new_ones(len(rows[0])))
        return 5.0 * divergence + 2.0 * words + angle

    return Baseline(student, lambda rows: listed(source.lay_out(rows), tokenizer), masking(tokenizer), loss)


def tinybert(workload: Workload, material: Material, source: Any) -> Baseline:
    """``general_distill.py``: mean squared errors of attention and hidden states of every other layer, padding and all.
    Stock models return attention as probabilities, the script's own return scores; that costs the same."""
    tokenizer = material.tokenizer
    teacher = BertModel(stock(bert_config(workload.model(DROPOUT), tokenizer), "eager")).eval().requires_grad_(False)
    section = StudentSection(num_hidden_layers=workload.layers // 2)
    student = BertModel._from_config(student_config(section, teacher.config), attn_implementation="eager")
    fit = nn.Linear(student.config.hidden_size, teacher.config.hidden_size)

    def loss(inputs: Inputs) -> Tensor:
        mine = student(**inputs, output_hidden_states=True, output_attentions=True)
        with torch.no_grad():
            theirs = teacher(**inputs, output_hidden_states=True, output_attentions=True)
        pairs = [*zip(mine.attentions, theirs.attentions[1::2], strict=True)]
        pairs += [(fit(own), other) for own, other in zip(mine.hidden_states, theirs.hidden_states[::2], strict=True)]
        return torch.stack([F.mse_loss(own.float(), other.float()) for own, other in pairs]).sum()

    return Baseline(
        nn.ModuleList([student, fit]),
        lambda rows: listed(source.lay_out(rows), tokenizer, pad_to=workload.sequence_length, special=False),
        default_data_collator,
        loss,
    )

"""ELECTRA as the usual community script has it: both stock models glued together, with tied embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ElectraForMaskedLM, ElectraForPreTraining

from benchmarks.conventional import DROPOUT, Baseline, Inputs, listed, masking, stock
from benchmarks.material import Material
from benchmarks.workload import Workload
from pretrain.objectives.electra import Config, electra_config, generator_sizes

_SETTINGS = Config(embedding_size=128, generator_fraction=0.25)


def electra(workload: Workload, material: Material, source: Any) -> Baseline:
    """The generator's logits at every position, its samples at the masked ones, the discriminator on all."""
    tokenizer, sizes = material.tokenizer, workload.model(DROPOUT)
    assert _SETTINGS.embedding_size is not None
    discriminator = ElectraForPreTraining(stock(electra_config(sizes, _SETTINGS.embedding_size, tokenizer)))
    smaller = generator_sizes(_SETTINGS, sizes)
    generator = ElectraForMaskedLM(stock(electra_config(smaller, _SETTINGS.embedding_size, tokenizer)))
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()

    def loss(inputs: Inputs) -> Tensor:
        guessed = generator(**inputs)
        ids, labels = inputs["input_ids"].clone(), inputs["labels"]
        masked = labels != -100
        with torch.no_grad():
            ids[masked] = torch.multinomial(guessed.logits[masked].float().softmax(-1), 1)[:, 0]
        replaced = masked & (ids != labels)
        others = {name: inputs[name] for name in ("attention_mask", "token_type_ids")}
        detected = discriminator(input_ids=ids, labels=replaced.long(), **others)
        return guessed.loss + 50.0 * detected.loss

    return Baseline(
        nn.ModuleList([generator, discriminator]),
        lambda rows: listed(source.lay_out(rows), tokenizer, pad_to=workload.sequence_length),
        masking(tokenizer),
        loss,
    )

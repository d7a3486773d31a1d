"""MiniLMv2 (Wang et al. 2021, arXiv 2012.15828): relations between the tokens of a layer.

Queries, keys and values of a layer are cut into relation heads. For each head the softmax of the scaled products of all
pairs of tokens is a distribution; the student's last layer learns those of a layer of the teacher (section 3.1, eq. 4
to 6, all weights 1). The two may differ in width, attention heads and layers.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Depth, Width
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode_layers
from bertillery.models.flops import encoder_flops
from bertillery.models.layers.attention import Recorded
from bertillery.models.relations import real_cells, relations
from distill.corpus import Part, unmasked
from distill.teacher import Taught, Teacher
from pretrain.examples import DocumentSource
from pretrain.pairs import full_segments

MASKED_WORDS = False
"""Neither student nor teacher needs an MLM head."""
_PARTS = "query", "key", "value"
_PROJECTIONS = {*_PARTS, "q_lin", "k_lin", "v_lin"}
"""Names of the linear layers of queries, keys and values in all families."""


class Config(Section):
    """Section of this method."""

    type: Literal["minilm"] = "minilm"
    layer: Depth | None = None
    """Teacher's layer, from 1, that is learned from; by default the last, which is best for teachers of 12 layers. The
    paper takes the 21st of 24."""
    relation_heads: Width | None = None
    """By default 4 times the teacher's heads (48 for BERT-Base, as in the paper); must divide both widths."""


def source(
    config: Config, part: Part, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Segments of whole sentences without masks."""
    draw = partial(full_segments, sequence_length=sequence_length)
    return DocumentSource(part.tokens, tokenizer, seed=seed, draw=draw, finish=unmasked, num_texts=1)


def build(config: Config, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> Relations:
    """``ConfigError`` for a layer that the teacher lacks, or relation heads that do not divide a width."""
    here, there = student.config, teacher.module.config
    layer = config.layer or there.num_hidden_layers
    if layer > there.num_hidden_layers:
        raise ConfigError(f"objective.layer: given {layer}; the teacher has {there.num_hidden_layers} layers")
    heads = config.relation_heads or 4 * there.num_attention_heads
    widths = {"teacher": there.hidden_size, "student": here.hidden_size}
    if wrong := [f"{width} ({who})" for who, width in widths.items() if width % heads]:
        raise ConfigError(
            f"objective.relation_heads: {heads} do not divide the width {' and '.join(wrong)}; give a common divisor"
        )
    return Relations(student, teacher, layer=layer, heads=heads)


class Relations(Taught):
    """A student whose last layer learns the relations of one layer of its teacher."""

    def __init__(self, student: PreTrainedModel, teacher: Teacher[PreTrainedModel], *, layer: int, heads: int) -> None:
        super().__init__(student, teacher)
        self.layer, self.heads = layer, heads
        freeze_behind_relations(student)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """``query``, ``key`` and ``value``: divergence of the relations in nats, means over tokens and heads."""
        recorded: list[Recorded] = []
        known: list[Recorded] = []
        encode_layers(self.student, batch.input, record=recorded)
        with self.teacher.asked(batch) as teacher:
            encode_layers(teacher, batch.input, record=known)
        mine, theirs, real = recorded[-1], known[self.layer - 1], real_cells(batch.input.layout)
        found: dict[str, Term] = {}
        for part in _PARTS:
            with torch.no_grad():
                targets = relations(getattr(theirs, part), batch.input.layout, self.heads)
            scores = relations(getattr(mine, part), batch.input.layout, self.heads)
            sums = [divergence(*three) for three in zip(scores, targets, real, strict=True)]
            found[part] = Term(torch.stack(sums).sum() / self.heads, "tokens", title=f"{part} relations (nats)")
        return found

    def flops(self, batch: PackedBatch) -> float:
        """Three times the student's forward pass and relations, once the teacher's."""
        here, there = self.student.config, self.teacher.module.config
        products = 2.0 * len(_PARTS) * batch.input.squared_lengths
        return (
            3 * (encoder_flops(here, batch.input) + products * here.hidden_size)
            + encoder_flops(there, batch.input)
            + products * there.hidden_size
        )


def freeze_behind_relations(student: PreTrainedModel) -> None:
    """Freeze everything after the queries, keys and values of the last layer: the loss does not depend on it, and
    processes wait for the gradient of every trained parameter."""
    if getattr(student, "pooler", None) is not None:
        student.pooler.requires_grad_(False)
    number = student.config.num_hidden_layers
    stacks = [each for each in student.modules() if isinstance(each, nn.ModuleList) and len(each) == number]
    for layer in [stack[-1] for stack in stacks[:1]]:  # none if layers are shared
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] in _PROJECTIONS)


def divergence(scores: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Sum over tokens and relation heads of KL(softmax(targets) || softmax(scores)), in nats.

    ``scores`` and ``targets`` are (b, heads, s, s); ``real`` (b, s) tells tokens from padding.
    """
    hidden = ~real[:, None, None, :]
    mine = F.log_softmax(scores.float().masked_fill(hidden, -torch.inf), -1).masked_fill(hidden, 0.0)
    theirs = F.log_softmax(targets.float().masked_fill(hidden, -torch.inf), -1)
    probabilities = theirs.exp()
    differences = (probabilities * (theirs.masked_fill(hidden, 0.0) - mine)).sum(-1)
    return (differences * real[:, None, :]).sum()

"""TinyBERT (Jiao et al. 2020, arXiv 1909.10351): attention scores, hidden states and embeddings of the teacher's layers
and, for a task, its soft targets.

Task-agnostic distillation and the first stage of a task compare layers: student layer m learns from teacher layer g(m),
by default m * teacher / student (section 4.1). The second stage of a task uses soft targets only, at temperature 1.

Differences from the released code: losses are means over real tokens and pairs of them, where it also counts padding,
so that its losses shrink with padding; the soft-target loss is an example's cross-entropy, which it divides by the
number of labels; the stock classifier follows the pooler's tanh, where it has a ReLU in between.

Legend: T tokens of a batch, S and H widths of student and teacher; a pair is a query and a key of one sequence.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Depth
from bertillery.engine.batch import PackedBatch
from bertillery.engine.layout import PackingLayout
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode_layers
from bertillery.models.flops import encoder_flops
from bertillery.models.layers.attention import Recorded
from bertillery.models.relations import attention_scores, real_cells
from distill.corpus import Part, unmasked
from distill.soft_targets import Imitation
from distill.squared_error import squared_error
from distill.student import checked, uniform
from distill.teacher import Taught, Teacher
from finetune.predict import Predictor
from pretrain.examples import DocumentSource
from pretrain.model import initialize
from pretrain.objectives import bert
from pretrain.pairs import next_sentence_pairs

MASKED_WORDS = False
"""Neither student nor teacher needs an MLM head."""


class Config(Section):
    """Section of this method."""

    type: Literal["tinybert"] = "tinybert"
    layers: list[Depth] | None = None
    """Teacher's layer, from 1, for each of the student's; evenly spaced by default."""


class AnswersConfig(Section):
    """Section of this method for soft targets of a task, which has no options."""

    type: Literal["tinybert"] = "tinybert"


def source(
    config: Config, part: Part, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """BERT's sentence pairs without masks: the released ``general_distill.py`` has a ``masked_lm_prob`` of 0.

    Raises ``ConfigError`` for a corpus in which no sentence has a next one.
    """
    bert.check_corpus(part.tokens, remedy="take a method that reads no pairs: objective.type=minilm or distilbert")
    draw = partial(next_sentence_pairs, sequence_length=sequence_length, short_probability=0.1)
    return DocumentSource(part.tokens, tokenizer, seed=seed, draw=draw, finish=unmasked)


def build(config: Config, student: PreTrainedModel, teacher: Teacher[PreTrainedModel]) -> Layers:
    """``ConfigError`` if the numbers of attention heads differ, or the layers do not divide and no map is given."""
    here, there = student.config, teacher.module.config
    if here.num_attention_heads != there.num_attention_heads:
        raise ConfigError(
            f"objective.type: TinyBERT compares attention heads one by one (teacher {there.num_attention_heads}, "
            f"student {here.num_attention_heads}); give model.num_attention_heads={there.num_attention_heads}, or "
            "objective.type=minilm, for which they may differ"
        )
    number, last = here.num_hidden_layers, there.num_hidden_layers
    if config.layers is None:
        return Layers(student, teacher, uniform(number, last))
    return Layers(student, teacher, checked(config.layers, number, first=1, last=last, key="objective.layers"))


def task(config: AnswersConfig, student: Predictor, teacher: Teacher[Predictor]) -> Imitation:
    """The second stage: soft targets only. Regression learns from the labels, as the paper's STS-B does."""
    score = type(student).log_probabilities is Predictor.log_probabilities
    return Imitation(student, teacher, hard=float(score), soft=float(not score), temperature=1.0)


class Layers(Taught):
    """A student compared with its teacher layer by layer."""

    def __init__(self, student: PreTrainedModel, teacher: Teacher[PreTrainedModel], layers: list[Depth]) -> None:
        super().__init__(student, teacher)
        self.layers = layers
        self.fit_dense = nn.Linear(student.config.hidden_size, teacher.module.config.hidden_size)
        """(S -> H), one for embeddings and all layers, as in the released code, also if S = H."""
        initialize(self.fit_dense, student.config.initializer_range)
        if getattr(student, "pooler", None) is not None:
            student.pooler.requires_grad_(False)  # the loss does not depend on it, and processes wait for gradients

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """``attention``, ``hidden`` and ``embedding``: squared errors, means over a layer's elements summed over the
        layers; ``unexplained``: the squared error relative to the teacher's squared hidden states."""
        recorded: list[Recorded] = []
        known: list[Recorded] = []
        states = encode_layers(self.student, batch.input, record=recorded)
        with self.teacher.asked(batch) as teacher:
            taught = encode_layers(teacher, batch.input, record=known)
        real = real_cells(batch.input.layout)
        attention = [
            attention_error(mine, known[layer - 1], batch.input.layout, real)
            for mine, layer in zip(recorded, self.layers, strict=True)
        ]
        pairs = [(self.fit_dense(mine), taught[layer]) for mine, layer in zip(states, [0, *self.layers], strict=True)]
        errors = [squared_error(mine, theirs) / theirs.shape[-1] for mine, theirs in pairs]
        size = sum(theirs.float().norm().square() / theirs.shape[-1] for _, theirs in pairs[1:])
        unexplained = torch.stack([sum(errors[1:], start=torch.zeros_like(errors[0])).detach(), torch.as_tensor(size)])
        return {
            "attention": Term(torch.stack(attention).sum(), "pairs_of_tokens", title="attention scores, squared error"),
            "hidden": Term(torch.stack(errors[1:]).sum(), "tokens", title="hidden states, squared error"),
            "embedding": Term(errors[0], "tokens", title="embeddings, squared error"),
            "unexplained": Term(
                unexplained, "tokens", 0.0, value=_ratio, title="share of hidden states left unexplained"
            ),
        }

    def carried(self) -> dict[str, nn.Module]:
        """The projection: the released code trains it further from stage to stage."""
        return {"fit_dense": self.fit_dense}

    def flops(self, batch: PackedBatch) -> float:
        """Three times the student's forward pass, projections and attention scores, once the teacher's."""
        here, there = self.student.config, self.teacher.module.config
        projections = 2.0 * batch.input.num_tokens * here.hidden_size * there.hidden_size * (1 + here.num_hidden_layers)
        scores = 2.0 * batch.input.squared_lengths * here.num_hidden_layers
        return (
            3 * (encoder_flops(here, batch.input) + projections + scores * here.hidden_size)
            + encoder_flops(there, batch.input)
            + scores * there.hidden_size
        )


def attention_error(mine: Recorded, theirs: Recorded, layout: PackingLayout, real: list[Tensor]) -> Tensor:
    """Squared difference of the scores before the softmax, summed over pairs of tokens and averaged over heads."""
    with torch.no_grad():
        targets = attention_scores(theirs, layout)
    total = mine.query.new_zeros((), dtype=torch.float32)
    for scores, target, cells in zip(attention_scores(mine, layout), targets, real, strict=True):
        both = (cells[:, :, None] & cells[:, None, :])[:, None]
        total = total + squared_error(scores, target, both.float()) / scores.shape[1]
    return total


def _ratio(sums: list[float], _: Any) -> float:
    return sums[0] / max(sums[1], 1e-12)

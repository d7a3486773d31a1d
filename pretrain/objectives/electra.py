"""ELECTRA: a small masked language model replaces tokens, the model detects which (Clark et al. 2020).

The generator predicts the masked tokens; a sample of each prediction stands in its place in the discriminator's input.
Loss: mean cross-entropy of the masked tokens plus ``discriminator_weight`` times the mean binary cross-entropy over all
tokens, special ones included (``run_pretraining.py``). A token is replaced if the sample differs from the original; a
correct guess is an original. No gradient flows back through the samples. The networks share their whole embeddings
module: words, positions, segments and LayerNorm.

Legend: B examples, T tokens, M predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.config.types import Probability, Share, Weight, Width
from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.objective import Objective, Term, mean
from bertillery.engine.rng import integers, uniform
from bertillery.models.encoders import encode
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.layers.chunks import LOGITS, in_chunks
from bertillery.models.layers.cross_entropy import cross_entropies
from pretrain.config import ObjectiveSection
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.initialization import Weights
from pretrain.masked_lm import without_context
from pretrain.masking import Masked, num_predictions
from pretrain.model import ModelSection, initialize, packed_config
from pretrain.pairs import Tokens, binary_entropy, segment_pairs

_PLACE, _ORDER, _HIDE, _SAMPLE = range(205, 209)
"""What a draw is for; part of its key."""
_HIDDEN_SHARE = 0.85
"""Share of the predicted tokens that become [MASK]."""
_BINS, _REACH = 512, 16.0
"""Bins of the histogram of logits, and the logits that it covers on each side of 0."""
_CHUNK = 128
"""Tokens of the vocabulary that are summed at a time."""


class Config(ObjectiveSection):
    """Section of this objective; ``model`` is the discriminator, with ``hidden_act: gelu`` in the original."""

    family: ClassVar[str] = "electra"
    type: Literal["electra"] = "electra"
    embedding_size: Width | None = None
    """Width of the shared embeddings; the discriminator's where not given. Small has 128."""
    generator_fraction: Annotated[float, Field(gt=0, le=1)] = 0.33333
    """Width of the generator as a share of the discriminator's; it has as many layers."""
    discriminator_weight: Weight = 50.0
    """Weight of the discriminator's loss; the generator's is 1."""
    rate: Share = 0.15
    """Share of the tokens that are predicted; Large has 0.25."""
    replacement: Literal["without", "with"] = "without"
    """How they are drawn. The original's code draws with replacement, so that 19 draws hit 17.7 tokens; its author
    recommends drawing without."""
    single_probability: Probability = 0.1
    """Share of examples of one segment, beside those too short for two."""
    short_probability: Probability = 0.05
    """Share of examples with a random shorter target length."""

    def most(self, sequence_length: int) -> int:
        """The most predictions in an example of this sequence length."""
        return max(1, int((self.rate + 0.005) * sequence_length))

    def predicted(self, sequence_length: int) -> str:
        """How many tokens of a full example are predicted."""
        predicted = num_predictions(sequence_length, self.rate, self.most(sequence_length))
        return f"{int(predicted)} of {sequence_length} tokens"

    @classmethod
    def decided_by(cls, weights: Weights) -> dict[str, Any]:
        """The width of the embeddings, and of the generator if the checkpoint has one."""
        config, generator = weights.config, weights.companion("generator")
        decided = {"embedding_size": config.embedding_size}
        if generator is not None:  # as many digits as the published fractions have; the width is rounded
            decided["generator_fraction"] = round(generator.hidden_size / config.hidden_size, 5)
        return decided


def source(
    config: Config, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Segments of consecutive text, masked for the generator."""
    return DocumentSource(
        tokens,
        tokenizer,
        seed=seed,
        draw=partial(
            segment_pairs,
            sequence_length=sequence_length,
            single_probability=config.single_probability,
            short_probability=config.short_probability,
        ),
        finish=partial(
            masked_batch,
            rate=config.rate,
            maximum=config.most(sequence_length),
            mask_id=cast(int, tokenizer.mask_token_id),
            replacement=config.replacement == "with",
        ),
    )


def masked_batch(examples: FlatExamples, *, mask_id: int, **settings: Any) -> PackedBatch:
    """The examples as the generator sees them; ``settings`` are those of :func:`mask_slots`."""
    candidates = ~examples.special & (examples.input_ids != mask_id)
    slots = mask_slots(examples.input_ids, examples.lengths, examples.keys, candidates, mask_id=mask_id, **settings)
    return slots.pack(examples, uniforms=slots.uniforms)


@dataclass(frozen=True)
class Slots(Masked):
    """The generator's input and predictions; with replacement ``positions`` can repeat a row."""

    uniforms: np.ndarray
    """(M,) in [0, 1): the random number that samples the generator's distribution there; one to a row."""


def mask_slots(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray,
    *,
    rate: float,
    maximum: int,
    mask_id: int,
    replacement: bool,
) -> Slots:
    """ELECTRA's masking of a flat batch (``pretrain_helpers.py``).

    Exactly :func:`pretrain.masking.num_predictions` of each example's ``candidates`` (T,), drawn with or without
    replacement. Each draw independently becomes [MASK] (85 %) or stays (15 %); none becomes a random word. A row drawn
    twice is hidden if either draw hides it, and is sampled once: the original averages the two sampled ids.
    """
    every = np.arange(len(lengths))
    examples, offsets, rows = np.repeat(every, lengths), ranges(lengths), np.flatnonzero(candidates)
    number = np.bincount(examples[rows], minlength=len(lengths))
    wanted = num_predictions(lengths, rate, maximum)
    if replacement:
        wanted = np.where(number > 0, wanted, 0)
        owner, turn = np.repeat(every, wanted), ranges(wanted)
        first = np.cumsum(number) - number
        positions = rows[first[owner] + integers(number[owner], keys[owner], _PLACE, turn)]
    else:
        order = np.lexsort((uniform(keys[examples[rows]], _ORDER, offsets[rows]), examples[rows]))
        positions = np.sort(rows[order[ranges(number) < np.repeat(wanted, number)]])
        owner, turn = examples[positions], offsets[positions]
    corrupted = input_ids.astype(np.int64)
    corrupted[positions[uniform(keys[owner], _HIDE, turn) < _HIDDEN_SHARE]] = mask_id
    uniforms = uniform(keys[owner], _SAMPLE, offsets[positions])
    return Slots(corrupted, positions, input_ids[positions].astype(np.int64), uniforms)


def generator_sizes(config: Config, sizes: ModelSection) -> ModelSection:
    """All layers of the discriminator at a fraction of its width, heads of 64 (``get_generator_config``).

    ``ConfigError`` where that width is not a multiple of the heads.
    """
    width = max(1, round(sizes.hidden_size * config.generator_fraction))
    heads = max(1, width // 64)
    if width % heads:
        raise ConfigError(
            f"objective.generator_fraction: {config.generator_fraction} of model.hidden_size {sizes.hidden_size} is "
            f"{width}, which its {heads} heads (one to 64) do not divide; a multiple of 64, or less than 128, works"
        )
    update = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return sizes.model_copy(update=update)


def electra_config(sizes: ModelSection, embedding_size: int, tokenizer: PreTrainedTokenizerBase) -> ElectraConfig:
    """The transformers configuration of one of the networks."""
    return packed_config(ElectraConfig, sizes, tokenizer, embedding_size=embedding_size)


class Electra(Objective):
    """A stock ``ElectraForMaskedLM`` and a stock ``ElectraForPreTraining`` with one embeddings module."""

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        embedding_size = config.embedding_size or sizes.hidden_size
        self.discriminator_weight, self.mask_id = config.discriminator_weight, cast(int, tokenizer.mask_token_id)
        self.discriminator = ElectraForPreTraining(electra_config(sizes, embedding_size, tokenizer))
        smaller = generator_sizes(config, sizes)
        self.generator = ElectraForMaskedLM(electra_config(smaller, embedding_size, tokenizer))
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.tie_weights()
        assert self.generator.generator_lm_head.weight is self.discriminator.get_input_embeddings().weight
        initialize(self, sizes.initializer_range)
        # The original leaves these to TensorFlow's default.
        for encoder in (self.generator.electra, self.discriminator.electra):
            if hasattr(encoder, "embeddings_project"):
                nn.init.xavier_uniform_(encoder.embeddings_project.weight)
        nn.init.xavier_uniform_(self.discriminator.discriminator_predictions.dense_prediction.weight)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``generator`` and ``discriminator``; the vocabulary projection sees the masked rows only."""
        positions, originals = batch.targets["masked_positions"], batch.targets["masked_ids"]
        hidden = encode(self.generator, batch.input)
        generated, rights, samples = in_chunks(
            self._guess,
            *(hidden[positions], originals, batch.targets["uniforms"]),
            parameters=self.generator.parameters(),
            width=self.generator.config.vocab_size,
            most=LOGITS,
        )
        sampled = torch.cat(samples)
        fake, replaced = batch.input.ids.clone(), torch.zeros_like(batch.input.ids, dtype=torch.bool)
        fake[positions], replaced[positions] = sampled, sampled != originals
        hidden = encode(self.discriminator, replace(batch.input, ids=fake))
        logits = self.discriminator.discriminator_predictions(hidden).float()
        detected = F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="sum")
        guessed, drawn, copying = torch.stack(rights).sum(), (sampled == originals).sum(), "unigrams, and copying"
        return {
            "generator": Term(generated, "masked", title="generator's MLM loss (nats)", baseline=copying),
            "generator_accuracy": _metric(guessed, "masked", "generator's MLM accuracy", "the same"),
            "sampled_accuracy": _metric(drawn, "masked", "accuracy of sampled tokens", "a draw from the same"),
            "discriminator": Term(
                detected, "tokens", self.discriminator_weight, title="detection loss (nats)", baseline="label entropy"
            ),
            **detection_terms(logits, replaced, "tokens"),
        }

    def _guess(self, hidden: Tensor, originals: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generator's loss, its correct guesses, and its samples, of some masked rows."""
        logits = self.generator.generator_lm_head(self.generator.generator_predictions(hidden)).float()
        losses, _, right = cross_entropies(logits, originals)
        return losses.sum(), right.sum(), sample(logits.detach(), uniforms)

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """The generator's, and the discriminator's for the share of replaced tokens that the generator leaves."""
        loss, accuracy, sampled = without_context(batches, unigrams, self.mask_id)
        replaced = values["replaced"]
        found = {"generator": loss, "generator_accuracy": accuracy, "sampled_accuracy": sampled}
        found |= {"discriminator": binary_entropy(replaced), "discriminator_accuracy": 1 - replaced}
        return found | {"auc": 0.5, "precision": replaced, "recall": 0.0}

    def exported(self) -> ElectraForPreTraining:
        """The discriminator, the network that is fine-tuned."""
        return self.discriminator

    def auxiliary_models(self) -> dict[str, Any]:
        """The generator, the only one of the two that fills masks."""
        return {"generator": self.generator}

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: both encoders with their projections, both heads."""
        config, larger = self.generator.config, self.discriminator.config
        head = head_flops(config.hidden_size, config.vocab_size, batch.counts["masked"], config.embedding_size)
        detection = 2.0 * batch.input.num_tokens * (larger.hidden_size**2 + larger.hidden_size)
        encoders = encoder_flops(config, batch.input) + encoder_flops(larger, batch.input)
        return 3 * (encoders + head + detection)


build = Electra


def _metric(total: Tensor, count: str, title: str, baseline: str, value: Any = mean) -> Term:
    return Term(total, count, 0.0, value, title=title, direction="higher", baseline=baseline)


def detection_terms(logits: Tensor, positive: Tensor, count: str) -> dict[str, Term]:
    """Metrics of ``logits`` (T,), above 0 for the class that ``positive`` (T,) marks; ``count`` names T.

    ``auc``, ``discriminator_accuracy``, ``precision``, ``recall`` and ``replaced``, the share of the positive.
    """
    logits = logits.detach()
    guessed, none = logits > 0, "calling all tokens original"
    hits = (guessed & positive).sum()
    precision, recall = torch.stack([hits, guessed.sum()]), torch.stack([hits, positive.sum()])
    return {
        "auc": _metric(histograms(logits, positive), count, "detection AUC", "chance", area_under_roc),
        "discriminator_accuracy": _metric((guessed == positive).sum(), count, "detection accuracy", none),
        "precision": _metric(precision, count, "detection precision", "share of replaced tokens", ratio),
        "recall": _metric(recall, count, "detection recall", none, ratio),
        "replaced": Term(positive.sum(), count, weight=0.0),
    }


def ratio(sums: list[float], count: float) -> float:
    """The first sum over the second; 0 if the second is 0."""
    return sums[0] / sums[1] if sums[1] else 0.0


def histograms(logits: Tensor, positive: Tensor) -> Tensor:
    """(2 * bins,): how often the negatives' logits, then the positives', fall into bins of 1/16 from -16 to 16."""
    place = ((logits + _REACH) * (_BINS / (2 * _REACH))).long().clamp(0, _BINS - 1)
    place = place + _BINS * positive
    return logits.new_zeros(2 * _BINS, dtype=torch.float32).index_add_(0, place, torch.ones_like(logits))


def area_under_roc(sums: list[float], count: float) -> float:
    """How often a positive scores above a negative, ties by half, from :func:`histograms`; 0.5 if a class is empty."""
    negative, positive = np.array(sums).reshape(2, -1)
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else 0.5


@torch.no_grad()
def sample(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from the softmax of each row of ``logits`` (M, V) by inverting its distribution function; int64 (M,).

    The original adds Gumbel noise, M times V numbers, and takes the largest, which is the same distribution. One
    number to a row, ``uniforms`` (M,) in [0, 1), can belong to the example, so that what is drawn does not depend on
    batch or process. Sums are in float64, over chunks of the vocabulary and then in the one that was hit: the sum of
    30,000 float32 probabilities would be off by more than many of them.
    """
    shares = logits.float().softmax(-1)
    chunks = F.pad(shares, (0, -shares.shape[1] % _CHUNK)).unflatten(1, (-1, _CHUNK))
    masses = chunks.sum(-1).double()
    chunk, rest = _invert(masses, uniforms.double())
    within, _ = _invert(chunks[torch.arange(len(chunk), device=chunk.device), chunk].double(), rest)
    return chunk * _CHUNK + within


def _invert(masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of each row (M, C) that the uniform number falls into, and how far into it, in [0, 1)."""
    ends = masses.cumsum(-1)
    wanted = (uniforms * ends[:, -1])[:, None]
    cell = torch.searchsorted(ends, wanted, right=True).clamp(max=masses.shape[1] - 1)
    mass = masses.gather(1, cell)
    depth = (wanted - ends.gather(1, cell) + mass) / mass
    return cell[:, 0], depth[:, 0].clamp(0, 1 - 2.0**-40)

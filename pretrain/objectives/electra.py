"""ELECTRA: a small masked language model replaces tokens, the model detects which (Clark et al. 2020).

The generator predicts the masked tokens; a sample of each prediction stands in its place in the discriminator's input.
Loss: mean cross-entropy of the masked tokens plus ``discriminator_weight`` times the mean binary cross-entropy over all
tokens, special ones included (``run_pretraining.py``). A token is replaced if the sample differs from the original; a
right guess is an original. Nothing flows back through the samples. The networks share their whole embeddings module:
words, positions, segments and LayerNorm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.config.types import Probability, Share, Weight, Width
from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.objective import Objective, Term
from bertillery.engine.rng import integers, key, uniform
from bertillery.models.attention import NAME
from bertillery.models.chunks import LOGITS, in_chunks
from bertillery.models.dropout import prepare_dropout
from bertillery.models.encoders import encode
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.load import vocabulary_size
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.initialization import ObjectiveSection, Weights
from pretrain.masking import num_predictions
from pretrain.model import ModelSection, initialize
from pretrain.pairs import ROW, Tokens

_BINS, _REACH = 512, 16.0


def detection_terms(logits: Tensor, positive: Tensor, count: str) -> dict[str, Term]:
    """Reported terms for ``logits`` (T,), above 0 for the class that ``positive`` (T,) marks; ``count`` names T.

    ``discriminator_accuracy``, ``precision``, ``recall``, ``auc`` and ``replaced``, the share of the positive.
    """
    logits = logits.detach()
    guessed = logits > 0
    hits = (guessed & positive).sum()
    return {
        "discriminator_accuracy": Term((guessed == positive).sum(), count, weight=0.0),
        "precision": Term(torch.stack([hits, guessed.sum()]), count, weight=0.0, value=ratio),
        "recall": Term(torch.stack([hits, positive.sum()]), count, weight=0.0, value=ratio),
        "auc": Term(histograms(logits, positive), count, weight=0.0, value=area_under_roc),
        "replaced": Term(positive.sum(), count, weight=0.0),
    }


def ratio(sums: list[float], count: float) -> float:
    """The first sum over the second; 0 where there is nothing to divide by."""
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


_CHUNK = 128


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


_TARGET, _TARGET_LENGTH, _SINGLE, _OVER, _PLACE, _ORDER, _HIDE, _SAMPLE = range(201, 209)
"""What a draw is for; part of its key."""

_HIDDEN_SHARE = 0.85


def segment_pairs(
    tokens: Tokens,
    documents: np.ndarray,
    *,
    sequence_length: int,
    single_probability: float,
    short_probability: float,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """One or two segments of consecutive text, without a sentence task (``build_pretraining_dataset.py``).

    Sentences are gathered until they reach the target length (``sequence_length``, or with ``short_probability``,
    drawn for each example, a uniform length from 5 on) or the document ends. The first segment takes sentences while it
    stays below half the target; the one that would carry it over goes to it by a coin; the rest are the second segment.
    With ``single_probability`` all are the first. What does not fit into ``sequence_length`` is thrown away.

    Two deviations: our units are sentences, the original's the lines of its files; and once a sentence went to the
    second segment all later ones follow, where the original lets a short one slip back into the first, whose text then
    has a gap (7 to 19 % of examples, measured on synthetic sentences). Returns rows of ``ROW``, label 0.
    """
    sentences = tokens.sentences
    here, last = tokens.documents[documents].astype(np.int64), tokens.documents[documents + 1].astype(np.int64)
    pass_key, parts, turn = key(seed, epoch, documents), [], 0
    going = np.flatnonzero(here < last)
    while len(going):
        k, start = key(pass_key[going], turn), here[going]
        short = uniform(k, _TARGET) < short_probability
        target = np.where(short, 5 + integers(sequence_length - 4, k, _TARGET_LENGTH), sequence_length)
        reached = np.searchsorted(sentences, sentences[start] + target)
        end = np.minimum(np.maximum(reached, start + 1), last[going])
        split = np.where(uniform(k, _SINGLE) < single_probability, end, _split(sentences, start, end, target, k))
        parts.append(_rows(sentences, start, split, end, sequence_length, k))
        here[going] = end
        going, turn = going[end < last[going]], turn + 1
    return np.concatenate(parts) if parts else np.empty(0, ROW)


def _split(sentences: np.ndarray, start: np.ndarray, end: np.ndarray, target: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Where the second segment begins, in sentences; ``end`` where there is none."""
    half = (target - 3) // 2
    below = np.searchsorted(sentences, sentences[start] + half) - 1  # the last boundary that is short of half
    split = np.clip(below, start + 1, end)
    open_still = (split < end) & (sentences[split] - sentences[start] < half)
    return split + (open_still & (uniform(k, _OVER) < 0.5))


def _rows(
    sentences: np.ndarray, start: np.ndarray, split: np.ndarray, end: np.ndarray, sequence_length: int, k: np.ndarray
) -> np.ndarray:
    rows = np.zeros(len(start), ROW)
    a = np.minimum(sentences[split] - sentences[start], sequence_length - 2)
    b = np.clip(sequence_length - a - 3, 0, sentences[end] - sentences[split])
    rows["a_start"], rows["a_length"] = sentences[start], a
    rows["b_start"], rows["b_length"] = sentences[split], b
    rows["length"], rows["key"] = a + b + 2 + (b > 0), k
    return rows


@dataclass(frozen=True)
class Slots:
    """What the generator sees and predicts."""

    input_ids: np.ndarray
    """(T,) with [MASK]."""
    positions: np.ndarray
    """(M,) rows of the flat batch; with replacement a row can come more than once."""
    labels: np.ndarray
    """(M,) the original ids there."""
    uniforms: np.ndarray
    """(M,) in [0, 1): the luck with which the generator's distribution there is sampled; one number to a row."""


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
    number_of_examples = len(lengths)
    examples, offsets = np.repeat(np.arange(number_of_examples), lengths), ranges(lengths)
    rows = np.flatnonzero(candidates)
    number = np.bincount(examples[rows], minlength=number_of_examples)
    wanted = num_predictions(lengths, rate, maximum)
    if replacement:
        wanted = np.where(number > 0, wanted, 0)
        owner, turn = np.repeat(np.arange(number_of_examples), wanted), ranges(wanted)
        first = np.cumsum(number) - number
        positions = rows[first[owner] + integers(number[owner], keys[owner], _PLACE, turn)]
    else:
        order = np.lexsort((uniform(keys[examples[rows]], _ORDER, offsets[rows]), examples[rows]))
        positions = np.sort(rows[order[ranges(number) < np.repeat(wanted, number)]])
        owner, turn = examples[positions], offsets[positions]
    corrupted = input_ids.astype(np.int64)
    corrupted[positions[uniform(keys[owner], _HIDE, turn) < _HIDDEN_SHARE]] = mask_id
    return Slots(
        corrupted,
        positions,
        input_ids[positions].astype(np.int64),
        uniform(keys[owner], _SAMPLE, offsets[positions]),
    )


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
    calls drawing without the better way."""
    single_probability: Probability = 0.1
    """Share of examples of one segment, beside those too short for two."""
    short_probability: Probability = 0.05
    """Share of examples with a random shorter target length."""

    def most(self, sequence_length: int) -> int:
        """Predictions in an example, at most, where sequences have this length."""
        return max(1, int((self.rate + 0.005) * sequence_length))

    def predicted(self, sequence_length: int) -> str:
        """The rate's, cut as the original cuts it."""
        predicted = num_predictions(sequence_length, self.rate, self.most(sequence_length))
        return f"{int(predicted)} of {sequence_length} tokens"

    @classmethod
    def decided_by(cls, weights: Weights) -> dict[str, Any]:
        """The width of the embeddings and, where a generator lies beside the discriminator, of that."""
        config, generator = weights.config, weights.companion("generator")
        # As many digits as the fractions are given with; the width is rounded.
        fraction = (
            {} if generator is None else {"generator_fraction": round(generator.hidden_size / config.hidden_size, 5)}
        )
        return {"embedding_size": config.embedding_size, **fraction}


def source(
    config: Config, tokens: Tokens, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, seed: int
) -> DocumentSource:
    """Segments of consecutive text, masked for the generator."""
    mask_id = cast(int, tokenizer.mask_token_id)

    def finish(examples: FlatExamples) -> PackedBatch:
        slots = mask_slots(
            examples.input_ids,
            examples.lengths,
            examples.keys,
            ~examples.special & (examples.input_ids != mask_id),
            rate=config.rate,
            maximum=config.most(sequence_length),
            mask_id=mask_id,
            replacement=config.replacement == "with",
        )
        return pack(
            slots.input_ids,
            examples.token_type_ids,
            examples.lengths,
            targets={"masked_positions": slots.positions, "masked_ids": slots.labels, "uniforms": slots.uniforms},
            counts={"masked": len(slots.positions), "tokens": len(slots.input_ids)},
        )

    return DocumentSource(
        tokens,
        tokenizer,
        seed=seed,
        draw=lambda documents, epoch: segment_pairs(
            tokens,
            documents,
            sequence_length=sequence_length,
            single_probability=config.single_probability,
            short_probability=config.short_probability,
            seed=seed,
            epoch=epoch,
        ),
        finish=finish,
    )


def build(config: Config, model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> Electra:
    """The objective with freshly initialised networks (torch's global generator)."""
    return Electra(config, model, tokenizer)


def generator_sizes(config: Config, model: ModelSection) -> ModelSection:
    """All layers of the discriminator at a fraction of its width, heads of 64 (``get_generator_config``).

    ``ConfigError`` where that width is not a multiple of the heads.
    """
    width = max(1, round(model.hidden_size * config.generator_fraction))
    heads = max(1, width // 64)
    if width % heads:
        raise ConfigError(
            f"objective.generator_fraction: {config.generator_fraction} of model.hidden_size {model.hidden_size} is "
            f"{width}, which its {heads} heads (one to 64) do not divide; a multiple of 64, or less than 128, works"
        )
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return model.model_copy(update=sizes)


def electra_config(sizes: ModelSection, embedding_size: int, tokenizer: PreTrainedTokenizerBase) -> ElectraConfig:
    """The transformers configuration of one of the networks, with the packed attention."""
    settings: dict[str, Any] = {**sizes.sizes(), "attn_implementation": NAME}
    return ElectraConfig(
        vocab_size=vocabulary_size(tokenizer),
        embedding_size=embedding_size,
        type_vocab_size=2,
        pad_token_id=cast(int, tokenizer.pad_token_id),
        **settings,
    )


class Electra(Objective):
    """A stock ``ElectraForMaskedLM`` and a stock ``ElectraForPreTraining`` with one embeddings module."""

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        embedding_size = config.embedding_size or sizes.hidden_size
        self.discriminator_weight = config.discriminator_weight
        self.discriminator = ElectraForPreTraining(electra_config(sizes, embedding_size, tokenizer))
        smaller = generator_sizes(config, sizes)
        self.generator = ElectraForMaskedLM(electra_config(smaller, embedding_size, tokenizer))
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.tie_weights()
        assert self.generator.generator_lm_head.weight is self.discriminator.get_input_embeddings().weight
        initialize(self, sizes.initializer_range)
        # These the original leaves to TensorFlow's default.
        glorot = [net.electra.embeddings_project for net in self.networks if hasattr(net.electra, "embeddings_project")]
        for layer in [*glorot, self.discriminator.discriminator_predictions.dense_prediction]:
            nn.init.xavier_uniform_(layer.weight)
        prepare_dropout(self)

    @property
    def networks(self) -> list[Any]:
        """Generator and discriminator."""
        return [self.generator, self.discriminator]

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
        return {
            "generator": Term(generated, "masked"),
            "generator_accuracy": Term(torch.stack(rights).sum(), "masked", weight=0.0),
            "sampled_accuracy": Term((sampled == originals).sum(), "masked", weight=0.0),
            "discriminator": Term(detected, "tokens", weight=self.discriminator_weight),
            **detection_terms(logits, replaced, "tokens"),
        }

    def _guess(self, hidden: Tensor, originals: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generator's loss, how often its best guess is right, and its samples, of some masked rows."""
        words = self.generator.generator_lm_head(self.generator.generator_predictions(hidden)).float()
        right = (words.detach().argmax(-1) == originals).sum()
        return F.cross_entropy(words, originals, reduction="sum"), right, sample(words.detach(), uniforms)

    def exported(self) -> ElectraForPreTraining:
        """The discriminator, which is what is fine-tuned."""
        return self.discriminator

    def auxiliary_models(self) -> dict[str, Any]:
        """The generator, which alone can fill masks."""
        return {"generator": self.generator}

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: both encoders with their projections, both heads."""
        config, width = self.generator.config, self.discriminator.config.hidden_size
        words = head_flops(config.hidden_size, config.vocab_size, batch.counts["masked"], config.embedding_size)
        detection = 2.0 * batch.input.num_tokens * (width**2 + width)
        return 3 * (sum(encoder_flops(net.config, batch.input) for net in self.networks) + words + detection)

"""ELECTRA: a small masked language model replaces tokens, the model detects which (Clark et al. 2020).

The generator predicts the masked tokens; a sample of each prediction stands in its place in the discriminator's input.
Loss: mean cross-entropy of the masked tokens plus ``discriminator_weight`` times the mean binary cross-entropy over all
tokens, special ones included (``run_pretraining.py``). A token is replaced if the sample differs from the original; a
right guess is an original. Nothing flows back through the samples. The networks share their whole embeddings module:
words, positions, segments and LayerNorm.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, PreTrainedTokenizerBase

from engine.attention import NAME
from engine.batch import PackedBatch, pack
from engine.chunks import LOGITS, in_chunks
from engine.config import ConfigError
from engine.dropout import prepare_dropout
from engine.flops import encoder_flops, head_flops
from engine.load import vocabulary_size
from engine.objective import Objective, Term
from engine.ranges import Probability, Share, Weight, Width
from pretrain.detection import detection_terms
from pretrain.electra_examples import mask_slots, segment_pairs
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.masking import num_predictions
from pretrain.model import ModelSection, initialize
from pretrain.pairs import Tokens
from pretrain.sampling import sample
from pretrain.start import ObjectiveSection
from pretrain.weights import Weights


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
        hidden = self.generator.electra(**batch.model_inputs()).last_hidden_state[0]
        generated, rights, samples = in_chunks(
            self._guess,
            *(hidden[positions], originals, batch.targets["uniforms"]),
            parameters=self.generator.parameters(),
            width=self.generator.config.vocab_size,
            most=LOGITS,
        )
        sampled = torch.cat(samples)
        fake, replaced = batch.input_ids.clone(), torch.zeros_like(batch.input_ids, dtype=torch.bool)
        fake[positions], replaced[positions] = sampled, sampled != originals
        inputs = {**batch.model_inputs(), "input_ids": fake[None]}
        hidden = self.discriminator.electra(**inputs).last_hidden_state[0]
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

    def companions(self) -> dict[str, Any]:
        """The generator, which alone can fill masks."""
        return {"generator": self.generator}

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: both encoders with their projections, both heads."""
        config, width = self.generator.config, self.discriminator.config.hidden_size
        words = head_flops(config.hidden_size, config.vocab_size, batch.counts["masked"], config.embedding_size)
        detection = 2.0 * batch.num_tokens * (width**2 + width)
        return 3 * (sum(encoder_flops(net.config, batch) for net in self.networks) + words + detection)

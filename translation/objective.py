"""Training of an encoder-decoder: the label-smoothed cross-entropy of every target token, given those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bertillery.config.section import ConfigError, Section
from bertillery.config.types import Count, Share
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective, Term
from bertillery.models.layers.chunks import LOGITS, in_chunks
from bertillery.models.layers.cross_entropy import cross_entropies
from bertillery.models.seq2seq import encoder_decoder
from translation.search import DecodeSection, search
from translation.teacher_forcing import TeacherForcingSection


class ObjectiveSection(Section):
    """The loss."""

    label_smoothing: Share | Literal[0] = 0.1
    """Probability mass that is taken from the reference token (Vaswani et al. 2017, section 5.4)."""
    smoothing: Literal["all", "others"] = "all"
    """Where it goes: to all tokens alike, as in torch, or to the V - 1 others, as in Tensor2Tensor and fairseq."""
    teacher_forcing: TeacherForcingSection = TeacherForcingSection()
    truncate: Count | None = None
    """The state of a recurrent decoder goes on after so many target tokens, but no gradient flows back beyond:
    truncated back-propagation through time, for long targets. null: through the whole target."""

    def check_transformer(self) -> None:
        """``ConfigError`` where a Transformer would be fed its own tokens, or its gradient cut."""
        if self.truncate is not None:
            raise ConfigError(
                f"objective.truncate: given {self.truncate}; a Transformer has no state from which gradients flow "
                "through time; leave the key out, or take a model with architecture: rnn"
            )
        if not self.teacher_forcing.always:
            raise ConfigError(
                "objective.teacher_forcing: a Transformer computes all target positions at once and is always fed the "
                "reference; leave the keys out, or take a model with architecture: rnn"
            )


class TranslationObjective(Objective):
    """An encoder-decoder whose decoder is fed the reference."""

    entries: ClassVar[tuple[str, ...]] = ("predict",)

    def __init__(self, model: PreTrainedModel, section: ObjectiveSection, decoding: DecodeSection) -> None:
        super().__init__()
        self.model: Any = model
        self.section = section
        self.decoding = decoding
        """How :meth:`predict` searches."""

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``translation``, the smoothed loss; ``perplexity``, of the reference without smoothing; and
        ``accuracy``, of the next token."""
        model = encoder_decoder(self.model)
        assert batch.cross_layout is not None
        states = model.decoder_states(
            batch.streams["source"],
            batch.streams["target"],
            batch.cross_layout,
            batch.targets.get("forced"),
            self.section.truncate,
        )
        epsilon, others = self.section.label_smoothing, self.section.smoothing == "others"

        def sums(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            found = cross_entropies(model.vocabulary_logits(states), targets, epsilon, others=others)
            return found.losses.sum(), found.plain.sum(), found.right.sum()

        targets, (size, _) = batch.targets["next_ids"], self._output.shape
        loss, plain, right = in_chunks(
            sums, states, targets, parameters=self.model.parameters(), width=size, most=LOGITS
        )
        return {
            "translation": Term(loss, "target_tokens", title="smoothed loss (nats per token)"),
            "perplexity": Term(
                torch.stack(plain).sum(), "target_tokens", 0.0, value=_perplexity, title="perplexity of the reference"
            ),
            "accuracy": Term(
                torch.stack(right).sum(), "target_tokens", 0.0, title="next token accuracy", direction="higher"
            ),
        }

    def predict(
        self, batch: PackedBatch, autocast: Callable[[], Any], *, labelled: bool
    ) -> tuple[dict[str, Term], Tensor]:
        """The terms, where there are references, and the best translations: ids (B, longest) as float32, -1 behind the
        last one."""
        with autocast():
            terms = self(batch) if labelled else {}
            config = self.model.config
            found = search(
                encoder_decoder(self.model),
                batch.streams["source"],
                self.decoding,
                start=config.decoder_start_token_id,
                end=config.eos_token_id,
            )
        ids = torch.full((len(found), self.decoding.max_length), -1.0)
        for row, (best,) in zip(ids, found, strict=True):
            row[: len(best.ids)] = torch.tensor(best.ids, dtype=torch.float32)
        return terms, ids

    @property
    def _output(self) -> Tensor:
        """Weights (V, E) of the vocabulary projection."""
        return self.model.get_output_embeddings().weight

    def exported(self) -> PreTrainedModel:
        """The model."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: every matrix on each token that it reads, the vocabulary projection, and the
        attention of a Transformer."""
        source, target = batch.streams["source"], batch.streams["target"]
        total = 2.0 * target.num_tokens * self._output.numel()
        for name, parameter in self.model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "shared" not in name:
                of_source = "encoder." in name or "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
                total += 2.0 * parameter.numel() * (source.num_tokens if of_source else target.num_tokens)
        config: Any = self.model.config
        if hasattr(config, "encoder_layers"):
            across = batch.counts["crossed_pairs_of_tokens"]
            pairs = config.encoder_layers * source.squared_lengths
            pairs += config.decoder_layers * (target.squared_lengths / 2 + across)
            total += 4.0 * pairs * config.d_model
        return 3 * total


def _perplexity(sums: list[float], count: float) -> float:
    return math.exp(min(sums[0] / max(1.0, count), 100.0))

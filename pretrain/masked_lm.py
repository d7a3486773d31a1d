"""Predicting masked tokens: the terms, their baselines, and the base of the objectives that train one model on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Objective, Term
from bertillery.models.flops import encoder_flops, head_flops
from bertillery.models.layers.chunks import word_sums
from pretrain.model import ModelSection, initialize
from pretrain.pairs import PairLabel


class MaskedObjective(Objective):
    """Masked language modelling, and a pair label where there is one, with one stock model."""

    label: ClassVar[PairLabel | None] = None

    def __init__(self, model: PreTrainedModel, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        """Initialises the model."""
        super().__init__()
        self.model: Any = model
        self.mask_id = cast(int, tokenizer.mask_token_id)
        initialize(model, sizes.initializer_range)

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Those of the masked tokens (:func:`without_context`) and of the label."""
        loss, accuracy, _ = without_context(batches, unigrams, self.mask_id)
        found = {"mlm": loss, "mlm_accuracy": accuracy}
        return found | self.label.baselines(batches) if self.label else found

    def exported(self) -> PreTrainedModel:
        """The model with all its heads."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: encoder, MLM head and, with a label, pooler and pair head."""
        config, width = self.model.config, self.model.config.hidden_size
        embedding_size = getattr(config, "embedding_size", width)
        total = encoder_flops(config, batch.input)
        total += head_flops(width, config.vocab_size, batch.counts["masked"], embedding_size)
        if self.label:
            total += 2.0 * batch.input.num_sequences * (width**2 + 2 * width)
        return 3 * total


def masked_lm_terms(head: nn.Module, hidden: Tensor, batch: PackedBatch) -> dict[str, Term]:
    """Terms ``mlm`` and ``mlm_accuracy`` of hidden states (T, H) under a stock head whose last layer is ``decoder``.

    The head sees the masked rows only.
    """
    rows, vocab_size = hidden[batch.targets["masked_positions"]], cast(nn.Linear, head.decoder).out_features
    originals = batch.targets["masked_ids"]
    loss, right = word_sums(head, rows, originals, parameters=head.parameters(), vocab_size=vocab_size)
    baseline = "unigrams, and copying"
    return {
        "mlm": Term(loss, "masked", title="MLM loss (nats)", baseline=baseline),
        "mlm_accuracy": Term(right, "masked", 0.0, title="MLM accuracy", direction="higher", baseline="the same"),
    }


def without_context(batches: Sequence[PackedBatch], unigrams: np.ndarray, mask_id: int) -> tuple[float, float, float]:
    """Cross-entropy, accuracy and share of correct samples of a model that sees the masked positions alone.

    It predicts [MASK] from the ``unigrams`` (V,), counts that are smoothed by one. A token that is to be predicted but
    shows another token was kept or replaced: the model believes it as often as such tokens are correct. That is learned
    without any context and is not negligible: with a tenth kept and a tenth replaced it is worth over half a nat.
    """
    labels = np.concatenate([batch.targets["masked_ids"].numpy() for batch in batches])
    seen = np.concatenate([batch.input.ids[batch.targets["masked_positions"]].numpy() for batch in batches])
    share = (unigrams + 1) / (unigrams + 1).sum()
    visible, kept = seen != mask_id, seen == labels
    copied = kept[visible].mean() if visible.any() else 0.0
    chance = share[labels] * np.where(visible, 1 - copied, 1.0) + np.where(visible & kept, copied, 0.0)
    guess = np.where(visible & (copied > share.max()), seen, int(np.argmax(unigrams)))
    return float(-np.log(chance).mean()), float((guess == labels).mean()), float(chance.mean())

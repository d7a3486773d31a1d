"""Text of a prepared corpus, as the methods read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bertillery.engine.batch import PackedBatch, pack
from pretrain.examples import FlatExamples


@dataclass(frozen=True)
class Part:
    """Training or held-out text."""

    tokens: Any
    """:class:`bertillery.data.prepared.TokenArrays`, or the like."""
    unigrams: np.ndarray
    """(V,) int64: how often each token occurs in the training text."""


def unmasked(examples: FlatExamples) -> PackedBatch:
    """The packed batch of examples without masks."""
    return pack(examples.input_ids, examples.token_type_ids, examples.lengths, targets={}, counts={})

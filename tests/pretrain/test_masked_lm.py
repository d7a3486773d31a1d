"""The baseline of masked tokens."""

from __future__ import annotations

import numpy as np
import pytest

from bertillery.engine.batch import PackedBatch, pack
from pretrain.masked_lm import without_context


def predictions(labels: np.ndarray, seen: np.ndarray) -> list[PackedBatch]:
    """Two batches in which these tokens are predicted and those stand in their places."""
    targets = {"masked_positions": np.arange(len(labels) // 2)}
    return [
        pack(shown, None, np.array([len(shown)]), targets={**targets, "masked_ids": originals}, counts={})
        for originals, shown in zip(np.split(labels, 2), np.split(seen, 2), strict=True)
    ]


def test_what_is_known_without_context() -> None:
    """Against the expectation written out, for BERT's 80/10/10 and ELECTRA's 85/15; and no other belief does better."""
    rng = np.random.default_rng(0)
    unigrams = np.append(0, 1_000_000 // np.arange(1, 400))  # 0 is [MASK]
    share = (unigrams + 1) / (unigrams + 1).sum()
    labels = rng.choice(400, 400_000, p=share)
    draw = rng.random(len(labels))
    entropy = -(share * np.log(share)).sum()

    seen = np.where(draw < 0.8, 0, np.where(draw < 0.9, labels, rng.integers(1, 400, len(labels))))
    loss, accuracy, sampled = without_context(predictions(labels, seen), unigrams, 0)
    visible = seen != 0
    copied = (seen == labels)[visible].mean()
    right = share[labels] * (1 - copied) + copied * (seen == labels)
    wanted = 0.8 * entropy - 0.2 * np.log(right[visible]).mean()
    assert loss == pytest.approx(wanted, abs=1e-2)
    assert accuracy == pytest.approx(0.8 * share.max() + 0.2 * max(copied, share.max()), abs=1e-2)
    assert sampled == pytest.approx(0.8 * (share**2).sum() + 0.2 * right[visible].mean(), abs=1e-2)
    for other in (copied - 0.05, copied + 0.05):
        worse = share[labels] * (1 - other) + other * (seen == labels)
        assert -np.log(worse[visible]).mean() > -np.log(right[visible]).mean()

    seen = np.where(draw < 0.85, 0, labels)
    loss, accuracy, sampled = without_context(predictions(labels, seen), unigrams, 0)
    assert loss == pytest.approx(0.85 * entropy, abs=1e-2)
    assert accuracy == pytest.approx(0.85 * share.max() + 0.15, abs=1e-2)
    assert sampled == pytest.approx(0.85 * (share**2).sum() + 0.15, abs=1e-2)

    loss, accuracy, _ = without_context(predictions(labels, np.zeros_like(labels)), unigrams, 0)
    assert (loss, accuracy) == (pytest.approx(entropy, abs=1e-2), pytest.approx(share.max(), abs=1e-2))

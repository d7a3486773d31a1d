from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from bertillery.config.section import ConfigError, validate
from bertillery.models.load import load
from finetune.data.splits import Split
from finetune.task import TaskSection, task_type_of
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import sentences, write_encoder

COLOURS = ["red", "green", "blue"]
CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "multilabel": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
}


def weighed(kind: str, weights: Any, labels: Any) -> Any:
    names = ["O", "B-a", "I-a"] if kind == "tokens" else COLOURS
    values = {"name": "t", "type": kind, "labels": names, "metrics": "accuracy", "files": {"train": "-"}}
    found = task_type_of(validate(TaskSection, {**values, "class_weights": weights}))
    found.weigh(labels)
    return found


def test_balanced_weights_are_the_inverse_of_the_frequency() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    balanced = weighed("classification", "balanced", labels).class_weights
    np.testing.assert_allclose(balanced, 10 / (3 * np.array([6, 3, 1])), rtol=1e-6)  # as scikit-learn has them
    tagged = weighed("tokens", "balanced", np.array([labels[:4], labels[4:]], dtype=object)).class_weights
    np.testing.assert_allclose(tagged, balanced)
    missing = weighed("classification", "balanced", labels[:9]).class_weights
    np.testing.assert_allclose(missing, [0.75, 1.5, 1])


def test_given_weights_keep_their_ratio_and_a_mean_of_one() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    given = weighed("classification", [1, 2, 8], labels).class_weights
    np.testing.assert_allclose(given / given[0], [1, 2, 8], rtol=1e-6)
    assert given[labels].mean() == pytest.approx(1)
    assert weighed("classification", None, labels).class_weights is None


def test_several_labels_weigh_having_one() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(weighed("multilabel", "balanced", labels).class_weights, [1, 3, 1])
    np.testing.assert_allclose(weighed("multilabel", [2, 3, 4], labels).class_weights, [2, 3, 4])


def test_weights_are_one_for_each_label() -> None:
    with pytest.raises(ConfigError, match="class_weights gives 2 weights, and there are 3 labels"):
        weighed("classification", [1, 2], np.array([0]))
    with pytest.raises(ConfigError, match=r"class_weights.*0"):
        weighed("classification", [1, 0, 1], np.array([0]))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_loss_is_torchs_own_with_these_weights(kind: str, tmp_path: Path) -> None:
    """And no weight of the classes is in a checkpoint, or changes what is predicted."""
    encoder, rng = write_encoder(tmp_path / "encoder"), np.random.default_rng(0)
    texts: Any = sentences(8, 0)
    labels = {
        "classification": rng.integers(0, 3, 8),
        "multilabel": rng.integers(0, 2, (8, 3)).astype(np.float32),
        "tokens": np.array([rng.integers(0, 3, len(text.split())) for text in texts], dtype=object),
    }[kind]
    found, plain = weighed(kind, [1, 2, 8], labels), weighed(kind, None, labels)
    texts = [text.split() for text in texts] if kind == "tokens" else texts
    split = Split("train", (texts,), labels, np.arange(8))
    source = found.examples(split, tiny_tokenizer(64), max_length=32, seed=0)
    batch = source.collate(source.examples(0, 0))
    torch.manual_seed(0)
    model, _ = load(CLASSES[kind], encoder, num_labels=3)
    with_weights, without = found.objective(model).eval(), plain.objective(model).eval()
    assert with_weights.state_dict().keys() == without.state_dict().keys()
    logits, weights = with_weights.logits(batch).detach(), torch.from_numpy(found.class_weights)
    given = batch.targets["labels"]
    if kind == "multilabel":
        wanted = F.binary_cross_entropy_with_logits(logits, given, pos_weight=weights) * len(given)
    else:
        wanted = F.cross_entropy(logits, given, weights) * weights[given].sum()
    loss = next(iter(with_weights.terms(logits, batch).values())).total
    torch.testing.assert_close(loss, wanted)
    assert next(iter(without.terms(logits, batch).values())).total != loss
    torch.testing.assert_close(with_weights.outputs(logits, batch), without.outputs(logits, batch))

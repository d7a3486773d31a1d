"""Teacher forcing: the schedules' values, and one coin for every target position."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bertillery.config.section import ConfigError, validate
from translation.examples import TranslationExamples
from translation.teacher_forcing import TeacherForcingSection
from translation.vocabulary import VocabularySection, train_vocabulary


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.999001), (1000, 0.997289), (5000, 0.870767), (round(1000 * math.log(1000)), 0.5), (10_000, 0.043428)],
)
def test_inverse_sigmoid(step: int, share: float) -> None:
    section = TeacherForcingSection(schedule="inverse_sigmoid", k=1000)
    assert section.share(step) == pytest.approx(share, abs=1e-4 if share == 0.5 else 5e-7)
    assert section.share(10**9) == pytest.approx(0, abs=1e-12)


def test_other_schedules() -> None:
    linear = TeacherForcingSection(schedule="linear", k=1.0, slope=0.01, minimum=0.3)
    assert [linear.share(step) for step in (0, 10, 70, 500)] == pytest.approx([1.0, 0.9, 0.3, 0.3])
    assert TeacherForcingSection(schedule="exponential", k=0.99).share(3) == pytest.approx(0.99**3)
    assert TeacherForcingSection(k=0.5).share(10**6) == 0.5
    assert TeacherForcingSection().always
    assert not linear.always


@pytest.mark.parametrize(
    "values", [{"k": 2.0}, {"schedule": "inverse_sigmoid", "k": 0.5}, {"schedule": "cosine"}, {"k": 0}]
)
def test_probabilities_that_are_none_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validate(TeacherForcingSection, values)


@pytest.fixture(scope="module")
def examples() -> TranslationExamples:
    texts = [f"{a}{b}{a} {b}{a}{b} jumps over the dog" for a in "abcdefgh" for b in "ijklmnop"]
    tokenizer = train_vocabulary(texts, VocabularySection(vocab_size=280))
    return TranslationExamples(texts, [text[::-1] for text in texts], tokenizer, max_length=64, seed=1)


def test_coins_are_functions_of_seed_epoch_example_and_position(examples: TranslationExamples) -> None:
    examples.teacher_forcing = TeacherForcingSection(k=0.7)
    rows = examples.sample_step(examples.examples(2, 0), 5)
    forced = examples.collate(rows).targets["forced"].numpy()
    starts = examples.collate(rows).streams["target"].offsets[:-1].numpy()
    assert forced[starts].all(), "there is nothing else to feed at the first position"
    others = np.delete(forced, starts)
    assert abs(others.mean() - 0.7) < 0.05
    half = examples.collate(rows[20:30]).targets["forced"].numpy()
    sizes = examples.target.lengths
    assert np.array_equal(half, forced[sizes[:20].sum() : sizes[:30].sum()])
    later = examples.collate(examples.sample_step(examples.examples(3, 0), 5)).targets["forced"].numpy()
    assert not np.array_equal(later, forced)


def test_without_a_schedule_and_in_evaluation_there_are_no_coins(examples: TranslationExamples) -> None:
    examples.teacher_forcing = TeacherForcingSection(k=0.7)
    assert "forced" not in examples.collate(examples.sample_step(examples.examples(0, 0), None)).targets
    examples.teacher_forcing = None
    assert "forced" not in examples.collate(examples.sample_step(examples.examples(0, 0), 5)).targets


def test_coins_that_all_fall_on_the_reference_leave_the_batch_as_without_a_schedule(
    examples: TranslationExamples,
) -> None:
    examples.teacher_forcing = TeacherForcingSection(k=1 - 1e-12)
    assert "forced" not in examples.collate(examples.sample_step(examples.examples(0, 0), 5)).targets

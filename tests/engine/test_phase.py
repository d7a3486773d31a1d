"""What a phase may say, and how many steps an epoch has under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertillery.config.section import ConfigError, describe, validate
from bertillery.config.types import Duration
from bertillery.engine.loader import Cursor, Stream
from bertillery.engine.schedule import EpochSize, Phase, Schedule, TrainSection, steps_per_epoch
from tests.engine.test_loader import Blocks


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, "256 x 128"),
        ({"batch_size": 4096, "batch_from": 128}, "128 to 4,096 x 128"),
        ({"batch_tokens": 16384, "sequence_length": 512}, "16,384 tokens x 512"),
        ({"batch_tokens": 16384, "batch_from": 1024, "batch_size": None}, "1,024 to 16,384 tokens x 128"),
    ],
)
def test_a_phase_is_shown_and_read_back(given: dict[str, Any], shown: str) -> None:
    section = validate(TrainSection, {"phases": [given]})
    assert str(section.phases[0]) == shown
    assert validate(TrainSection, section.model_dump(mode="json")) == section
    assert "train.phases.0.batch_tokens" in describe(TrainSection, "train.")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 8, "batch_tokens": 512}, "leave one out, or set it to null"),
        ({"batch_size": 8, "batch_from": 9}, "batch_from 9 is above batch_size 8"),
        ({"batch_tokens": 100}, "batch_tokens 100 is less than one example of sequence_length 128; give at least 128"),
        ({"batch_tokens": 4096, "batch_from": 32}, "batch_from 32 is less than one example of sequence_length 128"),
        ({"batch_size": 0}, "phases.1.batch_size"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(TrainSection, {"phases": [{}, given]})
    assert said in str(error.value)
    assert "phases.1" in str(error.value)


def test_every_process_gets_an_example() -> None:
    Phase(batch_size=8, batch_from=4).check_processes(4)
    Phase(batch_tokens=512).check_processes(4)
    with pytest.raises(ConfigError, match="a: batch_from 4 is less than one example for each of the 5 processes"):
        Phase(batch_size=8, batch_from=4).check_processes(5, "a: ")
    with pytest.raises(ConfigError, match=r"one example of sequence_length 128 for each of the 5 .* at least 640"):
        Phase(batch_tokens=512).check_processes(5)


def test_the_largest_step_in_examples() -> None:
    assert Phase(batch_size=30, batch_from=2).most_examples(100) == 30
    assert Phase(batch_tokens=1001, sequence_length=100).most_examples(100) == 11


def test_steps_per_epoch_are_those_that_go_through_it_once() -> None:
    """Two epochs, taken step by step, end where the estimate says: exactly but for what budgets leave unfilled."""
    source = Blocks([300, 0, 300])
    rows = np.concatenate([source.examples(0, block) for block in range(3)])
    epoch = EpochSize(len(rows), int(rows["length"].sum()))
    for phase in (
        Phase(batch_size=8, batch_from=2),
        Phase(batch_tokens=600, sequence_length=22),
        Phase(batch_tokens=600, batch_from=100, sequence_length=22),
    ):
        number = round(2 * steps_per_epoch([phase], [epoch]))
        stream, cursor = Stream(source, 1), Cursor()
        for step in range(number):
            _, cursor = stream.take(cursor, phase.batch(step, number), in_tokens=phase.in_tokens)
        assert cursor.epoch + (cursor.block * 150 + cursor.offset) / 600 == pytest.approx(2, rel=0.04)
        assert phase.in_tokens or abs(cursor.epoch * 600 + cursor.block * 150 + cursor.offset - 1200) <= 8


def test_steps_per_epoch_of_phases() -> None:
    """Half of the steps take a tenth of an epoch each, the others a fifth: 100 steps are 15 epochs."""
    phases = [Phase(batch_size=100), Phase(batch_tokens=1000, sequence_length=512)]
    assert steps_per_epoch(phases, [EpochSize(1000, 1e9), EpochSize(7, 5000)]) == pytest.approx(100 / 15)
    assert steps_per_epoch([Phase(batch_size=8)], [EpochSize(100, 0)]) == 100 / 8


def test_an_epoch_counts_for_whole_steps_if_asked() -> None:
    """Of 100 examples in batches of 8: 12.5 steps, 12 with the rest left out, 13 with it filled up."""
    for epoch_steps, total in (("exact", 37), ("floor", 36), ("ceil", 39)):
        section = validate(
            TrainSection,
            {
                "steps": "3 epochs",
                "evaluate_every": "1 epoch",
                "epoch_steps": epoch_steps,
                "phases": [{"batch_size": 8}],
            },
        )
        schedule = Schedule.of(section, lambda: steps_per_epoch([Phase(batch_size=8)], [EpochSize(100, 0)]))
        assert (schedule.total, schedule.evaluate) == (total, total // 3)


def test_as_many_whole_epochs_are_as_many_whole_steps() -> None:
    """Rounding down takes no step away where there is no remainder, whatever floats make of the quotients."""
    for batch_size in range(1, 200):
        for shares in ([1.0], [0.9, 0.1], [0.6, 0.3, 0.1]):
            phases = [Phase(share=share, batch_size=batch_size) for share in shares]
            steps = steps_per_epoch(phases, [EpochSize(batch_size * 49, 0)] * len(shares))
            assert Duration("3 epochs").to_steps(steps_per_epoch=steps) == 147

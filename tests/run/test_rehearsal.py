"""A dry run: what it estimates from the steps it timed, and that it leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertillery.engine.loader import Steps
from bertillery.engine.schedule import Phase
from bertillery.run.rehearsal import PhaseCost, Timed, cut, duration, remaining
from finetune.__main__ import main as finetune
from tests.finetune.tasks import write_encoder, write_task

PHASES = [
    Phase(share=0.6, batch_size=64, batch_from=16, sequence_length=128),
    Phase(share=0.3, batch_tokens=4096, sequence_length=128),
    Phase(share=0.1, batch_size=8, sequence_length=512),
]


@pytest.mark.parametrize("total", [1, 7, 1000])
@pytest.mark.parametrize("begun", [0, 3, 650, 999])
def test_the_remaining_phases_are_those_of_the_training(total: int, begun: int) -> None:
    steps = Steps([None] * 3, PHASES, total_steps=total, seed=1, micro_batch_tokens=1)  # type: ignore[list-item]
    expected = [steps.phase_at(step) for step in range(begun, total)]
    found = [*remaining(PHASES, total, begun)]
    assert [phase for phase, _, number in found for _ in range(number)] == expected
    for phase, first, _ in found:
        assert steps.phase_at(first) == phase
        assert first == begun or steps.phase_at(first - 1) != phase


def test_a_cost_grows_with_steps_and_batch() -> None:
    """A ramp from 16 to 64 examples is as 40; a batch in tokens is scaled by tokens."""
    timed = Timed(steps=2, seconds=3.0, examples=20, tokens=600, flops=6e12)
    ramp = PhaseCost.of(PHASES[0], 100, timed)
    assert ramp == PhaseCost(100, pytest.approx(600), pytest.approx(120_000), pytest.approx(1.2e15))
    assert PhaseCost.of(PHASES[1], 100, timed).seconds == pytest.approx(100 * 4096 / 600 * 3)


def test_a_timed_batch_is_one_micro_batch_with_an_example_for_each_process() -> None:
    assert cut(PHASES[0], 2048, 2).batch(0, 9) == 16
    assert cut(PHASES[0], 128, 4).batch(0, 9) == 4
    assert cut(PHASES[1], 1024, 2).batch(5, 9) == 1024
    assert cut(PHASES[2], 10**9, 1).batch(5, 9) == 8


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "0.012 s"),
        (5.26, "5.3 s"),
        (61, "1 min"),
        (3599, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (1e6, "11 days 14 h"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_dry_run_says_what_a_run_takes_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a run that is begun, which is then continued as if nothing had been."""
    task, start = write_task(tmp_path / "task"), write_encoder(tmp_path / "encoder")
    given = [str(task), f"model.from={start}", "recipe=none", f"run.dir={tmp_path}/runs", "run.device=cpu"]
    given += [f"run.data_dir={tmp_path}/data", "run.name=a"]
    before = set(tmp_path.rglob("*"))
    assert finetune([*given, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before
    assert "dry run: nothing of the run was written" in said
    assert "steps       12\n            12 of 8 x 24: " in said
    for line in ("tokens      ", "time        ", " in 2 evaluations", "memory      ", "disk        "):
        assert line in said
    assert finetune(given) == 0
    capsys.readouterr()
    assert finetune([*given, "--dry-run"]) == 0
    assert "the run is finished" in capsys.readouterr().out

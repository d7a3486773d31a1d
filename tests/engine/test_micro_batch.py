"""The largest micro-batch: found on a device that refuses, estimated on one that would kill, and without a trace."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bertillery.config.section import InputError, validate
from bertillery.engine import micro_batch
from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Phase
from bertillery.engine.micro_batch import by_estimate, by_trying, largest_micro_batch
from bertillery.engine.objective import Objective, Term
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.engine.schedule import Schedule, TrainSection
from bertillery.models.layers.dropout import Dropout
from bertillery.run.device import RunSection, start_accelerator
from bertillery.run.directory import RunDirectory
from bertillery.run.trainer import Trainer
from bertillery.system.environment import free_in_groups, free_memory


class Lengths:
    """Examples of the given lengths; the first block is empty."""

    num_blocks = 2

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def examples(self, epoch: int, block: int) -> np.ndarray:
        rows = np.zeros(len(self.lengths) * block, np.dtype([("length", np.int64), ("key", np.uint64)]))
        rows["length"] = self.lengths * block
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        ids = np.zeros(rows["length"].sum(), np.int64)
        return pack(ids, ids, rows["length"], targets={}, counts={"examples": len(rows)})


class OneBlock(Lengths):
    """All of them in the first block."""

    num_blocks = 1

    def examples(self, epoch: int, block: int) -> np.ndarray:
        return super().examples(epoch, 1)


class Deciding(Lengths):
    """Examples of a step sample_step their number of targets together; until then there is none."""

    def examples(self, epoch: int, block: int) -> np.ndarray:
        rows = np.zeros(len(self.lengths) * block, np.dtype([("length", np.int64), ("targets", np.int64)]))
        rows["length"] = self.lengths * block
        return rows

    def sample_step(self, rows: np.ndarray, step: int | None) -> np.ndarray:
        rows = rows.copy()
        rows["targets"] = 3
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        batch = super().collate(rows)
        return replace(batch, counts={"examples": int(rows["targets"].sum())})


class Limited(Objective):
    """Out of memory above so many tokens; keeps 4 bytes a token for its backward pass."""

    def __init__(self, limit: float = np.inf) -> None:
        super().__init__()
        self.weight, self.dropout, self.limit = nn.Parameter(torch.ones(1)), Dropout(0.5), limit
        self.seen: list[int] = []
        self.counted: list[int] = []

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        assert self.training
        self.seen.append(batch.input.num_tokens)
        self.counted.append(batch.counts["examples"])
        if batch.input.num_tokens > self.limit:
            raise torch.OutOfMemoryError("no memory left")
        values = self.dropout(self.weight * torch.ones(batch.input.num_tokens))
        return {"sum": Term((values * values).sum(), "examples")}

    def exported(self) -> Any:
        raise NotImplementedError

    def flops(self, batch: PackedBatch) -> float:
        return 1.0


def largest(objective: Limited, *sources: Lengths, batch_sizes: tuple[int, ...] = (1000,)) -> int:
    accelerator = start_accelerator(RunSection(threads=1, precision="fp32", device="cpu"))
    optimizer = torch.optim.AdamW(objective.parameters())
    phases = [Phase(batch_size=size) for size in batch_sizes]
    return largest_micro_batch(
        accelerator, accelerator.prepare_model(objective), optimizer, sources=sources, phases=phases
    )


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is treated as a GPU: it is asked for memory, and refuses."""

    def ask(needs: Callable[[int], int | None], *, first: int, most: int, room: float) -> tuple[int, str]:
        return by_trying(needs, first=first, most=most)

    monkeypatch.setattr(micro_batch, "by_estimate", ask)


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("limit", [1100, 5000, 40_000])
def test_the_size_is_doubled_until_memory_runs_out(limit: int, caplog: pytest.LogCaptureFixture) -> None:
    objective = Limited(limit)
    with caplog.at_level(logging.INFO):
        chosen = largest(objective, Lengths(7, 100, 64))
    assert objective.seen[:-1] == [1000 * 2**i for i in range(len(objective.seen) - 1)]
    assert objective.seen[-1] > limit >= objective.seen[-2]
    assert 0.7 * objective.seen[-2] <= chosen <= 0.75 * objective.seen[-2]
    assert f"micro-batch of {chosen:,} tokens" in caplog.text
    assert f"{objective.seen[-1] // 100} do not" in caplog.text


@pytest.mark.usefixtures("refusing")
def test_nothing_is_tried_beyond_a_whole_step() -> None:
    objective = Limited()
    assert largest(objective, Lengths(100), batch_sizes=(33, 12)) == 3300
    assert objective.seen == [1000, 2000, 3300]


@pytest.mark.usefixtures("refusing")
def test_the_longest_examples_of_all_phases_are_tried() -> None:
    objective = Limited()
    assert largest(objective, Lengths(9, 128), Lengths(512, 40), batch_sizes=(64, 8)) == 64 * 512
    assert {tokens % 512 for tokens in objective.seen} == {0}


def test_what_is_tried_has_targets_as_a_step_has() -> None:
    objective = Limited()
    largest(objective, Deciding(100), batch_sizes=(33,))
    assert objective.counted == [3 * tokens // 100 for tokens in objective.seen]


@pytest.mark.parametrize(("limit", "first", "kept"), [(1, 1, 1), (2, 1, 1), (8, 8, 6), (0, 1, 0), (7, 8, 0)])
def test_a_quarter_is_kept_free_but_one_example_is_taken(limit: int, first: int, kept: int) -> None:
    assert by_trying(lambda examples: 1 if examples <= limit else None, first=first, most=100)[0] == kept


@pytest.mark.parametrize("limit", [0, 999])
def test_where_nothing_fits_the_message_says_what_to_do(limit: int) -> None:
    with pytest.raises(InputError, match=r"not even 10 examples of 100 tokens fit .* a smaller model or a shorter"):
        largest(Limited(limit), Lengths(100))


def test_a_cpu_is_asked_for_two_small_sizes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it is estimated to need stays within its share of three quarters of what is free."""
    objective = Limited()
    assert largest(objective, Lengths(100), batch_sizes=(10**6,)) > 2000
    assert objective.seen == [1000, 2000]
    # Kept are the ones, the dropped out values (4 bytes a token each) and the mask (2); a process takes twice that.
    for processes in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        monkeypatch.setattr(micro_batch, "free_memory", lambda: 20 * 400_000)
        chosen = largest(Limited(), Lengths(100), batch_sizes=(10**6,))
        assert chosen == pytest.approx(300_000 / processes, rel=0.01)


def test_a_cpu_keeps_room_for_gradients_and_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "free_memory", lambda: 20 * 400_000)
    objective = Limited()
    objective.weights = nn.Parameter(torch.zeros(250_000))  # 1 MB, two moments that AdamW makes later, and a gradient
    chosen = largest(objective, Lengths(100), batch_sizes=(10**6,))
    assert chosen == pytest.approx(300_000 - 3e6 / 20, rel=0.01)


def test_an_estimate_follows_the_line() -> None:
    """7 bytes whatever the batch holds, 3 for an example."""

    def needs(examples: int) -> int:
        return 7 + 3 * examples

    for room in (31, 300, 1000):
        examples, _ = by_estimate(needs, first=4, most=10**6, room=room)
        assert needs(examples) <= room < needs(examples + 1)
    assert by_estimate(needs, first=4, most=5, room=1000)[0] == 5
    assert by_estimate(needs, first=4, most=3, room=1000)[0] == 3
    assert by_estimate(needs, first=4, most=10**6, room=-5)[0] == 4, "what has been run is known to fit"


def test_another_process_with_less_room_decides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accelerator = start_accelerator(RunSection(threads=1, precision="fp32", device="cpu"))
    monkeypatch.setattr(accelerator, "gather", lambda mine: torch.cat([mine, torch.tensor([1200])]))
    objective = Limited()
    optimizer = torch.optim.SGD(objective.parameters())
    with caplog.at_level(logging.INFO):
        chosen = largest_micro_batch(
            accelerator, objective, optimizer, sources=[Lengths(100)], phases=[Phase(batch_size=50)]
        )
    assert chosen == 1200
    assert "another process has less room" in caplog.text


def test_probing_leaves_no_trace() -> None:
    objective = Limited()
    objective.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    largest(objective, Lengths(100))
    assert torch.equal(torch.rand(3), expected)
    assert not objective.training
    assert objective.weight.grad is None
    assert objective.weight.item() == 1


def test_the_free_memory_of_a_group(tmp_path: Path) -> None:
    def group(folder: Path, **files: str) -> None:
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(text + "\n")

    group(tmp_path / "job", memory_max="1000", memory_current="700", memory_stat="anon 500\ninactive_file 200")
    group(tmp_path / "free", memory_max="max", memory_current="700", memory_stat="anon 500\ninactive_file 200")
    old = {"memory_limit_in_bytes": "900", "memory_usage_in_bytes": "300", "memory_stat": "total_inactive_file 50"}
    group(tmp_path / "memory" / "old", **old)
    found = {name: free_in_groups(tmp_path, [name]) for name in ("job", "free", "old", "none")}
    assert found == {"job": [500], "free": [], "old": [650], "none": []}
    assert 0 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_training_with_auto_is_one_with_the_number_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout: the masks are the same, so neither the generator nor the split is another."""
    monkeypatch.setattr(micro_batch, "_FIRST", 100)
    monkeypatch.setattr(micro_batch, "free_memory", lambda: 20 * 500)

    def losses(given: int | str) -> tuple[list[float], Trainer]:
        accelerator = start_accelerator(RunSection(threads=1, precision="fp32", device="cpu"))
        settings = {"steps": 5, "phases": [{"batch_size": 10}], "micro_batch_tokens": given}
        section, optim, objective = validate(TrainSection, settings), OptimSection(), Limited()
        trainer = Trainer(
            accelerator,
            accelerator.prepare_model(objective),
            build_optimizer(optim, objective),
            run=RunDirectory(tmp_path),
            config="",
            section=section,
            optim=optim,
            schedule=Schedule.of(section, lambda: 1.0),
            seed=3,
            sources=[Lengths(50, 100, 75)],
            held_out=HeldOut(OneBlock(10), num_examples=None),
        )
        steps = trainer.steps(lambda step: 0.1, lambda: False)
        return [sum(term.total.item() for terms, _ in info.terms for term in terms.values()) for info in steps], trainer

    found, trainer = losses("auto")
    chosen = trainer.micro_batch_tokens
    assert chosen < 700, "a part of a step, or the test could not fail"
    assert trainer.held_out.micro_batch_tokens == chosen
    assert losses(chosen)[0] == found
    assert losses(10_000)[0] != found

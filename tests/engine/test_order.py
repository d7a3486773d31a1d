"""Data order: the same examples whatever the number of processes, workers, micro-batches and restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.batch import PackedBatch, pack
from engine.fit import Rhythm, TrainSection
from engine.order import Cursor, Phase, StepData, Steps, Stream, load, on_device, shares

ROW = np.dtype([("length", np.int32), ("key", np.uint64), ("id", np.int64)])


class Blocks:
    """A source of numbered examples, in blocks of uneven size, some of them empty."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.num_blocks, self.planned = sizes, len(sizes), 0

    def plan(self, epoch: int, block: int) -> np.ndarray:
        self.planned += 1
        rows = np.zeros(self.sizes[block], ROW)
        rows["id"] = epoch * 10_000 + sum(self.sizes[:block]) + np.arange(len(rows))
        rows["length"] = 3 + rows["id"] * 7 % 20
        rows["key"] = rows["id"]
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        ids = np.repeat(rows["id"], rows["length"])
        targets = {"id": rows["id"]}
        return pack(ids, ids * 0, rows["length"], targets=targets, counts={"examples": len(rows)})


def steps(sizes: tuple[int, ...] = (10, 0, 25, 7), **settings: object) -> Steps:
    defaults = {"total_steps": 40, "seed": 3, "micro_batch_tokens": 60}
    return Steps([Blocks(list(sizes))], [Phase(batch_size=8)], **{**defaults, **settings})  # type: ignore[arg-type]


def ids(steps: Steps, step: int) -> list[int]:
    return sorted(i for batch in steps[step].micro_batches for i in batch.targets["id"].tolist())


def test_an_epoch_visits_every_example_once() -> None:
    seen = [i for step in range(21) for i in ids(steps(), step)]  # 4 epochs of 42
    counts = np.bincount(np.array(seen))
    assert sorted(np.flatnonzero(counts)) == [e * 10_000 + i for e in range(4) for i in range(42)]
    assert set(counts[counts > 0]) == {1}


def test_random_access_equals_walking() -> None:
    walked = steps()
    expected = [ids(walked, step) for step in range(40)]
    for step in (39, 0, 17, 16, 3):
        assert ids(steps(), step) == expected[step]
        assert ids(walked, step) == expected[step]


def test_a_cursor_resumes_without_replay() -> None:
    """Resuming at a late step plans the block it stands in and no other."""
    walked = steps()
    cursor = [walked[step].cursor for step in range(30)][-1]
    resumed = steps(start=(30, cursor))
    assert ids(resumed, 30) == ids(walked, 30)
    source = resumed.streams[0].source
    assert isinstance(source, Blocks)
    assert source.planned <= 2


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("micro_batch_tokens", [20, 60, 10_000])
def test_ranks_share_the_same_examples(num_ranks: int, micro_batch_tokens: int) -> None:
    parts = [steps(num_ranks=num_ranks, rank=r, micro_batch_tokens=micro_batch_tokens) for r in range(num_ranks)]
    for step in range(12):
        assert sorted(i for part in parts for i in ids(part, step)) == ids(steps(), step)
        assert len({len(part[step].micro_batches) for part in parts}) == 1
        assert len({part[step].cursor for part in parts}) == 1


def test_workers_change_nothing() -> None:
    def all_ids(num_workers: int) -> list[list[int]]:
        data = list(load(steps(), start=5, num_workers=num_workers, pin_memory=False))
        assert [item.step for item in data] == list(range(5, 40))
        return [i for item in data for i in [b.targets["id"].tolist() for b in item.micro_batches]]

    assert all_ids(0) == all_ids(2)


def test_shares_are_even_and_complete() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(2, 513, rng.integers(6, 300))
        ranks = int(rng.integers(1, 7))
        parts = [shares(lengths, 2048, ranks, rank) for rank in range(ranks)]
        assert len({len(part) for part in parts}) == 1
        everything = np.concatenate([index for part in parts for index in part])
        np.testing.assert_array_equal(np.sort(everything), np.arange(len(lengths)))
        tokens = [lengths[index].sum() for part in parts for index in part]
        assert min(len(index) for part in parts for index in part) >= 1
        assert max(tokens) <= 2048 + 2 * 512


def test_shares_with_extreme_lengths() -> None:
    for lengths in ([512, 2, 2], [512, 512, 2], [9, 9, 9], [1, 1, 1000]):
        parts = [shares(np.array(lengths), 10**6, 3, rank) for rank in range(3)]
        assert sorted(int(i) for part in parts for index in part for i in index) == [0, 1, 2]


def test_phases() -> None:
    sources = [Blocks([50]), Blocks([30])]
    phases = [Phase(share=0.9, batch_size=8), Phase(share=0.1, batch_size=4, sequence_length=512)]
    plan = Steps(sources, phases, total_steps=20, seed=1, micro_batch_tokens=10**6)
    assert [plan.phase_at(step) for step in (0, 17, 18, 19)] == [0, 0, 1, 1]
    assert (plan[17].num_examples, plan[18].num_examples) == (8, 4)
    epoch = plan[17].cursor.epoch
    assert plan[18].cursor == Cursor(phase=1, epoch=epoch + 1, block=0, offset=4)  # nothing drawn before
    late = Steps(sources, phases, total_steps=20, seed=1, micro_batch_tokens=10**6, start=(19, plan[18].cursor))
    assert ids(late, 19) == ids(plan, 19)


def test_seed_and_epoch_change_the_order() -> None:
    a, b = Stream(Blocks([100]), 1), Stream(Blocks([100]), 2)
    orders = [a.rows(0, 0)["id"] % 10_000, a.rows(1, 0)["id"] % 10_000, b.rows(0, 0)["id"] % 10_000]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_epochs_are_counted_only_where_they_are_asked_for() -> None:
    def refuse() -> float:
        raise AssertionError("planned an epoch for nothing")

    section = TrainSection.model_validate({"steps": 200, "save_every": "5%"})
    assert Rhythm.of(section, refuse) == Rhythm(total=200, log=50, save=10, evaluate=20)
    section = TrainSection.model_validate({"steps": "3 epochs", "save_every": "1 epoch"})
    assert Rhythm.of(section, lambda: 40.4) == Rhythm(total=121, log=50, save=40, evaluate=12)


def contents(item: StepData) -> list[object]:
    batches = [[batch.input_ids.tolist(), batch.targets["id"].tolist()] for batch in item.micro_batches]
    return [item.step, item.num_examples, item.num_tokens, item.cursor, batches]


def test_steps_arrive_on_the_device_as_they_are() -> None:
    made = [steps()[step] for step in range(3)]
    assert [contents(item) for item in on_device(made, torch.device("cpu"))] == [contents(item) for item in made]
    moved = next(on_device(made, torch.device("meta"))).micro_batches
    assert {batch.input_ids.device.type for batch in moved} == {"meta"}
    assert {batch.input_ids.device.type for batch in made[0].micro_batches} == {"cpu"}


def test_every_tensor_of_a_batch_is_said_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was forgotten could be overwritten by the next step's copy while it is read."""
    batch, used = steps()[0].micro_batches[0], []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: used.append(id(self)), raising=False)
    batch.used_on(None)  # type: ignore[arg-type]
    plan = batch.attention
    tensors = [batch.input_ids, batch.token_type_ids, batch.position_ids, batch.cu_seqlens, *batch.targets.values()]
    tensors += [plan.gather, plan.scatter, plan.starts, *(bias for bias in plan.biases if bias is not None)]
    assert any(bias is not None for bias in plan.biases)
    assert sorted(used) == sorted(map(id, tensors))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_beside_the_computation_are_whole() -> None:
    """The device is kept busy, so that copies run ahead and freed batches are overwritten as early as may be."""
    device = torch.device("cuda")
    busy, sums = torch.randn(4096, 4096, device=device), []
    made = list(load(steps(total_steps=60), start=0, num_workers=0, pin_memory=True))
    for item in on_device(made, device):
        for _ in range(5):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(torch.stack([batch.input_ids.sum() for batch in item.micro_batches]).sum())
    expected = [sum(int(batch.input_ids.sum()) for batch in item.micro_batches) for item in made]
    assert torch.stack(sums).tolist() == expected

"""Data order: the same examples whatever the number of processes, workers, micro-batches and restarts."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from bertillery.engine.batch import PackedBatch, pack, pack_stream
from bertillery.engine.loader import Cursor, StepData, Steps, Stream, load, on_device, shares
from bertillery.engine.schedule import Phase, Schedule, TrainSection

ROW = np.dtype([("length", np.int32), ("key", np.uint64), ("id", np.int64)])


class Blocks:
    """A source of numbered examples, in blocks of uneven size, some of them empty."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.num_blocks, self.planned = sizes, len(sizes), 0

    def examples(self, epoch: int, block: int) -> np.ndarray:
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


class Translations(Blocks):
    """The same examples in two streams of other lengths."""

    def collate(self, rows: np.ndarray) -> PackedBatch:
        target = 1 + rows["length"] // 3
        lengths = {"source": rows["length"] - target, "target": target}
        streams = {name: pack_stream(np.repeat(rows["id"], each), each) for name, each in lengths.items()}
        counts = {"examples": len(rows), "target_tokens": streams["target"].num_tokens}
        return PackedBatch(streams, {"id": torch.from_numpy(np.array(rows["id"]))}, counts)


all_sources = pytest.mark.parametrize("source", [Blocks, Translations])


def steps(
    sizes: tuple[int, ...] = (10, 0, 25, 7),
    phases: tuple[Phase, ...] = (Phase(batch_size=8),),
    source: type[Blocks] = Blocks,
    **settings: object,
) -> Steps:
    defaults = {"total_steps": 40, "seed": 3, "micro_batch_tokens": 60}
    sources = [source(list(sizes))] * len(phases)
    return Steps(sources, list(phases), **{**defaults, **settings})  # type: ignore[arg-type]


def ids(steps: Steps, step: int) -> list[int]:
    return taken(steps[step])


def taken(data: StepData) -> list[int]:
    return sorted(i for batch in data.micro_batches for i in batch.targets["id"].tolist())


def tensors(batch: PackedBatch) -> list[torch.Tensor]:
    """All of them, of every stream."""
    found = [*batch.targets.values()]
    for stream in batch.streams.values():
        layout = stream.layout
        found += [stream.ids, stream.positions, stream.offsets, layout.gather, layout.scatter, layout.starts]
        found += [each for each in (stream.token_type_ids, *layout.biases) if each is not None]
    return found


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


EXAMPLES = Phase(batch_size=21, batch_from=3, sequence_length=22)
TOKENS = Phase(batch_tokens=190, sequence_length=22)
GROWING_TOKENS = Phase(batch_tokens=400, batch_from=66, sequence_length=22)
SCHEDULES = {
    "a batch that grows": (EXAMPLES,),
    "a token budget": (TOKENS,),
    "a token budget that grows": (GROWING_TOKENS,),
    "growth, then the same": (EXAMPLES, Phase(batch_size=21, sequence_length=22)),
    "examples, then tokens, then longer": (EXAMPLES, TOKENS, Phase(batch_size=4, sequence_length=64)),
}
schedules = pytest.mark.parametrize("phases", SCHEDULES.values(), ids=SCHEDULES.keys())


@schedules
def test_every_schedule_resumes_where_it_stood(phases: tuple[Phase, ...]) -> None:
    """From the cursor of any step, in JSON and back, the next step is the same, and few blocks are planned."""
    walked = steps((90, 60), phases)
    expected = [walked[step] for step in range(40)]
    for step in range(1, 40):
        cursor = Cursor(**json.loads(json.dumps(asdict(expected[step - 1].cursor))))
        resumed = steps((90, 60), phases, start=(step, cursor))
        data = resumed[step]
        assert taken(data) == taken(expected[step])
        assert data.cursor == expected[step].cursor
        source = resumed.streams[0].source
        assert isinstance(source, Blocks)
        assert source.planned <= 2, "the block it stands in, and the one a step goes on into"


@schedules
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_schedule_is_shared_by_ranks(phases: tuple[Phase, ...], num_ranks: int) -> None:
    alone = steps(phases=phases)
    ranks = [steps(phases=phases, num_ranks=num_ranks, rank=r, micro_batch_tokens=90) for r in range(num_ranks)]
    for step in range(40):
        expected, parts = alone[step], [each[step] for each in ranks]
        assert sorted(i for part in parts for i in taken(part)) == taken(expected)
        assert {part.cursor for part in parts} == {expected.cursor}
        assert len({len(part.micro_batches) for part in parts}) == 1


@schedules
def test_every_schedule_goes_through_the_stream_in_order(phases: tuple[Phase, ...]) -> None:
    """Phases of one length are one stream: nothing of it is left out, and nothing comes twice."""
    plan = steps(phases=phases)
    short = [step for step in range(40) if phases[plan.phase_at(step)].sequence_length == 22]
    found = [ids(plan, step) for step in short]
    whole, _ = Stream(Blocks([10, 0, 25, 7]), 3).take(Cursor(), sum(map(len, found)))
    in_stream = np.split(whole["id"], np.cumsum([len(part) for part in found])[:-1])
    assert found == [sorted(part.tolist()) for part in in_stream]
    if len(short) < 40:
        first = plan[short[-1] + 1].cursor
        assert (first.block, first.offset) == (0, 4), "another length opens an epoch"
        assert first.epoch == plan[short[-1]].cursor.epoch + 1


def test_a_batch_grows_along_a_line() -> None:
    plan = steps(phases=(EXAMPLES,), total_steps=10)
    assert [plan[step].num_examples for step in range(10)] == [3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    sizes = [Phase(batch_size=8, batch_from=5).batch(step, 7) for step in range(7)]
    assert sizes == [5, 6, 6, 7, 7, 8, 8], "halves are rounded up"
    assert Phase(batch_size=8, batch_from=5).batch(0, 1) == 8
    two = steps(phases=(EXAMPLES, TOKENS, EXAMPLES), total_steps=30)
    assert [two.batch_at(step) for step in (0, 9, 10, 19, 20, 29)] == [3, 21, 190, 190, 3, 21]


@pytest.mark.parametrize("phase", [TOKENS, GROWING_TOKENS], ids=str)
def test_a_step_takes_what_fits_into_its_budget(phase: Phase) -> None:
    """As many of the next examples as fit, never one more: with the first one of the next step it would be too many."""
    plan = steps(phases=(phase,))
    budgets = [plan.batch_at(step) for step in range(40)]
    assert (budgets[0], budgets[-1]) == (phase.first, phase.last)
    stream, cursor = Stream(Blocks([10, 0, 25, 7]), 3), Cursor()
    for step, budget in enumerate(budgets):
        data = plan[step]
        rows, cursor = stream.take(cursor, data.num_examples)
        following, _ = stream.take(cursor, 1)
        assert sorted(rows["id"].tolist()) == taken(data)
        assert rows["length"].sum() == data.num_tokens <= budget < data.num_tokens + following["length"][0]


def test_an_example_above_the_budget_is_taken_all_the_same() -> None:
    """An example may be of several sequences, and so longer than one; every process still gets one."""
    stream = Stream(Blocks([3, 0, 2]), 1)
    rows, cursor = stream.take(Cursor(), 2, in_tokens=True)
    assert (len(rows), cursor) == (1, Cursor(offset=1))
    rows, cursor = stream.take(cursor, 2, in_tokens=True, at_least=4)
    assert (len(rows), cursor) == (4, Cursor(epoch=1))


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("micro_batch_tokens", [20, 60, 10_000])
def test_ranks_share_the_same_examples(num_ranks: int, micro_batch_tokens: int) -> None:
    parts = [steps(num_ranks=num_ranks, rank=r, micro_batch_tokens=micro_batch_tokens) for r in range(num_ranks)]
    for step in range(12):
        assert sorted(i for part in parts for i in ids(part, step)) == ids(steps(), step)
        assert len({len(part[step].micro_batches) for part in parts}) == 1
        assert len({part[step].cursor for part in parts}) == 1


@all_sources
def test_workers_change_nothing(source: type[Blocks]) -> None:
    def all_ids(num_workers: int) -> list[list[int]]:
        plan = steps(phases=SCHEDULES["examples, then tokens, then longer"], source=source)
        data = list(load(plan, start=5, num_workers=num_workers, pin_memory=False))
        assert [item.step for item in data] == list(range(5, 40))
        return [i for item in data for i in [b.targets["id"].tolist() for b in item.micro_batches]]

    assert all_ids(0) == all_ids(2)


@all_sources
def test_a_step_from_a_worker_is_the_same_to_the_bit_and_takes_no_descriptors(source: type[Blocks]) -> None:
    """However many micro-batches it has: a process may have 1,024 files open, and a large step has more tensors."""

    def loaded(num_workers: int) -> list[StepData]:
        plan = steps((2000,), (Phase(batch_size=100),), source, total_steps=2, micro_batch_tokens=60)
        return list(load(plan, start=0, num_workers=num_workers, pin_memory=False))

    expected, before = loaded(0), len(os.listdir("/dev/fd"))
    found = loaded(1)
    assert sum(len(tensors(batch)) for item in found for batch in item.micro_batches) > 300
    assert len(os.listdir("/dev/fd")) < before + 30, "those of processes and queues"
    for mine, other in zip(found, expected, strict=True):
        one, two = ([each for b in item.micro_batches for each in tensors(b)] for item in (mine, other))
        assert [each.dtype for each in one] == [each.dtype for each in two]
        assert all(map(torch.equal, one, two))
        assert replace(mine, micro_batches=[]) == replace(other, micro_batches=[])
        assert list(map(plain, mine.micro_batches)) == list(map(plain, other.micro_batches))
        assert mine.num_tokens == sum(batch.num_tokens for batch in mine.micro_batches)


def plain(batch: PackedBatch) -> list[object]:
    """What is not a tensor."""
    return [batch.counts, *((n, s.squared_lengths, s.layout.shapes) for n, s in batch.streams.items())]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are started as the system does it")
def test_sources_need_not_be_picklable() -> None:
    """Whatever way Python starts processes by itself: since 3.14 it pickles what they are given."""
    plan = steps(total_steps=2)
    plan.streams[0].source.drawn_by = lambda: None  # type: ignore[attr-defined]
    given = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        assert [data.step for data in load(plan, start=0, num_workers=1, pin_memory=False)] == [0, 1]
    finally:
        multiprocessing.set_start_method(given, force=True)


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
    assert Schedule.of(section, refuse) == Schedule(total=200, log=50, save=10, evaluate=20)
    section = TrainSection.model_validate({"steps": "3 epochs", "save_every": "1 epoch"})
    assert Schedule.of(section, lambda: 40.4) == Schedule(total=121, log=50, save=40, evaluate=12)


def contents(item: StepData) -> list[object]:
    batches = [[each.tolist() for each in tensors(batch)] for batch in item.micro_batches]
    return [item.step, item.num_examples, item.num_tokens, item.cursor, batches]


@all_sources
def test_steps_arrive_on_the_device_as_they_are(source: type[Blocks]) -> None:
    made = [steps(source=source)[step] for step in range(3)]
    assert [contents(item) for item in on_device(made, torch.device("cpu"))] == [contents(item) for item in made]
    moved = next(on_device(made, torch.device("meta"))).micro_batches
    assert {tensor.device.type for batch in moved for tensor in tensors(batch)} == {"meta"}
    assert {tensor.device.type for batch in made[0].micro_batches for tensor in tensors(batch)} == {"cpu"}


@all_sources
def test_every_tensor_of_a_batch_is_pinned_and_said_to_be_used(
    source: type[Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was forgotten could be overwritten by the next step's copy while it is read."""
    batch, used, pinned = steps(source=source)[0].micro_batches[0], [], []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: used.append(id(self)), raising=False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(id(self)) or self)
    batch.used_on(None)  # type: ignore[arg-type]
    batch.pin_memory()
    assert any(bias is not None for stream in batch.streams.values() for bias in stream.layout.biases)
    assert sorted(used) == sorted(pinned) == sorted(map(id, tensors(batch)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_beside_the_computation_are_whole() -> None:
    """The device is kept busy, so that copies run ahead and freed batches are overwritten as early as may be."""
    device = torch.device("cuda")
    busy, sums = torch.randn(4096, 4096, device=device), []
    made = list(load(steps(total_steps=60), start=0, num_workers=0, pin_memory=True))
    for item in on_device(made, device):
        for _ in range(5):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(torch.stack([batch.input.ids.sum() for batch in item.micro_batches]).sum())
    expected = [sum(int(batch.input.ids.sum()) for batch in item.micro_batches) for item in made]
    assert torch.stack(sums).tolist() == expected

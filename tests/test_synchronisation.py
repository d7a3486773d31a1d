"""No training step of any objective makes the host wait for its GPU, as far as that can be seen without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from bertillery.engine import loop
from bertillery.engine.batch import PackedBatch
from bertillery.engine.loader import Phase, Steps
from bertillery.engine.loop import share_of_loss, training_steps
from bertillery.engine.objective import Objective, objective_module
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.engine.tables import table_gradients
from bertillery.models.joint_spans import HEADS, JointSpans
from bertillery.models.layers import cross_entropy
from bertillery.models.layers.attention import NAME
from distill.objectives import distilbert, minilm, tinybert
from distill.teacher import Teacher
from finetune.task_types.spans import JointObjective
from tests.distill.pairs import masked, student_of, teacher_of
from tests.distill.test_soft_targets import KINDS, batch_for, predictor
from tests.models.families import tiny_config
from tests.pretrain.test_objectives import OBJECTIVES, TINY, batch_of, make

WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "argwhere", "is_nonzero", "equal", "masked_select", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "lift_fresh",
}  # fmt: skip
"""Operations whose result, or the size of it, the host has to know; the last one is a tensor of Python's numbers."""
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Waits(TorchDispatchMode):
    """Writes down the operations for which a host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in WAITING:
            self.found.append(name)
        if name in MASKED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.found.append(f"{name} with a mask")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.found.append("repeat_interleave without a size")
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            there, here = (result, args[0]) if name == "_to_copy" else args[:2]
            if there.device != here.device and not kwargs.get("non_blocking"):
                self.found.append(f"a copy from {here.device} to {there.device}")
        return result


def pretraining(name: str) -> tuple[Objective, PackedBatch]:
    objective, source = make(objective_module("pretrain.objectives", {"type": name}), TINY)
    return objective, batch_of(source)


def imitation(kind: str) -> tuple[Objective, PackedBatch]:
    teacher = Teacher(predictor(kind, 1))
    return distilbert.task(distilbert.AnswersConfig(), predictor(kind, 0), teacher), batch_for(kind)


def joint(head: str) -> tuple[Objective, PackedBatch]:
    batch = batch_for("spans")
    targets = {**batch.targets, "unanswerable": batch.targets["spans"][:, 0] == 0}
    model = HEADS[head]._from_config(tiny_config(head), attn_implementation=NAME)
    assert isinstance(model, JointSpans)
    return JointObjective(model), replace(batch, targets=targets)


def general(method: Any, **settings: Any) -> tuple[Objective, PackedBatch]:
    teacher = teacher_of(words=method.MASKED_WORDS)
    return method.build(method.Config(**settings), student_of(teacher, words=method.MASKED_WORDS), teacher), masked()


CASES: dict[str, Callable[[], tuple[Objective, PackedBatch]]] = {
    **{f"pretrain {name}": lambda name=name: pretraining(name) for name in OBJECTIVES},
    **{f"finetune {kind}": lambda kind=kind: (predictor(kind, 0), batch_for(kind)) for kind in [*KINDS, "regression"]},
    **{f"imitate {kind}": lambda kind=kind: imitation(kind) for kind in [*KINDS, "regression"]},
    **{f"finetune {head} joint spans": lambda head=head: joint(head) for head in HEADS},
    "distilbert": lambda: general(distilbert),
    "tinybert": lambda: general(tinybert),
    "minilm": lambda: general(minilm, relation_heads=4),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_ask_for_no_value(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all on a device that has none, where any question is an error. (On a CPU, where asking costs nothing, it
    saves looking for the largest logit.)"""
    monkeypatch.setattr(cross_entropy, "_first", lambda logits, words, largest: logits.argmax(-1) == words)
    objective, batch = CASES[name]()
    objective.train().to(device)
    batch = batch.to(torch.device(device))
    objective(batch)  # which moves the teacher
    with Waits() as waits:
        share_of_loss(objective(batch), batch.counts).backward()
    assert waits.found == []


def test_what_would_wait_is_seen() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.arange(3, device="meta").tolist()
    x = torch.arange(3.0)
    for ask in (
        lambda: x[x > 1],
        lambda: x.sum().item(),
        lambda: bool(x.sum()),
        lambda: torch.equal(x, x),
        lambda: x.repeat_interleave(torch.arange(3)),
        lambda: torch.tensor([1.0]),
        lambda: x.nonzero(),
        lambda: x.to("meta"),
        lambda: x.index_put((x > 1,), x.sum()),
    ):
        with Waits() as waits:
            ask()
        assert waits.found != []


def two_steps(algorithm: str, accelerator: Accelerator) -> Iterator[Any]:
    objective, source = make(objective_module("pretrain.objectives", {"type": "bert"}), TINY)
    objective = accelerator.prepare_model(objective.train())
    optimizer = build_optimizer(OptimSection.model_validate({"algorithm": algorithm}), objective)
    data = Steps([source], [Phase(batch_size=16)], total_steps=2, seed=1, micro_batch_tokens=200)
    items = [data[step] for step in range(2)]
    assert len(items[0].micro_batches) > 1
    if accelerator.device.type == "cuda":
        for item in items:
            item.micro_batches[:] = [batch.pin_memory() for batch in item.micro_batches]
    given: dict[str, Any] = {"learning_rate": lambda step: 1e-3, "max_gradient_norm": 1.0, "seed": 1}
    return training_steps(accelerator, objective, optimizer, items, **given, certain=lambda step: False)


@pytest.mark.parametrize("algorithm", ["bert_adam", "adamw", "lamb"])
def test_a_whole_step_reads_one_number(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its gradient was finite, which on a GPU has arrived by then. (A CPU looks whether it is to be scaled
    down, too; what else is done on CPUs alone is left out.)"""
    monkeypatch.setattr(cross_entropy, "_first", lambda logits, words, largest: logits.argmax(-1) == words)
    monkeypatch.setattr(loop, "table_gradients", lambda model, device: table_gradients(model, torch.device("meta")))
    steps = two_steps(algorithm, Accelerator(cpu=True))
    with Waits() as waits:
        assert len(list(steps)) == 2
    assert waits.found == ["_local_scalar_dense"] * 4


@contextmanager
def no_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_no_objective_makes_a_gpu_wait(name: str) -> None:
    objective, batch = CASES[name]()
    device = torch.device("cuda")
    objective.train().to(device)
    batch = batch.to(device)
    for _ in range(2):  # the first one loads kernels and moves the teacher
        share_of_loss(objective(batch), batch.counts).backward()
    with no_waiting(), torch.autocast("cuda", torch.bfloat16):
        share_of_loss(objective(batch), batch.counts).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ["bert_adam", "adamw", "lamb"])
def test_no_step_makes_a_gpu_wait(algorithm: str) -> None:
    steps = two_steps(algorithm, Accelerator(mixed_precision="bf16"))
    next(steps)
    with no_waiting():
        assert len(list(steps)) == 1

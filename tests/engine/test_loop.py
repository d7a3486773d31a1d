"""A step that breaks: what it leaves, when the host learns of it, and what it says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.loader import Cursor, StepData
from bertillery.engine.loop import DivergedError, StepInfo, Watch, training_steps
from bertillery.engine.objective import Objective, Term
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.run import trainer as fit
from tests.run.test_trainer import Weight, train

ALGORITHMS = ["bert_adam", "adamw", "lamb"]
NAN = float("nan")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


class Layer(Objective):
    """A loss that is a batch's factor times something of the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense, self.LayerNorm = nn.Linear(6, 5), nn.LayerNorm(5)

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        outputs = self.LayerNorm(self.dense(torch.eye(6, device=batch.input.ids.device))).tanh()
        return {"error": Term((outputs * batch.targets["factor"]).sum(), "tokens")}

    def exported(self) -> Any:
        raise NotImplementedError

    def flops(self, batch: PackedBatch) -> float:
        return 1.0


def steps(
    factors: list[float],
    algorithm: str = "bert_adam",
    device: str = "cpu",
    **settings: Any,
) -> tuple[Layer, torch.optim.Optimizer, Iterator[StepInfo]]:
    accelerator = Accelerator(cpu=device == "cpu")
    objective = Layer().to(accelerator.device)
    optimizer = build_optimizer(OptimSection.model_validate({"algorithm": algorithm}), objective)
    ids = np.zeros(2, np.int64)

    def data() -> Iterator[StepData]:
        for step, factor in enumerate(factors):
            targets = {"factor": np.array([factor, 1 - factor, 1, 2, 3], np.float32)}
            batch = pack(ids, ids, np.array([2]), targets=targets, counts={})
            yield StepData(step, [batch], 1, 2, Cursor())

    given: dict[str, Any] = {"learning_rate": lambda step: 0.01 * (step + 1), "max_gradient_norm": 1.0, "seed": 1}
    return objective, optimizer, training_steps(accelerator, objective, optimizer, data(), **given, **settings)


def bits(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments as integers, which tell 0 from -0."""
    tensors = dict(objective.named_parameters())
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{number} {name}": value for name, value in state.items()}
    return {name: tensor.detach().view(torch.int32).clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("broken", [NAN, float("inf")])
def test_nothing_changes_from_the_broken_step_on(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, broken: float, device: str
) -> None:
    """However late the host looks, and however sound the steps behind it are."""
    objective, optimizer, done = steps([0.5, 2.0], algorithm, device)
    assert len(list(done)) == 2
    before = bits(objective, optimizer)
    monkeypatch.setattr(Watch, "read", lambda self: None)
    factors = [0.5, 2.0, broken, 1.0, -3.0, 0.5]
    objective, optimizer, done = steps(factors, algorithm, device, certain=lambda step: False)
    infos = list(done)
    assert [bool(info.gradient_norm.isfinite()) for info in infos] == [True, True, False, True, True, True]
    after = bits(objective, optimizer)
    assert after.keys() == before.keys()
    assert [name for name in after if not torch.equal(after[name], before[name])] == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sound_steps_are_the_same_however_they_are_watched(algorithm: str) -> None:
    found = []
    for certain in (True, False):
        objective, optimizer, done = steps([0.5, 2.0, 1.0], algorithm, certain=lambda step, known=certain: known)
        assert [info.step for info in done] == [1, 2, 3]
        found.append(bits(objective, optimizer))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("certain", "yielded"),
    [
        (lambda step: True, [1, 2]),
        (lambda step: step == 3, [1, 2]),
        (lambda step: False, [1, 2, 3]),
    ],
    ids=["always", "that step", "one later"],
)
@pytest.mark.parametrize("more", [2, 0])
def test_the_error_names_the_step_that_broke(
    certain: Callable[[int], bool], yielded: list[int], more: int, device: str
) -> None:
    """With its own learning rate and loss, also where it is the last one."""
    _, _, done = steps([0.5, 2.0, NAN, *[1.0] * more], device=device, certain=certain)
    seen = []
    with pytest.raises(DivergedError, match=r"^step 3: the loss error is not finite .*nan, learning rate 0\.03\)"):
        seen.extend(info.step for info in done)
    assert seen == yielded


def test_a_run_that_is_asked_to_stop_knows_of_its_last_step() -> None:
    _, _, done = steps([0.5, NAN, 1.0], certain=lambda step: False, stop_requested=lambda: True)
    assert next(done).stop
    with pytest.raises(DivergedError, match="step 2"):
        next(done)


class Breaking(Weight):
    """Its loss is not finite in the given step's forward pass."""

    def __init__(self, broken: int) -> None:
        super().__init__()
        self.broken, self.passes = broken, 0

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        terms = super().forward(batch)
        self.passes += self.training
        factor = NAN if self.training and self.passes == self.broken else 1.0
        return {name: replace(term, total=term.total * factor) for name, term in terms.items()}


@pytest.mark.parametrize("broken", [1, 3, 4, 5, 8, 12])
@pytest.mark.parametrize("in_step", [("cpu",), ()], ids=["at once", "one later"])
def test_no_checkpoint_holds_a_broken_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, in_step: tuple[str, ...]
) -> None:
    """Nor is one evaluated or logged; the run goes on from the last one before it."""
    monkeypatch.setattr("tests.run.test_trainer.Weight", functools.partial(Breaking, broken))
    monkeypatch.setattr(fit, "_IN_STEP", in_step)
    schedule = {"evaluate_every": 4, "save_every": 2, "log_every": 3, "keep": 9}
    with pytest.raises(DivergedError, match=f"^step {broken}: "):
        train(tmp_path / "a", [0.0] * 9, **schedule)
    saved = {int(path.name.split("-")[-1]) for path in (tmp_path / "a" / "checkpoints").glob("*")}
    assert saved == set(range(2, broken, 2))
    logged = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert "NaN" not in logged


def test_of_the_sum_of_losses_a_step_is_the_longer() -> None:
    """By the number of what is counted, before it is clipped: here the two tokens of the batch."""
    norms = {}
    for reduction in ("mean", "sum"):
        _, _, done = steps([2.0], loss_reduction=reduction)
        norms[reduction] = next(done).gradient_norm.item()
    assert norms["sum"] == pytest.approx(2 * norms["mean"])
    assert norms["mean"] > 0.1

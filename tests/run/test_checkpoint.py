from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bertillery.run.checkpoint
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.run.checkpoint import (
    CheckpointError,
    checkpoint_name,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from bertillery.run.directory import RunDirectory


class Tied(nn.Module):
    """An embedding and a decoder that share their weight, as masked language models do."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, width)
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, 12)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.embedding(ids))).square().mean()


def trained(algorithm: str = "bert_adam", *, seed: int = 0, steps: int = 2) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    optimizer = build_optimizer(OptimSection.model_validate({"algorithm": algorithm}), model)
    for _ in range(steps):
        train_step(model, optimizer)
    return model, optimizer


def train_step(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(12)).backward()
    optimizer.step()


def save(folder: Path, step: int, seed: int = 0) -> Path:
    model, optimizer = trained(seed=seed)
    return save_checkpoint(folder, step=step, model=model, optimizer=optimizer, state={"step": step}, config="a: 1\n")


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("algorithm", ["bert_adam", "adamw"])
def test_training_continues_bit_for_bit(tmp_path: Path, algorithm: str):
    model, optimizer = trained(algorithm)
    state = {"step": 2, "cursor": [0, 3, 17], "loss": 0.1 + 0.2}
    path = save_checkpoint(tmp_path, step=2, model=model, optimizer=optimizer, state=state, config="a: 1\n")
    assert path.name == "step-0000000002"
    assert (path / "config.yaml").read_text() == "a: 1\n"

    other, fresh = trained(algorithm, seed=1, steps=0)
    assert load_checkpoint(path, model=other, optimizer=fresh) == state
    assert_same_bits(model, other)
    assert other.decoder.weight is other.embedding.weight
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[left].keys() == fresh.state[right].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in optimizer.state[left].items():
            assert torch.equal(value, fresh.state[right][key]), key
    train_step(model, optimizer)
    train_step(other, fresh)
    assert_same_bits(model, other)


def test_shared_tensors_are_stored_once_and_moments_by_name(tmp_path: Path):
    from safetensors.torch import load_file

    path = save(tmp_path, 1)
    stored = load_file(path / "model.safetensors")
    assert ("embedding.weight" in stored) != ("decoder.weight" in stored)
    assert "norm.weight.exp_avg_sq" in load_file(path / "optimizer.safetensors")


def test_optimizer_without_state_yet(tmp_path: Path):
    model, optimizer = trained("adamw", steps=0)
    path = save_checkpoint(tmp_path, step=0, model=model, optimizer=optimizer, state={}, config="")
    load_checkpoint(path, model=model, optimizer=optimizer)
    train_step(model, optimizer)


def test_hyperparameters_stay_those_of_the_configuration(tmp_path: Path):
    path = save(tmp_path, 1)
    model, optimizer = trained()
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    load_checkpoint(path, model=model, optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_another_model_is_refused(tmp_path: Path):
    path = save(tmp_path, 1)
    wide = Tied(width=16)
    with pytest.raises(ValueError, match=r"does not fit this model(.|\n)*norm\.weight"):
        load_checkpoint(path, model=wide, optimizer=build_optimizer(OptimSection(), wide))


def test_another_optimizer_is_refused(tmp_path: Path):
    path = save(tmp_path, 1)
    model, _ = trained()
    model.norm.requires_grad_(False)
    with pytest.raises(ValueError, match=r"norm\.weight\.exp_avg: no such parameter"):
        load_checkpoint(path, model=model, optimizer=build_optimizer(OptimSection(), model))

    frozen, _ = trained()
    frozen.norm.requires_grad_(False)
    optimizer = build_optimizer(OptimSection(), frozen)
    path = save_checkpoint(tmp_path, step=2, model=frozen, optimizer=optimizer, state={}, config="")
    model, optimizer = trained()
    with pytest.raises(ValueError, match=r"norm\.weight: is being trained, but not in the checkpoint"):
        load_checkpoint(path, model=model, optimizer=optimizer)


def truncate(path: Path) -> None:
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


def lose_a_file(path: Path) -> None:
    (path / "state.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_manifest, empty_the_manifest, lose_a_file])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage, caplog: pytest.LogCaptureFixture):
    assert latest_checkpoint(tmp_path / "nothing") is None
    older, newer = save(tmp_path, 9), save(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == newer
    assert not caplog.records
    damage(newer)
    assert latest_checkpoint(tmp_path) == older
    assert "step-0000000010 is damaged" in caplog.text
    damage(older)
    assert latest_checkpoint(tmp_path) is None


def test_same_step_again_replaces(tmp_path: Path):
    path = save(tmp_path, 5, seed=0)
    before = (path / "model.safetensors").read_bytes()
    assert save(tmp_path, 5, seed=1) == path
    assert (path / "model.safetensors").read_bytes() != before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_crash_while_replacing_leaves_the_old_one(tmp_path: Path):
    path = save(tmp_path, 5)
    old = path.rename(path.with_name(f"{path.name}.old"))  # where the crash was: after the first of two renames
    assert latest_checkpoint(tmp_path) == old
    newest = save(tmp_path, 6)
    prune_checkpoints(tmp_path, saved=newest.name, keep=1, best=path.name)
    assert sorted(tmp_path.iterdir()) == [path, newest]


WRITER = """
import os, resource, sys
from pathlib import Path
import bertillery.run.checkpoint
from tests.run.test_checkpoint import save

for folder in map(Path, sys.argv[1:]):
    if os.fork() == 0:
        if folder.name == "full_disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        else:
            setattr(bertillery.run.checkpoint, folder.name, lambda *_, **__: os._exit(9))
        try:
            save(folder, 2)
        except bertillery.run.checkpoint.CheckpointError as error:
            (folder.parent / "message").write_text(str(error))
        os._exit(0)
    print(folder.name, os.waitstatus_to_exitcode(os.wait()[1]))
"""
KILLED_IN = ["save_file", "fingerprint", "publish"]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a whole checkpoint each, in which writing the next one was stopped at the place they are named for."""
    root = tmp_path_factory.mktemp("crashed")
    folders = [root / name for name in ("full_disk", *KILLED_IN)]
    for folder in folders:
        save(folder, 1)
    source = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", WRITER, *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(command, capture_output=True, text=True, cwd=source, env=environment)
    assert done.stdout.split() == ["full_disk", "0", *(word for name in KILLED_IN for word in (name, "9"))], done.stderr
    return root


def test_a_full_disk_leaves_the_last_one_whole(crashed: Path):
    older = crashed / "full_disk" / "step-0000000001"
    message = (crashed / "message").read_text()
    assert "cannot write checkpoint" in message
    assert f"the newest complete checkpoint is {older}" in message
    assert [*older.parent.iterdir()] == [older]
    assert latest_checkpoint(older.parent) == older


@pytest.mark.parametrize("place", KILLED_IN)
def test_a_kill_while_writing_leaves_the_last_one_whole(crashed: Path, place: str):
    folder = crashed / place
    assert len([*folder.iterdir()]) == 2
    assert latest_checkpoint(folder) == folder / "step-0000000001"
    newer = save(folder, 2)  # over the remains
    assert [*folder.glob("*.partial")] == []
    assert latest_checkpoint(folder) == newer


def test_no_space_is_reported_with_what_was_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bertillery.run.checkpoint, "publish", no_space)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        save(tmp_path, 1)
    # 12 x 8 tied weights, 2 x 8 of the norm, 12 biases, an int64 buffer; the state is two moments and 4 counters
    assert f"({(96 + 16 + 12) * 4 * 3 + 8 + 4 * 4} bytes)" in str(caught.value)
    assert "no other complete checkpoint" in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_prune_keeps_the_newest_whole_ones_and_the_best(tmp_path: Path):
    paths = [save(tmp_path, step) for step in range(1, 7)]
    (tmp_path / "step-0000000009.partial").mkdir()
    truncate(paths[4])
    prune_checkpoints(tmp_path, saved=paths[5].name, keep=2, best="step-0000000002")
    assert sorted(tmp_path.iterdir()) == [paths[1], paths[3], paths[5]]


def test_what_was_passed_over_is_not_kept_in_the_place_of_what_was_saved(tmp_path: Path):
    """A damaged checkpoint may have the right sizes; being newer, it must not push out the one that is whole."""
    older, newer = save(tmp_path, 100), save(tmp_path, 200)
    flip_a_bit(newer)
    assert latest_checkpoint(tmp_path) == older
    saved = save(tmp_path, 110)
    prune_checkpoints(tmp_path, saved=saved.name, keep=1, best=None)
    assert [*tmp_path.iterdir()] == [saved]
    assert latest_checkpoint(tmp_path) == saved


def test_state_is_plain_json(tmp_path: Path):
    path = save(tmp_path, 1)
    assert json.loads((path / "state.json").read_text()) == {"step": 1}
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json", ".yaml"}


def test_a_kill_while_an_old_checkpoint_is_pruned_leaves_nothing_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is half-deleted goes with the next start."""
    run = RunDirectory.open(tmp_path / "run", "a: 1\n")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    for step in (1, 2):
        save_checkpoint(run.checkpoints, step=step, model=model, optimizer=optimizer, state={}, config="")

    def killed(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoints(run.checkpoints, saved=checkpoint_name(2), keep=1, best=None)
    with run.held():
        assert [path.name for path in run.checkpoints.iterdir()] == [checkpoint_name(2)]

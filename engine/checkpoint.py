"""Checkpoints that are whole or are not there.

A checkpoint is a folder ``step-0000001000`` of ``model.safetensors``, ``optimizer.safetensors`` (state tensors by
parameter name), ``state.json`` (the loop's state), ``config.yaml`` and ``manifest.json`` (size and SHA-256 of the
others). It is written under another name and renamed when all of it is on disk. Nothing in it can run code when it is
read. One process writes; in a run of several the caller sees to it that the others wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from engine.config import InputError
from engine.files import publish, remove

logger = logging.getLogger(__name__)

_CONTENT = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")
_NAME = re.compile(r"step-(\d{10})(\.old)?")


class CheckpointError(OSError):
    """A checkpoint could not be written; the older ones are as they were."""


def checkpoint_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step-{step:010d}"


def save_checkpoint(
    folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], config: str
) -> Path:
    """Write ``folder/step-<step>``, replacing one of the same step, and return its path.

    ``state`` is what JSON can hold, ``config`` the resolved configuration as YAML. If it cannot be written, nothing
    of it is left behind and ``CheckpointError`` says how much room was needed and which checkpoint is the newest.
    """
    path = folder / checkpoint_name(step)
    partial = path.with_name(f"{path.name}.partial")
    moments = _by_name(model, optimizer)
    try:
        remove(partial)
        partial.mkdir(parents=True)
        save_model(model, str(partial / "model.safetensors"))
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (partial / "config.yaml").write_text(config, encoding="utf-8")
        manifest = {name: _fingerprint(partial / name) for name in _CONTENT}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        publish(partial, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = _num_bytes([*model.state_dict().values(), *moments.values()])
        newest = latest_checkpoint(folder)
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error}. It needs {needed / 1e6:,.1f} MB ({needed} bytes); "
            + (f"the newest whole checkpoint is {newest}" if newest else "there is no other whole checkpoint")
            + ". Make room, then start the same command again to resume."
        ) from error
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose sizes and checksums are right; a warning is logged for each newer one passed over."""
    for path in _newest_first(folder):
        defect = _defect(path, checksums=True)
        if defect is None:
            return path
        logger.warning("checkpoint %s is not whole (%s); trying the one before", path, defect)
    return None


def load_checkpoint(path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill model and optimizer from a checkpoint and return the loop's state.

    Raises ``InputError`` where names or shapes are not those of the checkpoint. Learning rates and the like stay as the
    optimizer has them: they follow from the configuration.
    """
    try:
        load_model(model, path / "model.safetensors")
    except RuntimeError as error:
        raise InputError(f"{path} does not fit this model; resume with the config.yaml in it: {error}") from error
    _restore_optimizer(path, _parameter_names(model, optimizer), optimizer)
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def prune_checkpoints(folder: Path, *, keep: int, best: str | None) -> None:
    """Delete all but the newest ``keep`` whole checkpoints and the one named ``best``; call it after a save."""
    assert keep >= 1, keep
    for old in folder.glob("step-*.old"):  # left by a crash while a step was replaced; then it may be the only copy
        target = old.with_suffix("")
        remove(old) if target.exists() else old.rename(target)
    # Sizes only: reading gigabytes at every save would cost more than it finds. latest_checkpoint reads them.
    whole = [path for path in _newest_first(folder) if _defect(path, checksums=False) is None]
    kept = {path.name for path in whole[:keep]} | {best}
    for path in [*_newest_first(folder), *folder.glob("step-*.partial")]:
        if path.name not in kept:
            remove(path)


def _newest_first(folder: Path) -> list[Path]:
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    found = [(int(match[1]), match[2] is None, path) for match, path in matches if match]
    return [path for *_, path in sorted(found, reverse=True)]


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _defect(path: Path, *, checksums: bool) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in _CONTENT:
            if (path / name).stat().st_size != manifest[name]["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes of {manifest[name]['size']}"
            if checksums and _fingerprint(path / name) != manifest[name]:
                return f"{name} has another checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order in which its ``state_dict`` numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(id(parameter) in names for parameter in parameters), "the optimizer holds parameters of another model"
    return [names[id(parameter)] for parameter in parameters]


def _by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _parameter_names(model, optimizer)
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    moments = {f"{names[i]}.{key}": value for i, slots in state.items() for key, value in slots.items()}
    assert all(isinstance(value, Tensor) for value in moments.values()), "optimizer state that is not a tensor"
    return {name: value.contiguous() for name, value in moments.items()}


def _restore_optimizer(path: Path, names: list[str], optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    problems = []
    for full_name, value in load_file(path / "optimizer.safetensors").items():
        name, key = full_name.rsplit(".", 1)
        if name not in index:
            problems.append(f"{full_name}: no such parameter is being trained")
        elif value.ndim and value.shape != parameters[index[name]].shape:
            shape = tuple(parameters[index[name]].shape)
            problems.append(f"{full_name}: its shape is {tuple(value.shape)}, the parameter's {shape}")
        else:
            state.setdefault(index[name], {})[key] = value.clone()  # load_file maps the file, which may be pruned
    missing = [name for name, i in index.items() if parameters[i] in optimizer.state and i not in state]
    problems += [f"{name}: is being trained, but not in the checkpoint" for name in missing]
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise InputError(f"{path} does not fit this optimizer; resume with the config.yaml in it:\n{listing}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

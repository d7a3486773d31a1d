"""Checkpoints: a folder either is complete or does not exist, and all processes resume from the same one.

A checkpoint is a folder ``step-0000001000`` of ``model.safetensors``, ``optimizer.safetensors`` (state tensors by
parameter name), ``state.json`` (the loop's state), ``config.yaml`` and ``manifest.json`` (size and XXH3 of the other
files; SHA-256 in older ones). It is written under another name and renamed once it is on disk. Reading it executes no
code. The main process writes. Tensors are stored whole, also those split over processes, so that a run can resume with
another number of processes.

The main process chooses what to resume from. If processes chose by themselves, two machines that see different folders
would train on from different weights unnoticed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bertillery.config.section import InputError
from bertillery.engine.sharding import gathered, split_like
from bertillery.run.tracking import read_rows
from bertillery.system.files import fingerprint, publish, remove, tidy
from bertillery.system.records import read_json

logger = logging.getLogger(__name__)

HELD_OUT = "held_out/"
"""Prefix of held-out metrics in ``metrics.jsonl``."""
_CONTENT = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")
_NAME = re.compile(r"step-(\d{10})(\.old)?")


class CheckpointError(OSError):
    """A checkpoint could not be written; older ones are unchanged."""


def checkpoint_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step-{step:010d}"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    config: str,
    is_main: bool = True,
) -> Path:
    """Write ``folder/step-<step>``, replacing one of the same step, and return its path. All processes call it.

    ``state`` must be JSON data; ``config`` is the resolved configuration as YAML. Raises ``CheckpointError``, which
    says how much space was needed and which checkpoint is the newest, after removing what was written.
    """
    path = folder / checkpoint_name(step)
    partial = path.with_name(f"{path.name}.partial")
    names = _tensor_names(model)
    weights = gathered({first: tensor for tensor, (first, *_) in names}, is_main=is_main)
    moments = gathered(_optimizer_tensors(model, optimizer), is_main=is_main)
    if not is_main:
        return path
    try:
        remove(partial)
        partial.mkdir(parents=True)
        tied = {other: first for _, (first, *rest) in names for other in rest}
        save_file(weights, partial / "model.safetensors", metadata=tied)
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (partial / "config.yaml").write_text(config, encoding="utf-8")
        manifest = {name: fingerprint(partial / name, "xxh3_128") for name in _CONTENT}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        publish(partial, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(tensor.nbytes for tensor in [*weights.values(), *moments.values()])
        newest = latest_checkpoint(folder)
        raise CheckpointError(
            f"cannot write checkpoint {path}: {error}. It needs {needed / 1e6:,.1f} MB ({needed} bytes); "
            + (f"the newest complete checkpoint is {newest}" if newest else "there is no other complete checkpoint")
            + ". Make room, then start the same command again to resume."
        ) from error
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint with correct sizes and checksums; logs a warning for each newer one without."""
    for path in _newest_first(folder):
        found = defect(path)
        if found is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); trying the previous one", path, found)
    return None


def newest_whole(folder: Path, number: int) -> list[Path]:
    """The newest checkpoints with correct sizes and checksums, at most ``number``, the newest first."""
    return [*islice((path for path in _newest_first(folder) if defect(path) is None), number)]


def newest_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """The main process's :func:`latest_checkpoint`, as a path of this process."""
    found = latest_checkpoint(folder) if accelerator.is_main_process else None
    (name,) = broadcast_object_list([found and found.name])
    return None if name is None else folder / name


def check_everywhere(accelerator: Accelerator, path: Path) -> None:
    """Raise ``InputError`` in all processes if one of them does not see the main process's checkpoint."""
    is_main = accelerator.is_main_process
    (manifest,) = broadcast_object_list([_read_manifest(path) if is_main else ""])
    own = None if is_main else defect(path)
    if not is_main and not own and _read_manifest(path) != manifest:
        own = "it differs from the main process's"
    found = gather_object([own])
    defects = [f"process {process}: {defect}" for process, defect in enumerate(found) if defect]
    if defects:
        raise InputError(
            f"{path} is loaded by all processes, and {len(defects)} of {len(found)} do not have the main one's "
            f"({'; '.join(defects[:3])}); run.dir must be a folder that all machines share, or this checkpoint must "
            "be copied to each of them"
        )


def _read_manifest(path: Path) -> str:
    return (path / "manifest.json").read_text(encoding="utf-8")


def defect(path: Path, *, checksums: bool = True) -> str | None:
    """What is missing or damaged in a checkpoint, or None."""
    if not path.exists():
        return "it does not exist"
    try:
        manifest = json.loads(_read_manifest(path))
        for name in _CONTENT:
            size, known = (path / name).stat().st_size, manifest[name]
            if size != known["size"]:
                return f"{name} has {size} bytes of {known['size']}"
            if checksums and fingerprint(path / name, "sha256" if "sha256" in known else "xxh3_128") != known:
                return f"{name} has another checksum"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The loop's state in a checkpoint."""
    return read_json(path / "state.json", dict[str, Any], remedy="delete this checkpoint: the one before is taken")


def load_checkpoint(path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill model and optimizer from a checkpoint and return the loop's state.

    Raises ``InputError`` if names or shapes differ. The optimizer keeps its learning rates and other settings, which
    follow from the configuration.
    """
    _restore_model(path, model)
    _restore_optimizer(path, _parameters(model, optimizer), optimizer)
    return read_state(path)


def prune_checkpoints(folder: Path, *, saved: str, keep: int, best: str | None) -> None:
    """Delete all checkpoints but the one named ``best`` and the newest ``keep`` up to the one just ``saved``.

    Newer ones are damaged: the run was resumed from an older one.
    """
    assert keep >= 1, keep
    tidy(folder)
    # Sizes only: reading gigabytes at every save would cost more than it finds. latest_checkpoint reads them.
    whole = [p for p in _newest_first(folder) if p.name <= saved and defect(p, checksums=False) is None]
    kept = {path.name for path in whole[:keep]} | {best}
    for path in _newest_first(folder):
        if path.name not in kept:
            remove(path)


def _newest_first(folder: Path) -> list[Path]:
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    found = [(int(match[1]), match[2] is None, path) for match, path in matches if match]
    return [path for *_, path in sorted(found, reverse=True)]


def _tensor_names(model: nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Every tensor of a model once, with its sorted names; as in safetensors' ``save_model`` the first is stored."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return [*found.values()]


@torch.no_grad()
def _restore_model(path: Path, model: nn.Module) -> None:
    names, stored = _tensor_names(model), load_file(path / "model.safetensors")
    known = {name for _, each in names for name in each}
    problems = [f"{name}: the model has no such tensor" for name in stored if name not in known]
    for tensor, each in names:
        value = next((stored[name] for name in each if name in stored), None)
        if value is None:
            problems.append(f"{each[0]}: not in the checkpoint")
        elif value.shape != tensor.shape:
            problems.append(f"{each[0]}: its shape is {tuple(value.shape)}, the model's {tuple(tensor.shape)}")
        elif not problems:
            tensor.copy_(split_like(value, tensor))
    _refuse(path, "model", problems)


def _refuse(path: Path, what: str, problems: list[str]) -> None:
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise InputError(f"{path} does not fit this {what}; resume with the config.yaml in it:\n{listing}")


def _parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by name, in the order in which its ``state_dict`` numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(id(parameter) in names for parameter in parameters), "the optimizer holds parameters of another model"
    return {names[id(parameter)]: parameter for parameter in parameters}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = [*_parameters(model, optimizer)]
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    moments = {f"{names[i]}.{key}": value for i, slots in state.items() for key, value in slots.items()}
    assert all(isinstance(value, Tensor) for value in moments.values()), "optimizer state that is not a tensor"
    return moments


def _restore_optimizer(path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    problems = []
    for full_name, value in load_file(path / "optimizer.safetensors").items():
        name, key = full_name.rsplit(".", 1)
        if name not in parameters:
            problems.append(f"{full_name}: no such parameter is being trained")
        elif value.ndim and value.shape != parameters[name].shape:
            shape = tuple(parameters[name].shape)
            problems.append(f"{full_name}: its shape is {tuple(value.shape)}, the parameter's {shape}")
        else:  # a copy, because the file may be pruned
            found.setdefault(name, {})[key] = split_like(value, parameters[name] if value.ndim else value)
    missing = [name for name, each in parameters.items() if each in optimizer.state and name not in found]
    problems += [f"{name}: is being trained, but not in the checkpoint" for name in missing]
    _refuse(path, "optimizer", problems)
    state = {i: found[name] for i, name in enumerate(parameters) if name in found}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def held_out_numbers(accelerator: Accelerator, metrics_file: Path, last: int) -> dict[int, dict[str, float]]:
    """The main process's record of held-out metrics up to a step, for checkpoints that lack them."""
    found: dict[int, dict[str, float]] = {}
    for row in read_rows(metrics_file) if accelerator.is_main_process else []:
        values = {name.removeprefix(HELD_OUT): value for name, value in row.items() if name.startswith(HELD_OUT)}
        if values and row["step"] <= last:
            found[row["step"]] = values
    (found,) = broadcast_object_list([found])
    return found

"""Checkpoints that are whole or are not there.

A checkpoint is a folder ``step-0000001000`` of ``model.safetensors``, ``optimizer.safetensors`` (state tensors by
parameter name), ``state.json`` (the loop's state), ``config.yaml`` and ``manifest.json`` (size and SHA-256 of the
others). It is written under another name and renamed when all of it is on disk. Nothing in it can run code when it is
read. One process writes; in a run of several the caller sees to it that the others wait. Tensors are whole in it, also
where each process has a part of them only: a run goes on with any number of processes, split or not.

Where a run goes on from: the main process chooses, and all processes read the same files or none.

Each could look for itself, but another machine may see other files, or one process reject what the others accept; then
they would train on from different weights, and nothing would say so.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
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
from bertillery.system.files import publish, remove, sha256, tidy
from bertillery.system.records import read_json

logger = logging.getLogger(__name__)

_CONTENT = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")
_NAME = re.compile(r"step-(\d{10})(\.old)?")


class CheckpointError(OSError):
    """A checkpoint could not be written; the older ones are as they were."""


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
    """Write ``folder/step-<step>``, replacing one of the same step, and return its path.

    All processes call it, and the main one writes. ``state`` is what JSON can hold, ``config`` the resolved
    configuration as YAML. If it cannot be written, nothing of it is left behind and ``CheckpointError`` says how much
    room was needed and which checkpoint is the newest.
    """
    path = folder / checkpoint_name(step)
    partial = path.with_name(f"{path.name}.partial")
    names = _names_of_tensors(model)
    weights = gathered({first: tensor for tensor, (first, *_) in names}, is_main=is_main)
    moments = gathered(_by_name(model, optimizer), is_main=is_main)
    if not is_main:
        return path
    try:
        remove(partial)
        partial.mkdir(parents=True)
        others = {other: first for _, (first, *rest) in names for other in rest}
        save_file(weights, partial / "model.safetensors", metadata=others)
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        (partial / "config.yaml").write_text(config, encoding="utf-8")
        manifest = {name: _fingerprint(partial / name) for name in _CONTENT}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        publish(partial, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(tensor.nbytes for tensor in [*weights.values(), *moments.values()])
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
        found = defect(path)
        if found is None:
            return path
        logger.warning("checkpoint %s is not whole (%s); trying the one before", path, found)
    return None


def defect(path: Path) -> str | None:
    """What keeps a checkpoint from being whole, sizes and checksums included, or None."""
    return _defect(path, checksums=True) if path.exists() else "it is not there"


def read_state(path: Path) -> dict[str, Any]:
    """The loop's state in a checkpoint."""
    return read_json(path / "state.json", dict[str, Any], remedy="delete this checkpoint: the one before is taken")


def read_manifest(path: Path) -> str:
    """Sizes and checksums of a checkpoint's files: two that have the same are the same."""
    return (path / "manifest.json").read_text(encoding="utf-8")


def difference(path: Path, manifest: str) -> str | None:
    """What keeps a checkpoint from being the whole one that another process has the ``manifest`` of, or None."""
    found = defect(path)
    return "it is another one" if not found and read_manifest(path) != manifest else found


def load_checkpoint(path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill model and optimizer from a checkpoint and return the loop's state.

    Raises ``InputError`` where names or shapes are not those of the checkpoint. Learning rates and the like stay as the
    optimizer has them: they follow from the configuration.
    """
    _restore_model(path, model)
    _restore_optimizer(path, _parameter_names(model, optimizer), optimizer)
    return read_state(path)


def prune_checkpoints(folder: Path, *, saved: str, keep: int, best: str | None) -> None:
    """Delete all but the newest ``keep`` whole checkpoints up to the one just ``saved``, and the one named ``best``.

    What is newer was passed over when the run was resumed, and may be whole by its sizes only.
    """
    assert keep >= 1, keep
    tidy(folder)
    # Sizes only: reading gigabytes at every save would cost more than it finds. latest_checkpoint reads them.
    whole = [p for p in _newest_first(folder) if p.name <= saved and _defect(p, checksums=False) is None]
    kept = {path.name for path in whole[:keep]} | {best}
    for path in _newest_first(folder):
        if path.name not in kept:
            remove(path)


def _newest_first(folder: Path) -> list[Path]:
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    found = [(int(match[1]), match[2] is None, path) for match, path in matches if match]
    return [path for *_, path in sorted(found, reverse=True)]


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _defect(path: Path, *, checksums: bool) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in _CONTENT:
            if (path / name).stat().st_size != manifest[name]["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes of {manifest[name]['size']}"
            if checksums and _fingerprint(path / name) != manifest[name]:
                return f"{name} has another checksum"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _names_of_tensors(model: nn.Module) -> list[tuple[Tensor, list[str]]]:
    """Every tensor of a model once, with its names in alphabetical order: the first one is stored, as safetensors'
    ``save_model`` does it."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return [*found.values()]


@torch.no_grad()
def _restore_model(path: Path, model: nn.Module) -> None:
    names, stored = _names_of_tensors(model), load_file(path / "model.safetensors")
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
    return moments


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
            like = parameters[index[name]] if value.ndim else value
            state.setdefault(index[name], {})[key] = split_like(value, like)  # a copy: the file may be pruned
    missing = [name for name, i in index.items() if parameters[i] in optimizer.state and i not in state]
    problems += [f"{name}: is being trained, but not in the checkpoint" for name in missing]
    _refuse(path, "optimizer", problems)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


HELD_OUT = "held_out/"
"""How the names of held-out numbers begin in ``metrics.jsonl``."""


def newest_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """The newest checkpoint that is whole in the main process's folder, by its place in this process's."""
    found = latest_checkpoint(folder) if accelerator.is_main_process else None
    (name,) = broadcast_object_list([found and found.name])
    return None if name is None else folder / name


def check_everywhere(accelerator: Accelerator, path: Path) -> None:
    """Raise ``InputError`` in all processes where one of them does not read a checkpoint as the main one does."""
    is_main = accelerator.is_main_process
    (manifest,) = broadcast_object_list([read_manifest(path) if is_main else ""])
    found = gather_object([None if is_main else difference(path, manifest)])
    defects = [f"process {process}: {defect}" for process, defect in enumerate(found) if defect]
    if defects:
        raise InputError(
            f"{path} is loaded by all processes, and {len(defects)} of {len(found)} do not have the main one's "
            f"({'; '.join(defects[:3])}); run.dir must be a folder that all machines share, or this checkpoint must "
            "be copied to each of them"
        )


def held_out_numbers(accelerator: Accelerator, metrics_file: Path, last: int) -> dict[int, dict[str, float]]:
    """The held-out numbers that the main process has on record, up to a step."""
    (found,) = broadcast_object_list([_held_out(metrics_file, last) if accelerator.is_main_process else {}])
    return found


def _held_out(metrics_file: Path, last: int) -> dict[int, dict[str, float]]:
    named = [
        (row["step"], {n.removeprefix(HELD_OUT): v for n, v in row.items() if n.startswith(HELD_OUT)})
        for row in read_rows(metrics_file)
    ]
    return {step: values for step, values in named if values and step <= last}

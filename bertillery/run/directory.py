"""The folder of a run: what it holds, and which configuration may continue it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertillery.config.layers import parse_yaml
from bertillery.config.section import ConfigError, InputError, Section, completed
from bertillery.run.inputs import Pins
from bertillery.system.files import fingerprint, sha256, tidy, write_text
from bertillery.system.lock import locked
from bertillery.system.records import checked, read_json, read_yaml

RESUMABLE = ("run.name", "run.dir", "run.data_dir", "run.threads", "run.device", "run.compile", "run.sharding",
             "tracking", "train.micro_batch_tokens", "train.workers", "train.log_every", "train.save_every",
             "train.keep")  # fmt: skip
"""Keys that may change when a run is resumed: they affect only rounding, speed and what is written."""

_OF_A_START = re.compile(r"lock$|config\.yaml")
"""Names in the folder of a run that was killed while the folder was being made."""

FINISHED_REMEDY = "delete this file: the next start writes it again from the last checkpoint"


@dataclass(frozen=True)
class _ExportedFile:
    size: int
    sha256: str


class RunDirectory:
    """The folder of one run: ``config.yaml``, ``inputs.json``, ``tokenizer/``, ``metrics.jsonl``, ``checkpoints/``,
    ``export/``, ``finished.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.metrics_file = path / "metrics.jsonl"
        self.pins = Pins(path)
        self._folders = path, self.checkpoints, self.export

    @classmethod
    def open(
        cls,
        path: Path,
        config_text: str,
        *,
        schema: type[Section] | None = None,
        ignore: Sequence[str] = RESUMABLE,
        is_main: bool = True,
    ) -> RunDirectory:
        """Open the folder of the run with this configuration (YAML), to start it or to resume it.

        ``ignore`` names keys and sections that may differ when a run is resumed. Keys of ``schema`` that the saved
        configuration lacks are newer than the run and count as given their defaults. All processes call this and make
        the same checks; only the main one, which must hold the run, writes. A barrier must follow. Raises
        ``ConfigError`` if the folder belongs to something else.
        """
        config_file = path / "config.yaml"
        if config_file.exists():
            remedy = "give another run.name, or delete the folder"
            saved = read_yaml(config_file, dict[str, Any], remedy=remedy)
            given = parse_yaml(config_text, "the configuration")
            found = changes(completed(saved, schema) if schema else saved, given, ignore)
            if found:
                listing = "\n".join(f"  - {change}" for change in found)
                raise ConfigError(
                    f"{path} holds a run with another configuration:\n{listing}\n"
                    "Give this run another name (run.name=...), use the old values to resume, or delete the folder."
                )
        elif path.exists() and (not path.is_dir() or any(not _OF_A_START.match(e.name) for e in path.iterdir())):
            raise ConfigError(
                f"{path} exists and is not a run (it has no config.yaml); give another run.name or run.dir, or move it"
            )
        elif is_main:
            path.mkdir(parents=True, exist_ok=True)
            write_text(config_file, config_text)
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run, and clean up what a killed process left; ``ConfigError`` if another process holds it."""
        remedy = "wait for it, end it, or give another run.name"
        with locked(self.path / "lock", doing="is at this run", remedy=remedy):
            for folder in self._folders:
                tidy(folder)
            yield

    def clear(self) -> None:
        """Clean up what a killed process left in a finished run, unless another process holds it or it is read-only."""
        if any(left for folder in self._folders for end in ("partial", "old") for left in folder.glob(f"*.{end}")):
            with suppress(InputError, OSError), self.held():
                pass

    @property
    def begun(self) -> bool:
        """Whether the run has checkpoints."""
        return any(self.checkpoints.glob("step-*/manifest.json"))

    @property
    def trained(self) -> bool:
        """Whether the last step is done and only the export remains."""
        states = sorted(self.checkpoints.glob("step-*/state.json"))
        try:
            state = json.loads(states[-1].read_text(encoding="utf-8")) if states else {}
        except (OSError, ValueError, RecursionError):  # resuming reports the damage
            state = {}
        return self.finished or (
            isinstance(state, dict) and "step" in state and state["step"] == state.get("total_steps")
        )

    @property
    def finished(self) -> bool:
        """Whether ``finished.json`` exists."""
        return (self.path / "finished.json").exists()

    @property
    def results(self) -> dict[str, Any]:
        """Content of ``finished.json``; ``InputError`` if it is damaged."""
        return read_json(self.path / "finished.json", dict[str, Any], remedy=FINISHED_REMEDY)

    def finish(self, results: dict[str, Any]) -> None:
        """Write ``finished.json``; it is written again when baselines and pictures are done."""
        write_text(self.path / "finished.json", json.dumps(results, indent=1))

    def exported(self) -> dict[str, Any]:
        """Sizes and checksums of the files in ``export/`` except the card, for ``finished.json``."""
        files = sorted(file for file in self.export.rglob("*") if file.is_file() and file.suffix != ".md")
        return {file.relative_to(self.export).as_posix(): fingerprint(file) for file in files}

    def export_defect(self) -> str | None:
        """What is missing or damaged in a finished run's export, or None.

        Weights must have their checksums. Other files must exist; a user may edit a configuration.
        """
        if not (self.export / "config.json").is_file():
            return f"{self.export} has no config.json" if self.export.exists() else f"{self.export} does not exist"
        results, found = self.path / "finished.json", self.results.get("exported", {})
        for name, saved in checked(results, found, dict[str, _ExportedFile], remedy=FINISHED_REMEDY).items():
            file = self.export / name
            if not file.is_file():
                return f"{file} is missing"
            if file.suffix == ".safetensors" and file.stat().st_size != saved.size:
                return f"{file} has {file.stat().st_size:,} bytes of {saved.size:,}"
            if file.suffix == ".safetensors" and sha256(file) != saved.sha256:
                return f"{file} has another checksum"
        return None


def changes(
    old: dict[str, Any],
    new: dict[str, Any],
    ignore: Sequence[str],
    sides: tuple[str, str] = ("the saved run", "this command"),
) -> list[str]:
    """Differences between two configurations, except in the keys and sections to ``ignore``."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [k for k in {**before, **after} if not any(k == i or k.startswith(f"{i}.") for i in ignore)]
    shown = [tuple(repr(side[key]) if key in side else "nothing" for side in (before, after)) for key in keys]
    return [
        f"{key}: {sides[0]} has {one}, {sides[1]} has {other}"
        for key, (one, other) in zip(keys, shown, strict=True)
        if one != other
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

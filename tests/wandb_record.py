"""What a run wrote for W&B, read back from its offline file by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Record:
    """The records of one file, by what they say."""

    run: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    """By dotted name: ``held_out/loss.min``."""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Artifacts that the run was made from, by name."""
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Artifacts that it made, without those that hold its tables."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Columns and data, by name."""
    alerts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def names(self) -> set[str]:
        """Everything that was logged, by name."""
        logged = {name for row in self.history for name in row} | self.summary.keys()
        return logged | {name.split(".")[0] for name in logged}


def read(run: Path) -> Record:
    """The record of the only offline run in the folder of a run."""
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    program = str(Path(sys.executable).with_name("wandb"))
    told = subprocess.run([program, "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=True)
    found = Record()
    for line in told.stdout.splitlines():
        row = json.loads(line)
        _add(found, row["type"], row[row["type"]])
    return found


def _add(found: Record, kind: str, row: dict[str, Any]) -> None:
    if kind == "run":
        found.run = row
    elif kind == "history":
        found.history.append(row["item"])
    elif kind == "summary":
        found.summary |= _flat(row["update"])
    elif kind == "metric":
        found.metrics[row.get("name") or row["glob_name"]] = row
    elif kind == "alert":
        found.alerts.append(row)
    elif kind == "exit":
        found.exit_code = row.get("exit_code", 0)
    elif kind == "artifact" and row["type"] == "run_table":
        (file,) = (each for each in row["manifest"]["contents"] if each["path"].endswith(".table.json"))
        name = row["name"].split("-", 2)[2]  # run-<id>-<name>
        found.tables[name] = json.loads(Path(file["local_path"]).read_text(encoding="utf-8"))
    elif kind == "artifact":
        (found.used if row.get("use_after_commit") else found.made)[row["name"]] = row


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat

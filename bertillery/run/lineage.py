"""What a run is made from and what it makes, as artifacts: the lineage from a corpus to a student.

An artifact is known by the fingerprint of its content, so that the model that one run makes and another one reads is
the same artifact. Small files are stored with it; models and corpora are references to where they lie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bertillery.run.inputs import Fingerprint, Inputs, model_files


@dataclass(frozen=True)
class Artifact:
    """One input or result of a run."""

    name: str
    """Artifacts of one name are versions of each other."""
    type: str
    """``model``, ``corpus``, ``tokenizer``, ``rows``, ``graph``."""
    fingerprint: Fingerprint
    files: Mapping[str, Path] = field(default_factory=dict)
    """Small files to store, by their names in the artifact."""
    references: Mapping[str, Path] = field(default_factory=dict)
    """Files to refer to where they lie, by their names in the artifact."""
    checksums: bool = True
    """Whether a tracker reads the references for their checksums. Otherwise they are known by their paths."""
    alias: str = ""
    """What the run made it for: ``pretrained``, ``fine-tuned``, ``student``."""


def model_name(start: str) -> str:
    """What a model is called: the run of an export directory (and the task, if it is of a fine-tuning run), or the last
    part of a path or id."""
    parts = [part for part in Path(start).parts if part not in ("export", "/", ".", "..")]
    if len(parts) > 2 and parts[-1].startswith("seed-"):
        return f"{parts[-2]}+{parts[-3]}"
    return parts[-1] if parts else "model"


def model_artifact(start: str, fingerprint: Fingerprint, alias: str = "") -> Artifact:
    """A model by its folder or its name on the Hub."""
    folder = Path(start).resolve()
    files = {path.relative_to(folder).as_posix(): path for path in model_files(folder)} if folder.is_dir() else {}
    return Artifact(_named(model_name(start)), "model", fingerprint, references=files, alias=alias)


def used_artifacts(
    inputs: Inputs, *, models: Mapping[str, str], folders: Mapping[str, Path], about: str
) -> list[Artifact]:
    """The inputs whose content is known, as artifacts.

    ``models`` gives the folder, or the name on the Hub, of each input that is a model; ``folders`` those of a corpus
    and of a tokenizer that does not come with a model; ``about`` names the data in the artifacts' names.
    """
    found = []
    for name, fingerprint in inputs.items():
        folder = folders.get(name)
        if not fingerprint.exact:
            continue
        if name in models:
            found.append(model_artifact(models[name], fingerprint))
        elif name == "tokenizer":  # that of a model comes with the model
            if files := _within(folder, "tokenizer*.json"):
                found.append(Artifact(f"{name}-{fingerprint.sha256[:8]}", name, fingerprint, files=files))
        elif name == "corpus":  # read by runs of different stages
            arrays = _within(folder, "*/*.bin")
            called = f"{name}-{fingerprint.sha256[:8]}"
            found.append(Artifact(called, name, fingerprint, references=arrays, checksums=False))  # may take minutes
        else:
            found.append(Artifact(_named(f"{about}-{name}"), name.split()[-1], fingerprint))
    return found


def _within(folder: Path | None, pattern: str) -> dict[str, Path]:
    paths = sorted(folder.resolve().glob(pattern)) if folder else []
    return {path.relative_to(folder.resolve()).as_posix(): path for path in paths if folder}


def _named(name: str) -> str:
    """A name that trackers accept."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[:120] or "unnamed"

"""Inputs of a run: fingerprints, recorded at the first start and compared at later ones.

``<run>/inputs.json`` and the state of every checkpoint hold them; ``<run>/tokenizer`` holds the tokenizer. A
fingerprint is of content (rows as read, token ids, bytes of a model's files), so that moving or touching a file does
not change it. Inputs that take hours to read also have an inexact one, of names, sizes and times of their files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.system.files import publish, remove, sha256, write_text, writing
from bertillery.system.records import read_json

_MODEL_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")
"""Suffixes of the files that a model is loaded from, without cards and ONNX files."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of one input."""

    sha256: str
    what: str
    """Description, such as ``1,234 rows``."""
    exact: bool = True
    """Whether it is of content. Inexact ones that differ in ``sha256`` alone may have the same content."""

    def __str__(self) -> str:
        return f"{self.what} ({self.sha256[:8]})"

    def may_equal(self, other: Fingerprint) -> bool:
        """Whether both may have the same content although ``sha256`` differs."""
        return not other.exact and self.what == other.what


Inputs = Mapping[str, Fingerprint]
"""Fingerprints by the name of the input: ``corpus``, ``train rows``, ``teacher``."""


def describe_files(number: int, size: int) -> str:
    """``2 files of 1,234 bytes``."""
    return f"{number:,} file{'' if number == 1 else 's'} of {size:,} bytes"


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 of JSON data, arrays, and objects whose ``repr`` is complete, such as dataclasses."""
    found = hashlib.sha256()
    for part in parts:
        found.update(json.dumps(part, default=_plain).encode() + b"\n")
    return found.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def model_inputs(**names: str | None) -> dict[str, Fingerprint]:
    """Fingerprints of models by their role, with ``_`` for a space; None values are skipped.

    The fingerprint of a folder is of the bytes of configuration, weights and tokenizer, including auxiliary models in
    subfolders; that of a name on the Hub is its commit, which is downloaded. Other names have none.
    """
    found = {part.replace("_", " "): _model(name) for part, name in names.items() if name is not None}
    return {part: fingerprint for part, fingerprint in found.items() if fingerprint}


def _model(name: str) -> Fingerprint | None:
    folder = Path(name)
    if not folder.is_dir():
        from bertillery.models.folder import file_of  # loads torch, which reading rows does not need

        on_the_hub = name.count("/") <= 1 and not name.startswith((".", "/", "~"))  # else a folder that is not there
        found = file_of(name, "config.json") if on_the_hub else None
        commit = found.parent.name if found else None
        return Fingerprint(commit, f"{name} on the Hub") if commit else None
    files = {file: file.stat() for file in model_files(folder)}
    content = digest(
        [file.relative_to(folder).as_posix(), _content(file, stat.st_size, stat.st_ctime_ns)]
        for file, stat in files.items()
    )
    return Fingerprint(content, describe_files(len(files), sum(stat.st_size for stat in files.values())))


def model_files(folder: Path) -> list[Path]:
    """Files that decide what a model's folder is: configuration, weights and tokenizer, of auxiliary models, too."""
    folders = [path.parent for path in folder.glob("*/config.json") if not path.parent.name.startswith("checkpoint")]
    inside = [file for each in [folder, *folders] for file in each.iterdir()]
    return [file for file in sorted(inside) if file.suffix in _MODEL_FILES and file.is_file()]


@lru_cache(maxsize=1024)  # seeds and tasks share the model that they start from
def _content(file: Path, size: int, changed: int) -> str:
    return sha256(file)


def tokenizer_input(tokenizer: PreTrainedTokenizerBase) -> dict[str, Fingerprint]:
    """Fingerprint of a tokenizer's vocabulary with ids, and of its special tokens."""
    pieces = sorted(tokenizer.get_vocab().items())
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return {"tokenizer": Fingerprint(digest([pieces, special]), f"{len(pieces):,} pieces")}


def differences(before: Inputs, now: Inputs, *, certain: bool) -> list[str]:
    """Differences between inputs that both have; with ``certain`` only those whose content must differ."""
    pairs = {name: (before[name], found) for name, found in now.items() if name in before}
    return [
        f"{name}: was {old}, is now {new}"
        + ("; names or times of files differ, the content may be the same" if old.may_equal(new) else "")
        for name, (old, new) in pairs.items()
        if old.sha256 != new.sha256 and not (certain and old.may_equal(new))
    ]


def refuse(place: Path, found: list[str]) -> None:
    """Raise ``InputError`` for differences from the inputs of the run or checkpoint in ``place``."""
    if found:
        raise InputError(
            f"{place} was made from other inputs than this command gives:\n"
            + "\n".join(f"  - {each}" for each in found)
            + "\nRestore these inputs to resume, or start another run: run.name=<new>. Nothing was changed."
        )


def as_json(inputs: Inputs) -> dict[str, Any]:
    """The fingerprints as JSON data."""
    return {name: asdict(found) for name, found in inputs.items()}


def from_json(values: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """Inverse of :func:`as_json`."""
    return {name: Fingerprint(**found) for name, found in values.items()}


class Pins:
    """The record of a run's inputs in its folder."""

    def __init__(self, run: Path) -> None:
        self.file, self.tokenizer = run / "inputs.json", run / "tokenizer"

    def read(self) -> dict[str, Fingerprint]:
        """The fingerprints, none without a record; ``InputError`` if the record is damaged."""
        if not self.file.exists():
            return {}
        remedy = "restore it, or delete it: then the inputs in the checkpoints are compared"
        return read_json(self.file, dict[str, Fingerprint], remedy=remedy)

    def write(self, inputs: Inputs, tokenizer: PreTrainedTokenizerBase) -> None:
        """Record the tokenizer, then all fingerprints at once."""
        partial = self.tokenizer.with_name("tokenizer.partial")
        remove(partial)
        with writing(partial):
            tokenizer.save_pretrained(partial)
        publish(partial, self.tokenizer)
        write_text(self.file, json.dumps(as_json(inputs), indent=1))

    def open_tokenizer(self, inputs: Inputs) -> PreTrainedTokenizerBase:
        """The recorded tokenizer; ``InputError`` if it does not match the fingerprint."""
        from bertillery.models.load import load_tokenizer  # loads torch, which reading rows does not need

        found = load_tokenizer(str(self.tokenizer), "the run's own tokenizer", role=None)
        changed = differences(inputs, tokenizer_input(found), certain=True)
        if changed:
            raise InputError(
                f"{self.tokenizer}: not the tokenizer that the weights are trained with ({changed[0]}); "
                "delete this folder: the next start writes it again"
            )
        return cast(PreTrainedTokenizerBase, found)

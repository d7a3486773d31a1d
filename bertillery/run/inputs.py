"""What a run is made from: fingerprints of its inputs, recorded when it begins and compared at every later start.

``<run>/inputs.json`` and the state of every checkpoint hold them; the tokenizer itself is kept in ``<run>/tokenizer``.
A fingerprint is of content (rows as read, token ids, bytes of a model's files), so that moving or touching a file
changes nothing. What would take hours to read again also has an inexact one, of names, sizes and times of its files.
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
"""Suffixes of what a model is loaded from; a card or an ONNX file beside it is no part of it."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of one input."""

    sha256: str
    what: str
    """In words: ``1,234 rows``."""
    exact: bool = True
    """Whether it is of content: an inexact one that differs in ``sha256`` alone may be of the same content."""

    def __str__(self) -> str:
        return f"{self.what} ({self.sha256[:8]})"

    def may_equal(self, other: Fingerprint) -> bool:
        """Whether the content may be that of another one all the same."""
        return not other.exact and self.what == other.what


Inputs = Mapping[str, Fingerprint]
"""Fingerprints by the plain name of the input: ``corpus``, ``train rows``, ``teacher``."""


def describe_files(number: int, size: int) -> str:
    """``2 files of 1,234 bytes``."""
    return f"{number:,} file{'s' * (number != 1)} of {size:,} bytes"


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 of values that JSON can hold, of arrays, and of what ``repr`` shows in full, such as a dataclass."""
    found = hashlib.sha256()
    for part in parts:
        found.update(json.dumps(part, default=_plain).encode() + b"\n")
    return found.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def model_inputs(**names: str | None) -> dict[str, Fingerprint]:
    """Fingerprints of models by the name of their part; ``_`` stands for a space, and None is passed over.

    Of a folder they are of the bytes of configuration, weights and tokenizer, with auxiliary models in subfolders; of a
    name on the Hub of the commit, which is fetched to the cache. What is in neither place has none.
    """
    found = {part.replace("_", " "): _model(name) for part, name in names.items() if name is not None}
    return {part: fingerprint for part, fingerprint in found.items() if fingerprint}


def _model(name: str) -> Fingerprint | None:
    folder = Path(name)
    if not folder.is_dir():
        from bertillery.models.folder import file_of  # torch, which who only reads rows need not load

        on_the_hub = name.count("/") <= 1 and not name.startswith((".", "/", "~"))  # else a folder that is not there
        found = file_of(name, "config.json") if on_the_hub else None
        commit = found.parent.name if found else None
        return Fingerprint(commit, f"{name} on the Hub") if commit else None
    auxiliary_models = [
        path.parent for path in folder.glob("*/config.json") if not path.parent.name.startswith("checkpoint")
    ]
    files = sorted(
        file
        for each in [folder, *auxiliary_models]
        for file in each.iterdir()
        if file.suffix in _MODEL_FILES and file.is_file()
    )
    size = sum(file.stat().st_size for file in files)
    content = digest([file.relative_to(folder).as_posix(), _content(file, *_stamp(file))] for file in files)
    return Fingerprint(content, describe_files(len(files), size))


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_ctime_ns


@lru_cache(maxsize=1024)  # several seeds of several tasks start from one model
def _content(file: Path, size: int, changed: int) -> str:
    return sha256(file)


def tokenizer_input(tokenizer: PreTrainedTokenizerBase) -> dict[str, Fingerprint]:
    """Fingerprint of the numbers that a tokenizer gives to its pieces, and of its special tokens."""
    pieces = sorted(tokenizer.get_vocab().items())
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return {"tokenizer": Fingerprint(digest([pieces, special]), f"{len(pieces):,} pieces")}


def differences(before: Inputs, now: Inputs, *, certain: bool) -> list[str]:
    """How inputs that both name differ; with ``certain`` an inexact one counts only where its content must differ."""
    pairs = {name: (before[name], found) for name, found in now.items() if name in before}
    return [
        f"{name}: was {old}, is now {new}" + "; their names or times differ, perhaps nothing else" * old.may_equal(new)
        for name, (old, new) in pairs.items()
        if old.sha256 != new.sha256 and not (certain and old.may_equal(new))
    ]


def refuse(place: Path, found: list[str]) -> None:
    """Raise ``InputError`` for what differs from what the run, or the checkpoint, in ``place`` was made from."""
    if found:
        raise InputError(
            f"{place} was made from other inputs than this command gives:\n"
            + "\n".join(f"  - {each}" for each in found)
            + "\nRestore these inputs to go on with it, or start another run: run.name=<new>. Nothing was changed."
        )


def as_json(inputs: Inputs) -> dict[str, Any]:
    """The fingerprints as JSON holds them."""
    return {name: asdict(found) for name, found in inputs.items()}


def from_json(values: Mapping[str, Any]) -> dict[str, Fingerprint]:
    """What :func:`as_json` made."""
    return {name: Fingerprint(**found) for name, found in values.items()}


class Pins:
    """The record of one run's inputs, below its folder."""

    def __init__(self, run: Path) -> None:
        self.file, self.tokenizer = run / "inputs.json", run / "tokenizer"

    def read(self) -> dict[str, Fingerprint]:
        """The fingerprints; none for a run that has no record, ``InputError`` where the record is damaged."""
        if not self.file.exists():
            return {}
        remedy = "restore it, or delete it: then what the checkpoints say of their inputs is compared"
        return read_json(self.file, dict[str, Fingerprint], remedy=remedy)

    def write(self, inputs: Inputs, tokenizer: PreTrainedTokenizerBase) -> None:
        """Record the inputs: first the tokenizer, then all fingerprints in one piece."""
        partial = self.tokenizer.with_name("tokenizer.partial")
        remove(partial)
        with writing(partial):
            tokenizer.save_pretrained(partial)
        publish(partial, self.tokenizer)
        write_text(self.file, json.dumps(as_json(inputs), indent=1))

    def open_tokenizer(self, inputs: Inputs) -> PreTrainedTokenizerBase:
        """The tokenizer that was kept; ``InputError`` where it is not the one of the fingerprint."""
        from bertillery.models.load import load_tokenizer  # torch, which who only reads rows need not load

        found = load_tokenizer(str(self.tokenizer), "the run's own tokenizer")
        changed = differences(inputs, tokenizer_input(found), certain=True)
        if changed:
            raise InputError(
                f"{self.tokenizer}: not the tokenizer that the weights are trained with ({changed[0]}); "
                "delete this folder: the next start writes it again"
            )
        return cast(PreTrainedTokenizerBase, found)

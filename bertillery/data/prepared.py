"""A prepared corpus on disk: memory-mapped token ids with sentence and document boundaries, and its manifest.

The manifest has a checksum of every file and of itself. The first time a corpus is opened, all files are read and
compared. Their sizes and times are then kept in ``checked.json``, and nothing is read again until these change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError
from bertillery.models.load import load_tokenizer
from bertillery.run.inputs import Fingerprint, digest
from bertillery.system.files import sha256, tidy, write_text
from bertillery.system.records import read_json

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of the layout on disk; part of the folder's name."""
MOST_UNKNOWN = 0.05
"""Share of characters in unknown tokens above which the report warns."""
_MANIFEST, _CHECKED = "manifest.json", "checked.json"
_REMEDY = "delete the folder and prepare again"
_CHUNK = 1 << 22
"""Elements that are checked at a time."""


@dataclass(frozen=True)
class TokenArrays:
    """One part (training or held-out) of a corpus, as read-only memory maps."""

    ids: np.ndarray
    """(T,) uint16 or uint32: the tokens of all sentences, laid end to end."""
    sentences: np.ndarray
    """(S+1,) int64: where in ``ids`` each sentence starts; the last entry is T."""
    documents: np.ndarray
    """(D+1,) int64: where in ``sentences`` each document starts; the last entry is S."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens, T."""
        return len(self.ids)

    @property
    def num_sentences(self) -> int:
        """Number of sentences, S."""
        return len(self.sentences) - 1

    @property
    def num_documents(self) -> int:
        """Number of documents, D."""
        return len(self.documents) - 1


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus made by :func:`bertillery.data.prepare.prepare`."""

    path: Path
    manifest: dict[str, Any]
    """Numbers, settings, tokenizer hash and file hashes; see ``manifest.json``."""
    train: TokenArrays
    valid: TokenArrays
    unigrams: np.ndarray
    """(V,) int64: the count of each token in the training part."""

    @classmethod
    def open(cls, path: str | Path) -> PreparedCorpus:
        """Map the corpus in ``path``; ``InputError`` if it is not a corpus, has another version, or is damaged."""
        path = Path(path)
        manifest = _read_manifest(path)
        stamp, known = _stamp(path, manifest), None
        with suppress(InputError):
            known = read_json(path / _CHECKED, Any, remedy="")
        if known != stamp:
            _check_content(path, manifest)
        train, valid = (_map_part(path / part, np.dtype(manifest["dtype"])) for part in ("train", "valid"))
        if known != stamp:
            _check_structure(path / "train", train, manifest["vocab_size"])
            _check_structure(path / "valid", valid, manifest["vocab_size"])
            _write_stamp(path, stamp)
        return cls(path, manifest, train, valid, np.load(path / "unigrams.npy"))

    @property
    def fingerprint(self) -> Fingerprint:
        """The checksums of the token ids and boundaries, which do not depend on the place of the corpus."""
        files = {name: file["sha256"] for name, file in self.manifest["files"].items() if name.endswith(".bin")}
        what = f"{self.train.num_documents:,} documents, {self.train.num_tokens:,} tokens"
        return Fingerprint(digest(sorted(files.items())), what)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer the corpus was encoded with."""
        return load_tokenizer(str(self.path / "tokenizer"), role=None)


def write_manifest(path: Path, facts: dict[str, Any]) -> None:
    """Finish a corpus: record the checksums of its files together with the ``facts``."""
    own = (_MANIFEST, _CHECKED)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(own))
    manifest = {"format": FORMAT, **facts, "files": {
        file.relative_to(path).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)} for file in files
    }}  # fmt: skip
    text = json.dumps({**manifest, "checksum": _hash(manifest)}, indent=1)
    (path / _MANIFEST).write_text(text, encoding="utf-8")
    _write_stamp(path, _stamp(path, manifest))


def _read_manifest(path: Path) -> dict[str, Any]:
    remedy = f"not a prepared corpus, or a damaged one: {_REMEDY}"
    manifest = read_json(path / _MANIFEST, dict[str, Any], remedy=remedy)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {manifest.get('format')}, this version reads {FORMAT}; {_REMEDY}")
    if manifest.pop("checksum", None) != _hash(manifest):
        raise InputError(f"{path / _MANIFEST}: damaged: wrong checksum; {_REMEDY}")
    return manifest


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The times of the files, which tell a later start that they have not changed since they were checked.

    The ctime cannot be set back. Raises ``InputError`` for files that differ in name or size from the manifest.
    """
    times = {}
    for name, file in manifest["files"].items():
        stat = (path / name).stat() if (path / name).is_file() else None
        if stat is None or stat.st_size != file["size"]:
            found = "is missing" if stat is None else f"has {stat.st_size} bytes instead of {file['size']}"
            raise InputError(f"{path}: damaged: {name} {found}; {_REMEDY}")
        times[name] = [stat.st_mtime_ns, stat.st_ctime_ns]
    for file in (path / "tokenizer").iterdir():  # any file there may change the tokenizer
        if f"tokenizer/{file.name}" not in manifest["files"]:
            raise InputError(f"{path}: {file.relative_to(path)} is not part of the corpus; delete that file")
    return {"manifest": _hash(manifest), "times": times}


def _write_stamp(path: Path, stamp: dict[str, Any]) -> None:
    with suppress(OSError):  # a read-only folder is checked at every start
        tidy(path, f"{_CHECKED}.*")
        write_text(path / _CHECKED, json.dumps(stamp, indent=1))


def _check_content(path: Path, manifest: dict[str, Any]) -> None:
    size, began = sum(file["size"] for file in manifest["files"].values()), time.monotonic()
    logger.info("checking the prepared corpus %s (%s MB), once", path, f"{size / 1e6:,.1f}")
    for name, file in manifest["files"].items():
        if sha256(path / name) != file["sha256"]:
            raise InputError(f"{path}: damaged: {name} has a wrong checksum; {_REMEDY}")
    logger.info("checked in %.1f s", time.monotonic() - began)


def _check_structure(path: Path, arrays: TokenArrays, vocab_size: int) -> None:
    """Refuse arrays with which a run would hang or fail, even if the checksums are correct."""
    for name, bounds in (("sentences", arrays.sentences), ("documents", arrays.documents)):
        steps = (bounds[at : at + _CHUNK + 1] for at in range(0, len(bounds) - 1, _CHUNK))
        if bounds[0] != 0 or any((np.diff(piece) <= 0).any() for piece in steps):
            raise InputError(f"{path}: damaged: the boundaries in {name}.bin do not ascend from 0; {_REMEDY}")
    pieces = (arrays.ids[at : at + _CHUNK] for at in range(0, len(arrays.ids), _CHUNK))
    if any(piece.max() >= vocab_size for piece in pieces):
        raise InputError(f"{path}: damaged: ids.bin has a token beyond the {vocab_size} of the vocabulary; {_REMEDY}")


def _map_part(path: Path, dtype: np.dtype) -> TokenArrays:
    arrays = TokenArrays(
        np.memmap(path / "ids.bin", dtype, "r"),
        np.memmap(path / "sentences.bin", np.int64, "r"),
        np.memmap(path / "documents.bin", np.int64, "r"),
    )
    if arrays.sentences[-1] != arrays.num_tokens or arrays.documents[-1] != arrays.num_sentences:
        raise InputError(f"{path}: damaged: the last boundary is not the number of tokens or sentences; {_REMEDY}")
    return arrays


def corpus_report(prepared: PreparedCorpus) -> str:
    """The numbers of documents, sentences, tokens and repetitions, one aligned line each."""
    manifest, unigrams = prepared.manifest, prepared.unigrams
    read, dropped, lost = manifest["read"], manifest["duplicates"], manifest["unknown"]
    unknown = cast(int | None, prepared.tokenizer().unk_token_id)
    share = 0.0 if unknown is None else unigrams[unknown] / unigrams.sum()
    rows = {
        "read": f"{read['files']:,} files, {read['documents']:,} documents, {read['paragraphs']:,} paragraphs, "
                f"{read['characters']:,} characters",
        "dropped": f"{dropped['documents']:,} repeated documents, "
                   f"{dropped['paragraphs'] + read['repeated']:,} repeated paragraphs",
        "undecodable": f"{read['undecodable']:,} lines with replaced bytes",
    }  # fmt: skip
    if read["passed_over"]:
        suffixes = ", ".join(f"{number:,} {suffix}" for suffix, number in read["passed_over"].items())
        rows["not read"] = f"{sum(read['passed_over'].values()):,} files of other types: {suffixes}"
    for name, part in (("train", prepared.train), ("held out", prepared.valid)):
        tokens, mean = f"{part.num_tokens:,} tokens", f"mean {part.num_tokens / part.num_sentences:.1f} tokens"
        if manifest["settings"]["data"].get("units") == "documents":  # a manifest may be older than the key
            rows[name] = f"{part.num_documents:,} documents ({mean}), {tokens}"
        else:
            single = float((np.diff(part.documents) == 1).mean())
            documents = f"{part.num_documents:,} documents ({single:.1%} of one sentence)"
            rows[name] = f"{documents}, {part.num_sentences:,} sentences ({mean}), {tokens}"
    rows["vocabulary"] = (
        f"{manifest['vocab_size']:,} pieces, {int((unigrams > 0).sum()):,} in use; {share:.2%} of tokens unknown, with "
        f"{lost:.2%} of the characters"
    )
    if lost > MOST_UNKNOWN:
        rows["warning"] = (
            f"{lost:.0%} of the characters are lost in unknown tokens: words of over 100 letters, as in text without "
            "spaces, or letters that the tokenizer lacks; set tokenizer.type=unigram, or give a tokenizer made for "
            "this text (tokenizer.path)"
        )
    return "\n".join(f"{name:<12} {text}" for name, text in rows.items())


@contextmanager
def held_out_remedy() -> Iterator[None]:
    """Add to a ``ConfigError`` that the held-out part is too small, and how to enlarge it."""
    try:
        yield
    except ConfigError as error:
        remedy = "hold out more (data.holdout), or name held-out files (data.valid)"
        raise ConfigError(f"the held-out text: {error}; or {remedy}") from None

"""A prepared corpus on disk: memory-mapped token ids with sentence and document boundaries, and its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from engine.config import ConfigError, InputError
from engine.load import load_tokenizer

FORMAT = 1
"""Version of the layout on disk; part of the folder's name."""


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
    """What ``prepare`` leaves behind."""

    path: Path
    manifest: dict[str, Any]
    """Numbers, settings, tokenizer hash and file hashes; see ``manifest.json``."""
    train: TokenArrays
    valid: TokenArrays
    unigrams: np.ndarray
    """(V,) int64: how often each token occurs in the training part."""

    @classmethod
    def open(cls, path: str | Path) -> PreparedCorpus:
        """Map the corpus in ``path``; ``InputError`` when it is not one, of another version, or damaged."""
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a prepared corpus ({error}); delete the folder and prepare again") from error
        if manifest["format"] != FORMAT:
            raise InputError(
                f"{path}: format {manifest['format']}, this version reads {FORMAT}; delete the folder and prepare again"
            )
        for name, file in manifest["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else None
            if size != file["size"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {file['size']}"
                raise InputError(f"{path}: torn: {name} {found}; delete the folder and prepare again")
        parts = {part: _map_part(path / part, np.dtype(manifest["dtype"])) for part in ("train", "valid")}
        return cls(path, manifest, parts["train"], parts["valid"], np.load(path / "unigrams.npy"))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer the corpus was encoded with."""
        return load_tokenizer(str(self.path / "tokenizer"))


def _map_part(path: Path, dtype: np.dtype) -> TokenArrays:
    arrays = TokenArrays(
        np.memmap(path / "ids.bin", dtype, "r"),
        np.memmap(path / "sentences.bin", np.int64, "r"),
        np.memmap(path / "documents.bin", np.int64, "r"),
    )
    if arrays.sentences[-1] != arrays.num_tokens or arrays.documents[-1] != arrays.num_sentences:
        raise InputError(f"{path}: torn: the boundaries end elsewhere than the tokens; delete it and prepare again")
    return arrays


def corpus_report(prepared: PreparedCorpus) -> str:
    """The corpus in a few aligned lines."""
    manifest = prepared.manifest
    read, dropped = manifest["read"], manifest["duplicates"]
    repeated = dropped["paragraphs"] + read["repeated"]
    rows = [
        ("read", f"{read['files']:,} files, {read['documents']:,} documents, {read['paragraphs']:,} paragraphs, "
                 f"{read['characters']:,} characters"),
        ("dropped", f"{dropped['documents']:,} repeated documents, {repeated:,} repeated paragraphs"),
        ("undecodable", f"{read['undecodable']:,} lines with replaced bytes"),
    ]  # fmt: skip
    for name, part in (("train", prepared.train), ("held out", prepared.valid)):
        single = float((np.diff(part.documents) == 1).mean())
        rows.append((
            name,
            f"{part.num_documents:,} documents ({single:.1%} of one sentence), {part.num_sentences:,} sentences "
            f"(mean {part.num_tokens / part.num_sentences:.1f} tokens), {part.num_tokens:,} tokens",
        ))  # fmt: skip
    used, unknown = int((prepared.unigrams > 0).sum()), prepared.tokenizer().unk_token_id
    share = 0.0 if unknown is None else prepared.unigrams[cast(int, unknown)] / prepared.unigrams.sum()
    rows.append(("vocabulary", f"{manifest['vocab_size']:,} pieces, {used:,} in use; {share:.2%} of tokens unknown"))
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


@contextmanager
def of_held_out_text() -> Iterator[None]:
    """Let a ``ConfigError`` say that it is about the held-out part, and how there may be more of it."""
    try:
        yield
    except ConfigError as error:
        remedy = "hold out more (data.holdout), or name held-out files (data.valid)"
        raise ConfigError(f"the held-out text: {error}; or {remedy}") from None

"""Documents to a prepared corpus.

First a tokenizer is trained on a sample, then all documents are split into sentences, encoded, and written without
repetitions. The folder is named by a hash of its sources and settings. It is built under a temporary name, continues
after a kill, and is renamed when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.data import pydocs
from bertillery.data.causal_tokenizer import train_byte_bpe, train_characters
from bertillery.data.corpus import CorpusSection, ReadReport, read_documents, resolve
from bertillery.data.encode import HELD_OUT, Document, batched, document_key, encode_batches
from bertillery.data.prepared import FORMAT, PreparedCorpus, write_manifest
from bertillery.data.tokenizer import TokenizerSection, WordEncoder, train_wordpiece
from bertillery.data.unigram import train_unigram
from bertillery.data.writer import CorpusWriter, Progress
from bertillery.models.encoders import Role
from bertillery.models.frame import check_pretraining_frame
from bertillery.models.load import load_tokenizer, vocabulary_size
from bertillery.run.inputs import Fingerprint, describe_files
from bertillery.run.stage import Stage
from bertillery.run.waiting import main_process_first
from bertillery.system.environment import num_cores
from bertillery.system.files import make_once


def prepare(
    data: CorpusSection,
    tokenizer: TokenizerSection,
    cache: Path,
    workers: int | None = None,
    *,
    name: str | None = None,
) -> PreparedCorpus:
    """Open the prepared corpus of these settings; if ``cache`` lacks it, ``workers`` processes make it first.

    ``name`` is the name of its folder (:func:`corpus_files`), where it is already known.
    """
    folder = cache / (name or corpus_files(data, tokenizer).sha256)

    def make(partial: Path) -> Path:
        _build(partial, data, tokenizer, _existing(tokenizer, data), workers or num_cores())
        return partial / "corpus"

    try:
        make_once(folder, make, doing="is preparing this corpus")
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error):
            raise OSError(
                errno.ENOSPC,
                f"no space left while preparing {folder}.partial; free some, or set run.data_dir to another disk; "
                "running again continues from there",
            ) from error
        raise
    return PreparedCorpus.open(folder)


def corpus_files(data: CorpusSection, tokenizer: TokenizerSection) -> Fingerprint:
    """The sources of a corpus, by the names, sizes and times of its files; the hash names the prepared corpus.

    Raises ``InputError`` for sources that do not exist, as :func:`prepare` does.
    """
    older = {"units"} if data.units == "sentences" else set()  # as before there were units, and weights
    settings = data.model_dump(exclude={"weights", *older}) | ({"weighted": True} if data.weights else {})
    parts: list[Any] = [FORMAT, version("sentencex"), version("tokenizers"), settings]
    existing = _existing(tokenizer, data)
    if existing is None:
        parts.append(tokenizer.model_dump())
    else:  # its content, not its place: the directory may later hold another one
        parts += [type(existing).__name__, cast(Any, existing).backend_tokenizer.to_str(), existing.special_tokens_map]
    sizes: list[int] = []
    others: list[str] = []
    for source in resolve([*data.valid, *data.path]):
        if isinstance(source, Path):
            stat = source.stat()
            parts.append([source.name, stat.st_size, stat.st_mtime_ns])
            sizes.append(stat.st_size)
        else:
            embedded = source == "python-docs"
            parts.append([source, pydocs.fingerprint() if embedded else None])
            others.append(pydocs.DESCRIPTION if embedded else source)
    described = [describe_files(len(sizes), sum(sizes))] if sizes else []
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Fingerprint(digest, ", ".join([*described, *others]), exact=False)


def _existing(section: TokenizerSection, data: CorpusSection) -> PreTrainedTokenizerBase | None:
    role: Role = "decoder" if data.units == "documents" else "encoder"
    return load_tokenizer(section.path, role=role) if section.path else None


def prepare_for(stage: Stage, data: CorpusSection, tokenizer: TokenizerSection, *, num_texts: int) -> PreparedCorpus:
    """Prepare the corpus of a run whose examples have up to ``num_texts`` texts, and pin it. The main process makes it,
    the others open it.

    Raises the errors of :meth:`Stage.pin` and :func:`prepare`: before the preparation if the number or size of the
    files has changed, after it if their text has. A run that is trained but not exported reads the corpus that it was
    trained on, even if the files have changed. An existing tokenizer with unfitting special tokens is a ``ConfigError``
    before the preparation.
    """
    existing = _existing(tokenizer, data)
    if existing is not None and data.units == "sentences":
        check_pretraining_frame(existing, num_texts)
    cache, begun = stage.config.run.data_dir, stage.pinned.get("corpus files")
    kept = begun and cache / begun.sha256
    (enough,) = broadcast_object_list([stage.trained and kept is not None and kept.exists()])
    if enough and kept:
        corpus = PreparedCorpus.open(kept)
    else:
        stage.pin(lambda: {"corpus files": corpus_files(data, tokenizer)})
        with main_process_first(stage.accelerator):
            corpus = prepare(data, tokenizer, cache, name=stage.inputs["corpus files"].sha256)
    stage.pin(lambda: {"corpus": corpus.fingerprint})
    stage.folders["corpus"] = corpus.path
    return corpus


def _build(
    partial: Path,
    data: CorpusSection,
    section: TokenizerSection,
    tokenizer: PreTrainedTokenizerBase | None,
    workers: int,
) -> None:
    """Fill ``partial/corpus``; completed steps are kept."""
    corpus = partial / "corpus"
    if not (corpus / "tokenizer").exists():
        if tokenizer is None:
            _say("sampling text for the tokenizer")
            sample = _sample(_documents(data, ReadReport()), section.sample_bytes)
            _say(f"training {section.vocab_size} pieces on {len(sample)} documents")
            tokenizer = _TRAIN[section.type](sample, section)
        shutil.rmtree(partial / "tokenizer", ignore_errors=True)
        tokenizer.save_pretrained(partial / "tokenizer")
        corpus.mkdir(exist_ok=True)
        (partial / "tokenizer").rename(corpus / "tokenizer")
    tokenizer = load_tokenizer(str(corpus / "tokenizer"), role=None)
    report = ReadReport()
    _say("encoding")
    progress = _encode_all(partial, data, report, workers)
    dtype, vocab_size = WordEncoder(tokenizer).dtype, vocabulary_size(tokenizer)
    np.save(corpus / "unigrams.npy", _count_tokens(corpus / "train" / "ids.bin", dtype, vocab_size))
    corpora = {"corpora": progress.corpora} if data.weights else {}
    facts = {
        "settings": {"data": data.model_dump(), "tokenizer": section.model_dump()},
        "read": asdict(report),
        "unknown": progress.unknown / max(1, progress.characters),
        **progress.model_dump(include={"duplicates", "train", "valid"}),
        **corpora,
        "dtype": dtype.name,
        "vocab_size": vocab_size,
        "tokenizer": hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(),
    }
    write_manifest(corpus, facts)


def _documents(data: CorpusSection, report: ReadReport) -> Iterable[Document]:
    """All documents, with a progress bar. Held-out files come first, so that text which they share with the training
    files is dropped from the latter."""

    def marked() -> Iterator[Document]:
        for document in read_documents(data, data.valid, report):
            yield HELD_OUT, document
        for number, paths in enumerate([[path] for path in data.path] if data.weights else [data.path]):
            for document in read_documents(data, paths, report):
                rank = int.from_bytes(document_key(document)[:8], "little")
                yield HELD_OUT if not data.valid and rank < data.holdout * 2**64 else number, document

    return tqdm(marked(), unit=" documents", unit_scale=True, disable=None)


def _sample(documents: Iterable[Document], limit: int) -> list[str]:
    """Training documents of up to ``limit`` bytes: those with the smallest hashes, in whatever order they come."""
    kept: dict[int, str] = {}
    size, threshold = 0, 2**64
    for corpus, document in documents:
        rank = int.from_bytes(document_key(document)[8:], "little")
        if corpus == HELD_OUT or rank >= threshold or rank in kept:
            continue
        kept[rank] = "\n".join(document)
        size += len(kept[rank].encode())
        while size > limit and len(kept) > 1:
            threshold //= 2
            kept = {rank: text for rank, text in kept.items() if rank < threshold} or dict([min(kept.items())])
            size = sum(len(text.encode()) for text in kept.values())
    if not kept:
        raise InputError("the corpus holds no text to train on; check data.path and data.holdout")
    return list(kept.values())


def _encode_all(partial: Path, data: CorpusSection, report: ReadReport, workers: int) -> Progress:
    """Write the documents that are not yet written."""
    with CorpusWriter(partial) as writer:
        documents = islice(_documents(data, report), writer.progress.consumed, None)
        language = data.language if data.units == "sentences" else None
        for encoded in encode_batches(batched(documents), partial / "corpus" / "tokenizer", language, workers):
            writer.append(encoded)
        writer.commit()
        _check_parts(writer.progress, data)
        return writer.progress


def _check_parts(progress: Progress, data: CorpusSection) -> None:
    train, valid = progress.train.documents, progress.valid.documents
    if train and valid:
        corpora = [*progress.corpora, *[0] * len(data.path)]
        if data.weights and 0 in corpora[: len(data.path)]:
            raise InputError(
                f"data.weights: {data.path[corpora.index(0)]} has no training text that is not in the entries of "
                "data.path before it; leave it out, and its weight"
            )
        return
    if not train and not valid:
        raise InputError(f"no text in {', '.join(data.path)}: every document is empty; check data.path and data.text")
    name, key = ("held-out", "data.valid") if train else ("training", "data.path")
    if data.valid:
        raise InputError(f"no {name} text: {key} holds nothing new; give other files")
    raise InputError(
        f"no {name} text: of {train + valid} documents data.holdout={data.holdout} holds out {valid}; set data.holdout "
        "so that both parts get some, or name held-out files in data.valid"
    )


def _count_tokens(ids: Path, dtype: np.dtype, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size, np.int64)
    with ids.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            counts += np.bincount(np.frombuffer(chunk, dtype), minlength=vocab_size)
    return counts


_TRAIN: dict[str, Callable[[Sequence[str], TokenizerSection], PreTrainedTokenizerBase]] = {
    "wordpiece": train_wordpiece,
    "unigram": train_unigram,
    "byte_bpe": train_byte_bpe,
    "characters": train_characters,
}


def _say(step: str) -> None:
    print(f"prepare: {step}", file=sys.stderr, flush=True)

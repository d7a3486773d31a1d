"""A split with variants of its texts: TinyBERT's data augmentation (Jiao et al. 2020, section 3.2 and Algorithm 1).

Each word that may be replaced is, with a probability p, by one of its candidates (:mod:`distill.candidates`); of every
text N variants are drawn so. Every draw is a hash of seed, example, text, try and word, and what a variant is does not
depend on process or order.

Where the released ``data_augmentation.py`` does otherwise: the other text of a pair stays as it is, while there the
variants of the second text stand beside the last variant of the first; a variant equal to any example of the split is
left out, there only those equal to one of the same text; the list of stop-words is scikit-learn's.

The variants are written once, in shards, each whole or not there: a run that was interrupted continues with the first
that is missing, and several processes make them together.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from tqdm import tqdm

from distill.candidates import STOP_WORDS, Candidates, load_word_model
from distill.neighbours import fingerprint
from distill.variants import Variant, variants
from engine.config import ConfigError, InputError, Section
from engine.files import tidy, write_text
from engine.keyed import key
from engine.packed import json_objects
from engine.ranges import Runs
from engine.records import checked
from engine.waiting import patient_barrier
from finetune.data import Split
from finetune.task import TaskSection

logger = logging.getLogger(__name__)

SERVED = ("classification", "multilabel", "regression")
"""Types of tasks whose examples are one text or a pair."""
_FORMAT = 1
_SHARD_ROWS = 256
_SHOWN = 3


class _Made(BaseModel):
    """A line of a shard."""

    row: int
    """Number of the example in the split."""
    variants: list[Variant]


class AugmentSection(Section):
    """How a training split is augmented. Defaults are the paper's."""

    model: str
    """Directory or Hub id of a masked language model, whose predictions are the candidates for a word."""
    tries: Runs = 20
    """Variants drawn of each text (N_a); duplicates are left out."""
    probability: float = Field(default=0.4, gt=0, le=1)
    """Probability that a word is replaced (p_t)."""
    candidates: Runs = 15
    """The most probable pieces, or nearest words, that a replacement is drawn from (K)."""
    vectors: Path | None = None
    """A GloVe file, for neighbours of words of several pieces; without it they are of the model's vocabulary."""


class Augmented(NamedTuple):
    """What augmentation makes of a split."""

    split: Split
    """The original examples, and after them the variants in the order of these, with their labels and numbers."""
    report: str
    """Sizes, how many words were replaced, and some examples."""


def augmented(
    section: AugmentSection, task: TaskSection, split: Split, *, data_dir: Path, seed: int, accelerator: Accelerator
) -> Augmented:
    """The split with variants, made by all processes together unless they are in ``data_dir``; the same on each.

    Raises what :class:`Augmentation` and :meth:`Augmentation.make` do.
    """
    augmentation = Augmentation(section, task, split, data_dir=data_dir, seed=seed)
    meet = patient_barrier(accelerator)
    augmentation.make(accelerator.device, num_ranks=accelerator.num_processes, rank=accelerator.process_index)
    meet()
    return augmentation.read()


class Augmentation:
    """The variants of one split, in a folder that is named by everything they are made from."""

    def __init__(self, section: AugmentSection, task: TaskSection, split: Split, *, data_dir: Path, seed: int) -> None:
        """Raises ``ConfigError`` for a task whose examples are more than a text or a pair, and where ``section.model``
        is no masked language model with a tokenizer that fits, or there is no file ``section.vectors``."""
        if task.type not in SERVED:
            raise ConfigError(
                f"augment: {task.name} is a task of type {task.type}, whose examples cannot be augmented; "
                f"that is for {', '.join(SERVED[:-1])} and {SERVED[-1]}: leave augment out"
            )
        self.section, self.split, self.seed = section, split, seed
        self._model, self._tokenizer = load_word_model(section.model)
        self.made_from = self._made_from()
        """What the variants depend on; settings, or hashes of what is large."""
        name = hashlib.sha256(json.dumps(self.made_from).encode()).hexdigest()[:16]
        self.folder = data_dir / f"augmented-{name}"
        """Where they are written: ``manifest.json`` and ``shard-*.jsonl``."""
        self.num_shards = -(-split.num_examples // _SHARD_ROWS)

    def _made_from(self) -> dict[str, Any]:
        vectors = self.section.vectors
        weights = self._model.state_dict()
        model = [json.dumps(self._model.config.to_diff_dict() | {"_name_or_path": ""}, sort_keys=True).encode()]
        for name in sorted(weights):
            model += [f"{name} {tuple(weights[name].shape)}".encode(), weights[name].contiguous().numpy().data]
        tokenizer = cast(Any, self._tokenizer).backend_tokenizer.to_str()
        return {
            "format": _FORMAT,
            "shard_rows": _SHARD_ROWS,
            "settings": self.section.model_dump(include={"tries", "probability", "candidates"}),
            "seed": self.seed,
            "model": _hash(model),
            "tokenizer": _hash([tokenizer.encode(), json.dumps(self._tokenizer.special_tokens_map).encode()]),
            "vectors": fingerprint(vectors) if vectors else None,
            "stop_words": _hash([" ".join(sorted(STOP_WORDS)).encode()]),
            "texts": _hash([json.dumps(self.split.texts).encode()]),
        }

    def make(self, device: torch.device, *, num_ranks: int = 1, rank: int = 0) -> None:
        """Write this process's shards, every ``num_ranks``-th from ``rank`` on, that are not there.

        Raises ``ConfigError`` for a vocabulary or a file of vectors that cannot be used, before anything is written.
        """
        missing = [shard for shard in range(rank, self.num_shards, num_ranks) if not self._file(shard).exists()]
        if not missing:
            return
        candidates = Candidates(
            self._model,
            self._tokenizer,
            number=self.section.candidates,
            vectors=self.section.vectors,
            device=device,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            with self._alone(self.num_shards):
                tidy(self.folder, "manifest.json.*")
                write_text(self.folder / "manifest.json", json.dumps(self.made_from, indent=1))
        originals = set(zip(*self.split.texts, strict=True))
        total = sum(len(self._rows(shard)) for shard in missing)
        with tqdm(desc="augment", total=total, unit=" examples", disable=rank > 0 or None) as bar:
            for shard in missing:
                with self._alone(shard):
                    if not self._file(shard).exists():
                        lines = self._lines(self._rows(shard), candidates, originals)
                        write_text(self._file(shard), "".join(f"{line}\n" for line in lines))
                bar.update(len(self._rows(shard)))

    def _file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.jsonl"

    def _rows(self, shard: int) -> range:
        return range(shard * _SHARD_ROWS, min((shard + 1) * _SHARD_ROWS, self.split.num_examples))

    @contextmanager
    def _alone(self, shard: int) -> Iterator[None]:
        """Hold a byte of a file: another run of the same variants waits for the shard and then finds it.

        A lock of this kind, unlike that of ``engine.lock``, can be one byte's, and is not inherited by children.
        """
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
            except BlockingIOError:
                logger.warning("%s: another process is making the same variants; waiting for a part of it", self.folder)
                fcntl.lockf(lock, fcntl.LOCK_EX, 1, shard)
            tidy(self.folder, f"{self._file(shard).name}.*")
            yield

    def _lines(self, rows: range, candidates: Candidates, originals: Container[tuple[str, ...]]) -> Iterator[str]:
        """A line of JSON for each example: its number in the split and its variants."""
        columns = [candidates.of(column[rows.start : rows.stop]) for column in self.split.texts]
        for row, given in zip(rows, zip(*columns, strict=True), strict=True):
            texts = tuple(column[row] for column in self.split.texts)
            found = variants(
                texts, given, originals, tries=self.section.tries, probability=self.section.probability,
                keys=key(self.seed, row),
            )  # fmt: skip
            yield json.dumps({"row": row, "variants": [*found]}, ensure_ascii=False)

    def read(self) -> Augmented:
        """The augmented split; ``InputError`` while shards are missing."""
        missing = [shard for shard in range(self.num_shards) if not self._file(shard).exists()]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing)} of {self.num_shards} shards are missing, the first is "
                f"{self._file(missing[0]).name}; run again, which makes these"
            )
        rows: list[int] = []
        found: list[Variant] = []
        first = 0
        for shard in range(self.num_shards):
            for made in self._read(shard, first):
                found += made.variants
                rows += [made.row] * len(made.variants)
                first = made.row + 1
        return Augmented(self._with(rows, found), self._report(rows, found))

    def _read(self, shard: int, first: int) -> list[_Made]:
        """What a shard holds, whose examples are those from the ``first`` on."""
        file, remedy = self._file(shard), "delete this file and run again, which makes it anew"
        try:
            with file.open(encoding="utf-8", newline="\n") as lines:
                found: list[_Made] = [
                    checked(file, line, _Made, remedy=remedy) for _, line in json_objects(file, lines)
                ]
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8 text; {remedy}") from None
        places = {variant.place for made in found for variant in made.variants}
        rows = range(first, self.split.num_examples)[: len(found)]
        whole = shard < self.num_shards - 1 or rows.stop == self.split.num_examples
        if [made.row for made in found] != [*rows] or not whole or not places <= {*range(len(self.split.texts))}:
            raise InputError(f"{file}: does not hold the variants of its examples, each once; {remedy}")
        return found

    def _with(self, rows: list[int], found: list[Variant]) -> Split:
        split = self.split
        texts = tuple(
            column
            + [
                variant.text if variant.place == place else column[row]
                for row, variant in zip(rows, found, strict=True)
            ]
            for place, column in enumerate(split.texts)
        )
        chosen = np.concatenate([np.arange(split.num_examples), np.array(rows, dtype=np.int64)])
        labels = None if split.labels is None else split.labels[chosen]
        return Split(split.name, texts, labels, split.index[chosen], split.left_out)

    def _report(self, rows: list[int], found: list[Variant]) -> str:
        before, mean = self.split.num_examples, sum(variant.replaced for variant in found) / max(1, len(found))
        lines = [
            f"augmented   {self.split.name}: {before:,} examples became {before + len(rows):,}, "
            f"{mean:.1f} words replaced in a variant"
        ]
        for place in sorted({len(rows) * part // _SHOWN for part in range(_SHOWN)}) if rows else []:
            original = self.split.texts[found[place].place][rows[place]]
            lines += [f"            {' '.join(original.split())}", f"         -> {found[place].text}"]
        return "\n".join(lines)


def _hash(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

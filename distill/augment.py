"""Data augmentation of a training split (TinyBERT: Jiao et al. 2020, section 3.2 and Algorithm 1).

Of each text N_a variants are drawn, in which each replaceable word is replaced with probability p_t by one of its
candidates. Every draw is a hash of seed, example, text, variant and word, so the result does not depend on processes or
order. The released ``data_augmentation.py`` differs in three points: it combines the variants of a pair's second text
with the last variant of the first (here the other text is unchanged), it drops variants that equal a variant of the
same text (here also those that equal another example), and its stop-word list is shorter (here scikit-learn's).

Variants are written in shards, each atomically: an interrupted run continues with the first missing shard, and several
processes share the work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from tqdm import tqdm
from transformers import AutoModelForMaskedLM

from bertillery.config.section import ConfigError, InputError, Section
from bertillery.config.types import Runs
from bertillery.data.files import json_objects
from bertillery.engine.rng import Keys, integers, key, uniform
from bertillery.models.load import check_vocabulary, load, load_tokenizer
from bertillery.run.waiting import patient_barrier
from bertillery.system.files import tidy, write_text
from bertillery.system.lock import locked
from bertillery.system.records import checked
from distill.candidates import STOP_WORDS, Candidates, Words, fingerprint
from finetune.data.splits import Split
from finetune.task import TaskSection

SERVED = ("classification", "multilabel", "regression")
"""Task types whose examples are a text or a pair of texts."""
_FORMAT = 1
_SHARD_ROWS = 256
_WHETHER, _WHICH = 201, 202
"""Purpose of a draw; part of its key."""


class AugmentSection(Section):
    """Augmentation of the training split. Defaults are the paper's."""

    model: str
    """Directory or Hub id of a masked language model, whose predictions are the candidates for a word."""
    tries: Runs = 20
    """Variants drawn of each text (N_a); duplicates are left out."""
    probability: float = Field(default=0.4, gt=0, le=1)
    """Probability that a word is replaced (p_t)."""
    candidates: Runs = 15
    """Most probable pieces, or nearest words, that a replacement is drawn from (K)."""
    vectors: Path | None = None
    """A GloVe file, for candidates of words of several pieces; without one they are of the model's vocabulary."""


def draw(given: Words, tries: int, probability: float, keys: Keys) -> list[list[str]]:
    """The words of a text in each of the ``tries``: each word with candidates is replaced with the given probability,
    by any of them with equal probability.

    ``keys`` is a key of :mod:`bertillery.engine.rng`; a draw belongs to it, the try and the word's index.
    """
    places = np.array([*given.candidates], dtype=np.int64)
    numbers = np.array([len(candidates) for candidates in given.candidates.values()], dtype=np.int64)
    own = key(keys, np.arange(tries)[:, None], places)
    replaced, chosen = uniform(own, _WHETHER) < probability, integers(numbers, own, _WHICH)
    drawn = []
    for which, choice in zip(replaced, chosen, strict=True):
        words = [*given.words]
        for place, number in zip(places[which].tolist(), choice[which].tolist(), strict=True):
            words[place] = given.candidates[place][number]
        drawn.append(words)
    return drawn


class Variant(NamedTuple):
    """A changed text of an example."""

    place: int
    """Which of the example's texts it replaces, from 0."""
    replaced: int
    """Number of words that differ."""
    text: str
    """Basic tokens, separated by spaces."""


class _Line(BaseModel):
    """A line of a shard: an example's row of the split, and its variants."""

    row: int
    variants: list[Variant]


class Augmented(NamedTuple):
    """An augmented split."""

    split: Split
    """The original examples, then the variants in the same order, with labels and index of their originals."""
    report: str
    """Sizes, number of replaced words, and some examples."""


def augmented(
    section: AugmentSection, task: TaskSection, split: Split, *, data_dir: Path, seed: int, accelerator: Accelerator
) -> Augmented:
    """The split with variants, which all processes make together unless ``data_dir`` has them; the same on each.

    Raises what :class:`Augmentation` and :meth:`Augmentation.make` do.
    """
    augmentation = Augmentation(section, task, split, data_dir=data_dir, seed=seed)
    meet = patient_barrier(accelerator)
    augmentation.make(accelerator.device, num_ranks=accelerator.num_processes, rank=accelerator.process_index)
    meet()
    return augmentation.read()


class Augmentation:
    """The variants of one split, in a folder named by a hash of all that they depend on."""

    def __init__(self, section: AugmentSection, task: TaskSection, split: Split, *, data_dir: Path, seed: int) -> None:
        """Raises ``ConfigError`` for a task type that is not ``SERVED``, for a ``section.model`` without a masked-LM
        head or with a tokenizer that does not fit, and for ``section.vectors`` that do not exist."""
        if task.type not in SERVED:
            raise ConfigError(
                f"augment: {task.name} is a task of type {task.type}, whose examples cannot be augmented; "
                f"that is for {', '.join(SERVED[:-1])} and {SERVED[-1]}: leave augment out"
            )
        self.section, self.split, self.seed = section, split, seed
        self._model, loaded = load(AutoModelForMaskedLM, section.model)
        self._tokenizer: Any = load_tokenizer(section.model, "augment.model")
        if loaded.fresh:
            raise ConfigError(
                f"augment.model: {section.model} is no masked language model, it lacks {', '.join(loaded.fresh[:3])}; "
                "give one with the head it was pretrained with"
            )
        check_vocabulary(self._tokenizer, self._model.config, section.model, "augment.model")
        self.made_from = self._made_from()
        """Settings, and hashes of everything large, that the variants depend on."""
        name = hashlib.sha256(json.dumps(self.made_from).encode()).hexdigest()[:16]
        self.folder = data_dir / f"augmented-{name}"
        """Contains ``manifest.json`` and ``shard-*.jsonl``."""
        starts = range(0, split.num_examples, _SHARD_ROWS)
        self._shards = [range(start, min(start + _SHARD_ROWS, split.num_examples)) for start in starts]

    def _made_from(self) -> dict[str, Any]:
        vectors, weights = self.section.vectors, self._model.state_dict()
        model = [json.dumps(self._model.config.to_diff_dict() | {"_name_or_path": ""}, sort_keys=True).encode()]
        for name in sorted(weights):
            model += [f"{name} {tuple(weights[name].shape)}".encode(), weights[name].contiguous().numpy().data]
        tokenizer = self._tokenizer.backend_tokenizer.to_str()
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
        """Write the missing shards of this process: every ``num_ranks``-th, from ``rank`` on.

        Raises ``ConfigError`` for an unusable vocabulary or file of vectors, before anything is written.
        """
        missing = [shard for shard in range(rank, len(self._shards), num_ranks) if not self._file(shard).exists()]
        if not missing:
            return
        number, vectors = self.section.candidates, self.section.vectors
        candidates = Candidates(self._model, self._tokenizer, number=number, vectors=vectors, device=device)
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            manifest = self.folder / "manifest.json"
            with self._locked(manifest):
                write_text(manifest, json.dumps(self.made_from, indent=1))
        originals = set(zip(*self.split.texts, strict=True))
        total = sum(len(self._shards[shard]) for shard in missing)
        with tqdm(desc="augment", total=total, unit=" examples", disable=rank > 0 or None) as bar:
            for shard in missing:
                with self._locked(self._file(shard)):
                    if not self._file(shard).exists():
                        lines = self._lines(self._shards[shard], candidates, originals)
                        write_text(self._file(shard), "".join(f"{line}\n" for line in lines))
                bar.update(len(self._shards[shard]))

    def _file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.jsonl"

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        """Lock a file, so that another run of the same variants waits for it, then finds it."""
        lock = file.with_name(f"{file.name}.lock")
        with locked(lock, doing="is making the same variants"):
            tidy(self.folder, f"{file.name}.*")
            yield
            lock.unlink()

    def _lines(self, rows: range, candidates: Candidates, originals: Container[tuple[str, ...]]) -> Iterator[str]:
        """Lines of JSON for some examples. A variant is left out if it equals the text itself or an earlier variant of
        it, or makes the example equal to one of the ``originals``."""
        columns = [candidates.of(column[rows.start : rows.stop]) for column in self.split.texts]
        tries, probability = self.section.tries, self.section.probability
        for row, given in zip(rows, zip(*columns, strict=True), strict=True):
            texts, found = tuple(column[row] for column in self.split.texts), []
            for place, text in enumerate(given):
                seen = {" ".join(text.words)}
                for words in draw(text, tries, probability, key(key(self.seed, row), place)):
                    changed = " ".join(words)
                    if changed not in seen and (*texts[:place], changed, *texts[place + 1 :]) not in originals:
                        seen.add(changed)
                        replaced = sum(a != b for a, b in zip(words, text.words, strict=True))
                        found.append(Variant(place, replaced, changed))
            yield json.dumps({"row": row, "variants": found}, ensure_ascii=False)

    def read(self) -> Augmented:
        """The augmented split; ``InputError`` if a shard is missing or damaged."""
        numbers = range(len(self._shards))
        missing = [self._file(shard).name for shard in numbers if not self._file(shard).exists()]
        if missing:
            raise InputError(
                f"{self.folder}: {len(missing)} of {len(self._shards)} shards are missing, the first is "
                f"{missing[0]}; run again, which makes these"
            )
        lines = [line for shard in numbers for line in self._read(shard)]
        found = [(line.row, variant) for line in lines for variant in line.variants]
        split, rows = self.split, np.array([row for row, _ in found], dtype=np.int64)
        texts = tuple(
            column + [variant.text if variant.place == place else column[row] for row, variant in found]
            for place, column in enumerate(split.texts)
        )
        chosen = np.concatenate([np.arange(split.num_examples), rows])
        labels = None if split.labels is None else split.labels[chosen]
        made = Split(split.name, texts, labels, split.index[chosen], split.left_out)
        mean = sum(variant.replaced for _, variant in found) / max(1, len(found))
        report = [
            f"augmented   {split.name}: {split.num_examples:,} examples became {made.num_examples:,}, "
            f"{mean:.1f} words replaced in a variant"
        ]
        for number in sorted({len(found) * part // 3 for part in range(3)}) if found else []:
            row, variant = found[number]
            original = " ".join(split.texts[variant.place][row].split())
            report += [f"            {original}", f"         -> {variant.text}"]
        return Augmented(made, "\n".join(report))

    def _read(self, shard: int) -> list[_Line]:
        file, remedy = self._file(shard), "delete this file and run again, which makes it anew"
        try:
            with file.open(encoding="utf-8", newline="\n") as lines:
                found: list[_Line] = [
                    checked(file, line, _Line, remedy=remedy) for _, line in json_objects(file, lines)
                ]
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8 text; {remedy}") from None
        places = {variant.place for line in found for variant in line.variants}
        if [line.row for line in found] != [*self._shards[shard]] or not places <= {*range(len(self.split.texts))}:
            raise InputError(f"{file}: does not hold the variants of its examples, each once; {remedy}")
        return found


def _hash(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

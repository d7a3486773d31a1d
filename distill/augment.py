"""A split with variants of its texts: TinyBERT's data augmentation (Jiao et al. 2020, section 3.2 and Algorithm 1).

Each word that may be replaced is, with a probability p, by one of its candidates (:mod:`distill.augment`); of every
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
import io
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from tokenizers import models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError, Section
from bertillery.config.types import Runs
from bertillery.data.files import DAMAGED, open_compressed
from bertillery.data.reader import json_objects
from bertillery.data.tokenizer import is_unigram
from bertillery.engine.batch import pack, ranges
from bertillery.engine.loader import shares
from bertillery.engine.rng import Keys, integers, key, uniform
from bertillery.models.encoders import longest_sequence, mlm_logits
from bertillery.models.frame import template
from bertillery.models.load import check_vocabulary, load, load_tokenizer
from bertillery.run.waiting import patient_barrier
from bertillery.system.files import tidy, write_text
from bertillery.system.records import checked
from finetune.examples import Sequences, tokenize
from finetune.splits import Split
from finetune.task import TaskSection

_ROWS = 100_000
"""Of a GloVe file, which begins with the most frequent words (TinyBERT's ``data_augmentation.py``)."""
_WRITINGS = 3
"""A file may have a word itself in lower, title and upper case."""
_AT_ONCE = 64


class Neighbours(ABC):
    """Words with a vector each, and those that are nearest to a word."""

    def __init__(self, words: list[str], vectors: Tensor) -> None:
        """``vectors`` (V, D), of any length, say where the words are."""
        self.words = words
        self._directions = F.normalize(vectors.float(), dim=1)

    @abstractmethod
    def vector(self, word: str) -> Tensor | None:
        """(D,), of any length; None where the word has none."""

    def nearest(self, words: Iterable[str], number: int) -> dict[str, list[str]]:
        """For each word the ``number`` others of the largest cosine, nearest first; none for a word without a vector.

        Other writings of the word itself are left out. What is near a word in title case is given in title case.
        """
        vectors = {word: self.vector(word) for word in words}
        known = [(word, vector) for word, vector in vectors.items() if vector is not None]
        found: dict[str, list[str]] = {word: [] for word in vectors}
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            cosines = (
                torch.stack([vector for _, vector in some]).float() @ self._directions.T
            )  # (Q, V), but for a factor
            top = cosines.topk(min(number + _WRITINGS, len(self.words))).indices.tolist()
            for (word, _), rows in zip(some, top, strict=True):
                near = [self.words[row] for row in rows]
                others = [other for other in near if other.lower() != word.lower()][:number]
                found[word] = [other.title() for other in others] if word.istitle() else others
        return found


class VectorFile(Neighbours):
    """The first 100,000 words of a GloVe file: a word and its numbers to a line."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises what :func:`read_vectors` does."""
        words, vectors = read_vectors(path)
        super().__init__(words, torch.from_numpy(vectors).to(device))
        self._row = {word: row for row, word in enumerate(words)}

    def vector(self, word: str) -> Tensor | None:
        """That of the word as it is written, or else of its lower case."""
        row = self._row.get(word, self._row.get(word.lower()))
        return None if row is None else self._directions[row]


class Pieces(Neighbours):
    """Pieces of a vocabulary that are words, where a model's input embeddings put them."""

    def __init__(self, words: dict[str, int], embeddings: Tensor, encode: Callable[[str], np.ndarray]) -> None:
        """``words`` are the neighbours there may be and their rows of the ``embeddings``; ``encode`` gives a word's
        rows."""
        rows = torch.tensor([*words.values()], dtype=torch.int64, device=embeddings.device)
        super().__init__([*words], embeddings[rows])
        self._embeddings, self._encode = embeddings, encode

    def vector(self, word: str) -> Tensor | None:
        """The mean of its pieces' embeddings."""
        rows = torch.from_numpy(self._encode(word).astype(np.int64)).to(self._embeddings.device)
        return self._embeddings[rows].mean(0) if len(rows) else None


def fingerprint(path: Path) -> str:
    """Hash of a file of vectors; ``ConfigError`` where it is not there."""
    if not path.is_file():
        raise ConfigError(
            f"augment.vectors: no file {str(path)!r}; give one of GloVe's, with a word and its numbers to a line, or "
            "leave vectors out to take neighbours from the model's own vocabulary"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Words and their vectors (V, D), float32, of the first 100,000 lines of a GloVe file, which may be compressed.

    Lines of something with a space in it, as a few of GloVe's have, are passed over. Raises ``ConfigError`` where the
    file is empty or damaged, or, with the line, where one holds no numbers or not as many as the first.
    """
    words: list[str] = []
    vectors: list[np.ndarray] = []
    size = 0
    try:
        with io.TextIOWrapper(open_compressed(path), encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in zip(range(1, _ROWS + 1), lines, strict=False):
                fields = line.rstrip("\r\n").split(" ")
                size = size or len(fields) - 1
                found = _numbers(f"{path}:{number}", fields, size)
                if found is not None:
                    words.append(fields[0])
                    vectors.append(found)
    except DAMAGED as error:
        raise ConfigError(f"augment.vectors: {path}: damaged or cut short ({error}); fetch it again") from error
    if not words:
        raise ConfigError(
            f"augment.vectors: {path}: is empty; give a GloVe file, with a word and its numbers to a line"
        )
    return words, np.stack(vectors)


def _numbers(where: str, fields: list[str], size: int) -> np.ndarray | None:
    """The vector at the end of a line; None for that of something with a space in it."""
    if size and len(fields) > size + 1 and not any(map(_is_number, fields[1:-size])):
        return None
    if not size or len(fields) != size + 1:
        wanted = f", the first line {size}" if size else "; a line is a word and its numbers, with a space between"
        raise ConfigError(f"augment.vectors: {where}: {len(fields) - 1} numbers{wanted}")
    try:
        vector = np.array(fields[1:], dtype=np.float32)
    except ValueError:
        vector = np.full(size, np.nan, dtype=np.float32)
    if not np.isfinite(vector).all():
        wrong = next((field for field in fields[1:] if not _is_number(field)), "one of them")
        raise ConfigError(
            f"augment.vectors: {where}: {wrong!r} is no number; a line is a word and its numbers, with a space between"
        )
    return vector


def _is_number(field: str) -> bool:
    try:
        return bool(np.isfinite(float(field)))
    except ValueError:
        return False


_CONTRACTED = (
    "s t d m ll re ve ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren "
    "won wouldn"
)
STOP_WORDS = ENGLISH_STOP_WORDS.union(_CONTRACTED.split(" "))
"""Words that stay: scikit-learn's list, and what is left of contractions when the apostrophe is a word of its own.
TinyBERT's code has a list of its own, which is shorter."""
_WORD = re.compile(r"[A-Z]?[a-z]+")
_BATCH_TOKENS = 8192


def is_replaceable(word: str) -> bool:
    """Whether a basic token may be replaced: one of the letters a to z, the first perhaps a capital, no stop-word."""
    return _WORD.fullmatch(word) is not None and word.lower() not in STOP_WORDS


def load_word_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model for :class:`Candidates` and its tokenizer, from a directory or the Hub.

    Raises ``ConfigError`` where there is none, its weights lack the head, or its tokenizer is not for them.
    """
    model, report = load(AutoModelForMaskedLM, name)
    tokenizer: Any = load_tokenizer(name, "augment.model")
    if report.fresh:
        raise ConfigError(
            f"augment.model: {name} is no masked language model, it lacks {', '.join(report.fresh[:3])}; "
            "give one with the head it was pretrained with"
        )
    check_vocabulary(tokenizer, model.config, name, "augment.model")
    return model, tokenizer


@dataclass(frozen=True)
class Words:
    """A text in basic tokens, and the candidates for those that may be replaced."""

    words: list[str]
    candidates: dict[int, list[str]]
    """By the word's place, in ascending order; at least one each."""


class Candidates:
    """Candidates for the words of texts (Jiao et al. 2020, Algorithm 1).

    A word of one piece is masked in ``[CLS] text [SEP] text [SEP]``, where the second text stays whole, and the
    model's K most probable pieces, less special tokens and those that open no word, are its candidates; the word itself
    is often one. A model without token types or trained on single texts reads the same sequence. A word of several
    pieces has the K nearest words of a GloVe file, or, where there is none, of the vocabulary's own words that may be
    replaced themselves, by the cosine between input embeddings (that of the word is the mean of its pieces'; the paper
    has GloVe alone). A word for which nothing is found has itself.

    Basic tokens are BERT's, of the text as the model's tokenizer normalises it (lower case for an uncased one).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        number: int,
        vectors: Path | None,
        device: torch.device,
    ) -> None:
        """``model`` is a stock ``*ForMaskedLM`` in evaluation mode with the packed attention; ``number`` is K.

        Raises ``ConfigError`` for a vocabulary that is neither WordPiece nor Unigram, and what
        :func:`distill.augment.read_vectors` does.
        """
        self.openings = _openings(tokenizer, model.config.vocab_size)
        """(V) What each piece is as a word; empty for one that opens none."""
        self._model, self._tokenizer, self._device = cast(Any, model).to(device), tokenizer, device
        self._number = number
        self._template = template(tokenizer, 2)
        self._room = self._template.room(longest_sequence(model.config))
        self._neighbours = self._own_words() if vectors is None else VectorFile(vectors, device)
        self._near: dict[str, list[str]] = {}

    def _own_words(self) -> Neighbours:
        words = {word: piece for piece, word in enumerate(self.openings) if is_replaceable(word)}
        embeddings = cast(Any, self._model.get_input_embeddings()).weight.detach()
        return Pieces(words, embeddings, lambda word: tokenize([word], self._tokenizer).ids)

    def split(self, text: str) -> list[str]:
        """A text in basic tokens."""
        normalizer = cast(Any, self._tokenizer).backend_tokenizer.normalizer
        text = text if normalizer is None else normalizer.normalize_str(text).replace("▁", " ")
        return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]

    def of(self, texts: Sequence[str]) -> list[Words]:
        """Words and candidates of each text.

        What lies beyond the longest sequence of the model is not predicted: of a long text the unmasked copy loses its
        end first, then both do. Words of one piece that are cut off have themselves as their candidate.
        """
        split = [self.split(text) for text in texts]
        flat = [word for words in split for word in words]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        kind = np.array([numbers[word] for word in flat], dtype=np.int64)
        pieces = tokenize([*numbers], self._tokenizer)
        replaceable = np.array([is_replaceable(word) for word in numbers], dtype=bool)[kind]
        sizes = pieces.lengths[kind]
        ids = pieces.ids[np.repeat(pieces.starts[kind], sizes) + ranges(sizes)]
        text = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        lengths = np.bincount(text, weights=sizes, minlength=len(texts)).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        offsets = np.cumsum(sizes) - sizes - starts[text]
        first = np.minimum(lengths, self._room)
        kept = np.stack([first, np.minimum(lengths, self._room - first)])
        masked = np.flatnonzero(replaceable & (sizes == 1) & (offsets < self._room))
        sequences = Sequences(self._template, ids, np.stack([starts, starts])[:, text[masked]], kept[:, text[masked]])
        found = dict(zip(masked.tolist(), self._predict(sequences, offsets[masked]), strict=True))
        several = np.flatnonzero(replaceable & (sizes > 1)).tolist()
        found |= dict(zip(several, self._look_up([flat[place] for place in several]), strict=True))
        result, begin = [], 0
        for words in split:
            places = [place for place in range(len(words)) if replaceable[begin + place]]
            result.append(Words(words, {place: found.get(begin + place) or [words[place]] for place in places}))
            begin += len(words)
        return result

    @torch.no_grad()
    def _predict(self, sequences: Sequences, offsets: np.ndarray) -> list[list[str]]:
        """Candidates for the token at each of the ``offsets`` (M,) in the first text of each of M sequences."""
        found: list[list[str]] = [[] for _ in offsets]
        number = min(self._number, len(self.openings))
        offsets = offsets + len(self._template.parts[0])
        for part in shares(sequences.lengths, _BATCH_TOKENS, 1, 0) if len(offsets) else []:
            ids, types = sequences.lay_out(part)
            lengths = sequences.lengths[part]
            rows = np.cumsum(lengths) - lengths + offsets[part]
            ids[rows] = self._tokenizer.mask_token_id
            batch = pack(ids, types, lengths, targets={}, counts={}).to(self._device)
            logits = mlm_logits(self._model, batch.input, torch.from_numpy(rows).to(self._device))
            for row, top in zip(part.tolist(), logits.topk(number).indices.tolist(), strict=True):
                found[row] = [self.openings[piece] for piece in top if self.openings[piece]]
        return found

    def _look_up(self, words: list[str]) -> list[list[str]]:
        """Neighbours of each word, sought once."""
        self._near |= self._neighbours.nearest((word for word in words if word not in self._near), self._number)
        return [self._near[word] for word in words]


def _openings(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """What each piece is as a word: all but those that continue one ("##"), or those that open one ("▁")."""
    kind = cast(Any, tokenizer).backend_tokenizer.model
    if not isinstance(kind, models.WordPiece | models.Unigram):
        raise ConfigError(
            f"augment.model: its vocabulary is of type {type(kind).__name__}, which does not mark words in a way that "
            "augmentation knows; give a masked language model with a WordPiece or Unigram vocabulary, as BERT's and "
            "ALBERT's are"
        )
    openings = [""] * vocab_size
    for piece, number in tokenizer.get_vocab().items():
        if is_unigram(tokenizer):
            openings[number] = piece[1:] if piece.startswith("▁") else ""
        else:
            openings[number] = "" if piece.startswith("##") else piece
    for special in tokenizer.all_special_ids:
        openings[special] = ""
    return openings


_WHETHER, _WHICH = 201, 202
"""What a draw is for; part of its key."""


class Variant(NamedTuple):
    """One of the texts of an example, changed."""

    place: int
    """Which of the texts it stands for, from 0."""
    replaced: int
    """How many of its words differ."""
    text: str
    """Basic tokens with a space between."""


def variants(
    texts: tuple[str, ...],
    given: Sequence[Words],
    originals: Container[tuple[str, ...]],
    *,
    tries: int,
    probability: float,
    keys: Keys,
) -> Iterator[Variant]:
    """Variants of an example of one text or two, at most ``tries`` of each text; the other text stays as it is.

    ``given`` are the words of each text. A variant is left out where it is the text itself, one that was there before,
    or makes the example one of the ``originals``. ``keys`` is the example's key of :mod:`bertillery.engine.rng`.
    """
    for place, text in enumerate(given):
        seen = {" ".join(text.words)}
        for words in draw(text, tries, probability, key(keys, place)):
            changed = " ".join(words)
            if changed not in seen and (*texts[:place], changed, *texts[place + 1 :]) not in originals:
                seen.add(changed)
                yield Variant(place, sum(a != b for a, b in zip(words, text.words, strict=True)), changed)


def draw(given: Words, tries: int, probability: float, keys: Keys) -> list[list[str]]:
    """The words of a text in each of the ``tries``: every one with candidates is replaced with the probability, by any
    of them alike.

    ``keys`` is a key of :mod:`bertillery.engine.rng`; a draw belongs to it, the try and the word's place.
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

        A lock of this kind, unlike that of ``bertillery.system.lock``, can be one byte's, and is not inherited by
        children.
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

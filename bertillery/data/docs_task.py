"""Labelled tasks made of the English that every Python installation carries, for a first run without any download.

``package``: which package does a docstring document? The packages' names are masked.
``pairs``: do two paragraphs follow each other in one docstring, or are they from two docstrings of the same package
that lie close together? Neither paragraph alone predicts the label.
``proofreading``: which words of a sentence are wrong? Four of five sentences get one error: of agreement, of the
article, of the preposition, or of word order. It shows in a word's context, hardly in the word.

All docstrings of a module go to one split. Texts that occur twice are left out, and so are held-out texts that repeat
much of an earlier split. The same installed packages give the same tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bertillery.config.section import InputError
from bertillery.data import pydocs
from bertillery.data.encode import sentences
from bertillery.system.files import make_once, remove

SPLITS = ("train", "validation", "test")
_HELD_OUT = 8
"""One module in eight goes to validation, and one to test."""
_MOST = {"train": 1000, "validation": 100, "test": 100}
"""Docstrings of a package in each split."""
_MIN_WORDS = {"package": 12, "pairs": 8, "proofreading": 8}
"""Shorter texts hold too little to decide by."""
_MAX_WORDS = 40
"""Longest sentence to proofread."""
_MOST_SENTENCES = {"train": 16000, "validation": 2000, "test": 2000}
"""Sentences to proofread in each split."""
_PROSE = 0.85
"""A sentence is prose if this share of its words are words in lower case or marks."""
_CORRECT = 5
"""One in this many sentences has no error."""
_PREPOSITIONS = ("as", "at", "by", "for", "from", "in", "into", "of", "on", "to", "with")
_ARTICLES = {"a": "an", "an": "a"}
_AGREEMENT = {"is": "are", "has": "have", "was": "were", "does": "do", "this": "these"}
_AGREEMENT |= {plural: singular for singular, plural in _AGREEMENT.items()}
_TAGS = ("O", "B-AGREEMENT", "B-ARTICLE", "B-ORDER", "I-ORDER", "B-PREPOSITION")
_MAX_PAIRS = 3
"""Pairs of one docstring."""
_SHINGLE, _REPEATED = 5, 0.25
"""A text repeats others if more than this share of its runs of so many words occurs in them."""
_VERSION = 1
"""Part of the folder's name; raise it when a change below alters the tasks."""
_NICKNAMES = {
    "huggingface_hub": ["huggingface", "Hugging Face"],
    "matplotlib": ["mpl", "pyplot", "plt"],
    "numpy": ["np"],
    "pandas": ["pd"],
    "python": ["stdlib"],
    "sklearn": ["scikit-learn", "scikit"],
    "wandb": ["W&B", "Weights & Biases", "Weights and Biases"],
}


class Example(NamedTuple):
    """One row, and where it is from."""

    texts: tuple[str, ...]
    label: str
    package: str
    module: str
    definition: str

    @property
    def draw(self) -> int:
        """A pseudo-random number that depends on nothing but the row."""
        return _draw(f"{self.module} {self.definition} {self.texts[0]}")


def embedded_files(name: str, columns: Sequence[str], labels: Sequence[str], data_dir: Path) -> dict[str, Path]:
    """The files of a task, one jsonl for each split; they are made in ``data_dir`` if it lacks them.

    ``name`` is ``package``, ``pairs`` or ``proofreading``, ``columns`` are the names of the texts. ``labels`` are the
    packages to tell apart; for pairs, the names for apart and together, in this order; or the tags of errors. Raises
    ``InputError`` for a package without docstrings. One process makes the files; others wait for it.
    """
    made_from = [pydocs.fingerprint(), _VERSION, name, *columns, *labels]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    folder = data_dir / f"docs_{name}-{digest[:12]}"

    def make(partial: Path) -> Path:
        splits = {"package": _packages, "pairs": _pairs, "proofreading": _proofreading}[name](labels)
        files = partial / "files"
        remove(files)
        files.mkdir()
        for split, examples in splits.items():
            with (files / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
                for example in examples:
                    row: dict[str, Any] = dict(zip(columns, example.texts, strict=True)) | {"label": example.label}
                    if name == "proofreading":
                        row = {column: value.split() for column, value in row.items()}
                    row |= {"module": example.module, "definition": example.definition}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return files

    make_once(folder, make, doing="is making this task")
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _definitions() -> Iterator[tuple[str, str, str, list[str]]]:
    """Package (``python`` is the standard library), module, definition and paragraphs of every docstring."""
    for module, definitions in pydocs.read_modules():
        root, _, path = module.partition("/")
        package = "python" if root == "0" else path.partition("/")[0].removesuffix(".py")
        for definition, paragraphs in definitions:
            yield package, path, definition, paragraphs


def _packages(labels: Sequence[str]) -> dict[str, list[Example]]:
    names = "|".join(map(re.escape, labels))
    nicknames = "|".join(re.escape(nick) for label in labels for nick in _NICKNAMES.get(label, []))
    masked = re.compile(rf"[\w-]*(?:{names})[\w-]*" + rf"|\b(?:{nicknames})\b" * bool(nicknames), re.IGNORECASE)
    examples = []
    for package, module, definition, paragraphs in _definitions():
        text = masked.sub("package", " ".join(paragraphs)) if package in labels else ""
        if len(text.split()) >= _MIN_WORDS["package"]:
            examples.append(Example((text,), package, package, module, definition))
    without = [label for label in labels if label not in {example.label for example in examples}]
    if without:
        raise InputError(
            f"no docstrings of {', '.join(without)} are installed; task.labels names installed packages, "
            "and python for the standard library"
        )
    return _in_splits(_unique(examples), lambda split, found: _at_most(_MOST[split], found))


def _pairs(labels: Sequence[str]) -> dict[str, list[Example]]:
    if len(labels) != 2:
        raise InputError(f"task.labels: given {list(labels)}; a task of pairs has two, for apart and for together")
    examples = []
    for package, module, definition, paragraphs in _definitions():
        long = [text if len(text.split()) >= _MIN_WORDS["pairs"] else "" for text in paragraphs]
        pairs = [pair for pair in zip(long[::2], long[1::2], strict=False) if all(pair)]
        examples += [Example(pair, labels[1], package, module, definition) for pair in pairs[:_MAX_PAIRS]]
    return _in_splits(_unique(examples), lambda _, found: _half_apart(found, labels[0]))


def _proofreading(labels: Sequence[str]) -> dict[str, list[Example]]:
    if sorted(labels) != sorted(_TAGS):
        raise InputError(f"task.labels: given {list(labels)}; the tags of proofreading are {', '.join(_TAGS)}")
    examples = []
    for package, module, definition, paragraphs in _definitions():
        for sentence in (sentence for text in paragraphs for sentence in sentences("en", text)):
            words = re.findall(r"[\w'-]+|[^\w\s]", sentence)
            prose = sum(bool(re.fullmatch(r"[A-Za-z][a-z'-]*|[,.;:]", word)) for word in words)
            if _MIN_WORDS["proofreading"] <= len(words) <= _MAX_WORDS and prose >= _PROSE * len(words):
                words, tags = _with_an_error(words, f"{module} {definition} {sentence}")
                examples.append(Example((" ".join(words),), " ".join(tags), package, module, definition))

    def choose(split: str, found: list[Example]) -> list[Example]:
        return sorted(found, key=lambda example: example.draw)[: _MOST_SENTENCES[split]]

    return _in_splits(_unique(examples), choose)


def _with_an_error(words: list[str], name: str) -> tuple[list[str], list[str]]:
    """The words of a sentence with at most one error of a random type that it can have, and a tag for each word.

    Pseudo-random numbers depend on ``name`` alone.
    """
    before_last = range(1, len(words) - 1)
    neighbours = [i for i in before_last[:-1] if words[i].isalpha() and words[i + 1].isalpha()]
    places = {
        "AGREEMENT": [i for i in before_last if words[i] in _AGREEMENT],
        "ARTICLE": [i for i in before_last if words[i] in _ARTICLES],
        "ORDER": [i for i in neighbours if words[i].lower() != words[i + 1].lower()],
        "PREPOSITION": [i for i in before_last if words[i] in _PREPOSITIONS],
    }
    possible = [error for error, found in places.items() if found]
    tags = ["O"] * len(words)
    if not possible or _draw(f"correct {name}") % _CORRECT == 0:
        return words, tags
    error = possible[_draw(f"error {name}") % len(possible)]
    at = places[error][_draw(f"place {name}") % len(places[error])]
    changed = list(words)
    tags[at] = f"B-{error}"
    if error == "ORDER":
        changed[at], changed[at + 1] = words[at + 1], words[at]
        tags[at + 1] = "I-ORDER"
    elif error == "PREPOSITION":
        others = [word for word in _PREPOSITIONS if word != words[at]]
        changed[at] = others[_draw(f"word {name}") % len(others)]
    else:
        changed[at] = {**_AGREEMENT, **_ARTICLES}[words[at]]
    return changed, tags


def _draw(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _unique(examples: Sequence[Example]) -> list[Example]:
    """The examples whose texts occur in no other example."""
    count = Counter(text for example in examples for text in example.texts)
    return [example for example in examples if all(count[text] == 1 for text in example.texts)]


def _at_most(number: int, examples: Sequence[Example]) -> list[Example]:
    """At most so many examples of each label, drawn at random."""
    drawn: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: example.draw):
        drawn[example.label].append(example)
    return [example for found in drawn.values() for example in found[:number]]


def _half_apart(examples: Sequence[Example], label: str) -> list[Example]:
    """Keep half of each package's pairs; the others exchange their second texts with docstrings nearby."""
    packages: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: example.draw):
        packages[example.package].append(example)
    made = []
    for found in packages.values():
        together, apart = found[: len(found) // 2], found[len(found) // 2 :]
        apart.sort(key=lambda example: (example.module, example.definition, example.draw))
        # Shifted by the longest run of one docstring, no pair meets its own again, unless one has more than half.
        longest = max(Counter((example.module, example.definition) for example in apart).values())
        if 2 * longest <= len(apart):
            shifted = apart[longest:] + apart[:longest]
            made += together
            made += [
                one._replace(texts=(one.texts[0], other.texts[1]), label=label)
                for one, other in zip(apart, shifted, strict=True)
            ]
    return made


def _in_splits(
    examples: Sequence[Example], choose: Callable[[str, list[Example]], list[Example]]
) -> dict[str, list[Example]]:
    """Assign modules to splits, leave out what repeats an earlier split, then choose; each split in random order."""
    found: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        place = _draw(example.module) % _HELD_OUT
        found[{0: "validation", 1: "test"}.get(place, "train")].append(example)
    seen: set[str] = set()
    for name, rows in found.items():
        fresh = [example for example in rows if not any(_repeats(text, seen) for text in example.texts)]
        found[name] = sorted(choose(name, fresh), key=lambda example: example.draw)
        seen.update(shingle for example in found[name] for text in example.texts for shingle in _shingles(text))
    return found


def _shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[at : at + _SHINGLE]) for at in range(max(1, len(words) - _SHINGLE + 1))}


def _repeats(text: str, seen: set[str]) -> bool:
    shingles = _shingles(text)
    return len(shingles & seen) > _REPEATED * len(shingles)

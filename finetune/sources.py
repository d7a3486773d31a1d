"""Labelled tasks made of the English that every Python installation carries, for a first run without any download.

``package``: which package does a docstring document? The packages' names are masked, so that they do not tell.
``pairs``: do two paragraphs follow each other in one docstring, or are they of two docstrings of the same package that
lie close together? Both columns hold the same kind of paragraph under either label, so that neither tells alone.

Whole modules go to one split. Texts that occur twice are left out, and so are held-out texts that mostly repeat what an
earlier split has. The same installed packages give the same tasks.

Where a task's rows are: your files, the installed documentation, a folder in the layout of GLUE's archives or of the
Hub, or the Hub itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bertillery.config.section import InputError
from bertillery.data import pydocs
from bertillery.data.files import COMPRESSED, distinct, matching
from bertillery.data.tables import Table, from_arrow, read_table
from bertillery.system.files import make_once, remove
from finetune.task import HubSection, TaskSection

SPLITS = ("train", "validation", "test")
_HELD_OUT = 8
"""One module in eight goes to validation, and one to test."""
_MOST = {"train": 1000, "validation": 100, "test": 100}
"""Docstrings of a package in each split."""
_WORDS = {"package": 12, "pairs": 8}
"""Fewest words of a text; a shorter one hardly says what it is about."""
_PAIRS_OF_ONE = 3
"""Pairs of one docstring."""
_SHINGLE, _REPEATED = 5, 0.25
"""A text mostly repeats others if more than this share of its runs of so many words occurs in them."""
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
        """A number that is as good as random, and the same every time."""
        return _draw(f"{self.module} {self.definition} {self.texts[0]}")


def embedded_files(kind: str, columns: Sequence[str], labels: Sequence[str], data_dir: Path) -> dict[str, Path]:
    """The task's files, a jsonl for each split, made in ``data_dir`` unless they are there; columns as given.

    ``labels`` are the packages to tell apart, or, of pairs, the names for apart and together, in this order. Raises
    ``InputError`` for a package of which there are no docstrings. One process makes them; others wait for it.
    """
    made_from = [pydocs.fingerprint(), Path(__file__).read_text(encoding="utf-8"), kind, *columns, *labels]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    folder = data_dir / f"docs_{kind}-{digest[:12]}"

    def make(partial: Path) -> Path:
        splits = (_packages if kind == "package" else _pairs)(labels)
        files = partial / "files"
        remove(files)
        files.mkdir()
        for name, examples in splits.items():
            with (files / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
                for example in examples:
                    row = dict(zip(columns, example.texts, strict=True)) | {"label": example.label}
                    row |= {"module": example.module, "definition": example.definition}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        return files

    make_once(folder, make, doing="is making this task")
    return {name: folder / f"{name}.jsonl" for name in SPLITS}


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
        if len(text.split()) >= _WORDS["package"]:
            examples.append(Example((text,), package, package, module, definition))
    without = [label for label in labels if label not in {example.label for example in examples}]
    if without:
        raise InputError(
            f"no docstrings of {', '.join(without)} are installed; task.labels names installed packages, "
            "and python for the standard library"
        )
    return _in_splits(_told_once(examples), lambda split, found: _at_most(_MOST[split], found))


def _pairs(labels: Sequence[str]) -> dict[str, list[Example]]:
    if len(labels) != 2:
        raise InputError(f"task.labels: given {list(labels)}; a task of pairs has two, for apart and for together")
    examples = []
    for package, module, definition, paragraphs in _definitions():
        long = [text if len(text.split()) >= _WORDS["pairs"] else "" for text in paragraphs]
        pairs = [pair for pair in zip(long[::2], long[1::2], strict=False) if all(pair)]
        examples += [Example(pair, labels[1], package, module, definition) for pair in pairs[:_PAIRS_OF_ONE]]
    return _in_splits(_told_once(examples), lambda _, found: _half_apart(found, labels[0]))


def _draw(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _told_once(examples: Sequence[Example]) -> list[Example]:
    """Those whose texts occur in no other example."""
    count = Counter(text for example in examples for text in example.texts)
    return [example for example in examples if all(count[text] == 1 for text in example.texts)]


def _at_most(number: int, examples: Sequence[Example]) -> list[Example]:
    """As many of each label, drawn at random."""
    drawn: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: example.draw):
        drawn[example.label].append(example)
    return [example for found in drawn.values() for example in found[:number]]


def _half_apart(examples: Sequence[Example], label: str) -> list[Example]:
    """Half of each package's pairs are left; the others get the second text of a docstring nearby, each one once."""
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
    """Modules to splits, what repeats an earlier split left out, then what is chosen of each split, in random order."""
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


_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Source:
    """One place that has a task, and how it calls things."""

    where: str
    read: Callable[[str], list[Table]]
    """The tables of a split; ``FileNotFoundError`` that says where it was looked for if the place lacks it."""
    columns: Mapping[str, str]
    """What the place calls our columns, where it calls them otherwise."""
    values: Sequence[str]
    """How it writes the labels, in the order of ours; empty where they are written as ours."""


def glue_dir_from_environment() -> Path | None:
    """The folder that the variable ``GLUE_DIR`` names; ``InputError`` where there is none of that name."""
    name = os.environ.get("GLUE_DIR")
    if not name:
        return None
    path = Path(name).expanduser()
    if not path.is_dir():
        raise InputError(f"GLUE_DIR={name}: no such folder; it holds the folders of the tasks, CoLA, SST-2, MRPC, ...")
    return path


def find_source(task: TaskSection, *, data_dir: Path, glue_dir: Path | None) -> Source:
    """The first of the task's places that has it: its files, what is embedded, below ``glue_dir``, the Hub.

    Raises ``InputError`` that names all of them, and what to set, where none has it; it does not wait for a network.
    """
    if task.files:
        return Source(f"files of {task.name}", _own_files(task), {}, task.values)
    if task.embedded:
        files = embedded_files(task.embedded, task.text, task.labels, data_dir)
        where = f"{files['train'].parent}, made of the documentation that is installed"
        return Source(where, lambda split: [read_table(files[split], header=(), needed=())], {}, ())
    tried = []
    if glue_dir is not None:
        folder, hub = task.folder, task.hub
        if folder and (glue_dir / folder.name).is_dir():
            return Source(str(glue_dir / folder.name), _folder(task, glue_dir), folder.columns, folder.values)
        if hub and hub.subset and (glue_dir / hub.subset).is_dir():
            return Source(str(glue_dir / hub.subset), _hub_folder(hub, glue_dir), hub.columns, hub.values)
        names = [name for name in (folder and folder.name, hub and hub.subset) if name]
        tried.append(f"GLUE_DIR={glue_dir} has no folder {' or '.join(names)}")
    elif task.folder:
        tried.append("GLUE_DIR is not set")
    if task.hub:
        unreachable = _unreachable(task.hub.dataset)
        if unreachable is None:
            where = f"{task.hub.dataset} {task.hub.subset or ''}".strip()
            return Source(f"{where} on the Hub", _hub(task.hub), task.hub.columns, task.hub.values)
        tried.append(f"{task.hub.dataset} on the Hub: {unreachable}")
    layout = f" that holds {task.folder.name}/{task.folder.file('train')}" if task.folder else ""
    raise InputError(
        f"no data for {task.name}: {'; '.join(tried)}. Set GLUE_DIR=<folder>{layout}, or give the Hub a way "
        "(a network, and HUB=1 to make), or name files of your own (task.files.train=...)"
    )


def _own_files(task: TaskSection) -> Callable[[str], list[Table]]:
    def read(split: str) -> list[Table]:
        if split not in task.files:
            raise FileNotFoundError(f"task.files.{split} is not given")
        return [
            read_table(path, header=task.header, needed=task.text) for path in _resolve(task.root, task.files[split])
        ]

    return read


def _resolve(root: Path, names: Sequence[str]) -> list[Path]:
    """Expand globs, sorted, each file once, or take a packed file of the name; one that leads to none is an error."""
    paths: list[Path] = []
    for name in names:
        entry = str(root.expanduser() / Path(name).expanduser())
        named = [path for suffix in COMPRESSED if (path := Path(entry + suffix)).is_file()][:1]
        found = named or sorted({*matching(Path(entry))})
        files = [path for path in found if path.is_file()]
        if not files:
            raise InputError(f"{entry}: no such file; task.files are relative to task.root={root}")
        paths += files
    return distinct(paths)


def _folder(task: TaskSection, glue_dir: Path) -> Callable[[str], list[Table]]:
    folder = task.folder
    assert folder is not None

    def read(split: str) -> list[Table]:
        path = Path(os.path.normpath(glue_dir / folder.name / folder.file(split)))
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there")
        return [read_table(path, header=folder.header, needed=[folder.columns.get(name, name) for name in task.text])]

    return read


def _hub_split(hub: HubSection, split: str) -> tuple[str | None, str]:
    """Subset and name of a split on the Hub."""
    subset, _, name = hub.splits.get(split, split).rpartition("/")
    return subset or hub.subset, name


def _hub_folder(hub: HubSection, glue_dir: Path) -> Callable[[str], list[Table]]:
    def read(split: str) -> list[Table]:
        subset, name = _hub_split(hub, split)
        base = glue_dir / (subset or "")
        paths = sorted([*base.glob(f"{name}-*.parquet"), *base.glob(f"{name}/*.parquet")])
        if not paths:
            raise FileNotFoundError(f"{base / name}-*.parquet is not there")
        return [read_table(path, header=(), needed=()) for path in paths]

    return read


def _hub(hub: HubSection) -> Callable[[str], list[Table]]:
    def read(split: str) -> list[Table]:
        import datasets

        subset, name = _hub_split(hub, split)
        try:
            data: Any = datasets.load_dataset(hub.dataset, subset, split=name, revision=hub.revision)
        except ConnectionError as error:
            raise InputError(f"{hub.dataset} on the Hub: {error}") from error
        except ValueError as error:  # an unknown subset or split; the library names those there are
            raise FileNotFoundError(f"{hub.dataset} on the Hub: {error}") from error
        except RuntimeError as error:  # a data set that is a script, which the library runs no more
            raise InputError(
                f"{hub.dataset} on the Hub: {error}; its rows may be there as parquet files, too: "
                "task.hub.revision=refs/convert/parquet"
            ) from error
        where = f"{hub.dataset}/{subset}/{name}" if subset else f"{hub.dataset}/{name}"
        return [from_arrow(where, data.with_format("arrow")[:], data.features.to_dict())]

    return read


def _unreachable(dataset: str) -> str | None:
    """Why the Hub cannot be asked for a data set; None if it can, or if all of it may be in the cache.

    ``datasets`` alone would repeat the question for 23 seconds.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        import datasets

        try:
            datasets.get_dataset_config_names(dataset)
        except (ConnectionError, FileNotFoundError):
            return "HF_HUB_OFFLINE is set, and the cache does not hold it"
        return None
    try:
        HfApi().dataset_info(dataset, timeout=_PROBE_SECONDS)
    except HfHubHTTPError as error:
        return str(error).strip().splitlines()[0]
    except Exception as error:  # of the library's transport, which may be another one tomorrow
        return f"cannot be reached ({error})"
    return None

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import pytest

from bertillery.config.layers import read_values
from bertillery.config.section import ConfigError, InputError, validate
from bertillery.data import docs_task, pydocs
from bertillery.data.docs_task import SPLITS, embedded_files
from finetune.data.splits import read_task, report
from finetune.task import TaskSection

ROOT = Path(__file__).parents[2]
PACKAGES = ["numpy", "python", "wandb"]
COPIED = "This sentence was copied from one module to the next until nobody knew where it had come from at first."


@cache
def installed() -> list[tuple[str, list[pydocs.Definition]]]:
    """Packages of modules of nine docstrings; the words are random, names of packages among them."""
    rng = random.Random(0)
    names = ["NumPy", "numpy-like", "np", "WandB's", "W&B", "Weights & Biases", "CPython"]

    def sentence() -> str:
        words = [f"w{rng.randrange(5000)}" for _ in range(15)]
        return " ".join([*words[:12], rng.choice(names), *words[12:]]).capitalize() + "."

    modules = []
    for place in ("1/numpy", "0/string", "1/wandb", "1/other"):
        for number in range(60):
            definitions = [(f"f{i}", [sentence() for _ in range(rng.randrange(1, 9))]) for i in range(8)]
            if number % 3 == 0:
                definitions[3] = ("copied", [COPIED.replace("copied", f"copied {place[2]}{number}")])
            modules.append((f"{place}/m{number}.py", [*definitions, ("short", ["Too short to tell."])]))
    modules.append(("1/other/same.py", modules[0][1]))  # a text of two packages tells nothing
    return modules


def test_several_first_runs_at_once_make_the_files_once(tmp_path: Path, reads: list[int]) -> None:
    together = Barrier(3)

    def run(_: int) -> dict[str, Path]:
        together.wait()
        return embedded_files("package", ["text"], PACKAGES, tmp_path / "data")

    with ThreadPoolExecutor(3) as threads:
        one, *others = threads.map(run, range(3))
    assert others == [one, one]
    assert all(file.stat().st_size > 1000 for file in one.values())
    assert reads == [1]
    assert [*(tmp_path / "data").iterdir()] == [one["train"].parent]


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the installed modules were read."""
    counted: list[int] = []

    def read_modules() -> Iterator[tuple[str, list[pydocs.Definition]]]:
        counted.append(1)
        yield from installed()

    monkeypatch.setattr(pydocs, "read_modules", read_modules)
    monkeypatch.setattr(pydocs, "fingerprint", lambda: "these")
    return counted


def rows(files: dict[str, Path]) -> dict[str, list[dict[str, str]]]:
    return {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}


def test_modules_stay_whole_and_held_out_texts_are_new(tmp_path: Path) -> None:
    for kind, columns, labels in (("package", ["text"], PACKAGES), ("pairs", ["a", "b"], ["apart", "together"])):
        splits = rows(embedded_files(kind, columns, labels, tmp_path))
        assert list(splits) == list(SPLITS)
        assert all(len(found) > 50 for found in splits.values())
        modules = [row["module"] for found in splits.values() for row in found]
        assert len(set(modules)) == sum(len({row["module"] for row in found}) for found in splits.values())
        texts = [row[column] for found in splits.values() for row in found for column in columns]
        assert len(set(texts)) == len(texts)


def test_a_copy_with_a_word_changed_is_in_no_later_split(tmp_path: Path) -> None:
    splits = rows(embedded_files("package", ["text"], PACKAGES, tmp_path))
    assert [any("until nobody knew" in row["text"] for row in found) for found in splits.values()] == [
        True,
        False,
        False,
    ]


def test_a_package_is_not_named(tmp_path: Path) -> None:
    splits = rows(embedded_files("package", ["text"], PACKAGES, tmp_path))
    for found in splits.values():
        assert {row["label"] for row in found} == set(PACKAGES)
        for row in found:
            assert not re.search(r"numpy|\bnp\b|wandb|W&B|Weights|python", row["text"], re.IGNORECASE)
            assert len(row["text"].split()) >= 12
    assert any(" package " in row["text"] for row in splits["train"])


def test_packages_are_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_task, "_MOST", {"train": 40, "validation": 9, "test": 8})
    splits = rows(embedded_files("package", ["text"], PACKAGES, tmp_path))
    for name, most in (("train", 40), ("validation", 9), ("test", 8)):
        assert Counter(row["label"] for row in splits[name]) == dict.fromkeys(PACKAGES, most)
    labels = [row["label"] for row in splits["train"]]
    assert sum(one != other for one, other in pairwise(labels)) > 10  # in no order of labels


def test_pairs_hold_the_same_paragraphs_under_either_label(tmp_path: Path) -> None:
    place, following = {}, {}
    for module, definitions in installed():
        for definition, paragraphs in definitions:
            for at, text in enumerate(paragraphs):
                place[text] = (module.split("/")[1], module, definition)
                following[text] = paragraphs[at + 1] if at + 1 < len(paragraphs) else None
    splits = rows(embedded_files("pairs", ["first", "second"], ["apart", "together"], tmp_path))
    for found in splits.values():
        count = Counter(row["label"] for row in found)
        assert abs(count["apart"] - count["together"]) <= 4  # one a package
        seconds: dict[str, set[str]] = defaultdict(set)
        for row in found:
            seconds[row["label"]].add(row["second"])
            one, other = place[row["first"]], place[row["second"]]
            assert one[0] == other[0]
            assert (one == other) == (row["label"] == "together")
            assert (following[row["first"]] == row["second"]) == (row["label"] == "together")
        # A paragraph that is second somewhere is the one after a first of the same split: none is of a kind of its own.
        assert seconds["apart"] == {following[row["first"]] for row in found if row["label"] == "apart"}


def test_files_are_made_once_and_are_the_same_elsewhere(tmp_path: Path, reads: list[int]) -> None:
    files = embedded_files("package", ["text"], PACKAGES, tmp_path / "a")
    assert embedded_files("package", ["text"], PACKAGES, tmp_path / "a") == files
    assert len(reads) == 1
    others = embedded_files("package", ["text"], PACKAGES, tmp_path / "b")
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: path.read_bytes() for name, path in others.items()
    }
    assert embedded_files("package", ["text"], PACKAGES[:2], tmp_path / "a") != files


WORDS = ["array", "axis", "value", "file", "name", "list", "index", "module", "return", "result", "shape", "string"]
TAGS = ["O", "B-AGREEMENT", "B-ARTICLE", "B-ORDER", "I-ORDER", "B-PREPOSITION"]


@pytest.fixture
def proofread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, list[str]]]]:
    """The task, made of sentences of simple grammar."""
    rng = random.Random(0)

    def sentence() -> str:
        a, b, c, d = (rng.choice(WORDS) + "".join(rng.choices("bcdfg", k=4)) for _ in range(4))
        return f"This {a} has {'an' if b[0] in 'aeiou' else 'a'} {b} of the {c}, which is in {d} for now."

    modules = [
        (f"1/numpy/m{number}.py", [(f"f{i}", [" ".join(sentence() for _ in range(3))]) for i in range(8)])
        for number in range(60)
    ]
    monkeypatch.setattr(pydocs, "read_modules", lambda: iter(modules))
    found = rows(embedded_files("proofreading", ["tokens"], TAGS, tmp_path))
    return {name: [dict(row) for row in part] for name, part in found.items()}  # pyright: ignore


def test_a_sentence_to_proofread_has_at_most_one_error(proofread: dict[str, list[dict[str, list[str]]]]) -> None:
    errors = Counter()
    for row in (row for part in proofread.values() for row in part):
        words, tags = row["tokens"], row["label"]
        assert len(words) == len(tags)
        wrong = [(at, tag) for at, tag in enumerate(tags) if tag != "O"]
        errors["none" if not wrong else wrong[0][1]] += 1
        match wrong:
            case [(at, "B-ORDER"), (after, "I-ORDER")]:
                assert after == at + 1
            case [(at, "B-ARTICLE")]:
                assert (words[at] == "an") == (words[at + 1][0] not in "aeiou")
            case [(at, "B-AGREEMENT")]:
                assert words[at] in ("have", "are")
            case [(at, "B-PREPOSITION")]:
                assert words[at] != {5: "of", 11: "in", 13: "for"}[at]
            case _:
                assert wrong == []
                assert [words[at] for at in (0, 2, 5, 10, 11, 13)] == ["This", "has", "of", "is", "in", "for"]
    assert set(errors) == {"none", "B-AGREEMENT", "B-ARTICLE", "B-ORDER", "B-PREPOSITION"}
    assert 0.1 < errors["none"] / sum(errors.values()) < 0.3


def test_the_tags_of_proofreading_are_fixed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tags of proofreading are O, B-AGREEMENT"):
        embedded_files("proofreading", ["tokens"], ["O", "B-ERROR"], tmp_path)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no docstrings of pytorch are installed; task.labels names installed packages"
    ):
        embedded_files("package", ["text"], ["numpy", "pytorch"], tmp_path)
    with pytest.raises(InputError, match="a task of pairs has two"):
        embedded_files("pairs", ["a", "b"], ["apart"], tmp_path)
    assert not list(tmp_path.iterdir())
    plain = {"name": "a", "type": "classification", "metrics": "accuracy", "labels": ["a", "b"]}
    with pytest.raises(ConfigError, match="embedded=pairs is a task of type classification with 2 in text"):
        validate(TaskSection, {**plain, "embedded": "pairs"})


def test_configured_pairs_are_read_as_any_task(tmp_path: Path) -> None:
    values, _ = read_values([str(ROOT / "configs/finetune/docs_pairs.yaml")])
    task = read_task(validate(TaskSection, values["task"]), data_dir=tmp_path, glue_dir=None)
    assert list(task.splits) == list(SPLITS)
    assert len(task.split("train").texts) == 2
    assert "made of the documentation that is installed" in report(task)


def test_the_files_of_a_version_do_not_change(tmp_path: Path) -> None:
    """Where this fails on purpose, ``_VERSION`` is raised, or the files of before would be taken for these."""
    made = [
        *embedded_files("package", ["text"], PACKAGES, tmp_path).values(),
        *embedded_files("pairs", ["a", "b"], ["apart", "together"], tmp_path).values(),
    ]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in made)).hexdigest()
    assert (docs_task._VERSION, digest[:16]) == (1, "e396c44317f0eb3c")

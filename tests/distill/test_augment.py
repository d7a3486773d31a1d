"""Variants of texts: what is replaced, by what, how often, and that the result depends on nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.engine.rng import key
from bertillery.models.load import load, load_tokenizer
from distill import augment, candidates
from distill.augment import Augmentation, AugmentSection, augmented, draw
from distill.candidates import Candidates, Words, is_replaceable
from finetune.data.splits import Split
from finetune.task import TaskSection
from tests.finetune import texts as families
from tests.finetune.tasks import SIZES, write_encoder

CPU = torch.device("cpu")
KNOWN = ["river", "town", "king", "queen", "built", "ruled", "crossed", "stood", "old", "new", "stone", "gold"]
STAYING = ["the", "is", "Who", "in", "1984", "u2", ",", "?", "isn't", "straße", "don't", "not"]
PIECES = ["water", "castle", "Bridge", "walked"]
_LONGEST = 64


def write_model(folder: Path, family: str = "bert") -> Path:
    torch.manual_seed(0)
    tokenizer = {"albert": families.unigram, "roberta": families.bytes_}.get(family, families.wordpiece)()
    config, model = {
        "bert": (BertConfig, BertForMaskedLM),
        "albert": (AlbertConfig, AlbertForMaskedLM),
        "distilbert": (DistilBertConfig, DistilBertForMaskedLM),
        "roberta": (RobertaConfig, RobertaForMaskedLM),
    }[family]
    sizes: dict[str, Any] = {**SIZES, "max_position_embeddings": _LONGEST, "initializer_range": 0.3}
    if family == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": _LONGEST}
    ids: Any = {"pad_token_id": tokenizer.pad_token_id}
    model(config(vocab_size=len(tokenizer) + 2, **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = KNOWN * 2 + STAYING + PIECES
    return [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(number)]


def split_of(number: int = 23, num_texts: int = 1) -> Split:
    columns = tuple(sentences(number, seed) for seed in range(num_texts))
    return Split("train", columns, np.arange(number) % 3, np.arange(100, 100 + number))


def task(kind: str = "classification", **columns: list[str]) -> TaskSection:
    files = {"files": {"train": "train.csv", "validation": "validation.csv"}}
    metric = {"tokens": "f1", "spans": "f1"}.get(kind, "accuracy")
    return validate(TaskSection, {"name": "toy", "type": kind, "metrics": metric, **files, **columns})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Callable[..., Augmentation]:
    """An augmentation with small shards; each folder of results is another one."""

    def made(data: str = "data", num_texts: int = 1, seed: int = 3, split: Split | None = None, **options: Any) -> Any:
        section = AugmentSection(**{"model": str(model), "tries": 6, **options})
        split = split_of(num_texts=num_texts) if split is None else split
        return Augmentation(
            section, task(text=["first", "second"][:num_texts]), split, data_dir=tmp_path / data, seed=seed
        )

    return made


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "_SHARD_ROWS", 4)


def candidates_of(folder: Path, number: int = 7, vectors: Path | None = None) -> Candidates:
    stock, _ = load(AutoModelForMaskedLM, folder)
    return Candidates(stock, load_tokenizer(str(folder)), number=number, vectors=vectors, device=CPU)


@pytest.mark.parametrize("num_texts", [1, 2])
def test_the_result_does_not_depend_on_shards_batches_and_processes(
    make: Callable[..., Augmentation], monkeypatch: pytest.MonkeyPatch, num_texts: int
) -> None:
    one = make("one", num_texts)
    one.make(CPU)
    several = make("several", num_texts)
    for rank in (2, 0):
        several.make(CPU, num_ranks=3, rank=rank)
    with pytest.raises(InputError, match=r"2 of 6 shards are missing, the first is shard-000001.jsonl; run again"):
        several.read()
    several.make(CPU, num_ranks=3, rank=1)
    monkeypatch.setattr(augment, "_SHARD_ROWS", 9)
    monkeypatch.setattr(candidates, "_BATCH_TOKENS", 50)
    other = make("other", num_texts)
    other.make(CPU)
    assert one.read().split.texts == several.read().split.texts == other.read().split.texts
    assert one.read().split.num_examples > 60 * num_texts
    assert [file.read_bytes() for file in sorted(one.folder.glob("shard-*"))] == [
        file.read_bytes() for file in sorted(several.folder.glob("shard-*"))
    ]
    changed = make("changed", num_texts, seed=4)
    changed.make(CPU)
    assert changed.read().split.texts != other.read().split.texts


def test_an_interrupted_run_continues(
    make: Callable[..., Augmentation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = make()
    first.make(CPU)
    before = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    assert json.loads(before["manifest.json"])["seed"] == 3
    (first.folder / "shard-000002.jsonl").unlink()
    computed: list[int] = []
    of = Candidates.of
    monkeypatch.setattr(Candidates, "of", lambda self, texts: computed.append(len(texts)) or of(self, texts))
    make().make(CPU)
    assert computed == [4]
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == before
    monkeypatch.setattr(augment, "Candidates", None)
    again = make()
    again.make(CPU)
    assert again.read().split.texts == first.read().split.texts


def test_two_runs_of_the_same_variants_share_the_shards(
    make: Callable[..., Augmentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin with nothing; each shard is made once, and no lock is left."""
    both, computed = threading.Barrier(2, timeout=60), []
    init, of = Candidates.__init__, Candidates.of
    monkeypatch.setattr(Candidates, "__init__", lambda *args, **options: (both.wait(), init(*args, **options))[1])
    monkeypatch.setattr(Candidates, "of", lambda self, texts: computed.append(texts[0]) or of(self, texts))
    runs = [make(), make()]
    with ThreadPoolExecutor() as pool:
        for run in [pool.submit(run.make, CPU) for run in runs]:
            run.result()
    assert sorted(computed) == sorted(split_of().texts[0][::4])
    assert len([*runs[0].folder.iterdir()]) == 6 + 1
    assert runs[0].read().split.texts == runs[1].read().split.texts


def test_the_folder_is_named_by_what_the_variants_are_made_from(
    make: Callable[..., Augmentation], tmp_path: Path
) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("river 1 0\ntown 0 1\n")
    split = split_of()
    changed = Split("train", ([*split.texts[0][:-1], "gold"],), split.labels, split.index)
    other = write_model(tmp_path / "other", "distilbert")
    folders = [
        make(**options).folder
        for options in ({}, {"seed": 4}, {"tries": 5}, {"probability": 0.5}, {"candidates": 3}, {"vectors": vectors},
                        {"split": changed}, {"model": str(other)})
    ]  # fmt: skip
    assert len({*folders}) == len(folders)
    assert make(model=str(write_model(tmp_path / "copy"))).folder == folders[0]


def test_only_words_that_may_be_replaced_are(make: Callable[..., Augmentation]) -> None:
    augmentation = make(probability=1.0)
    augmentation.make(CPU)
    split, tokens = augmentation.read().split, candidates_of(Path(augmentation.section.model))
    originals = {index: tokens.split(text) for index, text in zip(range(100, 123), split.texts[0], strict=False)}
    changed = set()
    for index, text in zip(split.index[23:].tolist(), split.texts[0][23:], strict=True):
        given, words = originals[index], text.split(" ")
        assert len(given) == len(words)
        changed |= {word for word, other in zip(given, words, strict=True) if word != other}
        assert not any(word.startswith("##") or "[" in word for word in words)
    assert {*KNOWN, "water", "castle", "bridge", "walked"} == changed
    assert all(map(is_replaceable, changed))
    assert not any(map(is_replaceable, ["the", "The", "1984", "u2", ",", "straße", "isn", "t", "UN", "", "##s"]))
    assert is_replaceable("Bridge")


def test_variants_are_different_and_have_the_labels_of_their_originals(make: Callable[..., Augmentation]) -> None:
    split = split_of(num_texts=2)
    augmentation = make(num_texts=2, split=split, tries=9)
    augmentation.make(CPU)
    made = augmentation.read().split
    assert tuple(column[:23] for column in made.texts) == split.texts
    assert made.labels is not None
    assert split.labels is not None
    assert made.labels.tolist() == split.labels[made.index - 100].tolist()
    assert made.index[:23].tolist() == split.index.tolist()
    tokens = candidates_of(Path(augmentation.section.model))
    kept = {0: 0, 1: 0}
    seen = {*zip(*split.texts, strict=True)}
    for index, pair in zip(made.index[23:].tolist(), list(zip(*made.texts, strict=True))[23:], strict=True):
        original = [column[index - 100] for column in split.texts]
        assert pair not in seen
        seen.add(pair)
        [same] = [place for place in (0, 1) if pair[place] == original[place]]
        assert pair[1 - same] != " ".join(tokens.split(original[1 - same]))
        kept[same] += 1
    assert min(kept.values()) > 100
    assert max(np.bincount(made.index - 100)) <= 1 + 2 * 9


def test_unlabelled_splits_and_texts_with_nothing_to_replace(make: Callable[..., Augmentation]) -> None:
    augmentation = make(split=Split("train", (["who is in the 1984 ?", "", "[MASK] river, in"],), None, np.arange(3)))
    augmentation.make(CPU)
    split = augmentation.read().split
    assert split.labels is None
    assert {*split.index[3:].tolist()} == {2}
    assert all(text.startswith("[ ") and text.endswith(" , in") for text in split.texts[0][3:])


def test_a_variant_that_is_another_example_is_left_out(make: Callable[..., Augmentation]) -> None:
    def variants(texts: list[str]) -> list[str]:
        augmentation = make(split=Split("train", (texts,), None, np.arange(len(texts))), tries=40)
        augmentation.make(CPU)
        return augmentation.read().split.texts[0][len(texts) :]

    found = variants(["old river"])
    assert len({*found}) == len(found) > 3
    assert found[1] not in variants(["old river", found[1]])[: len(found) - 1]


def test_equal_texts_have_variants_of_their_own(make: Callable[..., Augmentation]) -> None:
    text = "old river, new town and a stone king"
    augmentation = make(split=Split("train", ([text] * 2, [text] * 2), None, np.arange(2)))
    augmentation.make(CPU)
    split = augmentation.read().split
    found: dict[tuple[int, int], list[str]] = {}
    for row, *pair in list(zip(split.index.tolist(), *split.texts, strict=True))[2:]:
        place = int(pair[0] == text)
        found.setdefault((row, place), []).append(pair[place])
    assert len(found) == 4
    assert len({*map(tuple, found.values())}) == 4


def test_a_word_is_replaced_with_the_probability_by_any_candidate_alike() -> None:
    given = Words(["the", *["king"] * 40], {place: ["a", "b", "c"] for place in range(1, 41)})
    tries, probability = 500, 0.4
    drawn = np.array(draw(given, tries, probability, key(7)))
    assert {*drawn[:, 0].tolist()} == {"the"}
    total = tries * 40
    replaced = (drawn[:, 1:] != "king").sum()
    assert abs(replaced - probability * total) < 3 * np.sqrt(total * probability * (1 - probability))
    for word in "abc":
        assert abs((drawn == word).sum() - replaced / 3) < 3 * np.sqrt(replaced * 2 / 9)
    assert draw(given, 3, probability, key(7)) == drawn[:3].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("river 1 2\ntown 1\n", r"glove.txt:2: 1 numbers, the first line 2"),
        ("river 1 2\ntown 1 2 3\n", r"glove.txt:2: 3 numbers, the first line 2"),
        ("river 1 2\nold 1 2\ntown 1 two\n", r"glove.txt:3: 'two' is no number; a line is a word and its numbers"),
        ("river 1 nan\n", r"glove.txt:1: 'nan' is no number"),
        ("river\n", r"glove.txt:1: 0 numbers; a line is a word and its numbers"),
        ("", r"glove.txt: is empty; give a GloVe file"),
        (None, r"augment.vectors: no file '.*glove.txt'; give one of GloVe's"),
    ],
)
def test_files_of_vectors_that_cannot_be_used(
    make: Callable[..., Augmentation], tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "glove.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        make(vectors=tmp_path / "glove.txt").make(CPU)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("choice", {"choices": ["first", "second"]}), ("tokens", {}), ("spans", {"text": ["question", "context"]})],
)
def test_tasks_of_other_types_are_refused(tmp_path: Path, kind: str, columns: dict[str, list[str]]) -> None:
    section = AugmentSection(model="nowhere")
    with pytest.raises(ConfigError, match=f"type {kind}.* is for classification, multilabel and regression"):
        Augmentation(section, task(kind, **columns), split_of(), data_dir=tmp_path, seed=0)


def test_models_that_cannot_predict_words_are_refused(make: Callable[..., Augmentation], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment.model: .*encoder is no masked language model, it lacks cls"):
        make(model=str(write_encoder(tmp_path / "encoder")))
    with pytest.raises(ConfigError, match=r"augment.model: its vocabulary is of type BPE.*WordPiece or Unigram"):
        make(model=str(write_model(tmp_path / "roberta", "roberta"))).make(CPU)
    families.unigram().save_pretrained(tmp_path / "mixed")
    write_model(tmp_path / "mixed", "distilbert")
    small: Any = {**SIZES, "vocab_size": 50}
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path / "mixed")
    with pytest.raises(ConfigError, match=r"has 1\d\d pieces, its weights know 50"):
        make(model=str(tmp_path / "mixed"))


def test_all_processes_get_the_split_and_a_report(model: Path, tmp_path: Path) -> None:
    split, section = split_of(), AugmentSection(model=str(model), tries=4)
    made, report = augmented(section, task(), split, data_dir=tmp_path, seed=1, accelerator=Accelerator(cpu=True))
    head, *examples = report.splitlines()
    assert head.startswith(f"augmented   train: 23 examples became {made.num_examples:,}, ")
    assert 1 < float(head.split(", ")[1].split(" ")[0]) < 4
    assert len(examples) == 6
    for original, variant in zip(examples[::2], examples[1::2], strict=True):
        assert original.strip() in {" ".join(text.split()) for text in split.texts[0]}
        assert variant.removeprefix("         -> ") in made.texts[0][23:]

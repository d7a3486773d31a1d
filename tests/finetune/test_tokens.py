from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.models.load import load
from finetune.data.rows import objects
from finetune.data.splits import Split, Task, read_task
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted
from finetune.task_types.tokens import SentenceExamples
from tests.finetune.texts import TOKENIZERS, WORDS, wordpiece, write_encoder

TAGS = ["O", "B-place", "I-place", "B-person", "I-person"]


def tagged(number: int = 20, seed: int = 0, longest: int = 12) -> Split:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, number)
    words = [[str(word) for word in rng.choice([*WORDS, "Bridge", "castles", "Élan", "1854"], n)] for n in sizes]
    return Split("train", (words,), objects([rng.integers(0, 5, n) for n in sizes]), np.arange(number))


def columns(split: Split, separator: str = "\t") -> str:
    assert split.labels is not None
    sentences = zip(split.texts[0], split.labels, strict=True)
    return "\n\n".join(
        "\n".join(f"{word}{separator}{TAGS[tag]}" for word, tag in zip(words, tags, strict=True))
        for words, tags in sentences
    )


def section(folder: Path, name: str = "train.conll", **changes: Any) -> TaskSection:
    plain: dict[str, Any] = {"name": "own", "type": "tokens", "text": "tokens", "label": "tags", "labels": TAGS}
    plain |= {"metrics": "f1", "root": folder, "files": {"train": name}}
    return validate(TaskSection, plain | changes)


def read(folder: Path, content: str, name: str = "train.conll", **changes: Any) -> Task:
    (folder / name).write_text(content)
    return read_task(section(folder, name, **changes), data_dir=folder, glue_dir=None)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_labels_stand_at_the_first_piece_of_a_word(name: str) -> None:
    """The pieces of a word are those that it has in a sentence, behind a space."""
    tokenizer, split = TOKENIZERS[name](), tagged()
    examples = SentenceExamples(split, tokenizer, max_length=200, seed=0)
    index = np.array([3, 0, 11])
    batch = examples.collate(examples.examples(0, 0)[index])
    words = [word for i in index for word in split.texts[0][i]]
    pieces = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    rows = batch.targets["rows"].tolist()
    assert all(len(each) > 1 for each, word in zip(pieces, words, strict=True) if word == "Bridge")
    assert [batch.input.ids[row : row + len(each)].tolist() for row, each in zip(rows, pieces, strict=True)] == pieces
    assert split.labels is not None
    assert batch.targets["labels"].tolist() == [tag for i in index for tag in split.labels[i]]
    assert batch.counts["words"] == len(words)
    sentence = tokenizer(" " + " ".join(split.texts[0][3]))["input_ids"]
    assert batch.input.ids[: int(batch.input.offsets[1])].tolist() == sentence


def test_a_word_that_the_tokenizer_drops_is_an_unknown_one() -> None:
    tokenizer = wordpiece()
    split = Split("train", ([["the", "\u200d", "town"]],), objects([np.array([0, 1, 2])]), np.arange(1))
    batch = SentenceExamples(split, tokenizer, max_length=20, seed=0).collate(
        SentenceExamples(split, tokenizer, max_length=20, seed=0).examples(0, 0)
    )
    assert batch.targets["rows"].tolist() == [1, 2, 3]
    assert batch.input.ids[2] == tokenizer.unk_token_id


def test_a_tokenizer_without_an_unknown_token() -> None:
    """It is needed for nothing but words that the tokenizer drops, and these are named."""
    tokenizer = wordpiece()
    tokenizer.unk_token = None

    def examples(*words: str) -> SentenceExamples:
        split = Split("train", ([list(words)],), objects([np.arange(len(words))]), np.arange(1))
        return SentenceExamples(split, tokenizer, max_length=20, seed=0)

    assert examples("the", "town").kept.tolist() == [2]
    with pytest.raises(InputError, match=r"no token of 1 words of the task, the first is '\\u200d'"):
        examples("the", "\u200d", "town")


def test_training_is_the_stock_models_loss(tmp_path: Path) -> None:
    split = tagged()
    model, _ = load(AutoModelForTokenClassification, write_encoder(tmp_path / "model"), num_labels=5)
    examples = SentenceExamples(split, wordpiece(), max_length=24, seed=0)
    batch = examples.collate(examples.examples(0, 0)[:7])
    with torch.no_grad():
        term = task_type_of(section(tmp_path)).objective(model)(batch)["cross_entropy"]
    stock = AutoModelForTokenClassification.from_pretrained(tmp_path / "model", num_labels=5)
    stock.load_state_dict(model.state_dict())
    labels, total = torch.full_like(batch.input.ids, -100), 0.0
    labels[batch.targets["rows"]] = batch.targets["labels"]
    for a, b in zip(batch.input.offsets[:-1].tolist(), batch.input.offsets[1:].tolist(), strict=True):
        with torch.no_grad():
            loss = stock(input_ids=batch.input.ids[None, a:b], labels=labels[None, a:b]).loss
        total += float(loss) * int((labels[a:b] >= 0).sum())
    assert float(term.total) == pytest.approx(total, rel=1e-5)


def test_words_that_do_not_fit_are_counted_and_outside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind, split = task_type_of(section(tmp_path)), tagged(longest=20)
    with caplog.at_level(logging.WARNING):
        examples = kind.examples(split, wordpiece(), max_length=16, seed=0)
    assert isinstance(examples, SentenceExamples)
    lost = sum(map(len, split.texts[0])) - int(examples.kept.sum())
    assert lost > 0
    assert f"{lost} words at their ends are cut off and predicted as O" in caplog.text
    index = np.array([5, 2, 9, 0])
    outputs = np.eye(5, dtype=np.float32)[np.full(int(examples.num_outputs(index).sum()), 3)]
    predictions = kind.decide(outputs, examples, index)
    for i, tags in zip(index, predictions, strict=True):
        kept = int(examples.kept[i])
        assert tags.tolist() == [3] * kept + [0] * (len(split.texts[0][i]) - kept)
    assert examples.collate(examples.examples(0, 0)).input.offsets.diff().max() <= 16


def test_who_knows_the_tags_scores_all(tmp_path: Path) -> None:
    kind, split = task_type_of(section(tmp_path)), tagged()
    examples = kind.examples(split, wordpiece(), max_length=200, seed=0)
    assert split.labels is not None
    index = np.random.default_rng(0).permutation(20)
    outputs = np.eye(5, dtype=np.float32)[np.concatenate(split.labels[index])]
    predictions = kind.decide(outputs, examples, index)
    assert kind.scores(predictions, split.labels[index]) == {"f1": 1}
    assert kind.warning(predictions, split.labels[index]) is None
    assert kind.warning(objects([tags * 0 for tags in predictions]), split.labels[index]) == "finds no entity at all"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", ["\t", " "])
def test_columns_of_words(tmp_path: Path, separator: str, end: str) -> None:
    wanted = tagged()
    content = "-DOCSTART-\tO\n\n" + columns(wanted, separator) + "\n\t\n\n"
    got = read(tmp_path, content.replace("\n", end)).split("train")
    assert got.texts == wanted.texts
    assert [tags.tolist() for tags in got.labels] == [tags.tolist() for tags in wanted.labels]  # pyright: ignore


@pytest.mark.parametrize("separator", ["\t", " ", " _ _ "])
@pytest.mark.parametrize("comment", ["# id 5f2a", "# id 5f2a\tdomain=en", "# sent_id = 1", "# a text of many words"])
def test_comments_are_no_words(tmp_path: Path, separator: str, comment: str) -> None:
    """Before a sentence; ``#`` is a word, also where it opens one, and lines are counted as the file has them."""
    one = f"{comment}\nthe{separator}O\n#{separator}O\ntown{separator}B-place\n"
    other = f"#{separator}O\nold{separator}O\n"
    split = read(tmp_path, f"{one}\n{one}\n{other}", labels=TAGS).split("train")
    assert split.texts == ([["the", "#", "town"], ["the", "#", "town"], ["#", "old"]],)
    with pytest.raises(InputError, match=r"train\.conll:7: 'tags' holds 'X'"):
        read(tmp_path, f"{one}\n{comment}\nthe{separator}X\n", labels=TAGS)
    with pytest.raises(InputError, match=r"train\.conll:10: 1 fields, where"):
        read(tmp_path, f"{one}\n{one}old\n", labels=TAGS)


def test_more_columns_and_no_tags(tmp_path: Path) -> None:
    four = "the DT B-NP O\ntown NN I-NP B-place\n"
    split = read(tmp_path, four, "train.txt").split("train")
    assert split.labels is not None
    assert (split.texts, split.labels[0].tolist()) == (([["the", "town"]],), [0, 1])
    named = read(tmp_path, four, "train.txt", header=["w", "p", "c", "t"], text="w", label="t").split("train")
    assert named.texts == split.texts
    (tmp_path / "test.txt").write_text("the\ntown\n")
    task = read(tmp_path, four, "train.txt", files={"train": "train.txt", "test": "test.txt"})
    assert task.split("test").labels is None


def test_rows_of_lists_as_the_hub_has_them(tmp_path: Path) -> None:
    text = '{"tokens": ["the", "town"], "tags": ["O", "B-place"]}\n'
    split = read(tmp_path, text, "train.jsonl").split("train")
    assert split.texts == ([["the", "town"]],)
    with pytest.raises(InputError, match=r"train.jsonl:1: 2 words and 1 tags"):
        read(tmp_path, text.replace('"O", ', ""), "train.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the\tO\ntown\n", r"train.conll:2: 1 fields, where 2 columns are expected"),
        ("the\tO\n\nold\tO\ntown\tB-town\n", r"train.conll:3: 'tags' holds 'B-town', which is none of O, B-place"),
        ("\n", "empty file"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_tags_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task.labels='\[\"B-place\", \"O\"\]'"):
        read(tmp_path, "the\tO\ntown\tB-place\n", labels=[])
    with pytest.raises(ConfigError, match="labels of words are O, B-<kind> and I-<kind>, not place"):
        section(tmp_path, labels=["O", "place"])


def test_what_is_written_is_what_conlleval_reads(tmp_path: Path) -> None:
    kind, split = task_type_of(section(tmp_path)), tagged(2)
    assert split.labels is not None
    predictions = objects([tags * 0 for tags in split.labels])
    (file,) = kind.write(tmp_path, Predicted(split, np.empty((0, 5)), predictions))
    lines = [line.split("\t") for line in file.read_text().split("\n")]
    words = [[word, TAGS[tag], "O"] for word, tag in zip(split.texts[0][0], split.labels[0], strict=True)]
    assert lines[: len(words) + 1] == [*words, [""]]


def test_a_sentence_without_words_is_predicted_as_nothing() -> None:
    """Only a test split keeps such a row; the sentences beside it lose nothing."""
    tokenizer, whole = wordpiece(), tagged(3)
    for at in range(4):
        words, labels = [*whole.texts[0]], [*whole.labels]  # pyright: ignore
        words.insert(at, [])
        labels.insert(at, np.empty(0, np.int64))
        split = Split("test", (words,), objects(labels), np.arange(4))
        examples = SentenceExamples(split, tokenizer, max_length=60, seed=0)
        number = [len(each) for each in words]
        assert (examples.kept.tolist(), examples.lost, examples.num_cut) == (number, 0, 0)
        index = np.arange(4)
        batch = examples.collate(examples.examples(0, 0)[index])
        assert batch.targets["labels"].tolist() == [tag for each in labels for tag in each]
        kind = task_type_of(section(Path()))
        outputs = np.eye(5, dtype=np.float32)[batch.targets["labels"].numpy()]
        assert [each.tolist() for each in kind.decide(outputs, examples, index)] == [each.tolist() for each in labels]

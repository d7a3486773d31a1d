from __future__ import annotations

import csv
import gzip
import json
import logging
import lzma
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bertillery.config.layers import read_values
from bertillery.config.section import ConfigError, InputError, validate
from bertillery.data import files
from finetune.data import sources
from finetune.data.splits import Task, read_task, report
from finetune.report import write_predictions
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("BERTILLERY_DATA", ROOT / "../shared/data"))
CONFIGS = sorted((ROOT / "configs" / "finetune").glob("*.yaml"))
GLUE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


def section(name: str, **changes: Any) -> TaskSection:
    values, names = read_values([str(ROOT / f"configs/finetune/{name}.yaml")])
    return validate(TaskSection, values["task"] | changes, names)


def own(tmp_path: Path, **settings: Any) -> Task:
    """A task of one's own; its splits are those of ``files``."""
    plain = {"name": "own", "type": "classification", "labels": ["no", "yes"], "metrics": "accuracy"}
    return read_task(validate(TaskSection, {**plain, "root": tmp_path, **settings}), data_dir=tmp_path, glue_dir=None)


def lines(*rows: str) -> str:
    return "\n".join(row.replace("|", "\t") for row in rows) + "\n"


GLUE_FILES = {
    "CoLA/train.tsv": lines("x99|1||The cat sat.", 'x99|0|*|The "cat sat.', "x99|1||Quotes\" don't matter."),
    "CoLA/dev.tsv": lines("x99|0|*|Sat cat the."),
    "CoLA/test.tsv": lines("index|sentence", "0|A cat.", '1|"A dog.'),
    "SST-2/train.tsv": lines("sentence|label", "good |1", "bad |0"),
    "SST-2/dev.tsv": lines("sentence|label", "it 's fine . |1"),
    "SST-2/test.tsv": lines("index|sentence", "0|dull"),
    "MRPC/train.tsv": "\ufeff" + lines("Quality|#1 ID|#2 ID|#1 String|#2 String", '1|7|8|He said "so.|"So, he said.'),
    "MRPC/dev.tsv": "\ufeff" + lines("Quality|#1 ID|#2 ID|#1 String|#2 String", "0|7|9|One.|Two."),
    "MRPC/test.tsv": "\ufeff" + lines("index|#1 ID|#2 ID|#1 String|#2 String", "0|7|9|Three.|Four."),
    "MRPC/dev_ids.tsv": lines("7|9"),
    "STS-B/train.tsv": lines("index|genre|sentence1|sentence2|score", "0|news|A.|B.|3.800", "1|news|C.|D.|0.000"),
    "STS-B/dev.tsv": lines("index|genre|sentence1|sentence2|score", "0|news|A.|B.|5.000"),
    "STS-B/test.tsv": lines("index|genre|sentence1|sentence2", "0|news|A.|B."),
    "QQP/train.tsv": lines(
        "id|qid1|qid2|question1|question2|is_duplicate",
        "5|1|2|Why?|How come?|1", "6|3|4|What is", "torn?|When?|0", "7|5|6||Who?|0", "8|7|8|Where?|Who?|0",
    ),
    "QQP/dev.tsv": lines("id|qid1|qid2|question1|question2|is_duplicate", "9|1|9|Why?|Who?|0"),
    "QQP/test.tsv": lines("id|question1|question2", "0|Is it?|Was it?", "1||Will it?"),
    "MNLI/train.tsv": lines("index|sentence1|sentence2|label1|gold_label", "0|P.|H.|neutral|contradiction"),
    "MNLI/dev_matched.tsv": lines("index|sentence1|sentence2|label1|label2|gold_label", "0|P.|H.|x|x|entailment"),
    "MNLI/dev_mismatched.tsv": lines("index|sentence1|sentence2|label1|label2|gold_label", "0|P.|H.|x|x|neutral"),
    "MNLI/test_matched.tsv": lines("index|sentence1|sentence2", "0|P.|H."),
    "MNLI/test_mismatched.tsv": lines("index|sentence1|sentence2", "0|P.|H."),
    "diagnostic/diagnostic.tsv": lines("index|sentence1|sentence2", "0|P.|H."),
    "QNLI/train.tsv": lines("index|question|sentence|label", "0|Q?|S.|not_entailment"),
    "QNLI/dev.tsv": lines("index|question|sentence|label", "0|Q?|S.|entailment"),
    "RTE/train.tsv": lines("index|sentence1|sentence2|label", "0|P.|H.|entailment"),
    "RTE/dev.tsv": lines("index|sentence1|sentence2|label", "0|P.|H.|not_entailment"),
    "RTE/test.tsv": lines("index|sentence1|sentence2", "0|P.|H.").replace("\n", "\r\n"),
    "WNLI/train.tsv": lines("index|sentence1|sentence2|label", "0|P.|H.|1"),
    "WNLI/dev.tsv": lines("index|sentence1|sentence2|label", "0|P.|H.|0"),
    "WNLI/test.tsv": lines("index|sentence1|sentence2", "0|P.|H."),
}  # fmt: skip


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    for name, text in GLUE_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    return tmp_path


def read_glue(name: str, folder: Path, **changes: Any) -> Task:
    return read_task(section(name, **changes), data_dir=folder, glue_dir=folder)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("cola", [[1, 0, 1], [0]]),
        ("sst2", [[1, 0], [1]]),
        ("mrpc", [[1], [0]]),
        ("stsb", [[3.8, 0], [5]]),
        ("qqp", [[1, 0], [0]]),
        ("mnli", [[2], [0], [1]]),
        ("qnli", [[1], [0]]),
        ("rte", [[0], [1]]),
        ("wnli", [[1], [0]]),
    ],
)
def test_official_layout(glue: Path, name: str, labels: list[list[float]]) -> None:
    task = read_glue(name, glue)
    for wanted, split in zip(labels, ["train", *task.section.validation], strict=True):
        got = task.split(split).labels
        assert got is not None
        np.testing.assert_allclose(got, wanted)
        assert got.dtype == (np.float32 if name == "stsb" else np.int64)
    for split in task.section.test:
        if split in task.splits:
            assert task.split(split).labels is None
    assert sorted(task.missing) == (["test"] if name == "qnli" else [])


def test_quotes_are_ordinary_characters_and_text_is_left_as_it_is(glue: Path) -> None:
    assert read_glue("cola", glue).split("train").texts == (
        ["The cat sat.", 'The "cat sat.', "Quotes\" don't matter."],
    )
    assert read_glue("cola", glue).split("test").texts == (["A cat.", '"A dog.'],)
    assert read_glue("sst2", glue).split("train").texts == (["good ", "bad "],)
    assert read_glue("mrpc", glue).split("train").texts == (['He said "so.'], ['"So, he said.'])
    assert read_glue("rte", glue).split("test").texts == (["P."], ["H."])


def test_torn_rows_of_qqp_are_left_out_of_train_alone(glue: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task = read_glue("qqp", glue)
    assert task.split("train").texts == (["Why?", "Where?"], ["How come?", "Who?"])
    assert task.split("train").index.tolist() == [0, 4]
    assert task.split("test").texts == (["Is it?", ""], ["Was it?", "Will it?"])
    assert "qqp train: 3 of 5 rows left out, the first is" in caplog.text
    assert "QQP/train.tsv:3: 4 fields where there are 6 columns" in caplog.text
    assert "qqp test: 1 of 2 rows kept, without the text" in caplog.text
    assert "3 incomplete rows left out" in report(task)
    with pytest.raises(
        InputError, match=r"qqp train: 3 of 5 rows cannot be used:(.|\n)*train.tsv:5: nothing in 'quest"
    ):
        read_glue("qqp", glue, incomplete="fail")
    (glue / "QQP/test.tsv").write_text(lines("id|question1|question2", "0|torn"))
    with pytest.raises(InputError, match="qqp test: 1 of 1 rows cannot be used"):
        read_glue("qqp", glue)


def test_missing_splits_are_named_when_they_are_asked_for(glue: Path) -> None:
    (glue / "MNLI/train.tsv").unlink()
    task = read_glue("mnli", glue)
    assert list(task.splits) == ["validation_matched", "validation_mismatched", "test_matched", "test_mismatched", "ax"]
    with pytest.raises(InputError, match=r"mnli has no train split: .*MNLI/train.tsv is not there; there are: valid"):
        task.split("train")
    with pytest.raises(InputError, match="no split 'dev'; there are: train, validation_matched"):
        task.split("dev")
    assert "missing: " in report(task)


def test_report(glue: Path) -> None:
    (glue / "SST-2/dev.tsv").write_text(lines("sentence|label", "good |1", "new|1", "bad |0", "newer|1"))
    said = report(read_glue("sst2", glue))
    assert "sst2: classification, scored by accuracy" in said
    assert "4 examples, negative 25.0%, positive 75.0%, 2 of them also in train" in said
    assert "scores 0 to 3.8, mean 1.9" in report(read_glue("stsb", glue))


def hub_features(names: list[str]) -> datasets.Features:
    text = datasets.Value("string")
    label = datasets.ClassLabel(names=names)
    return datasets.Features({"sentence1": text, "sentence2": text, "label": label, "idx": datasets.Value("int32")})


def hub_rows(labels: list[int], names: list[str]) -> datasets.Dataset:
    rows = {"sentence1": [f"P{i}." for i in range(len(labels))], "sentence2": ["H."] * len(labels), "label": labels}
    return datasets.Dataset.from_dict(rows | {"idx": list(range(len(labels)))}, features=hub_features(names))


RTE = ["entailment", "not_entailment"]


def test_parquet_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "rte").mkdir()
    hub_rows([1, 0], RTE).to_parquet(tmp_path / "rte/train-00000-of-00002.parquet")
    hub_rows([1], RTE).to_parquet(tmp_path / "rte/train-00001-of-00002.parquet")
    (tmp_path / "rte/validation").mkdir()
    hub_rows([0], RTE).to_parquet(tmp_path / "rte/validation/0000.parquet")
    hub_rows([-1, -1], RTE).to_parquet(tmp_path / "rte/test-00000-of-00001.parquet")
    task = read_glue("rte", tmp_path)
    assert [split.labels.tolist() if split.labels is not None else None for split in task.splits.values()] == [
        [1, 0, 1], [0], None
    ]  # fmt: skip
    assert task.split("train").index.tolist() == [0, 1, 2]


def test_labels_of_the_hub_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "rte").mkdir()
    hub_rows([1, 0, 0], RTE[::-1]).to_parquet(tmp_path / "rte/train-00000-of-00001.parquet")
    labels = read_glue("rte", tmp_path).split("train").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 1]
    hub_rows([1], ["yes", "no"]).to_parquet(tmp_path / "rte/train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"'label' has the labels \['yes', 'no'\], and task.labels is \['entailment'"):
        read_glue("rte", tmp_path)
    numbers = pa.table({"sentence1": ["P."], "sentence2": ["H."], "label": [1]})
    pq.write_table(numbers, tmp_path / "rte/train-00000-of-00001.parquet")
    with pytest.raises(
        InputError, match=r"'label' holds '1', which is none of entailment, not_entailment; task.values"
    ):
        read_glue("rte", tmp_path)


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load(dataset: str, subset: str | None, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((dataset, subset, split))
        if split == "test_mismatched":
            raise ValueError('Unknown split "test_mismatched". Should be one of [...]')
        return hub_rows([-1] if "test" in split else [2], ["entailment", "neutral", "contradiction"]).rename_columns(
            {"sentence1": "premise", "sentence2": "hypothesis"}
        )

    monkeypatch.setattr(sources, "_unreachable", lambda dataset: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    task = read_task(section("mnli"), data_dir=tmp_path, glue_dir=None)
    labels = task.split("train").labels
    assert labels is not None
    assert labels.tolist() == [2]
    assert task.split("ax").labels is None
    assert ("nyu-mll/glue", "mnli", "validation_matched") in asked
    assert ("nyu-mll/glue", "ax", "test") in asked
    assert "Unknown split" in task.missing["test_mismatched"]


@pytest.mark.parametrize("offline", [True, False])
def test_without_folder_and_network_both_ways_are_named_at_once(
    offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked without a probe"))
    monkeypatch.setattr(datasets, "get_dataset_config_names", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    why = "HF_HUB_OFFLINE is set" if offline else r"cannot be reached \(no route\)"
    with pytest.raises(InputError, match=rf"GLUE_DIR is not set; nyu-mll/glue on the Hub: {why}.*GLUE_DIR=<folder>"):
        read_task(section("rte"), data_dir=tmp_path, glue_dir=None)
    with pytest.raises(InputError, match=r"has no folder RTE or rte; nyu-mll/glue on the Hub"):
        read_task(section("rte"), data_dir=tmp_path, glue_dir=tmp_path)


def test_glue_dir_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GLUE_DIR", raising=False)
    assert sources.glue_dir_from_environment() is None
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    assert sources.glue_dir_from_environment() == tmp_path
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no such folder"):
        sources.glue_dir_from_environment()


ROWS = [{"text": 'a "b", c', "label": "yes"}, {"text": "d\te", "label": "no"}]


def as_csv(path: Path, rows: list[dict[str, str]] = ROWS) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_format_of_your_own_gives_the_same(tmp_path: Path) -> None:
    as_csv(tmp_path / "a.csv")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress((tmp_path / "a.csv").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.jsonl.gz", "a.csv.xz", "a.parquet"):
        split = own(tmp_path, files={"train": name}).split("train")
        assert split.texts == ([row["text"] for row in ROWS],), name
        assert split.labels is not None
        assert split.labels.tolist() == [1, 0], name


def test_globs_join_files_in_order_and_rows_are_numbered_through(tmp_path: Path) -> None:
    for name in ("p2.csv", "p1.csv"):
        as_csv(tmp_path / name, [{"text": name, "label": "no"}])
    split = own(tmp_path, files={"train": "p*.csv"}).split("train")
    assert split.texts == (["p1.csv", "p2.csv"],)
    assert split.index.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"q\*\.csv: no such file"):
        own(tmp_path, files={"train": "q*.csv"})


@pytest.mark.parametrize("pattern", ["**/*.csv", "**"])
def test_linked_folders_are_read_once_and_links_upwards_end(pattern: str, tmp_path: Path) -> None:
    rows, elsewhere = tmp_path / "rows", tmp_path / "elsewhere"
    for folder in (rows / "deep", elsewhere):
        folder.mkdir(parents=True)
        as_csv(folder / f"{folder.name}.csv", [{"text": folder.name, "label": "no"}])
    for name, target in (("linked", elsewhere), ("deep/up", rows), ("deep/top", rows), ("again", rows / "deep")):
        (rows / name).symlink_to(target)
    split = own(tmp_path, files={"train": [f"rows/{pattern}", "elsewhere/*.csv", "rows/../rows/deep/deep.csv"]})
    assert sorted(split.split("train").texts[0]) == ["deep", "elsewhere"]


def test_own_files_come_before_glue_dir(glue: Path) -> None:
    as_csv(glue / "a.csv", [{"sentence": "s", "label": "acceptable"}])
    task = read_glue("cola", glue, files={"train": ["a.csv"]}, root=glue)
    assert task.split("train").texts == (["s"],)
    assert list(task.splits) == ["train"]


def test_labels_written_otherwise(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": value} for value in (1, 0, True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    labels = own(tmp_path, files={"train": "a.jsonl"}, values=[0, 1]).split("train").labels
    assert labels is not None
    assert labels.tolist() == [1, 0]
    with pytest.raises(
        InputError, match=r"a.jsonl:1: 'label' holds '1', which is none of no, yes; task.values says how"
    ):
        own(tmp_path, files={"train": "a.jsonl"})
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[2]) + "\n")
    labels = own(tmp_path, files={"train": "b.jsonl"}, values=[False, True]).split("train").labels
    assert labels is not None
    assert labels.tolist() == [1]
    offer = re.escape("""task.labels='["0", "1"]'. """)
    with pytest.raises(InputError, match=rf"task.labels is empty.*e.g. {offer}.*'1' \(1\), '0' \(1\)"):
        own(tmp_path, files={"train": "a.jsonl"}, labels=[])


def test_several_labels(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"type": "multilabel", "metrics": "macro_f1", "labels": ["a", "b", "c"]}
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": ["c", "a"]}\n{"text": "y", "label": []}\n')
    as_csv(tmp_path / "a.csv", [{"text": "x", "label": "c, a"}, {"text": "y", "label": ""}])
    for name in ("a.jsonl", "a.csv"):
        labels = own(tmp_path, files={"train": name}, **settings).split("train").labels
        assert labels is not None
        assert labels.dtype == np.float32
        assert labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["c", "b", "a"]))}
    )
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": [[0, 1]]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    labels = own(tmp_path, files={"train": "a.parquet"}, **settings).split("train").labels
    assert labels is not None
    assert labels.tolist() == [[0, 1, 1]]
    as_csv(tmp_path / "a.csv", [{"text": "x", "label": "c,d"}])
    with pytest.raises(InputError, match=r"a.csv:2: 'label' holds 'd', which is none of a, b, c"):
        own(tmp_path, files={"train": "a.csv"}, **settings)


def test_bad_rows_are_counted_and_named_for_all_splits_at_once(tmp_path: Path) -> None:
    rows = ["text|label", "a|yes", "|no", "b|maybe", "c", "d|no"] + ["e|?"] * 6
    (tmp_path / "a.tsv").write_text(lines(*rows))
    (tmp_path / "b.jsonl").write_text('{"text": null, "label": "no"}\n{"text": 3, "label": "no"}\n{"text": "t"}\n')
    with pytest.raises(InputError) as error:
        own(tmp_path, files={"train": "a.tsv", "validation": "b.jsonl"})
    said = str(error.value)
    assert "own train: 9 of 11 rows cannot be used:" in said
    assert f"{tmp_path}/a.tsv:3: nothing in 'text'" in said
    assert "a.tsv:4: 'label' holds 'maybe', which is none of no, yes" in said
    assert "a.tsv:5: 1 fields where there are 2 columns" in said
    assert "... and 4 more" in said
    assert "own validation: 3 of 3 rows cannot be used:" in said
    assert "b.jsonl:1: nothing in 'text'" in said
    assert "b.jsonl:2: a int where a text is expected: 3" in said
    assert "b.jsonl:3: nothing in 'label'" in said


def test_a_line_number_is_that_of_the_file_in_spite_of_quoted_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",yes\n\nb,maybe\n')
    with pytest.raises(InputError, match=r"a.csv:5: 'label' holds 'maybe'"):
        own(tmp_path, files={"train": "a.csv"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "class"}, r"no column 'class'; there are: 'text', 'label'; name the column with task.label=class"),
        (
            {"text": ["a", "text"]},
            r"no column 'a'; there are: 'text', 'label'; name the column with task.text=\[a, text\]",
        ),
    ],
)
def test_wrong_columns(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    as_csv(tmp_path / "a.csv")
    with pytest.raises(InputError, match=message):
        own(tmp_path, files={"train": "a.csv"}, **settings)


def test_a_split_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    for split in ("train", "test"):
        with pytest.raises(InputError, match=f"own {split}: no examples in 0 rows"):
            own(tmp_path, files={split: "a.csv"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"", "empty file"),
        ("a.tsv", b"text\tlabel\n\xff\tyes\n", r"a.tsv:2: not UTF-8; re-encode"),
        ("a.csv", b'text,label\n"open,yes\n', "quotation mark left open"),
        ("a.csv", b"text,text\na,b\n", "two columns of the same name"),
        ("a.jsonl", b'{"text": "a", "label": "no"}\n{"text"\n', r"a.jsonl:2: not JSON"),
        ("a.json", b'[{"text": "a"}]\n', r"not a list; turn an array into lines with: jq"),
        ("a.parquet", b"PAR", "not a readable parquet file"),
        ("a.csv.gz", gzip.compress(b"text,label\n" * 999, mtime=0)[:-9], "damaged or cut short"),
        ("a.xlsx", b"", r"unsupported file type; tables end with one of .csv"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        own(tmp_path, files={"train": name})


def test_scores_are_numbers_in_range(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"type": "regression", "metrics": "pearson", "labels": [], "range": [0, 5]}
    as_csv(tmp_path / "a.csv", [{"text": "x", "label": value} for value in ("2.5", "six", "5.1", "nan", "")])
    with pytest.raises(InputError) as error:
        own(tmp_path, files={"train": "a.csv"}, **settings)
    for message in (
        "a.csv:3: 'six' is no number",
        "4: '5.1' is no score from 0 to 5",
        "5: 'nan'",
        "6: nothing in 'lab",
    ):
        assert message in str(error.value)


def test_a_test_split_may_have_labels_but_not_here_and_there(tmp_path: Path) -> None:
    as_csv(tmp_path / "a.csv")
    as_csv(tmp_path / "b.csv", [{"text": "x", "label": ""}])
    assert own(tmp_path, files={"test": "a.csv"}).split("test").labels is not None
    assert own(tmp_path, files={"test": "b.csv"}).split("test").labels is None
    with pytest.raises(InputError, match="some of its files have labels and some have none"):
        own(tmp_path, files={"test": ["a.csv", "b.csv"]})
    with pytest.raises(InputError, match="nothing in 'label'"):
        own(tmp_path, files={"validation": "b.csv"})


def test_a_split_to_submit_is_in_the_official_order(glue: Path) -> None:
    (glue / "RTE/test.tsv").write_text(lines("index|sentence1|sentence2", "1|P.|H.", "0|P.|H."))
    with pytest.raises(InputError, match="does not count from 0; a submission is in the official order"):
        read_glue("rte", glue)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": "pearson"}, "metrics pearson: for classification there are accuracy, f1"),
        ({"metrics": "f1", "labels": ["a", "b", "c"]}, "f1 is that of the second of two labels, and there are 3"),
        ({"labels": ["a", "a"]}, "labels are two or more different names"),
        ({"labels": ["a"]}, "labels are two or more different names"),
        ({"labels": ["a\tb", "c"]}, r"labels \['a\\tb'\] hold tabs, line breaks"),
        ({"values": ["0"]}, "do not give one way of writing for each"),
        ({"type": "regression", "metrics": "pearson"}, "a regression has no labels"),
        ({"range": [0, 1]}, "range: unknown key; it belongs to task.type=regression, and this task is of type class"),
        ({"files": {"dev": "a.csv"}}, "files: unknown split dev; there are train, validation, test"),
        ({"files": {}}, "no data: give files.train"),
        ({"validation": ["train"]}, "validation and test name different splits, none of them train"),
    ],
)
def test_a_section_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    plain = {"name": "own", "type": "classification", "labels": ["no", "yes"], "metrics": "accuracy"}
    with pytest.raises(ConfigError, match=message):
        validate(TaskSection, {**plain, "files": {"train": "a.csv"}, **changes})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations(path: Path) -> None:
    text = path.read_text()
    values, names = read_values([str(path)])
    task = validate(TaskSection, values["task"], names)
    assert task.name == path.stem
    assert f"TASK={path.stem}" in text
    assert len(text.splitlines()) <= 40
    assert validate(TaskSection, task.model_dump(mode="json")) == task


COUNTS = {
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "qnli": (None, 5463, 5463),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real tasks in {DATA}; set BERTILLERY_DATA")
@pytest.mark.parametrize("name", COUNTS)
def test_real_counts(name: str) -> None:
    task = read_glue(name, DATA / "glue")
    got = [task.splits[split].num_examples if split in task.splits else None for split in task.section.splits]
    assert got == list(COUNTS[name])
    named = (ROOT / f"configs/finetune/{name}.yaml").read_text()
    assert all(f"{count:,}" in named for count in COUNTS[name] if count)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real tasks in {DATA}; set BERTILLERY_DATA")
def test_real_files_of_ones_own() -> None:
    task = read_task(section("sick_entailment", root=DATA / "sick"), data_dir=DATA, glue_dir=None)
    assert [split.num_examples for split in task.splits.values()] == [4500, 500, 4927]
    labels = task.split("train").labels
    assert labels is not None
    assert np.bincount(labels).tolist() == [1299, 2536, 665]
    assert task.split("train").index[:3].tolist() == ["1", "2", "3"]


def test_labels_of_the_hub_that_nobody_gave(tmp_path: Path) -> None:
    """-1 beside names of labels, as in SNLI: an incomplete row."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": ["a", "b", "c"], "label": [1, -1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    files = {"train": "a.parquet"}
    with pytest.raises(InputError, match="nothing in 'label'"):
        own(tmp_path, files=files)
    split = own(tmp_path, files=files, incomplete="skip").split("train")
    assert (split.texts[0], split.labels.tolist(), split.left_out) == (["a", "c"], [1, 0], 1)  # pyright: ignore


def test_classes_that_a_parquet_file_numbers_go_by_their_numbers(tmp_path: Path) -> None:
    def write(names: Any) -> None:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        rows = pa.table({"text": ["a", "b"], "label": [0, 1]})
        described = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(rows.replace_schema_metadata(described), tmp_path / "a.parquet")

    for names in (["no", "yes"], {"0": "no", "1": "yes"}, {"1": "yes", "0": "no"}):
        write(names)
        labels = own(tmp_path, files={"train": "a.parquet"}).split("train").labels
        assert labels is not None
        assert labels.tolist() == [0, 1]
    for names in ("no", 2, {"1": "no", "2": "yes"}):
        write(names)
        with pytest.raises(InputError, match=r"a\.parquet: the names of the classes of 'label' are no list"):
            own(tmp_path, files={"train": "a.parquet"})


def test_truth_values_in_every_way_of_writing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,True\nb,False\nc,true\n")
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    found = own(tmp_path, files={"train": "a.csv", "validation": "b.jsonl"}, labels=[False, True])
    assert [found.split(name).labels.tolist() for name in ("train", "validation")] == [[1, 0, 1], [1, 0]]  # pyright: ignore


def test_the_labels_that_are_offered_can_be_pasted(tmp_path: Path) -> None:
    names = ["01", "a, b", "null", "yes"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "x", "label": name}) + "\n" for name in names))
    with pytest.raises(InputError) as told:
        own(tmp_path, files={"train": "a.jsonl"}, labels=[])
    found = re.findall(r"task\.labels='.*?'", str(told.value))
    assert read_values(shlex.split(*found))[0] == {"task": {"labels": names}}


def test_several_labels_whose_names_have_commas(tmp_path: Path) -> None:
    names = ["news, politics", "sports", "none"]
    given = [[], ["none"], ["news, politics"], ["sports", "news, politics"]]
    rows = [{"text": "x", "label": each} for each in given]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text('text,label\nx,\nx,none\nx,"""news, politics"""\nx,"sports, ""news, politics"""\n')
    (tmp_path / "one.jsonl").write_text('{"text": "x", "label": 0}\n')
    plain = {"type": "multilabel", "labels": names, "metrics": "macro_f1"}
    found = own(tmp_path, files={"train": "a.jsonl", "validation": "a.csv"}, **plain)
    expected = [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert [found.split(name).labels.tolist() for name in ("train", "validation")] == [expected] * 2  # pyright: ignore
    kind: Any = task_type_of(found.section)
    assert [kind.parse_prediction(kind.format_prediction(np.array(row))) for row in expected] == expected
    with pytest.raises(InputError, match="holds 0, and several labels are a list"):
        own(tmp_path, files={"train": "one.jsonl"}, **plain)


@pytest.mark.parametrize("choices", [[1, 2], ["a", None]])
def test_choices_are_texts(tmp_path: Path, choices: list[Any]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "ends": choices, "label": "no"}) + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl:1: choices are texts, not"):
        own(tmp_path, type="choice", choices="ends", files={"train": "a.jsonl"})


def test_a_data_set_that_is_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library refuses it; where its rows lie as parquet is a revision."""
    asked = []

    def load(name: str, subset: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append(revision)
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found own.py")
        return datasets.Dataset.from_dict({"text": ["a"], "label": ["no"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_unreachable", lambda dataset: None)
    with pytest.raises(InputError, match=r"no longer supported.*task.hub.revision=refs/convert/parquet"):
        own(tmp_path, hub={"dataset": "a/b"})
    assert own(tmp_path, hub={"dataset": "a/b", "revision": "x"}).split("train").num_examples == 1
    assert asked == [None, *["x"] * 3]


def test_files_of_a_yaml_can_be_taken_back() -> None:
    """For its data set on the Hub, or because one of them is not there."""
    swag = str(ROOT / "configs/finetune/swag.yaml")
    for given, left in (("task.files=null", []), ("task.files.test=null", ["train", "validation"])):
        values, names = read_values([swag, given])
        assert [*validate(TaskSection, values["task"], names).files] == left


SEVERAL: dict[str, Any] = {"type": "multilabel", "metrics": "macro_f1", "labels": ["a", "b", "c"]}
VECTORS = [[0, 1, 1], [0, 0, 0], [1, 0, 1]]


def several(tmp_path: Path, cells: list[Any], **changes: Any) -> list[list[float]]:
    """The labels that are read from these cells."""
    rows = [json.dumps({"text": "x", "label": cell}) for cell in cells]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    return own(tmp_path, files={"train": "a.jsonl"}, **SEVERAL | changes).split("train").labels.tolist()  # pyright: ignore


def test_several_labels_as_vectors(tmp_path: Path) -> None:
    assert several(tmp_path, VECTORS) == VECTORS
    assert several(tmp_path, [[float(bit) for bit in row] for row in VECTORS]) == VECTORS
    assert several(tmp_path, [[bool(bit) for bit in row] for row in VECTORS]) == VECTORS
    assert several(tmp_path, [str(row) for row in VECTORS]) == VECTORS
    assert several(tmp_path, [" ".join(map(str, row)) for row in VECTORS]) == VECTORS
    assert several(tmp_path, [str([float(bit) for bit in row]) for row in VECTORS]) == VECTORS
    assert several(tmp_path, [str([bool(bit) for bit in row]) for row in VECTORS]) == VECTORS
    assert several(tmp_path, [str(np.array(row, float)) for row in VECTORS]) == VECTORS
    assert several(tmp_path, [",".join(map(str, row)) for row in VECTORS], values=["A", "B", "C"]) == VECTORS


def test_labels_by_number_are_no_vectors(tmp_path: Path) -> None:
    numbers = {"values": [0, 1, 2]}
    assert several(tmp_path, [[0, 2], [], [1], [0, 1, 2], "0, 1"], **numbers) == [
        [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1, 0]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        ([0, 1], {}, r"0 or 1 for each of the 3 labels a, b, c, this one has 2"),
        ([0, 0], {"labels": ["a", "b"], "values": [0, 1]}, "reads as a vector of 0 and 1 and as a list of labels"),
        ([1, 1], {"labels": ["a", "b"], "values": [0, 1]}, "for vectors leave out task.values"),
        ([0, 1], {"labels": ["a", "b"], "values": [0, 1]}, "for vectors leave out task.values"),
        ("1,1", {"labels": ["a", "b"], "values": [0, 1]}, "for vectors leave out task.values"),
        ([0, 1, 1], {"values": [0, 1, 2]}, "for vectors leave out task.values"),
        ([0, 2, 1], {}, "holds '0', which is none of a, b, c"),
        ([0, None, 1], {}, "which is none of a, b, c"),
    ],
)
def test_what_may_be_a_vector_and_a_list_is_refused(
    tmp_path: Path, cell: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"a\.jsonl:1: .*{message}"):
        several(tmp_path, [cell], **changes)


def test_several_labels_in_a_column_each(tmp_path: Path) -> None:
    as_csv(tmp_path / "a.csv", [{"text": "x", **dict(zip("cab", map(str, row), strict=True))} for row in VECTORS])
    as_csv(tmp_path / "unlabelled.csv", [{"text": "x", "a": "", "b": "", "c": ""}])
    as_csv(tmp_path / "names.csv", [{"text": "x", "A": "True", "B": "False", "C": "1.0"}])
    task = own(tmp_path, files={"train": "a.csv", "test": "unlabelled.csv"}, **SEVERAL)
    assert task.split("train").labels.tolist() == [[b, c, a] for a, b, c in VECTORS]  # pyright: ignore
    assert task.split("test").labels is None
    named = own(tmp_path, files={"train": "names.csv"}, values=["A", "B", "C"], **SEVERAL)
    assert named.split("train").labels.tolist() == [[1, 0, 1]]  # pyright: ignore
    as_csv(tmp_path / "a.csv", [{"text": "x", "a": "0", "b": "2", "c": ""}])
    with pytest.raises(InputError, match=r"a\.csv:2: 'b' holds '2'; the column of a label holds 0 or 1"):
        own(tmp_path, files={"train": "a.csv"}, **SEVERAL)


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        (
            "classification",
            [0, 1],
            "holds .* where one label is expected; several labels of a row need task.type=multi",
        ),
        ("regression", True, "True is no number"),
        ("regression", "1_0", "'1_0' is no number"),
    ],
)
def test_labels_of_another_type(tmp_path: Path, kind: str, cell: Any, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": cell}))
    changes = {"type": "regression", "metrics": "pearson", "labels": []} if kind == "regression" else {}
    with pytest.raises(InputError, match=rf"a\.jsonl:1: .*{message}"):
        own(tmp_path, files={"train": "a.jsonl"}, **changes)


def test_a_text_is_made_of_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud800", "label": "no"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:1: half a surrogate pair"):
        own(tmp_path, files={"train": "a.jsonl"})


@pytest.mark.parametrize(
    "choices", [{"text": "abc", "label": ["A", "B", "C"]}, {"text": ["a", "b"], "label": ["A"]}, {}]
)
def test_choices_are_lists(tmp_path: Path, choices: Any) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "ends": choices, "label": "A"}))
    plain = {"type": "choice", "choices": "ends", "labels": ["A", "B", "C"]}
    with pytest.raises(InputError, match=r"a\.jsonl:1: choices are two lists of one length"):
        own(tmp_path, files={"train": "a.jsonl"}, **plain)


def test_ids_and_labels_are_kept_as_they_are_written(tmp_path: Path) -> None:
    """Leading zeros in a file, and in a YAML, whose 010 would be 8."""
    as_csv(tmp_path / "a.csv", [{"id": f"{i:06}", "text": "x", "label": name} for i, name in enumerate(["001", "010"])])
    (tmp_path / "task.yaml").write_text("labels: [001, 010]\n")
    labels = read_values([str(tmp_path / "task.yaml")])[0]["labels"]
    task = own(tmp_path, files={"train": "a.csv"}, labels=labels, index="id")
    assert task.section.labels == ["001", "010"]
    split = task.split("train")
    assert split.labels.tolist() == [0, 1]  # pyright: ignore
    folder = tmp_path / "predictions"
    kind: Any = task_type_of(task.section)
    write_predictions(folder, {"train": Predicted(split, np.eye(2, dtype=np.float32), np.array([1, 0]))}, kind)
    written = [line.split("\t")[:3] for line in (folder / "train.tsv").read_text().splitlines()[1:]]
    assert written == [["000000", "010", "001"], ["000001", "001", "010"]]


SMALL = 2_000
"""Bytes of a row, for a test of the limit."""


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.conll", "a.parquet", "lines.csv"])
def test_a_row_has_a_size_limit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the format, and whatever a file was compressed to."""
    monkeypatch.setitem(files.LIMITS, "row", SMALL)
    monkeypatch.setitem(files.LIMITS, "document", SMALL)
    rows = [{"text": "x" * length, "label": "no"} for length in (SMALL // 2, SMALL * 2, *[1] * 20)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        packed, place = name, ": row 2"
    else:
        texts = {
            "a.csv": "text,label\n" + "".join(f"{row['text']},no\n" for row in rows),
            "lines.csv": 'text,label\n"' + "x\n" * SMALL + '",no\n',
            "a.tsv": "text\tlabel\n" + "".join(f"{row['text']}\tno\n" for row in rows),
            "a.conll": "".join(f"{row['text']}\tO\n" for row in rows),
        }
        packed, place = f"{name}.zst", {"a.csv": ":3", "a.tsv": ":3", "lines.csv": ":2"}.get(name, ":2")
        text = texts.get(name, "".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / packed).write_bytes(zstandard.compress(text.encode()))
    with pytest.raises(InputError, match=rf"{name}.*{place}: a row of more than 2,000 bytes"):
        own(tmp_path, files={"train": packed}, incomplete="skip")


def test_a_document_has_a_size_limit_and_rows_do_not_count_towards_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files.LIMITS, "document", SMALL)
    rows = [json.dumps({"text": "x", "label": "no"})] * SMALL
    (tmp_path / "a.json").write_text("\n".join(rows))
    assert own(tmp_path, files={"train": "a.json"}).split("train").num_examples == SMALL
    (tmp_path / "a.json").write_text("{\n" + "\n" * SMALL)
    with pytest.raises(InputError, match=r"a\.json: a document of more than 2,000 bytes"):
        own(tmp_path, files={"train": "a.json"})


def test_a_parquet_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    cells = pa.StringArray.from_buffers(3, *pa.array([b"a", b"\xff", b"c"]).buffers()[1:])
    pq.write_table(pa.table({"text": cells, "label": ["no", "yes", "no"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: row 2: 'text' cannot be read"):
        own(tmp_path, files={"train": "a.parquet"})


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content cut short, or with some of its bytes changed, removed or added."""
    at, some = int(rng.integers(len(content))), rng.bytes(int(rng.choice([1, 4, 40])))
    behind = content[at + len(some) :]
    return [content[:at], content[:at] + some + behind, content[:at] + behind, content[:at] + some + content[at:]][
        rng.integers(4)
    ]


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.xz", ".csv.zst", ".json.zst", ".parquet"])
def test_damaged_rows_are_one_error_with_the_name_of_the_file(tmp_path: Path, suffix: str) -> None:
    """Where the damage shows; a plain byte within a text does not."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": [f"é {i}" for i in range(40)], "label": [0, 1] * 20}, features=features)
    text = "text,label\n" + "é,no\n" * 40 if ".csv" in suffix else '{"text": "é", "label": "no"}\n' * 40
    rows.to_parquet(tmp_path / "whole.parquet")
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress,
        "parquet": lambda _: (tmp_path / "whole.parquet").read_bytes(),
    }  # fmt: skip
    whole = packers[suffix.split(".")[-1]](text.encode())
    rng, messages = np.random.default_rng(1), []
    for _ in range(150):
        (tmp_path / f"a{suffix}").write_bytes(damaged(whole, rng))
        try:
            own(tmp_path, files={"train": f"a{suffix}"})
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 75
    assert all(f"a{suffix}" in message for message in messages)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classification": ({"labels": ["no", "yes"], "metrics": "accuracy"}, {"text": "a", "label": "yes"}),
    "multilabel": ({"labels": ["no", "yes"], "metrics": "macro_f1"}, {"text": "a", "label": ["no"]}),
    "regression": ({"labels": [], "metrics": "pearson"}, {"text": "a", "label": 1.5}),
    "choice": ({"choices": "more", "metrics": "accuracy"}, {"text": "a", "label": "yes", "more": ["p", "q"]}),
    "tokens": ({"labels": ["O", "B-x"], "metrics": "f1"}, {"text": ["a", "b"], "label": ["O", "B-x"]}),
    "spans": (
        {"labels": [], "text": ["text", "more"], "metrics": "f1", "spans": {"unanswerable": True}},
        {"text": "Where?", "more": "It is in Lund", "label": [{"text": "Lund", "answer_start": 9}]},
    ),
}
"""Settings of a task of each kind, and a row of it."""
CELLS = [
    None, True, 0, 1, -1, 10**30, 1.5, 1e300, float("nan"), "", " ", "no", "O", "0", "[0, 1]", "\ud800", "a\tb",
    "Lund", [], ["p", "q"], [[0]], [None], {}, {"text": "ab", "label": "ab"},
    {"text": ["p", None], "label": ["no", "x"]}, {"text": "Lund", "answer_start": [9]}, {"answer_start": 9},
    [{"text": "Lund", "answer_start": None}],
]  # fmt: skip
"""What JSON can hold in a cell, and what a file of another kind does."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_of_any_type_is_read_or_refused_with_its_row(tmp_path: Path, kind: str) -> None:
    """In every column; nothing else than a text becomes a text, and every number is finite."""
    settings, row = KINDS[kind]
    for column in (*row, "id"):
        for cell in CELLS:
            (tmp_path / "a.jsonl").write_text(json.dumps({"id": "x", **row, column: cell}))
            try:
                task = own(tmp_path, type=kind, files={"validation": "a.jsonl"}, index="id", **settings)
            except InputError as error:
                message = str(error)
            else:
                message = "a.jsonl:1"
                assert report(task)
                assert kind != "regression" or np.isfinite(task.split("validation").labels).all()  # pyright: ignore
            assert "a.jsonl:1" in message

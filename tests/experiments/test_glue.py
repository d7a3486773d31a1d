from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bertillery.config.layers import read_values
from bertillery.config.section import InputError, validate
from bertillery.run.command import guarded
from experiments.glue import FILES, main, table_folder, validate_submission, write_submission
from finetune.task import TaskSection

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"


def predictions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.choice(list(file.written), file.num_rows) if file.written else rng.normal(2.5, 2, file.num_rows)
        for name, file in FILES.items()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue") / "submission"
    write_submission(folder, predictions())
    return folder


def test_line_counts_are_the_published_ones() -> None:
    assert {name.removesuffix(".tsv"): file.num_rows + 1 for name, file in FILES.items()} == {
        "CoLA": 1064, "SST-2": 1822, "MRPC": 1726, "QQP": 390966, "STS-B": 1380, "MNLI-m": 9797, "MNLI-mm": 9848,
        "QNLI": 5464, "RTE": 3001, "WNLI": 147, "AX": 1105,
    }  # fmt: skip


def test_every_file_belongs_to_a_task_and_has_its_labels() -> None:
    found = {}
    for path in CONFIGS.glob("*.yaml"):
        task = validate(TaskSection, read_values([str(path)])[0]["task"])
        for name in task.submission.values():
            found[name] = task.labels
            if task.folder and task.folder.values:
                pairs = dict(zip(task.labels, task.folder.values, strict=True))
                assert pairs == FILES[name].written, name
    assert {name: sorted(labels) for name, labels in found.items()} == {
        name: sorted(file.written) for name, file in FILES.items()
    }


def test_what_is_written_is_what_was_predicted(written: Path) -> None:
    validate_submission(written)
    validate_submission(written.with_name("submission.zip"))
    given = predictions()
    rows = (written / "CoLA.tsv").read_text().splitlines()
    assert rows[0] == "index\tprediction"
    assert rows[5] == f"4\t{int(given['CoLA.tsv'][4] == 'acceptable')}"
    scores = np.array([float(row.split("\t")[1]) for row in (written / "STS-B.tsv").read_text().splitlines()[1:]])
    np.testing.assert_allclose(scores, given["STS-B.tsv"].clip(0, 5), atol=5.1e-4)
    assert {0.0, 5.0} <= set(scores)
    with zipfile.ZipFile(written.with_name("submission.zip")) as archive:
        assert sorted(archive.namelist()) == sorted(FILES)
        assert archive.read("MNLI-m.tsv") == (written / "MNLI-m.tsv").read_bytes()


def test_the_same_predictions_give_the_same_archive(written: Path, tmp_path: Path) -> None:
    again = write_submission(tmp_path / "other", predictions())
    assert again.read_bytes() == written.with_name("submission.zip").read_bytes()


def test_missing_tasks_are_filled_only_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    some = {"RTE.tsv": np.array(["not_entailment"] * 3000)}
    with pytest.raises(InputError, match=r"no predictions for CoLA.tsv, SST-2.tsv.*AX.tsv; predict them, or have them"):
        write_submission(tmp_path / "a", some)
    assert not list(tmp_path.iterdir())
    with caplog.at_level(logging.WARNING):
        validate_submission(write_submission(tmp_path / "a", some, fill=True))
    assert "filled with the majority class, not predicted: CoLA.tsv, SST-2.tsv" in caplog.text
    assert "RTE" not in caplog.text
    assert set((tmp_path / "a/WNLI.tsv").read_text().split()[3::2]) == {"0"}
    assert set((tmp_path / "a/RTE.tsv").read_text().split()[3::2]) == {"not_entailment"}


def test_all_that_cannot_be_written_is_listed_and_nothing_is_replaced(written: Path) -> None:
    before = (written / "RTE.tsv").read_bytes()
    wrong: dict[str, np.ndarray] = predictions() | {
        "RTE.tsv": np.zeros(3000, dtype=int),
        "WNLI.tsv": np.array(["entailment"] * 145),
        "STS-B.tsv": np.full(1379, np.nan),
        "SNLI.tsv": np.zeros(1),
    }
    with pytest.raises(InputError) as error:
        write_submission(written, wrong)
    for message in (
        "RTE.tsv: '0' is no label; labels are entailment, not_entailment",
        "WNLI.tsv: 145 predictions for 146 examples",
        "STS-B.tsv: 1,379 predictions are not a number",
        "SNLI.tsv: no such file",
    ):
        assert message in str(error.value)
    assert (written / "RTE.tsv").read_bytes() == before


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("WNLI.tsv", lambda text: text.rsplit("\n", 2)[0] + "\n", "WNLI.tsv: 145 rows after the header, not 146"),
        ("WNLI.tsv", lambda text: text + text.splitlines()[-1] + "\n", "147 rows after the header, not 146"),
        ("WNLI.tsv", replaced("index\t", "\tindex\t"), r"WNLI.tsv: line 1 is '\\tindex\\tprediction', not 'index"),
        ("WNLI.tsv", replaced("index\tprediction\n", ""), "145 rows after the header"),
        (
            "AX.tsv",
            lambda text: text.replace("entailment", "1"),
            r"AX.tsv: \d+ rows do not end with contradiction or ent",
        ),
        (
            "QNLI.tsv",
            replaced("entailment", "neutral"),
            "QNLI.tsv: 1 rows do not end with entailment or not_entailment",
        ),
        ("CoLA.tsv", replaced("\n7\t", "\n8\t"), "CoLA.tsv: 1 rows do not begin with their index.*the first is line 9"),
        ("CoLA.tsv", replaced("\n7\t", "\n7 "), "CoLA.tsv: 1 rows do not begin with their index"),
        ("STS-B.tsv", replaced("\t5.000", "\tnan"), "STS-B.tsv: 1 rows do not end with a number from 0 to 5"),
        ("STS-B.tsv", replaced("\t5.000", "\t5.001"), "STS-B.tsv: 1 rows do not end with a number from 0 to 5"),
        ("WNLI.tsv", lambda text: text.replace("\n", "\r\n"), r"line 1 is 'index\\tprediction\\r'"),
    ],
)
def test_a_wrong_file_is_refused(
    written: Path, tmp_path: Path, name: str, change: Callable[[str], str], message: str
) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for file in FILES:
            text = (written / file).read_bytes().decode()
            stream.writestr(file, change(text) if file == name else text)
    with pytest.raises(InputError, match=message):
        validate_submission(archive)


def test_a_wrong_archive_is_refused_with_all_problems(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for file in list(FILES)[:-1]:
            stream.write(written / file, f"glue/{file}" if file == "RTE.tsv" else file)
        stream.writestr(".DS_Store", "")
        with pytest.warns(UserWarning, match="Duplicate name"):
            stream.writestr("CoLA.tsv", "")
    assert main(["validate", str(archive)]) == 1
    said = capsys.readouterr().err
    for message in (
        "glue/RTE.tsv: in a folder; the archive is flat",
        "RTE.tsv: missing; all 11 files are required",
        "AX.tsv: missing",
        ".DS_Store: does not belong",
        "CoLA.tsv: twice",
    ):
        assert message in said


def test_a_damaged_archive_is_one_error(tmp_path: Path) -> None:
    """Whatever byte is another one, and also where a file unpacks to far more than any has."""
    archive, rng = tmp_path / "a.zip", np.random.default_rng(0)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("RTE.tsv", "index\tprediction\n" + "".join(f"{i}\tentailment\n" for i in range(300)))
    whole = archive.read_bytes()
    for at in rng.integers(len(whole), size=200):
        archive.write_bytes(whole[:at] + rng.bytes(1) + whole[at + 1 :])
        with pytest.raises(InputError, match=r"a\.zip"):
            validate_submission(archive)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("RTE.tsv", bytes(70_000_000))
    with pytest.raises(InputError, match=r"a\.zip: RTE\.tsv has 70,000,000 bytes unpacked"):
        validate_submission(archive)


def test_command(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(written)]) == 0
    assert "11 files, 426,309 rows, all as required" in capsys.readouterr().out
    (tmp_path / "a.zip").write_text("PK")
    assert main(["validate", str(tmp_path / "a.zip")]) == 1
    assert main(["validate", str(tmp_path / "none")]) == 1
    assert main([]) == 2


def test_a_submission_from_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds of RTE whose mean is another answer than either's; the rest is filled only if asked."""
    number = FILES["RTE.tsv"].num_rows
    runs = []
    for seed, probability in enumerate((0.9, 0.2), 1):
        run = tmp_path / f"seed-{seed}"
        (run / "predictions").mkdir(parents=True)
        row = f"\tx\t\t{probability}\t{1 - probability}"
        lines = ["index\tprediction\tlabel\tp(entailment)\tp(not_entailment)", *(f"{i}{row}" for i in range(number))]
        (run / "predictions/test.tsv").write_text("\n".join(lines) + "\n")
        (run / "config.yaml").write_text(
            "task: {name: rte, type: classification, labels: [entailment, not_entailment], metrics: accuracy,"
            " hub: {dataset: x}, submission: {test: RTE.tsv}}\n"
        )
        runs.append(str(run))
    other = tmp_path / "tokens"
    other.mkdir()
    (other / "config.yaml").write_text(
        "task: {name: own, type: tokens, labels: [O, B-x], metrics: f1, files: {train: x}}\n"
    )
    rest = {"scores": {"validation": {"f1": [0.5]}}, "ensemble": {}, "baselines": {"validation": {}}, "warnings": []}
    table = {"rte": {**rest, "runs": runs, "best": runs[1]}, "own": {**rest, "runs": [str(other)], "best": str(other)}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    assert main([str(tmp_path)]) == 2
    assert "no predictions for CoLA.tsv" in capsys.readouterr().err
    for given, answer in (("ensemble=false", "not_entailment"), ("ensemble=true", "entailment")):
        assert main([str(tmp_path), given, "fill=true"]) == 0
        assert (tmp_path / "submission/RTE.tsv").read_text().splitlines()[1] == f"0\t{answer}"
    assert guarded(lambda: main([str(tmp_path / "nothing")])) == 2


def test_a_submission_is_asked_for_by_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as to ``make glue``, or by its name alone; a folder with a table is taken as it is."""
    monkeypatch.chdir(tmp_path)
    for given in ("runs/pretrain/tiny/export", "owner/tiny", "tiny", "runs/finetune/tables/tiny"):
        assert table_folder(given) == Path("runs/finetune/tables/tiny")
    (tmp_path / "elsewhere/tables").mkdir(parents=True)
    (tmp_path / "elsewhere/tables/table.json").write_text("{}")
    assert table_folder("elsewhere/tables") == Path("elsewhere/tables")

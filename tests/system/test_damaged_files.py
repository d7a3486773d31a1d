"""Files that a run, a corpus or a model consists of, damaged in every way: read as something, or one message."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from transformers import AutoModelForSequenceClassification, BertForPreTraining

from bertillery.config.layers import dump
from bertillery.config.section import InputError, validate
from bertillery.data import tables
from bertillery.data.corpus import CorpusSection, ReadReport, read_file
from bertillery.data.encode import Encoder
from bertillery.data.prepare import prepare
from bertillery.data.prepared import PreparedCorpus, corpus_report
from bertillery.data.tokenizer import TokenizerSection
from bertillery.data.writer import CorpusWriter
from bertillery.models.load import load, load_tokenizer, open_stock
from bertillery.run.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from bertillery.run.directory import RunDirectory
from bertillery.run.tracking import read_series
from deploy.facts import read_card, seeds_of
from experiments import glue
from experiments import search as trials
from experiments import seeds as seeds_table
from finetune.config import FinetuneConfig
from finetune.stage import Finetuning
from pretrain.config import load_config
from tests.deploy.models import classifier, saved
from tests.pretrain.test_start import BERT, save, tiny_tokenizer
from tests.system.damage import damaged

TIMES = 20
"""Of each file; thousands were tried once."""
SECONDS = 20
"""A hang: reading takes a hundredth of a second."""

CONFIG = load_config([])
Reader = Callable[[Path], object]


@contextmanager
def within_time(seconds: int) -> Iterator[None]:
    """``TimeoutError`` after that many seconds, wherever the program is and whatever it makes of that."""
    late = []

    def stop(*_: object) -> None:
        late.append(True)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if late:
            raise TimeoutError(f"not read within {seconds} seconds")


def model(folder: Path) -> Path:
    return Path(save(BertForPreTraining(BERT), folder))


def old_tokenizer(folder: Path) -> Path:
    """A model with the files of an older library."""
    path = model(folder)
    for file in path.glob("tokenizer*"):
        file.unlink()
    vocabulary = tiny_tokenizer().get_vocab()
    (path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    content = {"content": "[MASK]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    (path / "special_tokens_map.json").write_text(json.dumps({**names, "mask_token": content}))
    settings = {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512}
    added = {"0": {**content, "content": "[PAD]", "special": True}}
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": added}))
    (path / "added_tokens.json").write_text(json.dumps({"[NEW]": 512}))
    return path


def pickled(folder: Path) -> Path:
    """A model whose weights are torch's pickle."""
    path = model(folder)
    torch.save(BertForPreTraining(BERT).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def stock(kind: str) -> Callable[[Path], Path]:
    return lambda folder: saved(classifier(kind), folder, {("mood", "validation"): {"accuracy": 0.5}})


def corpus(folder: Path) -> Path:
    text = "\n\n".join(" ".join(f"w{i * j % 480}" for j in range(20)) for i in range(60))
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    data = CorpusSection.model_validate({"path": str(folder / "a.txt"), "holdout": 0.2})
    return prepare(data, TokenizerSection(path=str(folder / "tokenizer")), folder / "data", workers=1).path


def ledger(folder: Path) -> Path:
    """A corpus that is half written."""
    whole = corpus(folder / "a")
    words = [(False, [" ".join(f"w{i * j % 480}" for j in range(20))]) for i in range(60)]
    with CorpusWriter(folder) as opened:
        opened.append(Encoder(whole / "tokenizer", "en")(words))
        opened.commit()
    return folder


def run(folder: Path) -> Path:
    """A run's folder, as far as it is read without training."""
    (folder / "seed-1" / "export").mkdir(parents=True)
    (folder / "seed-2" / "export").mkdir(parents=True)
    for each in (folder, folder / "seed-1", folder / "seed-2"):
        (each / "config.yaml").write_text(dump(CONFIG))
    rows = [{"step": step, "time": 0.5, "train/loss": 1.0 / (step + 1)} for step in range(4)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = {"scores": {"validation": {"f1": [0.5]}}, "ensemble": {}, "baselines": {"validation": {}}, "warnings": []}
    table = {"rte": {**found, "runs": [str(folder)], "best": str(folder)}}
    (folder / "table.json").write_text(json.dumps(table))
    trial = {"trial": 0, "settings": {"optim.learning_rate": 0.1}, "metric": "f1", "score": 0.5, "path": "x"}
    (folder / "ledger.jsonl").write_text("".join(f"{json.dumps({**trial, 'trial': n})}\n" for n in range(3)))
    return folder


def checkpoint(folder: Path) -> Path:
    model, optimizer = parts()
    save_checkpoint(
        folder, step=3, model=model, optimizer=optimizer, state={"step": 3, "cursors": [1, 2]}, config="a: 1\n"
    )
    return folder


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def submission(folder: Path) -> Path:
    """What ``make glue`` leaves of a task, with two seeds."""
    names = [str(folder / f"seed-{seed}") for seed in (1, 2)]
    for name in names:
        (Path(name) / "predictions").mkdir(parents=True)
        lines = [
            "index\tprediction\tlabel\tp(entailment)\tp(not_entailment)",
            *(f"{i}\tentailment\t\t0.7\t0.3" for i in range(20)),
        ]
        (Path(name) / "predictions/test.tsv").write_text("\n".join(lines) + "\n")
        task = {
            "name": "rte",
            "type": "classification",
            "labels": ["entailment", "not_entailment"],
            "metrics": "accuracy",
        }
        section = {"task": {**task, "hub": {"dataset": "x"}, "submission": {"test": "RTE.tsv"}}}
        (Path(name) / "config.yaml").write_text(json.dumps(section))
    found = {"scores": {"validation": {"f1": [0.5]}}, "ensemble": {}, "baselines": {"validation": {}}, "warnings": []}
    (folder / "table.json").write_text(json.dumps({"rte": {**found, "runs": names, "best": names[0]}}))
    return folder


ROWS = "".join(json.dumps({"text": f"some words {n}", "label": "a"}) + "\n" for n in range(50))


def rows(folder: Path) -> Path:
    folder.mkdir()
    for ending, pack in ((".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)):
        (folder / f"rows.jsonl{ending}").write_bytes(pack(ROWS.encode()))
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in ROWS.splitlines()]), folder / "rows.parquet")
    return folder


def whole_corpus(folder: Path) -> None:
    corpus_report(PreparedCorpus.open(folder))


def reopened(folder: Path) -> None:
    with CorpusWriter(folder) as writer:
        assert writer.progress


def opened_run(folder: Path) -> None:
    RunDirectory.open(folder, dump(CONFIG), schema=type(CONFIG), is_main=False)


def newest(folder: Path) -> None:
    found = latest_checkpoint(folder)
    if found is not None:
        model, optimizer = parts()
        load_checkpoint(found, model=model, optimizer=optimizer)


def submitted(folder: Path) -> None:
    for summary in seeds_table.read_summaries(folder).values():
        glue.predictions_of([Path(run) for run in summary["runs"]])


def task_rows(file: str) -> Reader:
    return lambda folder: tables.read_table(folder / file, header=(), needed=())


def documents(file: str) -> Reader:
    section = CorpusSection.model_validate({"text": "text"})
    return lambda folder: [*read_file(folder / file, section, ReadReport())]


def summaries(folder: Path) -> None:
    for summary in seeds_table.read_summaries(folder).values():
        seeds_table._average(summary)
        seeds_table._warnings("rte", summary)


def ledger_of_trials(folder: Path) -> None:
    found = trials.read_ledger(folder / "ledger.jsonl")
    if found:
        trials.trials_table([*found.values()])


def classifier_of(folder: Path) -> None:
    load(AutoModelForSequenceClassification, folder, num_labels=2)


FILES: dict[str, tuple[Callable[[Path], Path], str, Reader]] = {
    "config": (model, "config.json", classifier_of),
    **{f"config of {kind}": (stock(kind), "config.json", open_stock) for kind in ("albert", "distilbert", "roberta")},
    "weights": (model, "model.safetensors", classifier_of),
    "pickled weights": (pickled, "pytorch_model.bin", classifier_of),
    "tokenizer": (model, "tokenizer.json", lambda folder: load_tokenizer(str(folder))),
    "tokenizer's settings": (model, "tokenizer_config.json", lambda folder: load_tokenizer(str(folder))),
    **{
        f"older tokenizer's {file}": (old_tokenizer, file, lambda folder: load_tokenizer(str(folder)))
        for file in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    },
    "card": (stock("bert"), "README.md", read_card),
    "manifest of a corpus": (corpus, "manifest.json", whole_corpus),
    "tokens of a corpus": (corpus, "train/ids.bin", whole_corpus),
    "ledger of a corpus": (ledger, "ledger.sqlite", reopened),
    "configuration of a run": (run, "config.yaml", opened_run),
    "configuration of another seed": (run, "seed-2/config.yaml", lambda folder: seeds_of(folder / "seed-1/export")),
    "metrics": (run, "metrics.jsonl", lambda folder: read_series(folder / "metrics.jsonl")),
    "table of seeds": (run, "table.json", summaries),
    "ledger of a search": (run, "ledger.jsonl", ledger_of_trials),
    "manifest of a checkpoint": (checkpoint, "step-0000000003/manifest.json", newest),
    "state of a checkpoint": (checkpoint, "step-0000000003/state.json", newest),
    "table of a submission": (submission, "table.json", submitted),
    "task of a submission": (submission, "seed-1/config.yaml", submitted),
    "predictions of a submission": (submission, "seed-1/predictions/test.tsv", submitted),
    **{
        f"rows of {what} in {file}": (rows, file, reader(file))
        for what, reader in (("a task", task_rows), ("a corpus", documents))
        for file in ("rows.jsonl.gz", "rows.jsonl.xz", "rows.jsonl.zst", "rows.parquet")
    },
}


@pytest.mark.parametrize("what", FILES)
def test_a_damaged_file_is_read_or_refused_with_one_message(what: str, tmp_path: Path) -> None:
    make, name, read = FILES[what]
    folder = make(tmp_path / "whole")
    content, rng = (folder / name).read_bytes(), random.Random(what)
    read(folder)
    for number in range(TIMES):
        copied = shutil.copytree(folder, tmp_path / str(number), symlinks=True)
        (copied / name).write_bytes(damaged(content, rng))
        with within_time(SECONDS), suppress(InputError, CheckpointError):
            read(copied)
        shutil.rmtree(copied)


def test_a_table_of_no_seeds_is_refused(tmp_path: Path) -> None:
    folder = submission(tmp_path / "a")
    table = json.loads((folder / "table.json").read_text())
    table["rte"]["runs"] = []
    (folder / "table.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"table\.json: rte\.runs: List should have at least 1 item"):
        submitted(folder)


def test_a_manifest_of_brackets_is_no_checkpoint(tmp_path: Path) -> None:
    """A file nested too deeply is not an error of its own."""
    folder = checkpoint(tmp_path)
    (folder / "step-0000000003/manifest.json").write_text("[" * 100_000)
    assert latest_checkpoint(folder) is None


def test_a_damaged_finished_json_is_one_message(tmp_path: Path) -> None:
    """At the same command again, for a table of seeds and for a search."""
    task = {"name": "mood", "type": "classification", "text": "t", "label": "l", "labels": ["a", "b"]}
    values = {**task, "metrics": "accuracy", "files": {"train": "a.csv", "validation": "b.csv"}}
    config = validate(FinetuneConfig, {"task": values, "model": {"from": "x"}, "run": {"name": "n", "dir": tmp_path}})
    stage = Finetuning(config)
    stage.path.mkdir(parents=True)
    whole = {
        "steps": 3, "scores": {"validation": {"accuracy": 0.5}}, "warnings": {}, "chosen": {}, "table": "| a |",
        "baselines": {"validation": {"majority": {"accuracy": 0.4}}}, "tokens_per_second": 3.5, "hardest": "",
    }  # fmt: skip
    content, rng = json.dumps(whole).encode(), random.Random(0)
    for _ in range(100):
        (stage.path / "finished.json").write_bytes(damaged(content, rng))
        with suppress(InputError):
            stage.ending(stage.results())
    (stage.path / "finished.json").write_bytes(content)
    assert stage.results() == whole

"""What a user can give wrongly, and that each of these situations ends in one message that names it.

``error_situations.yaml`` is the table: for each situation the command, the bad input, and what the message must name.
It holds no whole sentence, so that a message may be reworded, and no module's name, so that code may move:
:data:`COMMANDS` alone says what runs.

All of a situation happens in a folder of its own, which is the current one; the table says with which files.
"""

from __future__ import annotations

import fcntl
import gzip
import importlib
import json
import lzma
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
import zstandard
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
)

from tests.corpora import tiny_tokenizer, write_text
from tests.finetune.tasks import SIZES, sentences, write_encoder
from tests.prompting.exports import write_causal

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "program": "bertillery.__main__",
    "pretrain": "pretrain.__main__",
    "prepare": "pretrain.prepare",
    "pretrain rates": "experiments.rates",
    "embed": "knowledge.__main__",
    "finetune": "finetune.__main__",
    "finetune rates": "experiments.rates",
    "seeds": "experiments.seeds",
    "search": "experiments.search",
    "submission": "experiments.glue",
    "check submission": "experiments.glue",
    "distill": "distill.__main__",
    "distill seeds": "experiments.seeds",
    "translate": "translation.__main__",
    "beams": "translation.beams",
    "lengths": "translation.lengths",
    "curves": "experiments.curves",
    "watch": "experiments.watch",
    "dashboard": "experiments.dashboard",
    "predict": "deploy.predict",
    "evaluate": "deploy.evaluate",
    "export": "deploy.export",
    "push": "deploy.push",
    "compare": "deploy.compare",
    "onnx": "deploy.onnx",
    "generate": "prompting.generate",
    "fewshot": "prompting.fewshot",
    "probes": "prompting.probes",
    "report": "pages.report",
    "inspect": "pages.inspect",
    "screenshots": "pages.screenshots",
    "gpus": "bertillery.system.gpus",
}
"""The module whose ``main`` takes a command's arguments and returns its exit status; ``make`` is itself."""
TABLE: dict[str, Any] = yaml.load(  # every scalar is text, as it is written
    (ROOT / "tests/error_situations.yaml").read_text(encoding="utf-8"), Loader=yaml.CBaseLoader
)
SITUATIONS: list[dict[str, Any]] = [each for group in TABLE["groups"].values() for each in group["situations"]]
KEYS = {
    "name", "command", "given", "alone", "says", "status", "marked", "writes", "needs", "files", "bytes", "packed",
    "parquet", "changed", "cut", "gone", "environment", "locked", "moved",
}  # fmt: skip
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
MODEL: dict[str, Any] = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64}
COLOURS: dict[str, Any] = {"id2label": dict(enumerate(["red", "green", "blue"]))}
COLOURS["label2id"] = {name: number for number, name in COLOURS["id2label"].items()}


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer(64).save_pretrained(folder)


def models(root: Path) -> None:
    """A tiny model of every kind that the situations ask for, a folder each."""
    torch.manual_seed(0)
    for family in ("bert", "albert", "electra"):
        write_encoder(root / family / family, family)
    save(BertForPreTraining(BertConfig(**MODEL)), root / "pretrained/pretrained")
    save(BertForSequenceClassification(BertConfig(**MODEL, **COLOURS)), root / "classifier/classifier")
    tags: dict[str, Any] = {"id2label": {0: "O", 1: "B-a"}, "label2id": {"O": 0, "B-a": 1}}
    save(BertForTokenClassification(BertConfig(**MODEL, **tags)), root / "tagger/tagger")
    save(ElectraForPreTraining(ElectraConfig(**MODEL, embedding_size=16)), root / "discriminator/discriminator")
    small: dict[str, Any] = {"vocab_size": 64, "n_layers": 1, "dim": 8, "n_heads": 2, "hidden_dim": 16}
    save(DistilBertModel(DistilBertConfig(**small, max_position_embeddings=64)), root / "distilbert/distilbert")
    causal_models(root)


def causal_models(root: Path) -> None:
    """One that reads 64 tokens, one of 16; one whose tokenizer ends no text; one of a family without packed batches."""
    for name, positions in (("causal", 64), ("brief", 16), ("endless", 64)):
        write_causal(root / name, positions).rename(root / name / name)
    for file in (root / "endless/endless").glob("*token*"):
        file.unlink()
    tiny_tokenizer(64).save_pretrained(root / "endless/endless")
    first = OpenAIGPTConfig(vocab_size=280, n_positions=64, n_embd=8, n_layer=1, n_head=2)
    OpenAIGPTLMHeadModel(first).save_pretrained(root / "gpt1/gpt1")
    for file in (root / "causal/causal").glob("*token*"):
        shutil.copy(file, root / "gpt1/gpt1")


def otherwise(root: Path) -> None:
    """Models that are not what they should be: a tensor less, one that is not finite, another vocabulary."""
    for name, tensor in (
        ("lost", "encoder.layer.1.output.dense.weight"),
        ("infinite", "encoder.layer.0.output.dense.bias"),
    ):
        file = write_encoder(root / name / name) / "model.safetensors"
        tensors = load_file(file)
        if name == "lost":
            del tensors[tensor]
        else:
            tensors[tensor][0] = torch.nan
        save_file(tensors, file, metadata={"format": "pt"})
    shutil.copytree(root / "classifier/classifier", root / "otherwise/otherwise")
    file = root / "otherwise/otherwise/tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"w1"', '"W1"'), encoding="utf-8")


def words(folder: Path) -> None:
    """A text that the tokenizer of the tiny models knows, long enough to be distilled on."""
    lines = [" ".join(f"{text}." for text in sentences(6, seed)) for seed in range(40)]
    (folder / "words.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def corpus(folder: Path) -> None:
    """A prepared corpus, beside the text it was made of."""
    write_text(folder / "text.txt")
    assert run("prepare", ["tiny.yaml", "data.path=text.txt"]) == 0


def pretraining(folder: Path) -> None:
    """A run that is finished, and its corpus."""
    corpus(folder)
    assert run("pretrain", ["tiny.yaml", "data.path=text.txt", "run.name=a"]) == 0


def finetuning(folder: Path) -> None:
    """A run that is finished, and the model it started from."""
    write_encoder(folder / "bert")
    assert run("finetune", ["task.yaml", "model.from=bert", "recipe=none", "run.name=a"]) == 0


MADE: dict[str, Callable[[Path], None]] = {
    "words": words,
    "corpus": corpus,
    "pretraining": pretraining,
    "finetuning": finetuning,
}


def run(command: str, arguments: list[str]) -> int:
    """The exit status of a command; what it raises is what a user would see as a traceback."""
    try:
        return importlib.import_module(COMMANDS[command]).main(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the files of a name in ``needs``; made when it is first asked for."""
    root = tmp_path_factory.mktemp("kept")
    models(root)
    otherwise(root)

    def made(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            folder.mkdir()
            write(folder, TABLE)
            with chdir(folder):
                MADE[name](folder)
        return folder

    return made


def write(folder: Path, situation: dict[str, Any]) -> None:
    """The files that a situation has of its own; a name that ends with ``/`` is an empty folder."""
    for name, text in situation.get("files", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    for name, text in situation.get("bytes", {}).items():
        (folder / name).write_bytes(text.encode("latin-1"))
    for name, text in situation.get("packed", {}).items():
        (folder / name).write_bytes(PACKERS[Path(name).suffix](text.encode()))
    for name, columns in situation.get("parquet", {}).items():
        pq.write_table(pa.Table.from_pydict(json.loads(columns)), folder / name)


def damage(folder: Path, situation: dict[str, Any]) -> None:
    """What became of files that are there: other values in JSON (null takes a key away), cut short, gone."""
    for name, changes in situation.get("changed", {}).items():
        values = json.loads((folder / name).read_text(encoding="utf-8")) | json.loads(changes)
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")
    for name, size in situation.get("cut", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes()[: int(size)])
    for name, pattern in situation.get("moved", {}).items():
        (place,) = folder.glob(pattern)
        (folder / name).rename(place / name)
    for name in situation.get("gone", []):
        found = [*folder.glob(name)]
        assert found, f"{name} was never there"
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def held(file: Path) -> Iterator[None]:
    """As another process would hold the lock of a run."""
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def contents(folder: Path) -> dict[str, Any]:
    """What there is in the folder, and what would differ if it was written to."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def plain(text: str) -> str:
    """A message on one line, with numbers as they are without separators of thousands."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", " ".join(text.split()))


def is_said(fragment: str | list[str], message: str) -> bool:
    """Whether a message names something, or, of a list, one of several ways in which it may be named."""
    return any(plain(each) in message for each in ([fragment] if isinstance(fragment, str) else fragment))


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation["name"])
def test_a_situation_is_told_in_one_message(
    situation: dict[str, Any],
    kept: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in situation.get("needs", []):
        shutil.copytree(kept(name), tmp_path, dirs_exist_ok=True)
    write(tmp_path, TABLE)
    write(tmp_path, situation)
    damage(tmp_path, situation)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("GLUE_DIR", raising=False)
    for name, value in situation.get("environment", {}).items():
        monkeypatch.setenv(name, value)
    command, before = situation["command"], contents(tmp_path)
    given = [*([] if "alone" in situation else TABLE["least"].get(command, [])), *situation.get("given", [])]
    given = [argument.replace("{configs}", str(ROOT / "configs")) for argument in given]
    capfd.readouterr()
    with ExitStack() as stack:
        if "locked" in situation:
            stack.enter_context(held(tmp_path / situation["locked"]))
        if command == "make":
            make = ["make", "-n", "-C", str(ROOT), "-o", ".venv/.installed", *given]
            status = subprocess.run(make, check=False).returncode
        else:
            status = run(command, given)
    output, said = capfd.readouterr()
    everything = plain(f"{output} {said}")
    assert [fragment for fragment in situation["says"] if not is_said(fragment, everything)] == [], said
    assert status == int(situation.get("status", 2)), said
    assert "Traceback" not in everything
    mark = r"\*\*\* " if command == "make" else "^error: "
    assert len(re.findall(mark, said, flags=re.M)) == int(situation.get("marked", 1)), said
    new = [name for name, found in contents(tmp_path).items() if before.get(name, 0) != found]
    assert {name.split("/")[0] for name in new} <= set(situation.get("writes", []))
    assert before.keys() <= contents(tmp_path).keys(), "something is gone"


def test_the_table_is_whole() -> None:
    """A situation that is taken out is seen, and so is one that hides another by its name."""
    groups = TABLE["groups"].items()
    assert {name: len(group["situations"]) for name, group in groups} == {n: int(g["number"]) for n, g in groups}
    assert [name for name, number in Counter(each["name"] for each in SITUATIONS).items() if number > 1] == []
    assert [each["name"] for each in SITUATIONS if not each["says"] or not each.keys() <= KEYS] == []


def test_every_command_is_in_the_table() -> None:
    assert {each["command"] for each in SITUATIONS} == {*COMMANDS, "make"}

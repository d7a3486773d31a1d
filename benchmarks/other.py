"""What surrounds the training step: building examples, predicting, saving and loading, starting up."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertForMaskedLM

from benchmarks import ours
from benchmarks.conventional import DROPOUT, listed, masking, stock
from benchmarks.conventional_glue import evaluation as conventional_evaluation
from benchmarks.material import ROOT, Material
from benchmarks.step import PRECISIONS, named, quarter
from benchmarks.turns import Contest, Step
from benchmarks.workload import FAST, WORKLOADS, Workload
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.run.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from bertillery.run.directory import RunSection, start_accelerator
from finetune.predict import predict
from pretrain.objectives.mlm import bert_config
from tests.corpora import write_text

BATCH = 32
MOST_TOKENS = 200_000
EVALUATED = 256


def examples(material: Material, workload: Workload = WORKLOADS["nsp_4x256_s128"]) -> Contest:
    """From a tokenized corpus to batches: ours draws sentence pairs, lays them out, masks and packs them; the stock
    collator masks pairs that were drawn and padded before. An item is the number of an epoch."""
    text = material.tokens
    last = max(2, int(np.searchsorted(text.sentences[text.documents], MOST_TOKENS, side="right")) - 1)
    some = replace(material, tokens=_Tokens(text, last))
    source, collator = ours.source(workload, some), masking(material.tokenizer)

    def mine(epoch: int) -> Callable[[], int]:
        def build() -> int:
            rows = source.examples(epoch, 0)
            return sum(source.collate(rows[at : at + BATCH]).num_tokens for at in range(0, len(rows), BATCH))

        return build

    def theirs(epoch: int) -> Callable[[], int]:
        flat = source.lay_out(source.examples(epoch, 0))
        made = listed(flat, material.tokenizer, pad_to=workload.sequence_length, label="next_sentence_label")
        batches = [made[at : at + BATCH] for at in range(0, len(made), BATCH)]
        return lambda: sum(int(collator(batch)["attention_mask"].sum()) for batch in batches)

    return Contest(
        "examples",
        ours={"pairs and masks": lambda: mine},
        theirs={"masks": lambda: theirs},
        items=itertools.count(),
        threaded=False,
        seconds=1.0,
    )


class _Tokens:
    """The first documents of a corpus."""

    def __init__(self, tokens: Any, number: int) -> None:
        self.documents = tokens.documents[: number + 1]
        self.sentences = tokens.sentences[: self.documents[-1] + 1]
        self.ids = tokens.ids[: self.sentences[-1]]


def evaluation(name: str, workload: Workload, material: Material) -> Contest:
    """Predictions for the first examples of a validation split, ours with the loss that goes with them, as theirs."""
    source = ours.source(workload, material, "validation")
    rows = source.examples(0, 0)[:EVALUATED]

    def mine() -> Step:
        accelerator = start_accelerator(RunSection(threads=torch.get_num_threads(), device="cpu"))
        objective = ours.objective(workload, material, 0.0)

        def prepare(rows: np.ndarray) -> Callable[[], int]:
            def run() -> int:
                outputs, means = predict(
                    accelerator, objective, source, rows, micro_batch_tokens=ours.MICRO_BATCH_TOKENS
                )
                assert len(outputs) == len(rows)
                assert np.isfinite(means["loss"])
                return int(rows["length"].sum())

            return run

        return prepare

    return Contest(
        named(name, workload, material),
        ours={FAST.label.split()[0]: mine},
        theirs={
            label: partial(conventional_evaluation, workload, material, source, bf16=bf16)
            for label, bf16 in PRECISIONS.items()
        },
        items=itertools.repeat(rows),
        part=quarter,
        seconds=2.0,
    )


def checkpoint(name: str, workload: Workload, material: Material, folder: Path) -> Contest:
    """Model and optimizer written, or read: ours with checksums, in a folder that is whole or not there, on disk when
    it returns; ``torch.save`` and ``torch.load`` without any of these."""
    saves = name.endswith("save")

    def mine() -> Step:
        model = ours.objective(workload, material, 0.0)
        optimizer, place = build_optimizer(OptimSection(), model), folder / f"{name}-ours"

        def save() -> int:
            save_checkpoint(place, step=1, model=model, optimizer=optimizer, state={"step": 1}, config="run: {}\n")
            return 1

        def load() -> int:
            path = latest_checkpoint(place)
            assert path is not None
            return load_checkpoint(path, model=model, optimizer=optimizer)["step"]

        return _saving(save) if saves else _loading(save, load)

    def theirs() -> Step:
        model = BertForMaskedLM(stock(bert_config(workload.model(DROPOUT), material.tokenizer)))
        optimizer, file = torch.optim.AdamW(model.parameters()), folder / f"{name}.pt"
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

        def save() -> int:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, file)
            return 1

        def load() -> int:
            found = torch.load(file, weights_only=True)
            model.load_state_dict(found["model"])
            optimizer.load_state_dict(found["optimizer"])
            return found["step"]

        return _saving(save) if saves else _loading(save, load)

    return Contest(
        name,
        ours={"safetensors, checksums": mine},
        theirs={"torch." + name.removeprefix("checkpoint_"): theirs},
        items=itertools.count(),
        unit="times",
        clock="wall",
        threaded=False,
        seconds=4.0,
    )


def _saving(save: Callable[[], int]) -> Step:
    return lambda _: save


def _loading(save: Callable[[], int], load: Callable[[], int]) -> Step:
    save()
    return lambda _: load


_SCRIPT = (
    "import datasets, torch; from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, "
    "DataCollatorForLanguageModeling, Trainer, TrainingArguments"
)


def start_up(folder: Path) -> Contest:
    """Seconds from the command to the first step of a small pretraining whose text is prepared, beside those that a
    stock script takes for its imports alone."""
    text, run = write_text(folder / "text.txt"), folder / "runs"
    command = [
        *(sys.executable, "-m", "pretrain", str(ROOT / "configs/pretrain/bert_docs.yaml"), f"data.path={text}"),
        *("tokenizer.vocab_size=300", f"run.dir={run}", f"run.data_dir={folder / 'data'}", "train.log_every=1 step"),
        *("data.holdout=0.2", "train.micro_batch_tokens=2048", "train.phases=[{batch_size: 8, sequence_length: 64}]"),
    ]
    around = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}

    def first_step() -> int:
        shutil.rmtree(run, ignore_errors=True)
        log = folder / "start_up.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=around, stdout=output, stderr=output, start_new_session=True
            )
        written = run / "pretrain" / "bert_docs" / "metrics.jsonl"
        while not (written.exists() and written.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()}")
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 1

    def imports() -> int:
        subprocess.run([sys.executable, "-c", _SCRIPT], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        return 1

    return Contest(
        "start_up",
        ours={"to the first step": lambda: lambda _: first_step},
        theirs={"imports of a script": lambda: lambda _: imports},
        items=itertools.count(),
        unit="times",
        clock="wall",
        threaded=False,
        seconds=20.0,
    )

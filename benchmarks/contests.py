"""The measured contests: training steps, and the work around them.

Building examples, encoding text, predicting, saving and loading checkpoints, starting up.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import BertForMaskedLM

from benchmarks import conventional, nanogpt, ours
from benchmarks.contest import Contest, Step
from benchmarks.conventional import DROPOUT, baseline_of, listed, masking, stock
from benchmarks.material import ROOT, Material
from benchmarks.workload import FAST, WORKLOADS, Workload, rows
from bertillery.data.corpus import CorpusSection, ReadReport, read_documents
from bertillery.data.tokenizer import WordEncoder
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.models.layers.prepare import prepare_layers
from bertillery.run.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from bertillery.run.device import RunSection, start_accelerator
from finetune.predict import predict
from pretrain.model import bert_config
from tests.corpora import write_text

PRECISIONS = {"fp32": False, "bf16": True}
BATCH = 32
TEXTS = 10_000
EVALUATED = 256


def training(name: str, workload: Workload, material: Material) -> Contest:
    """One training step; an item is the rows of a step, the unit a real token."""
    source = ours.source(workload, material)
    mine = partial(ours.objective, workload, material)
    baselines = {"": baseline_of(workload)} | ({"nanoGPT ": nanogpt.baseline} if workload.learns == "causal_lm" else {})
    return Contest(
        named(name, workload, material),
        ours={variant.label: partial(ours.step, mine, source, variant) for variant in workload.variants},
        theirs={
            whose + label: partial(conventional.step, partial(build, workload, material, source), bf16=bf16)
            for whose, build in baselines.items()
            for label, bf16 in PRECISIONS.items()
        },
        items=rows(workload, source),
        steps=workload.steps,
        part=quarter,
    )


def named(name: str, workload: Workload, material: Material) -> str:
    """The name; it says so if a task's sentences are made up."""
    real = workload.stage != "finetune" or material.has(workload.learns)
    return name if real else f"{name}_made_up"


def quarter(rows: np.ndarray) -> np.ndarray:
    """The first quarter of the rows."""
    return rows[: -(-len(rows) // 4)]


def examples(material: Material, workload: Workload = WORKLOADS["nsp_4x256_s128"]) -> Contest:
    """From a tokenized corpus to batches: ours draws sentence pairs, masks and packs them; the stock collator masks
    pairs that were drawn and padded before. An item is the number of an epoch."""
    source, collator = ours.source(workload, material), masking(material.tokenizer)

    def mine(epoch: int) -> int:
        rows = source.examples(epoch, 0)
        return sum(source.collate(rows[at : at + BATCH]).num_tokens for at in range(0, len(rows), BATCH))

    def theirs(epoch: int) -> Callable[[], int]:
        flat = source.lay_out(source.examples(epoch, 0))
        made = listed(flat, material.tokenizer, pad_to=workload.sequence_length, label="next_sentence_label")
        batches = [made[at : at + BATCH] for at in range(0, len(made), BATCH)]
        return lambda: sum(int(collator(batch)["attention_mask"].sum()) for batch in batches)

    return Contest(
        "examples",
        ours={"pairs and masks": lambda: lambda epoch: partial(mine, epoch)},
        theirs={"masks": lambda: theirs},
        threaded=False,
    )


def text_to_ids(material: Material) -> Contest:
    """Paragraphs of the embedded corpus to token ids. The example scripts ``map`` the tokenizer over the texts, then
    ``map`` a regrouping into blocks. The word encoder's cache starts empty in every round."""
    data = CorpusSection(path=["python-docs"])
    found = (text for document in read_documents(data, data.path, ReadReport()) for text in document)
    texts = list(itertools.islice(found, TEXTS))
    batches = [texts[at : at + 1000] for at in range(0, len(texts), 1000)]

    def mine() -> int:
        encoder = WordEncoder(material.tokenizer)
        ids = [np.frombuffer(b"".join(encoder.encode_bytes(batch)), encoder.dtype) for batch in batches]
        return sum(map(len, ids))

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": material.tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(itertools.chain(*batch["input_ids"]))
        return {"input_ids": [joined[at : at + 128] for at in range(0, len(joined), 128)]}

    def theirs() -> int:
        rows = datasets.Dataset.from_dict({"text": texts})
        rows = rows.map(tokenize, batched=True, remove_columns=["text"], keep_in_memory=True)
        blocks = rows.map(group, batched=True, keep_in_memory=True)
        return sum(map(len, blocks["input_ids"]))

    datasets.disable_progress_bars()
    return Contest(
        "text_to_ids",
        ours={"word by word": lambda: lambda _: mine},
        theirs={"datasets.map": lambda: lambda _: theirs},
        threaded=False,
    )


def evaluation(name: str, workload: Workload, material: Material) -> Contest:
    """Predictions and losses for the first examples of a validation split."""
    source = ours.source(workload, material, "validation")
    rows = source.examples(0, 0)[:EVALUATED]

    def mine() -> Step:
        accelerator = start_accelerator(RunSection(threads=torch.get_num_threads(), device="cpu"))
        objective = ours.objective(workload, material, 0.0)
        prepare_layers(objective)

        def run(rows: np.ndarray) -> int:
            outputs, means = predict(accelerator, objective, source, rows, micro_batch_tokens=ours.MICRO_BATCH_TOKENS)
            assert len(outputs) == len(rows)
            assert np.isfinite(means["loss"])
            return int(rows["length"].sum())

        return lambda rows: partial(run, rows)

    return Contest(
        named(name, workload, material),
        ours={FAST.label.split()[0]: mine},
        theirs={
            label: partial(conventional.evaluation, workload, material, source, bf16=bf16)
            for label, bf16 in PRECISIONS.items()
        },
        items=itertools.repeat(rows),
        part=quarter,
    )


def checkpoint(name: str, workload: Workload, material: Material, folder: Path) -> Contest:
    """Model and optimizer saved or loaded. Ours is atomic, has checksums and is on disk when saving returns;
    ``torch.save`` and ``torch.load`` do none of this."""
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

        save()
        return lambda _: save if saves else load

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

        save()
        return lambda _: save if saves else load

    return Contest(
        name,
        ours={"safetensors, checksums": mine},
        theirs={"torch." + name.removeprefix("checkpoint_"): theirs},
        unit="times",
        threaded=False,
    )


_SCRIPT = (
    "import datasets, torch; from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, "
    "DataCollatorForLanguageModeling, Trainer, TrainingArguments"
)


def start_up(folder: Path) -> Contest:
    """Seconds from the command to the first step of a small pretraining with prepared text, beside the imports alone of
    a stock script."""
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
        unit="times",
        threaded=False,
    )

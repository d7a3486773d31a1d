"""nanoGPT's training step, written anew from its description: a baseline, and a whole training beside a run of ours.

``python -m benchmarks.nanogpt run=runs/pretrain/gpt2_mini`` trains its model on the prepared text of a finished causal
run, with that run's sizes, optimizer settings, batch and steps, and compares both on the held-out text.

What it has of karpathy/nanoGPT (``model.py`` and ``train.py``): LayerNorms and projections without biases, GELU in its
exact form, the library's causal attention, the vocabulary at every position; windows at random places of all text as
one sequence, in which documents see those before them; AdamW with decay on matrices and embeddings, clipping at 1,
warm-up and cosine; bfloat16 on a GPU, float32 on a CPU. It is not compiled.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks.conventional import DROPOUT, Baseline
from benchmarks.material import Material
from benchmarks.workload import Workload
from bertillery.config.section import InputError, Section
from bertillery.data.prepare import prepare
from bertillery.data.prepared import TokenArrays
from bertillery.engine.batch import PackedBatch
from bertillery.engine.evaluate import HeldOut
from bertillery.models.load import vocabulary_size
from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.tracking import read_rows
from bertillery.system.files import write_text
from pretrain.config import load_config
from pretrain.model import ModelSection
from pretrain.objectives import causal_lm

_IGNORED = -1


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.wide, self.back = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout * self.training, is_causal=True)
        x = x + self.drop(self.out(seen.transpose(1, 2).reshape(rows, length, width)))
        return x + self.drop(self.back(F.gelu(self.wide(self.norms[1](x)))))


class NanoGpt(nn.Module):
    """The model: logits (B, L, V) of ids (B, L)."""

    def __init__(self, sizes: ModelSection, vocabulary: int, dropout: float) -> None:
        super().__init__()
        width, layers = sizes.hidden_size, sizes.num_hidden_layers
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(sizes.max_position_embeddings, width)
        self.layers = nn.ModuleList(_Layer(width, sizes.num_attention_heads, dropout) for _ in range(layers))
        self.norm, self.drop = nn.LayerNorm(width, bias=False), nn.Dropout(dropout)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = name.endswith(("out.weight", "back.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.drop(self.words(ids) + self.places.weight[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.words.weight)


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets (B, L) that are not ignored."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)


def baseline(workload: Workload, material: Material, source: Any) -> Baseline:
    """Its step on the rows of a contest; a window is copied out of the text when its turn comes, as there."""
    model = NanoGpt(workload.model(DROPOUT), len(material.unigrams), 0.0)

    def examples(rows: np.ndarray) -> list[dict[str, Any]]:
        batch, length = source.collate(rows), workload.sequence_length
        ids, following = (each.numpy().astype(np.uint16) for each in (batch.input.ids, batch.targets["next_ids"]))
        return [
            {"text": np.append(ids[at : at + length], following[at + length - 1])} for at in range(0, len(ids), length)
        ]

    def collate(made: list[dict[str, Any]]) -> dict[str, Tensor]:
        x, y = zip(*(window(each["text"], 0, workload.sequence_length) for each in made), strict=True)
        return {"ids": torch.stack(x), "targets": torch.stack(y)}

    return Baseline(
        model,
        examples,
        collate,
        lambda inputs: nats(model(inputs["ids"]), inputs["targets"]),
        work=lambda inputs: inputs["ids"].numel(),
    )


def window(text: np.ndarray, at: int, length: int) -> tuple[Tensor, Tensor]:
    """Ids (length,) from a place of the text (T,), and the tokens that follow each."""
    ids = torch.from_numpy(text[at : at + length + 1].astype(np.int64))
    return ids[:-1], ids[1:]


class ComparisonSection(Section):
    """Keys of the comparison."""

    run: Path
    """Folder of a finished pretraining of a causal model."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Of weights and windows."""
    output: Path = Path("runs/nanogpt")
    """Folder of ``results.json``."""
    picture: Path | None = None
    """Where bits per byte over the time of training go; by default there is none."""


def main(arguments: Sequence[str]) -> int:
    """Train, evaluate both and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ComparisonSection, action=_run)


def _run(section: ComparisonSection) -> int:
    if not (section.run / "finished.json").exists():
        raise InputError(
            f"run: {section.run} is not the folder of a finished run; give one, as runs/pretrain/gpt2_mini"
        )
    config: Any = load_config([str(section.run / "config.yaml")])
    corpus = prepare(config.data, config.tokenizer, config.run.data_dir)
    tokenizer, length = corpus.tokenizer(), config.train.phases[-1].sequence_length
    held_out = {
        name: HeldOut(
            causal_lm.Source(
                causal_lm.Config(cross_document=crosses),
                cast(Any, corpus.valid),
                tokenizer,
                sequence_length=length,
                seed=0,
            ),
            num_examples=None,
        )
        for name, crosses in (("each document alone", False), ("windows across documents", True))
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(section.seed)
    model = NanoGpt(config.model, vocabulary_size(tokenizer), config.model.hidden_dropout_prob).to(device)
    few = HeldOut(held_out["each document alone"]._source, num_examples=config.train.evaluate_examples)
    text = _one_sequence(corpus.train, cast(int, tokenizer.eos_token_id))
    curve = [*train(model, text, config, lambda: bits_per_byte(model, few.batches(), device))]
    own: Any = AutoModelForCausalLM.from_pretrained(section.run / "export", trust_remote_code=False)
    own = own.to(device).eval()
    sides = {"nanoGPT's way": model.eval(), "ours": lambda ids: own(ids).logits}
    found = {
        side: {name: bits_per_byte(each, part.batches(), device) for name, part in held_out.items()}
        for side, each in sides.items()
    }
    curves = {"nanoGPT's way": curve, "ours": own_curve(section.run)}
    minutes = {side: f"{points[-1]['seconds'] / 60:.1f}" for side, points in curves.items()}
    rows = [
        ["bits per byte, held out", *held_out, "minutes of training"],
        *([side, *(f"{x:.4f}" for x in of.values()), minutes[side]] for side, of in found.items()),
    ]
    results = {
        "run": str(section.run),
        "seed": section.seed,
        "device": str(device),
        "bits_per_byte": found,
        "curves": curves,
    }
    if section.picture:
        draw(curves, section.picture)
    section.output.mkdir(parents=True, exist_ok=True)
    write_text(section.output / "results.json", json.dumps(results, indent=1))
    print(f"\n{markdown_table(rows)}\n\nresults  {section.output / 'results.json'}")
    return 0


def own_curve(run: Path) -> list[dict[str, float]]:
    """The evaluations of a run of ours, as :func:`train` yields its own: seconds are those of the steps alone."""
    rows = read_rows(run / "metrics.jsonl")
    paces = [(row["step"], row["seconds_per_step"]) for row in rows if "seconds_per_step" in row]
    ends = [0, *(step for step, _ in paces)]

    def seconds(step: int) -> float:
        parts = zip(pairwise(ends), paces, strict=True)
        return sum(max(0, min(end, step) - begin) * pace for (begin, end), (_, pace) in parts)

    return [
        {
            "step": row["step"],
            "tokens": row["tokens"],
            "seconds": seconds(row["step"]),
            "bits_per_byte": row["held_out/bits_per_byte"],
        }
        for row in rows
        if "held_out/bits_per_byte" in row
    ]


def draw(curves: Mapping[str, Sequence[Mapping[str, float]]], picture: Path) -> None:
    """Held-out bits per byte over minutes of training, a line for each side."""
    (axis,) = figure(1, "held-out bits per byte", panel=(6, 3.6))
    for side, points in curves.items():
        axis.plot([each["seconds"] / 60 for each in points], [each["bits_per_byte"] for each in points], label=side)
    axis.set(xlabel="minutes of training")
    axis.grid(alpha=0.3)
    axis.legend()
    save([axis], picture)


def _one_sequence(tokens: TokenArrays, end: int) -> np.ndarray:
    """All documents (T,), each after the end-of-text token."""
    starts = np.asarray(tokens.sentences)[np.asarray(tokens.documents[:-1])]
    return np.insert(np.asarray(tokens.ids), starts, end)


def train(model: nn.Module, text: np.ndarray, config: Any, evaluate: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Train as a run of ours was configured; yields steps, tokens, seconds of training and bits per byte, ten times."""
    phase, optim, steps = config.train.phases[-1], config.optim, config.train.steps.to_steps()
    length = phase.sequence_length
    batch = phase.last // length if phase.in_tokens else phase.last
    warmup = optim.warmup.to_steps(total_steps=steps)
    device = next(model.parameters()).device
    groups = [[p for p in model.parameters() if (p.ndim > 1) == decays] for decays in (True, False)]
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": decay}
            for group, decay in zip(groups, (optim.weight_decay, 0.0), strict=True)
        ],
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.epsilon,
        fused=device.type == "cuda",
    )
    rng, seconds, began = np.random.default_rng(torch.initial_seed()), 0.0, time.monotonic()
    for step in range(steps):
        share = (step - warmup) / max(1, steps - warmup)
        cosine = optim.final_share + (1 - optim.final_share) * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * ((step + 1) / (warmup + 1) if step < warmup else cosine)
        places = rng.integers(len(text) - length, size=batch).tolist()
        x, y = map(torch.stack, zip(*(window(text, at, length) for at in places), strict=True))
        with _autocast(device):
            loss = nats(model(x.to(device)), y.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, steps // 10) == 0 or step + 1 == steps:
            loss.item()  # a GPU is waited for
            seconds += time.monotonic() - began
            model.eval()
            point = {"step": step + 1, "tokens": (step + 1) * batch * length, "seconds": seconds}
            yield point | {"bits_per_byte": evaluate()}
            model.train()
            began = time.monotonic()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def bits_per_byte(logits: Callable[[Tensor], Tensor], batches: Sequence[PackedBatch], device: torch.device) -> float:
    """Of all windows of some batches, each alone; what pads the shorter ones stands behind them and is not seen."""
    total = size = 0.0
    for batch in batches:
        sizes = batch.input.offsets.diff().tolist()
        ids = pad_sequence([*batch.input.ids.split(sizes)], batch_first=True).to(device)
        targets = pad_sequence([*batch.targets["next_ids"].split(sizes)], batch_first=True, padding_value=_IGNORED)
        with _autocast(device):
            found = nats(logits(ids), targets.to(device))
        total, size = total + found.item() * sum(sizes), size + batch.counts["bytes"]
    return total / size / math.log(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

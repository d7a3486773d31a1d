"""``python -m benchmarks [rounds=N] [workloads=NAME,NAME]``: this machine, ours against the conventional way.

Prints a table, keeps everything in ``benchmarks/results/``; the last line is one JSON object with every ratio. Text is
taken from the folder in ``BERTILLERY_DATA``; without one, documents of random tokens stand in.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks import prepare as text_to_ids
from benchmarks.same import same_losses
from benchmarks.step import Ratio, measure
from benchmarks.workload import WORKLOADS
from engine.environment import environment
from pretrain.corpus import CorpusSection
from pretrain.pairs import Tokens
from pretrain.prepare import prepare
from pretrain.tokenizer import TokenizerSection
from tests.corpora import random_tokens, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    rounds = int(given.pop("rounds", 5))
    known = [*WORKLOADS, "text_to_ids"]
    names = given.pop("workloads", ",".join(known)).split(",")
    if given or not set(names) <= set(known):
        sys.exit(f"usage: python -m benchmarks [rounds=5] [workloads={','.join(known)}]")
    # Sides are forked from this process; one that never started a thread can be.
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    about = environment()
    print(f"{about['cpu']}, 1 thread of {about['cores']} cores")
    print(f"torch {about['torch']}, transformers {about['transformers']}, ", end="")
    print(f"commit {about['commit']}{' with changes' if about['changed'] else ''}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tokens, tokenizer, text = _corpus(Path(folder))
        print(f"text: {text or 'random tokens'}; real tokens per CPU-second, median of {rounds} rounds\n")
        losses = same_losses(tokens, tokenizer)
        print("same batches, float32, loss of ours and of the padded dense path:")
        print("  " + "  ".join(f"{ours:.6f}/{theirs:.6f}" for ours, theirs in losses) + "\n")
        print(f"{'workload':<18}{'ours':<13}{'baseline':<10}{'ratio':>7}{'min':>7}{'max':>7}{'ours/s':>9}{'base/s':>9}")
        ratios: list[Ratio] = []
        for name in [name for name in WORKLOADS if name in names]:
            for ratio in measure(name, tokens, tokenizer, rounds):
                print(_line(ratio), flush=True)
                ratios.append(ratio)
    summary = {ratio.name: round(ratio.median, 3) for ratio in ratios}
    encoding = None
    if "text_to_ids" in names:
        # One round of it takes as long as a workload, and the ratio is far from every line that matters.
        encoding = text_to_ids.measure(rounds=1)
        summary["text_to_ids"] = round(encoding["encode_ratio"], 3)
        print(f"\ntext to ids against datasets.map: {encoding['encode_ratio']:.2f}")
    rows = [vars(ratio) | {"median": ratio.median} for ratio in ratios]
    _keep({"environment": about, "text": text, "losses": losses, "steps": rows, "text_to_ids": encoding})
    print(json.dumps(summary))


def _corpus(folder: Path) -> tuple[Tokens, PreTrainedTokenizerBase, str | None]:
    """English text with a vocabulary of BERT's size trained on it, where the data folder has some."""
    file = Path(os.environ.get("BERTILLERY_DATA", ROOT / "../shared/data")) / "corpus_wiki_en" / "valid.txt"
    if not file.exists():
        return random_tokens(2000), tiny_tokenizer(30522), None
    prepared = prepare(CorpusSection(path=[str(file)]), TokenizerSection(vocab_size=30522), folder)
    return cast(Tokens, prepared.train), prepared.tokenizer(), f"{file.parent.name}/{file.name}"


def _line(ratio: Ratio) -> str:
    low, high = min(ratio.per_round), max(ratio.per_round)
    ours, theirs = ratio.tokens_per_second
    return (
        f"{ratio.workload:<18}{ratio.ours:<13}{ratio.baseline:<10}{ratio.median:>7.2f}{low:>7.2f}{high:>7.2f}"
        f"{ours:>9,.0f}{theirs:>9,.0f}"
    )


def _keep(results: dict[str, Any]) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    file = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

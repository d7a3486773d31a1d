"""Answers scored by a causal model, beside lm-eval where it is installed: one export, the same questions, float32.

A question is one of CommonsenseQA with its worked examples and five answers, or random words of similar lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contest import Contest, Step
from benchmarks.material import DATA, ROOT
from benchmarks.workload import SEED
from bertillery.config.layers import read_values
from bertillery.config.section import validate
from bertillery.data.causal_tokenizer import train_byte_bpe
from bertillery.data.tokenizer import TokenizerSection
from bertillery.models.export import export_model
from pretrain.model import ModelSection
from pretrain.objectives.causal_lm import CausalLm, Config
from prompting.items import FewshotTask, draw_shots, read_items
from prompting.model import CausalModel
from prompting.scorer import Request, Scorer

INSTALLED = find_spec("lm_eval") is not None
QUESTIONS, SHOTS, ANSWERS = 32, 4, 5
"""Of a round, and of a question."""
PIECES = 4096
PADDED = 16
"""Requests of a batch of lm-eval."""
Question = list[tuple[str, str]]
"""Context and continuation of each answer."""


def scoring(folder: Path) -> Contest:
    """Log-likelihoods of the answers of some questions; an item is the questions."""
    data = DATA / "commonsense_qa"
    real = data.is_dir()
    asked = _read(data) if real else _made_up()
    sizes = ModelSection(
        num_hidden_layers=4, hidden_size=256, num_attention_heads=4, max_position_embeddings=256, layer_norm_eps=1e-5
    )
    tokenizer = train_byte_bpe(
        [question[0][0] for question in asked], TokenizerSection(type="byte_bpe", vocab_size=PIECES)
    )
    torch.manual_seed(SEED)
    export = export_model(CausalLm(Config(), sizes, tokenizer).exported(), tokenizer, folder / "causal", card="")
    if not INSTALLED:
        print("scoring: nothing to compare with; pip install -e '.[evaluation]' installs lm-eval")
    return Contest(
        "scoring" if real else "scoring_made_up",
        ours={"fp32": partial(_ours, export)},
        theirs={"lm-eval fp32": partial(_harness, export)} if INSTALLED else {},
        items=_in_rounds(asked),
        part=lambda questions: questions[:4],
        unit="questions",
    )


def _read(data: Path) -> list[Question]:
    values, _ = read_values([str(ROOT / "configs/prompting/commonsense_qa.yaml"), f"data.root={data}"])
    items = read_items(validate(FewshotTask, values), Path("data"))
    return [items.pairs(item, draw_shots(items, number, SHOTS, SEED)) for number, item in enumerate(items.items[:512])]


def _made_up() -> list[Question]:
    rng = np.random.default_rng(SEED)
    words = ["".join(map(chr, rng.integers(97, 123, size=size))) for size in rng.integers(2, 9, size=2000)]

    def text(size: int) -> str:
        return " ".join(rng.choice(words, size))

    contexts = [text(int(size)) for size in rng.integers(60, 110, size=128)]
    return [[(context, f" {text(int(rng.integers(1, 4)))}") for _ in range(ANSWERS)] for context in contexts]


def _in_rounds(asked: list[Question]) -> Iterator[list[Question]]:
    for start in itertools.cycle(range(0, len(asked) - QUESTIONS + 1, QUESTIONS)):
        yield asked[start : start + QUESTIONS]


def _ours(export: Path) -> Step:
    scorer = Scorer(CausalModel.open(str(export)))

    def run(questions: list[Question]) -> int:
        scores = scorer.scores([Request(*pair) for question in questions for pair in question])
        assert len(scores) == sum(map(len, questions))
        return len(questions)

    return lambda questions: partial(run, questions)


def _harness(export: Path) -> Step:
    """Its ``loglikelihood``, which tokenizes, sorts by length and pads."""
    model: Any = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=str(export), device="cpu", batch_size=PADDED, dtype="float32", max_length=256
    )
    instance: Any = import_module("lm_eval.api.instance").Instance

    def run(questions: list[Question]) -> int:
        pairs = [pair for question in questions for pair in question]
        asked = [instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        scores = model.loglikelihood(asked, disable_tqdm=True)
        assert len(scores) == len(pairs)
        return len(questions)

    return lambda questions: partial(run, questions)

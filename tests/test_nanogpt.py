"""nanoGPT's step, written anew: it is GPT-2 without biases, and a comparison gives both sides the same text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import nanogpt
from benchmarks.nanogpt import NanoGpt
from pretrain.__main__ import main as pretrain
from pretrain.config import load_config
from pretrain.model import ModelSection
from tests.corpora import Tokens, write_text

SIZES = ModelSection(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, max_position_embeddings=16)


def test_the_model_is_gpt2_without_biases() -> None:
    torch.manual_seed(0)
    mine = NanoGpt(SIZES, 50, 0.0).eval()
    stock = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, activation_function="gelu")
    ).eval()
    with torch.no_grad():
        for parameter in mine.parameters():  # scores, gelu and residuals come to differ from zero
            parameter.add_(0.3 * torch.randn_like(parameter) if parameter.ndim > 1 else 0)
        body = stock.transformer
        pairs = [(body.wte.weight, mine.words.weight), (body.wpe.weight, mine.places.weight)]
        for block, layer in zip(body.h, mine.layers, strict=True):
            matrices = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
            ours: Any = layer
            pairs += [
                (conv.weight, linear.weight.T)
                for conv, linear in zip(matrices, (ours.qkv, ours.out, ours.wide, ours.back), strict=True)
            ]
        for theirs, own in pairs:
            theirs.copy_(own)
        ids = torch.randint(50, (3, 12))
        assert torch.allclose(stock(ids).logits, mine(ids), atol=1e-4)


def test_parameters_are_those_that_it_prints() -> None:
    small = ModelSection(max_position_embeddings=1024)
    with torch.device("meta"):
        assert sum(each.numel() for each in NanoGpt(small, 50257, 0.0).parameters()) == 124_337_664


def test_documents_follow_each_other_after_the_end_of_text() -> None:
    tokens: Any = Tokens(np.array([5, 6, 7, 8], np.uint16), np.array([0, 3, 4]), np.array([0, 1, 2]))
    text = nanogpt._one_sequence(tokens, 9)
    assert text.tolist() == [9, 5, 6, 7, 9, 8]
    ids, following = nanogpt.window(text, 1, 3)
    assert (ids.tolist(), following.tolist()) == ([5, 6, 7], [6, 7, 9])


def test_padding_does_not_count() -> None:
    """Windows of several lengths, and a model whose every guess is worth one bit for each of two bytes."""
    offsets = torch.tensor([0, 3, 4])
    batch: Any = SimpleNamespace(
        input=SimpleNamespace(ids=torch.zeros(4, dtype=torch.long), offsets=offsets),
        targets={"next_ids": torch.zeros(4, dtype=torch.long)},
        counts={"bytes": 8},
    )
    found = nanogpt.bits_per_byte(lambda ids: torch.zeros(*ids.shape, 4), [batch], torch.device("cpu"))
    assert found == pytest.approx(2 * 4 / 8)


def test_a_run_is_trained_again_and_both_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [f"run.dir={tmp_path}/runs", f"run.data_dir={tmp_path}/data"]
    given = [
        "configs/pretrain/gpt2_docs.yaml", f"data.path={write_text(tmp_path / 'text.txt')}", *places,
        "tokenizer.vocab_size=300", "data.holdout=0.2", "train.steps=20", "run.name=small", "tracking.wandb=off",
        "model.num_hidden_layers=1", "model.hidden_size=32", "optim.learning_rate=1e-2", "train.save_every=100%",
        "train.phases=[{batch_tokens: 256, sequence_length: 32}]", "train.evaluate_every=100%", "run.precision=fp32",
    ]  # fmt: skip
    assert nanogpt.main([f"run={tmp_path}/runs/pretrain/small"]) == 2
    assert "not the folder of a finished run" in capsys.readouterr().err
    assert pretrain(given) == 0
    picture = tmp_path / "race.png"
    places = [f"run={tmp_path}/runs/pretrain/small", f"output={tmp_path}/compared", f"picture={picture}"]
    assert nanogpt.main(places) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "compared/results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "runs/pretrain/small/metrics.jsonl").read_text().splitlines()]
    (reported,) = [line["held_out/bits_per_byte"] for line in lines if "held_out/bits_per_byte" in line]
    ours = found["bits_per_byte"]["ours"]
    assert ours["each document alone"] == pytest.approx(reported, abs=1e-4)
    assert ours["windows across documents"] != ours["each document alone"]
    (own,) = found["curves"]["ours"]
    (pace,) = [line["seconds_per_step"] for line in lines if "seconds_per_step" in line]
    assert (own["step"], own["bits_per_byte"]) == (20, reported)
    assert own["seconds"] == pytest.approx(20 * pace)
    first, *_, last = found["curves"]["nanoGPT's way"]
    assert last["step"] == 20
    assert last["tokens"] == 20 * 256
    assert last["bits_per_byte"] < first["bits_per_byte"]


def test_rates_are_those_of_a_run(tmp_path: Path) -> None:
    """Warm-up from above 0 to the peak, then a cosine to the last share of it."""
    config: Any = load_config([
        "configs/pretrain/gpt2_mini.yaml", "train.steps=100", "optim.warmup=10",
        "train.phases=[{batch_size: 2, sequence_length: 8}]", "model.hidden_size=32", "model.num_attention_heads=2",
    ])  # fmt: skip
    rates: list[float] = []

    class Watched(torch.optim.AdamW):
        def step(self, *given: Any, **more: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            assert [group["weight_decay"] for group in self.param_groups] == [0.1, 0.0]
            return super().step(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Watched)
        model = NanoGpt(SIZES, 50, 0.0)
        points = [*nanogpt.train(model, np.arange(200, dtype=np.uint16) % 50, config, lambda: 0.0)]
    assert len(rates) == 100
    assert rates[9] < rates[10] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)
    assert [point["step"] for point in points] == [*range(10, 101, 10)]

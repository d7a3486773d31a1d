"""Causal language modelling: windows, targets, GPT-2's sizes and initialisation, and what no token sees."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from bertillery.config.section import ConfigError
from bertillery.data.causal_tokenizer import train_byte_bpe, train_characters
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.batch import pack
from bertillery.engine.optim import OptimSection, learning_rate
from bertillery.models.encoders import check_model_type, model_inputs
from bertillery.models.layers.attention import NAME
from pretrain.__main__ import main
from pretrain.config import load_config
from pretrain.model import ModelSection
from pretrain.objectives import causal_lm
from pretrain.objectives.causal_lm import CausalLm, Config, Source, gpt2_config
from pretrain.stage import Pretraining
from tests.corpora import Tokens, random_tokens, write_text

ROOT = Path(__file__).resolve().parents[2]
SIZES = ModelSection(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=2, max_position_embeddings=64, layer_norm_eps=1e-5,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
TEXT = ["The cat sat on the mat, and the dog sat on the cat. " * 4, "A mat is a mat; the mat's cat is not the dog's."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_byte_bpe(TEXT, TokenizerSection(type="byte_bpe", vocab_size=280))


def documents(number: int = 30) -> Tokens:
    tokens = random_tokens(number, sentences=(1, 1), length=(1, 70), vocab_size=280)
    return Tokens(np.maximum(tokens.ids, 1), tokens.sentences, tokens.documents)


def windows(source: Source, epoch: int) -> np.ndarray:
    return np.concatenate([source.examples(epoch, block) for block in range(source.num_blocks)])


@pytest.mark.parametrize("block_tokens", [1 << 24, 300])
@pytest.mark.parametrize("length", [8, 32, 1000])
@pytest.mark.parametrize("cross", [False, True])
def test_an_epoch_predicts_every_token_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, cross: bool, length: int, block_tokens: int
) -> None:
    """The targets are each document and an EOT behind it; the inputs are the targets, moved by one, after an EOT."""
    monkeypatch.setattr(causal_lm, "_BLOCK_TOKENS", block_tokens)
    tokens = documents()
    source = Source(Config(cross_document=cross), tokens, tokenizer, sequence_length=length, seed=3)
    assert (source.num_blocks > 1) == (block_tokens == 300)
    for epoch in (0, 1):
        rows = windows(source, epoch)
        batch = source.collate(rows)
        inputs, targets = batch.input.ids.numpy(), batch.targets["next_ids"].numpy()
        assert np.array_equal(inputs[1:][targets[:-1] == inputs[1:]], inputs[1:])
        assert inputs[0] == 0
        found = sorted(part.tobytes() for part in np.split(targets, np.flatnonzero(targets == 0) + 1) if len(part))
        starts = tokens.sentences[tokens.documents]
        wanted = [np.append(tokens.ids[a:b], 0) for a, b in itertools.pairwise(starts)]
        assert found == sorted(part.astype(np.int64).tobytes() for part in wanted)
        assert rows["length"].max() <= length
        if cross:
            assert (rows["length"] < length).sum() <= source.num_blocks
    assert not np.array_equal(windows(source, 0)["key"], windows(source, 1)["key"])


def test_a_window_does_not_depend_on_the_others(tokenizer: Any) -> None:
    source = Source(Config(cross_document=True), documents(), tokenizer, sequence_length=16, seed=3)
    rows = source.examples(0, 0)
    whole = source.collate(rows)
    for number in (0, 7, len(rows) - 1):
        alone = source.collate(rows[number : number + 1])
        cut = slice(*whole.input.offsets[number : number + 2].tolist())
        assert torch.equal(alone.input.ids, whole.input.ids[cut])
        assert torch.equal(alone.targets["next_ids"], whole.targets["next_ids"][cut])


def test_packed_windows_are_separate_and_causal(tokenizer: Any) -> None:
    """Logits of packed windows are those of the stock model on each alone; a later token changes none before it."""
    torch.manual_seed(0)
    objective = CausalLm(Config(), SIZES, tokenizer).eval()
    source = Source(Config(), documents(), tokenizer, sequence_length=32, seed=3)
    batch = source.collate(source.examples(0, 0)[:6])
    stock = GPT2LMHeadModel(gpt2_config(SIZES, tokenizer))
    stock.load_state_dict(objective.model.state_dict())
    stock.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = objective.model(**model_inputs(objective.model.config, batch.input)).logits[0]
        for start, end in itertools.pairwise(batch.input.offsets.tolist()):
            alone = stock.eval()(input_ids=batch.input.ids[None, start:end]).logits[0]
            torch.testing.assert_close(logits[start:end], alone, atol=1e-5, rtol=0)
        at = int(batch.input.offsets[1]) - 1
        changed = batch.input.ids.clone()
        changed[at] = 200
        inputs = model_inputs(objective.model.config, batch.input) | {"input_ids": changed[None]}
        after = objective.model(**inputs).logits[0]
    assert torch.equal(after[:at], logits[:at])
    assert torch.equal(after[at + 1 :], logits[at + 1 :])
    assert not torch.equal(after[at], logits[at])


@pytest.mark.parametrize("train", [train_byte_bpe, train_characters])
def test_bits_per_byte_are_those_of_the_text(train: Any) -> None:
    """The nats of all targets, EOT among them, over the bytes of the text, whatever the pieces, and also where the
    text has characters that the vocabulary was not trained on."""
    texts = [*TEXT, "Ein Käfer, 한국어 🙂."]
    tokenizer = train(TEXT, TokenizerSection(type="characters", vocab_size=280))
    ids = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    ends = np.append(0, np.cumsum([len(part) for part in ids]))
    source = Source(
        Config(), Tokens(np.concatenate(ids), ends, np.arange(len(texts) + 1)), tokenizer, sequence_length=8, seed=1
    )
    batch = source.collate(windows(source, 0))
    assert batch.counts["bytes"] == sum(len(text.encode()) for text in texts)
    terms = CausalLm(Config(), SIZES, tokenizer).eval()(batch)
    assert terms["bits_per_byte"].total.item() == pytest.approx(terms["lm"].total.item() / math.log(2))
    assert (terms["bits_per_byte"].count, terms["lm"].count) == ("bytes", "tokens")


@pytest.mark.parametrize("train", [train_byte_bpe, train_characters])
def test_a_uniform_model_needs_the_bits_of_its_pieces(train: Any) -> None:
    """Of two vocabularies the same text: each piece costs the logarithm of their number, and bytes are bytes."""
    text = "한 cat"
    tokenizer = train(TEXT, TokenizerSection(type="characters", vocab_size=280))
    ids = np.array(tokenizer(text)["input_ids"])
    source = Source(Config(), Tokens(ids, np.array([0, len(ids)]), np.arange(2)), tokenizer, sequence_length=16, seed=1)
    objective, batch = CausalLm(Config(), SIZES, tokenizer).eval(), source.collate(source.examples(0, 0))
    torch.nn.init.zeros_(objective.model.lm_head.weight)
    found = objective(batch)["bits_per_byte"].total.item() / batch.counts["bytes"]
    assert found == pytest.approx((len(ids) + 1) * math.log2(len(tokenizer)) / 7, rel=1e-5)


@pytest.mark.parametrize("width", [128, 256])
def test_the_first_loss_is_that_of_a_uniform_guess(tokenizer: Any, width: int) -> None:
    torch.manual_seed(width)
    sizes = SIZES.model_copy(update={"hidden_size": width, "num_hidden_layers": 4})
    source = Source(Config(), documents(100), tokenizer, sequence_length=64, seed=1)
    batch = source.collate(windows(source, 0))
    loss = CausalLm(Config(), sizes, tokenizer).eval()(batch)["lm"].total.item() / batch.counts["tokens"]
    assert 0 < loss - math.log(280) < 0.1


def test_weights_begin_as_in_gpt2(tokenizer: Any) -> None:
    """Residual projections have .02 / sqrt(2 L): .00408 with 12 layers."""
    torch.manual_seed(0)
    sizes = SIZES.model_copy(update={"num_hidden_layers": 12, "hidden_size": 128})
    model = CausalLm(Config(positions_range=0.01), sizes, tokenizer).model
    for name, parameter in model.named_parameters():
        wanted = 0.02 / math.sqrt(24) if name.endswith("c_proj.weight") else 0.01 if "wpe" in name else 0.02
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("ln_" in name and name.endswith("weight"))))
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
        ("gpt2_mini", 5_322_240),
        ("gpt3_small", 125_226_240),
        ("gpt3_medium", 355_871_744),
        ("gpt3_large", 760_300_032),
        ("gpt3_xl", 1_315_723_264),
        ("gpt3_2.7b", 2_651_553_280),
        ("gpt3_6.7b", 6_658_404_352),
        ("gpt3_13b", 12_853_386_240),
        ("gpt3_175b", 174_604_259_328),
        ("gpt1_base", 116_536_320),
    ],
)
def test_sizes_have_their_number_of_parameters(name: str, count: int) -> None:
    """GPT-3's 125M is GPT-2 small with 2,048 positions instead of 1,024; in its table the other sizes are what they are
    called. GPT-1's recipe has GPT-1's 116,534,784 and the last LayerNorm of GPT-2."""
    config = load_config([str(ROOT / f"configs/pretrain/{name}.yaml")])
    vocabulary = {str(number): number for number in range(config.tokenizer.vocab_size)}
    tokenizer: Any = SimpleNamespace(get_vocab=lambda: vocabulary, eos_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(gpt2_config(config.model, tokenizer))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("path", sorted((ROOT / "configs/pretrain").glob("gpt*.yaml")), ids=lambda path: path.stem)
def test_every_position_is_trained(path: Path) -> None:
    """What uses an export reads as much as it has positions for, and finds nothing in those that no step has seen."""
    config = load_config([str(path)])
    assert max(phase.sequence_length for phase in config.train.phases) == config.model.max_position_embeddings


@pytest.mark.parametrize(
    ("layers", "width", "heads", "positions", "vocabulary", "count"),
    [
        (4, 128, 4, 128, 8192, 1_858_304), (4, 256, 4, 256, 8192, 5_322_240), (6, 384, 6, 256, 8192, 13_891_584),
        (8, 512, 8, 512, 8192, 29_676_544), (4, 128, 4, 128, 16384, 2_906_880), (4, 256, 4, 256, 16384, 7_419_392),
        (6, 384, 6, 256, 16384, 17_037_312), (8, 512, 8, 512, 16384, 33_870_848), (4, 128, 4, 64, 65, 809_856),
        (6, 384, 6, 256, 65, 10_770_816),
    ],
)  # fmt: skip
def test_small_sizes_have_their_number_of_parameters(
    layers: int, width: int, heads: int, positions: int, vocabulary: int, count: int
) -> None:
    sizes = ModelSection(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, max_position_embeddings=positions
    )
    pieces = {str(number): number for number in range(vocabulary)}
    tokenizer: Any = SimpleNamespace(get_vocab=lambda: pieces, eos_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(gpt2_config(sizes, tokenizer))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", ["small", "medium", "large", "xl", "2.7b", "6.7b", "13b", "175b"])
def test_gpt3_warms_up_over_375_million_tokens(name: str) -> None:
    """Appendix B, with the batch that grows from 32 thousand tokens; in all it trains on 300 billion."""
    config = load_config([str(ROOT / f"configs/pretrain/gpt3_{name}.yaml")])
    first, _ = config.train.phases
    total = config.train.steps.to_steps()
    grown = round(first.share * total)
    sizes = np.array([2048 * first.batch(step, grown) for step in range(grown)])
    warmup = config.optim.warmup.to_steps()
    assert sizes[: warmup - 1].sum() < 375_000_000 <= sizes[: warmup + 1].sum()
    assert sizes[0] == 32_768
    assert first.last * 2048 * total == pytest.approx(300e9, rel=0.01)


def test_gpt1s_schedules() -> None:
    """Of its released code: pretraining warms up over 2,000 updates and follows a cosine that counts from update 0;
    fine-tuning's first update has rate 0, the next of 138 has 6.2047e-5."""
    pretraining = load_config([str(ROOT / "configs/pretrain/gpt1_base.yaml")]).optim
    rate = learning_rate(pretraining, 100_000)
    expected = {0: 0.0, 1000: 1.25e-4, 1999: 2.5e-4 * 1999 / 2000, 2000: 2.5e-4 * (1 + math.cos(0.02 * math.pi)) / 2}
    expected |= {50_000: 1.25e-4, 100_000: 0.0}
    for step, value in expected.items():
        assert rate(step) == pytest.approx(value, rel=1e-9, abs=1e-15)
    finetuning = OptimSection(schedule="gpt1_linear", learning_rate=6.25e-5, warmup="0.2%")  # pyright: ignore
    rate = learning_rate(finetuning, 138)
    assert rate(0) == 0
    assert rate(1) == pytest.approx(6.2047e-5, rel=1e-5)
    assert rate(137) == pytest.approx(6.25e-5 / 138, rel=1e-9)


@pytest.mark.parametrize(("name", "printed"), [("xl", "num_attention_heads=24"), ("13b", "hidden_size=5140")])
def test_misprinted_sizes_of_gpt3_are_refused(name: str, printed: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a multiple of num_attention_heads .*misprints"):
        load_config([str(ROOT / f"configs/pretrain/gpt3_{name}.yaml"), f"model.{printed}"])


def test_gpt1s_own_class_would_ignore_the_packing_and_is_refused() -> None:
    """It takes the name of our attention and the layout of a batch without a word, and attends to all tokens before,
    those of other documents included."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = OpenAIGPTConfig(**sizes, attn_implementation=NAME)
    model: Any = OpenAIGPTLMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not type(model)._supports_attention_backend
    ids = torch.arange(12) + 5
    batch = pack(ids.numpy(), None, np.array([5, 7]), targets={}, counts={})
    inputs = {"input_ids": ids[None], "position_ids": batch.input.positions[None], "layout": batch.input.layout}
    with torch.no_grad():
        packed, second = model(**inputs).logits[0], model(input_ids=ids[None, 5:]).logits[0]
    assert (packed[5:] - second).abs().max() > 0.1
    with pytest.raises(ConfigError, match=r"'openai-gpt' cannot read packed batches; give a decoder .*gpt2"):
        check_model_type("openai-gpt", ("decoder",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("objective.type=causal_lm data.units=sentences", "objective.type=causal_lm reads documents"),
        ("objective.type=causal_lm tokenizer.type=wordpiece", "lacks an end-of-text token"),
        ("objective.type=causal_lm tokenizer.vocab_size=256", "byte_bpe has 256 bytes and an end-of-text token"),
        ("objective.type=bert data.units=documents", "objective.type=bert reads sentences"),
        ("objective.type=mlm tokenizer.type=byte_bpe", "lacks a mask token"),
        ("objective.type=causal_lm train.phases=[{sequence_length: 1024}]", "above model.max_position_embeddings"),
    ],
)
def test_what_does_not_fit_is_refused(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(given.split(" ", 1))


TINY = """
model: {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 2, max_position_embeddings: 64}
tokenizer: {vocab_size: 300}
objective: {type: causal_lm}
optim: {learning_rate: 3.0e-3, warmup: 2 steps}
train:
  steps: 6
  phases: [{batch_size: 8, sequence_length: 32}]
  log_every: 2
  save_every: 3
  evaluate_every: 3
  evaluate_examples: 20
data: {holdout: 0.2}
"""


def test_a_run_ends_with_samples_and_a_stock_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which another run goes on from, with its tokenizer and sizes."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    write_text(tmp_path / "text.txt")
    places = [f"run.dir={tmp_path}/runs", f"run.data_dir={tmp_path}/data", f"data.path={tmp_path}/text.txt"]
    places += ["run.precision=fp32", "run.threads=1"]
    assert main([str(tmp_path / "tiny.yaml"), *places]) == 0
    run = tmp_path / "runs/pretrain/tiny"
    said = capsys.readouterr()
    assert "failed" not in said.err
    results = json.loads((run / "finished.json").read_text())
    stage = Pretraining(load_config([str(tmp_path / "tiny.yaml"), *places]))
    assert f"make generate MODEL={run / 'export'}" in stage.ending(results | {"learned": True})
    assert f"make rates CONFIG={run / 'config.yaml'} " in said.out, "six steps teach nothing"
    for part in ("LM loss (nats per token)", "bits per byte", "unigrams"):
        assert part in results["table"]
    assert results["samples"].count("greedy") == results["samples"].count("sampled") == 3
    loaded: Any = AutoModelForCausalLM.from_pretrained(run / "export", output_loading_info=True)
    model, report = loaded
    assert not any(report.values())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert AutoTokenizer.from_pretrained(run / "export").eos_token == "<|endoftext|>"
    assert main([*places, "objective.type=causal_lm", f"model.from={run}/export", "run.name=further", "train.steps=1",
                 "train.phases=[{batch_size: 8, sequence_length: 32}]", "data.holdout=0.2"]) == 0  # fmt: skip
    assert "new: nothing; dropped: nothing" in capsys.readouterr().out
    assert main([*places, "objective.type=mlm", f"model.from={run}/export"]) == 2
    assert "is a decoder" in capsys.readouterr().err

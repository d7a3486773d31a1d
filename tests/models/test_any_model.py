"""Export of models that no table of families knows: one of ours, and a decoder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    ElectraConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bertillery.config.section import ConfigError
from bertillery.models.encoders import Family, check_model_type, family
from bertillery.models.export import export_model
from bertillery.models.joint_spans import ElectraForJointQuestionAnswering
from tests.corpora import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


class BagConfig(PreTrainedConfig):
    """Of a throw-away model."""

    model_type = "bertillery-bag"
    vocab_size: int = 512
    hidden_size: int = 8


class Bag(PreTrainedModel):
    """A mean of embeddings, and logits by the same table."""

    config_class: ClassVar[Any] = BagConfig
    base_model_prefix = "bag"
    _tied_weights_keys: ClassVar[Any] = {"head.weight": "embeddings.weight"}

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (B, vocabulary) of ids (B, length)."""
        return self.head(self.embeddings(input_ids).mean(1))


def test_a_model_of_ours_is_exported_and_opens_by_the_auto_class(tmp_path: Path) -> None:
    AutoConfig.register("bertillery-bag", BagConfig, exist_ok=True)
    AutoModel.register(BagConfig, Bag, exist_ok=True)
    model = Bag(BagConfig(tie_word_embeddings=True)).eval()
    assert model.head.weight is model.embeddings.weight
    folder = export_model(model, tiny_tokenizer(), tmp_path / "export", card="# a bag\n")
    opened, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(opened) is Bag
    assert not any(report.values())
    assert opened.head.weight is opened.embeddings.weight
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(opened.eval()(ids), model(ids), rtol=0, atol=0)
    assert (folder / "model.safetensors").is_file()


def test_a_stock_decoder_is_exported(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=512, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    folder = export_model(GPT2LMHeadModel(config), tiny_tokenizer(), tmp_path / "export", card="# a decoder\n")
    opened, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(opened) is GPT2LMHeadModel
    assert not any(report.values())


def test_an_unknown_family_is_refused_before_a_batch_is_read() -> None:
    class NothingConfig(PreTrainedConfig):
        model_type = "nothing"

    with pytest.raises(ConfigError, match=r"'nothing' cannot read packed batches; give an encoder .*: bert, albert"):
        family(NothingConfig())


def test_a_message_names_our_own_families_beside_those_of_transformers() -> None:
    class KnownConfig(PreTrainedConfig):
        model_type = "bertillery-known"
        family: ClassVar[Family] = Family(token_types=False)

    AutoConfig.register("bertillery-known", KnownConfig, exist_ok=True)
    try:
        assert not family(KnownConfig()).token_types
        with pytest.raises(ConfigError, match=r"one of these types: bert, .*, bertillery-known$"):
            check_model_type("nothing")
        with pytest.raises(ConfigError, match=r"'bertillery-known' is an encoder; give a decoder .*: gpt2$"):
            check_model_type("bertillery-known", ("decoder",))
    finally:
        del CONFIG_MAPPING._extra_content["bertillery-known"]


def test_a_joint_head_opens_in_a_fresh_process_after_import_bertillery(tmp_path: Path) -> None:
    config = ElectraConfig(
        vocab_size=512, hidden_size=16, embedding_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = ElectraForJointQuestionAnswering(config)
    folder = export_model(model, tiny_tokenizer(), tmp_path / "export", card="# a head\n")
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import bertillery\n"
        "from transformers import AutoModelForQuestionAnswering\n"
        "model, report = AutoModelForQuestionAnswering.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not any(report.values()), report\n"
        "print(type(model).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ElectraForJointQuestionAnswering"

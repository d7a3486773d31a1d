"""What ``docs/fidelity.md`` says of differences from the released code is what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, ElectraConfig, ElectraForSequenceClassification

from bertillery.models.heads import draw_head, head_parameters
from bertillery.models.load import load
from distill.config import load_config as distillation
from finetune.config import FinetuneConfig
from finetune.examples import TextExamples
from finetune.recipe import recipe_values
from finetune.task_types.regression import Objective
from finetune.translating import TranslationConfig
from pretrain.objectives import causal_lm, electra, mlm
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import sentences, write_encoder
from translation.architecture import RnnSection, TransformerSection
from translation.objective import ObjectiveSection

ROOT = Path(__file__).resolve().parents[1]
BERT: dict[str, Any] = {
    "optim.algorithm": "bert_adam",
    "optim.schedule": "bert",
    "optim.betas": (0.9, 0.999),
    "optim.epsilon": 1e-6,
    "optim.weight_decay": 0.01,
    "optim.layer_decay": 1.0,
    "optim.max_gradient_norm": 1.0,
    "optim.clipping": "global",
    "optim.loss_reduction": "mean",
    "train.epoch_steps": "exact",
}
ELECTRA = BERT | {"optim.schedule": "electra", "optim.layer_decay": 0.8, "optim.loss_reduction": "sum"}
ELECTRA |= {"train.epoch_steps": "ceil"}
TINYBERT = BERT | {"optim.schedule": "linear", "optim.clipping": "tensor", "train.epoch_steps": "floor"}
DISTILBERT = BERT | {"optim.algorithm": "adamw", "optim.schedule": "linear", "optim.betas": (0.9, 0.98)}
DISTILBERT |= {"optim.weight_decay": 0.0, "optim.max_gradient_norm": 5.0}
RELEASED = {
    "bert": BERT,
    "briefly_pretrained": BERT,
    "compact": BERT,
    "albert": BERT,
    "electra_small": ELECTRA,
    "electra_base": ELECTRA,
    "electra_large": ELECTRA | {"optim.layer_decay": 0.9},
    "distilbert": DISTILBERT,
    "tinybert_general": TINYBERT,
    "tinybert_general_6l": TINYBERT,
    "tinybert_task": TINYBERT,
    "tinybert_task before": TINYBERT | {"optim.schedule": "constant"},
}
"""How the released code optimizes, by the recipe or student that follows it."""
_ELECTRAS = [name for name in RELEASED if name.startswith("electra")]


def entries() -> dict[str, str]:
    """Text of each entry of the list by its headline."""
    fidelity = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
    section = fidelity.split("## Differences from the released code\n")[1].split("\n## ")[0]
    found = re.findall(r"^- \*\*(.+?)\*\*(.*?)(?=^- |^\S|\Z)", section, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == section.count("\n- "), "an entry without a headline"
    return {" ".join(headline.split()).rstrip("."): text for headline, text in found}


def has_key(path: str) -> bool:
    """Whether a configuration has the key."""
    first = path.split(".")[0]
    schemas: list[Any] = {
        "objective": [causal_lm.Config, electra.Config, mlm.Config, ObjectiveSection],
        "model": [TransformerSection, RnnSection],
    }.get(first, [FinetuneConfig, TranslationConfig])
    for part in path.removeprefix("objective.").removeprefix("model.").split("."):
        fields = [each.model_fields[part] for each in schemas if part in each.model_fields]
        schemas = [each.annotation for each in fields if isinstance(each.annotation, type)]
        schemas = [each for each in schemas if issubclass(each, BaseModel)]
        if not fields:
            return False
    return True


@pytest.mark.parametrize("headline", entries())
def test_every_entry_names_a_key_or_a_test_that_there_is(headline: str) -> None:
    (named,) = re.findall(r"\(`([^`]+)`\)\.?\s*$", entries()[headline])
    if "::" in named:
        file, test = named.split("::")
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert has_key(named)


def test_what_the_summary_names_is_in_the_list() -> None:
    page = " ".join((ROOT / "docs/fidelity.md").read_text(encoding="utf-8").split())
    (named,) = re.findall(r"Among what we do differently: (.+?)\. \[", page)
    headlines = {headline.lower() for headline in entries()}
    assert [each for each in named.lower().split("; ") if each not in headlines] == []


def settings_of(name: str) -> dict[str, Any]:
    """What a recipe or a student's configuration sets, defaults included."""
    if (ROOT / f"configs/finetune/recipes/{name}.yaml").exists():
        values = recipe_values(name, {"name": "rte"})
        sections: Any = {key: FinetuneConfig.model_fields[key].annotation for key in ("optim", "train")}
        optim, train = (section(**values[key]) for key, section in sections.items())
    else:
        file, _, before = name.partition(" ")
        task = ["configs/finetune/mrpc.yaml", "model.from=a/student"] if "task" in file else []
        config: Any = distillation([str(ROOT / f"configs/distill/{file}.yaml"), *task, "teacher.from=a/teacher"])
        config = config.before if before else config
        optim, train = config.optim, config.train
    return {key: getattr(optim if key.startswith("optim") else train, key.split(".")[1]) for key in BERT}


@pytest.mark.parametrize("name", RELEASED)
def test_every_setting_that_differs_is_in_the_list(name: str) -> None:
    found, listed = settings_of(name), "".join(entries().values())
    differing = [key for key, value in RELEASED[name].items() if found[key] != value]
    assert [key for key in differing if f"(`{key}`)" not in listed] == []
    corrected = {key: ["optim.algorithm"] for key in ("briefly_pretrained", "compact")}
    known = {**corrected, **{key: ["optim.weight_decay"] for key in _ELECTRAS}}
    assert differing == known.get(name, [])


def test_scores_are_learned_as_they_are(tmp_path: Path) -> None:
    """The loss is the squared error of a score from 0 to 5, not of a fifth of it."""
    model, _ = load(AutoModelForSequenceClassification, write_encoder(tmp_path, "electra"), num_labels=1)
    labels = np.array([0.0, 2.5, 5.0])
    examples = TextExamples((sentences(3, 0),), labels, tiny_tokenizer(64), max_length=32, seed=1)
    batch, objective = examples.collate(examples.examples(0, 0)), Objective(model)
    logits = objective.logits(batch)
    loss = next(iter(objective.terms(logits, batch).values()))
    assert loss.total.item() == pytest.approx(((logits.flatten().detach() - torch.tensor(labels)) ** 2).sum().item())


def test_electras_head_is_drawn_as_berts() -> None:
    """From a normal distribution of deviation 0.02 that is cut at two deviations; Glorot's would reach 0.26."""
    sizes: dict[str, Any] = {"vocab_size": 8, "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 8}
    model = ElectraForSequenceClassification(ElectraConfig(**sizes))
    draw_head(model, head_parameters(model))
    for name, parameter in model.classifier.named_parameters():
        assert parameter.abs().max() <= (0 if name.endswith("bias") else 0.04)
    assert 0.015 < model.classifier.dense.weight.std() < 0.02

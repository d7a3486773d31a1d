"""Two processes with half of everything each do what one process with all of it does.

One launch of two processes goes through all cases; this file is what they run, too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AlbertConfig, AlbertForSequenceClassification, BertConfig, BertForSequenceClassification

from bertillery.config.section import ConfigError, validate
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loop import share_of_loss
from bertillery.engine.objective import Objective, objective_module
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.engine.schedule import Schedule, TrainSection
from bertillery.engine.sharding import own_layers, prepared, whole
from bertillery.models.export import export_model
from bertillery.models.layers.attention import NAME
from bertillery.models.layers.prepare import prepare_layers
from bertillery.run.device import RunSection, start_accelerator
from bertillery.run.directory import RunDirectory
from bertillery.run.stage import StageConfig
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.trainer import Trainer
from bertillery.run.views import Listing
from distill.objectives import distilbert, minilm, tinybert
from finetune.examples import TextExamples
from finetune.predict import predict
from finetune.task_types.classification import Objective as Classification
from pretrain.model import ModelSection
from tests.corpora import learnable_tokens, tiny_tokenizer
from tests.distill.pairs import masked, student_of, teacher_of
from tests.finetune.tasks import sentences
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]
SIZES = ModelSection(
    num_hidden_layers=3,
    hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bert": ({"type": "bert"}, {"algorithm": "bert_adam"}),
    "albert": ({"type": "albert"}, {"algorithm": "lamb"}),
    "albert_in_part": ({"type": "albert", "sharing": "attention"}, {"algorithm": "bert_adam"}),
    "electra": ({"type": "electra", "embedding_size": 16}, {"algorithm": "adamw", "clipping": "tensor"}),
}
RESUMED = ("bert", "albert")
STEPS = 4


class Earliest(HeldOut):
    """All evaluations are equally good, so the first one's weights are loaded again and exported."""

    def score(self, values: dict[str, float]) -> float:
        return 0.0


def trainer_parts(case: str) -> tuple[Objective, Any]:
    section, _ = CASES[case]
    kind: Any = objective_module("pretrain.objectives", section)
    config, tokenizer = kind.Config.model_validate(section), tiny_tokenizer()
    torch.manual_seed(0)
    objective = kind.build(config, SIZES, tokenizer)
    prepare_layers(objective)  # as a stage does
    return objective, kind.source(config, learnable_tokens(64), tokenizer, sequence_length=32, seed=1)


def trainer_of(accelerator: Any, folder: Path, case: str, sharding: Any) -> Trainer:
    """A training of a few steps of several micro-batches, saved and evaluated in the middle and at the end."""
    objective, source = trainer_parts(case)
    optim = OptimSection.model_validate({**CASES[case][1], "learning_rate": 3e-3, "warmup": 2})
    settings = {"steps": STEPS, "phases": [{"batch_size": 16}], "micro_batch_tokens": 64, "workers": 0, "log_every": 1}
    train = validate(
        TrainSection, {**settings, "save_every": STEPS // 2, "evaluate_every": STEPS // 2, "export": "best"}
    )
    return Trainer(
        accelerator,
        prepared(accelerator, objective, sharding),
        build_optimizer(optim, objective),
        run=RunDirectory(folder),
        config="a: 1\n",
        section=train,
        optim=optim,
        schedule=Schedule.of(train, lambda: 1.0),
        seed=5,
        sources=[source],
        held_out=Earliest(source, num_examples=13),
    )


def train(accelerator: Any, folder: Path, case: str, sharding: Any) -> Trainer:
    """Train from where the folder stands, and export."""
    is_main = accelerator.is_main_process
    folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    trainer = trainer_of(accelerator, folder, case, sharding)
    resumed = trainer.resume()
    tracking = TrackingSection(wandb="off")
    tracker = Tracker(tracking, folder, listing=Listing("a"), config={}, is_main=is_main, resume_step=resumed or None)
    trainer.run(tracker)
    tracker.close()
    return trainer


def export(trainer: Trainer) -> None:
    objective = trainer.assembled()
    if trainer.accelerator.is_main_process:
        folder, auxiliary_models = trainer.run_directory.export, objective.auxiliary_models()
        export_model(objective.exported(), tiny_tokenizer(), folder, card="", auxiliary_models=auxiliary_models)


def after_half(folder: Path, to: Path) -> Path:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("export", f"step-{STEPS:010d}"))
    return to


def classifiers() -> dict[str, Classification]:
    sizes: dict[str, Any] = {**SIZES.sizes(), "vocab_size": 64, "num_labels": 3, "attn_implementation": NAME}
    torch.manual_seed(0)
    albert = AlbertForSequenceClassification(AlbertConfig(**sizes, classifier_dropout_prob=0.0, embedding_size=16))
    return {
        "bert": Classification(BertForSequenceClassification(BertConfig(**sizes))),
        "albert": Classification(albert),
    }


def predictions(accelerator: Any, sharding: Any) -> dict[str, np.ndarray]:
    """Before any pass through ``forward``, after a step, and of fewer examples than processes."""
    labels = np.random.default_rng(0).integers(0, 3, 11)
    examples = TextExamples((sentences(11, 0),), labels, tiny_tokenizer(64), max_length=64, seed=1)
    rows, found = examples.examples(0, 0), {}
    for name, plain in classifiers().items():
        objective = prepared(accelerator, plain, sharding)
        optimizer = build_optimizer(OptimSection(learning_rate=1e-2), plain)
        found[f"{name}/first"], _ = predict(accelerator, objective, examples, rows, micro_batch_tokens=24)
        batch = examples.collate(rows)
        (objective(batch)["cross_entropy"].total / 11).backward()
        optimizer.step()
        found[f"{name}/then"], _ = predict(accelerator, objective, examples, rows, micro_batch_tokens=24)
        found[f"{name}/one"], _ = predict(accelerator, objective, examples, rows[:1], micro_batch_tokens=24)
    return found


def gradients(accelerator: Any) -> dict[str, float]:
    """The largest difference from an unsplit student's gradients, as a share of the largest of a tensor, by method.

    What layers saw reaches the losses of the second and third beside what the layers return.
    """
    distilbert._CHUNK = 90 * 32  # the vocabulary's logits of a third of the tokens, computed again in the backward pass
    found = {}
    for kind in (distilbert, tinybert, minilm):
        config: Any = kind.Config(relation_heads=4) if kind is minilm else kind.Config()
        teacher, batch = teacher_of(words=kind.MASKED_WORDS), masked()
        sizes = {"words": kind.MASKED_WORDS, "num_hidden_layers": 3}
        plain, split = (kind.build(config, student_of(teacher, **sizes), teacher) for _ in range(2))
        split.load_state_dict(plain.state_dict())
        for objective in (plain, prepared(accelerator, split, "full")):
            share_of_loss(objective(batch), batch.counts).backward()
        found[kind.__name__] = 0.0
        for (name, one), other in zip(plain.named_parameters(), split.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None and other.grad is not None:
                difference = (whole(other.grad) - one.grad).abs().max() / one.grad.abs().max().clamp(min=1e-6)
                found[kind.__name__] = max(found[kind.__name__], difference.item())
    return found


def held(trainer: Trainer) -> dict[str, int]:
    """Numbers in the memory of this process, and of all of them."""
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    slots = [trainer.optimizer.state[parameter].values() for parameter in parameters]
    moments = [value for values in slots for value in values if value.ndim]
    return {
        "parameters": sum(map(here, parameters)),
        "all_parameters": sum(parameter.numel() for parameter in parameters),
        "moments": sum(map(here, moments)),
        "all_moments": sum(value.numel() for value in moments),
    }


def here(tensor: Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()


def work(rank: int, folder: Path, port: int) -> None:
    """What each of the two processes does."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    accelerator = start_accelerator(validate(RunSection, {**SECTION, "sharding": "full"}))
    sizes = {}
    for case in CASES:
        trainer = train(accelerator, folder / "split" / case, case, "full")
        sizes[case] = held(trainer)
        export(trainer)
    for case in RESUMED:
        export(train(accelerator, folder / "one_then_split" / case, case, "full"))
    (folder / f"sizes-{accelerator.process_index}.json").write_text(json.dumps(sizes))
    found = predictions(accelerator, "full")
    differences = gradients(accelerator)
    if accelerator.is_main_process:
        (folder / "gradients.json").write_text(json.dumps(differences))
        np.savez(folder / "predictions.npz", **found)  # pyright: ignore[reportArgumentType]
    torch.distributed.destroy_process_group()


SECTION: dict[str, Any] = {"device": "cpu", "precision": "fp32", "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings: by one process, by two with half each, and from the middle of one by the other."""
    path = tmp_path_factory.mktemp("sharding")
    accelerator = start_accelerator(validate(RunSection, SECTION))
    for case in CASES:
        export(train(accelerator, path / "one" / case, case, "none"))
    for case in RESUMED:
        after_half(path / "one" / case, path / "one_then_split" / case)
    done = run_program("tests.engine.test_sharding", str(path))
    assert done.status == 0, done.output
    for case in RESUMED:
        after_half(path / "split" / case, path / "split_then_one" / case)
        export(train(accelerator, path / "split_then_one" / case, case, "none"))
    return path


def numbers(folder: Path) -> list[float]:
    """Losses, gradient norms and held-out numbers of all steps."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("train/", "held_out/", "gradient_norm")
    return [value for row in rows for name, value in sorted(row.items()) if name.startswith(names)]


def distance(a: Path, b: Path) -> float:
    """Between the tensors of two files, as a share of their norm."""
    one, other = load_file(a), load_file(b)
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    names = [name for name in one if not name.endswith(".step")]  # a counter, of a billion in BERT's Adam
    flat = [torch.cat([tensors[name].flatten().double() for name in names]) for tensors in (one, other)]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


@pytest.mark.parametrize(
    ("way", "case"),
    [("split", case) for case in CASES] + [(way, c) for way in ("split_then_one", "one_then_split") for c in RESUMED],
)
def test_split_equals_whole(folder: Path, way: str, case: str) -> None:
    """Losses and norms of every step, held-out numbers, all of the checkpoint, and the stock model that is exported."""
    one, other = folder / "one" / case, folder / way / case
    assert len(numbers(one)) > 3 * STEPS
    assert numbers(other) == pytest.approx(numbers(one), rel=1e-5, abs=1e-5)
    last = f"checkpoints/step-{STEPS:010d}"
    for file in (f"{last}/model.safetensors", f"{last}/optimizer.safetensors", "export/model.safetensors"):
        assert distance(one / file, other / file) < 1e-5, file


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half(folder: Path, case: str) -> None:
    sizes = [json.loads((folder / f"sizes-{rank}.json").read_text())[case] for rank in (0, 1)]
    for what in ("parameters", "moments"):
        parts, total = [size[what] for size in sizes], sizes[0][f"all_{what}"]
        assert sum(parts) == total
        assert max(parts) < 0.52 * total


def test_predictions_are_those_of_one_process(folder: Path) -> None:
    found = np.load(folder / "predictions.npz")
    expected = predictions(start_accelerator(validate(RunSection, SECTION)), "none")
    assert sorted(found.files) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
    assert np.abs(expected["bert/then"] - expected["bert/first"]).max() > 1e-2


def test_students_learn_the_same(folder: Path) -> None:
    found = json.loads((folder / "gradients.json").read_text())
    assert len(found) == 3
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("num_examples", [1, 2, 3, 13])
def test_all_processes_make_as_many_passes(num_examples: int) -> None:
    """One pass more in one of them would wait for the others forever."""
    source = trainer_parts("bert")[1]
    held_out = HeldOut(source, num_examples=num_examples, micro_batch_tokens=40)
    for number in (2, 3, 5):
        batches = [held_out.batches(number, rank) for rank in range(number)]
        assert len({len(each) for each in batches}) == 1
        seen = sum(batch.input.num_sequences for each in batches for batch in each)
        assert seen == num_examples * (number if num_examples < number else 1)


class Stacks(nn.Module):
    """Layers of their own, one that stands for all, two with a part in common, and one that is trained in part."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.lone, self.common, self.partly = (
            nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(number)]) for number in (3, 1, 2, 2)
        )
        self.common[1][0].weight = self.common[0][0].weight  # pyright: ignore
        self.partly[1][0].bias.requires_grad_(False)  # pyright: ignore


def test_what_is_put_together_by_itself() -> None:
    stacks = Stacks()
    assert own_layers(stacks) == [*stacks.own, stacks.partly[0]]


def test_one_process_has_nothing_to_split_over() -> None:
    with pytest.raises(ConfigError, match="a single process has nothing to split a model over"):
        start_accelerator(validate(RunSection, {**SECTION, "sharding": "full"}))


def test_the_micro_batch_has_to_be_given() -> None:
    with pytest.raises(ConfigError, match=r"runs passes in each process alone.*; give a number"):
        validate(StageConfig, {"run": {"sharding": "full"}, "train": {"micro_batch_tokens": "auto"}})


if __name__ == "__main__":
    # Forked behind the imports, which take longer than everything else.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]), port), nprocs=2, start_method="fork")

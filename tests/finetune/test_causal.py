"""GPT-1's task transforms: a causal model learns tasks from the state at the extract token, and its language beside."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bertillery.config.section import ConfigError
from bertillery.engine.optim import learning_rate
from bertillery.models.encoders import choice_logits, encode
from bertillery.models.frame import DELIMITER, EXTRACT, START, template, with_transform_tokens
from bertillery.models.load import load_tokenizer, read_config
from finetune.__main__ import main
from finetune.config import load_config
from finetune.predict import next_token_means
from finetune.stage import Finetuning
from tests.finetune.tasks import write_encoder
from tests.prompting.exports import write_causal

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["cat", "dog", "mat", "sat"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("model"))


def write_pairs(folder: Path) -> Path:
    """Whether two words are the same."""
    rows = [f"the {a} sat,a {b},{int(a == b)}" for a in WORDS for b in WORDS for _ in range(3)]
    for name in ("train", "valid"):
        (folder / f"{name}.csv").write_text("\n".join(["one,other,label", *rows]))
    (folder / "same.yaml").write_text(f"""
task:
  name: same
  type: classification
  text: [one, other]
  labels: [0, 1]
  metrics: accuracy
  root: {folder}
  files: {{train: train.csv, validation: valid.csv}}
""")
    return folder / "same.yaml"


def write_choices(folder: Path) -> Path:
    rows = [f"the {a} sat on,the mat,a {a},{i % 2}" for i, a in enumerate(WORDS * 6)]
    for name in ("train", "valid"):
        (folder / f"{name}.csv").write_text("\n".join(["begin,first,second,label", *rows]))
    (folder / "ending.yaml").write_text(f"""
task:
  name: ending
  type: choice
  text: begin
  choices: [first, second]
  labels: [0, 1]
  metrics: accuracy
  root: {folder}
  files: {{train: train.csv, validation: valid.csv}}
""")
    return folder / "ending.yaml"


def arguments(task: Path, export: Path, *more: str) -> list[str]:
    folder = task.parent
    places = [f"run.dir={folder}/runs", f"run.data_dir={folder}/data", "run.precision=fp32", "run.threads=1"]
    length = "train.phases.0.sequence_length=32"
    return [str(task), f"model.from={export}", *places, "run.name=a", length, "train.steps='2 epochs'", *more]


def test_texts_are_framed_with_three_tokens_of_their_own(export: Path) -> None:
    plain: Any = load_tokenizer(str(export), role="decoder")
    made: Any = with_transform_tokens(plain)
    assert with_transform_tokens(made) is made
    assert len(made) == len(plain) + 3
    start, delimiter, extract = (made.convert_tokens_to_ids(token) for token in (START, DELIMITER, EXTRACT))
    assert made("the cat")["input_ids"] == [start, *plain("the cat")["input_ids"], extract]
    pair = [start, *plain("the cat")["input_ids"], delimiter, *plain("a mat")["input_ids"], extract]
    assert made("the cat", "a mat")["input_ids"] == pair
    found = template(made, 2)
    assert [part.tolist() for part in found.parts] == [[start], [delimiter], [extract]]
    assert EXTRACT not in plain.get_vocab()


def test_a_task_is_learned_exported_and_served(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stock code reads of the export what training predicted, in a padded batch, too."""
    assert main(arguments(write_pairs(tmp_path), export)) == 0
    said = capsys.readouterr().out
    assert "gpt1: a gpt2 model" in said
    assert "lm " in said
    run = tmp_path / "runs/finetune/a"
    model: Any = AutoModelForSequenceClassification.from_pretrained(run / "export").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "export")
    rows = [line.split("\t") for line in (run / "predictions/validation.tsv").read_text().splitlines()[1:]]
    texts = [line.split(",")[:2] for line in (tmp_path / "valid.csv").read_text().splitlines()[1:]]
    batch = tokenizer([one for one, _ in texts], [other for _, other in texts], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    extract = tokenizer.convert_tokens_to_ids(EXTRACT)
    assert ((ids == extract) & mask.bool()).sum(1).tolist() == [1] * len(texts)
    with torch.no_grad():
        probabilities = model(input_ids=ids, attention_mask=mask).logits.softmax(-1).numpy()
    written = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_allclose(probabilities, written, atol=1e-5)
    assert pipeline("text-classification", model=str(run / "export"))({"text": "the cat sat", "text_pair": "a cat"})
    before = read_config(export, roles=("decoder",)).vocab_size
    assert model.config.vocab_size == before + 3


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_both_orders_are_added_and_so_they_are_of_the_export(export: Path, tmp_path: Path, kind: str) -> None:
    """Of the stock class, the sum of the logits of both orders is what training predicted; exchanging the texts
    changes nothing. The card says so, and names no pipeline, which would read one order."""
    task = write_pairs(tmp_path)
    if kind == "regression":
        text = task.read_text().replace("classification", kind).replace("  labels: [0, 1]\n", "")
        task.write_text(text.replace("accuracy", "pearson"))
    assert main(arguments(task, export, "model.add_orders=true")) == 0
    run = tmp_path / "runs/finetune/a"
    model: Any = AutoModelForSequenceClassification.from_pretrained(run / "export").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "export")
    texts = [line.split(",")[:2] for line in (tmp_path / "valid.csv").read_text().splitlines()[1:]]
    found = []
    for a, b in texts:
        both = tokenizer([a, b], [b, a], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**both).logits.sum(0)
        found.append((logits.softmax(-1) if kind == "classification" else logits).tolist())
    rows = [line.split("\t") for line in (run / "predictions/validation.tsv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(found, [[float(cell) for cell in row[3:]] for row in rows], atol=1e-5)
    card = (run / "export/README.md").read_text()
    assert "tokenizer([a, b], [b, a], padding=True" in card
    assert "pipeline_tag" not in card


def test_the_order_of_a_pair_does_not_matter_where_both_are_added(export: Path, tmp_path: Path) -> None:
    """The state below the head is the sum of the states at two extract tokens."""
    objective, batch = stage_of(export, write_pairs(tmp_path), "model.add_orders=true")
    assert (batch.counts["sequences"], batch.counts["examples"]) == (8, 4)
    logits = objective.eval().logits(batch)
    states = encode(objective.model, batch.input)[batch.input.last_rows]
    extract = batch.input.ids[batch.input.last_rows]
    assert len({*extract.tolist()}) == 1
    expected = objective.model.score(states[::2] + states[1::2])
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    exchanged = [",".join([b, a, label]) for a, b, label in (line.split(",") for line in lines[1:])]
    (tmp_path / "train.csv").write_text("\n".join([lines[0], *exchanged]))
    other, batch = stage_of(export, tmp_path / "same.yaml", "model.add_orders=true")
    other.load_state_dict(objective.state_dict())
    torch.testing.assert_close(other.eval().logits(batch), logits, atol=1e-6, rtol=0)


def test_tasks_of_similarity_add_both_orders(export: Path) -> None:
    for name, both in (("mrpc", True), ("stsb", True), ("qqp", True), ("sick_relatedness", True), ("rte", False)):
        config = load_config([str(ROOT / f"configs/finetune/{name}.yaml"), f"model.from={export}"])
        assert (config.recipe, config.model.add_orders) == ("gpt1", both)


def test_candidates_lose_the_same_elements_of_their_states(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dropout of the head has one noise for all candidates of a question, as in the released code, and another one
    for each question; a head that reads ones shows it."""
    objective, batch = stage_of(export, write_choices(tmp_path), "model.classifier_dropout=0.5")
    question = torch.arange(4).repeat_interleave(2)
    seen: list[torch.Tensor] = []
    objective.model.score.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with monkeypatch.context() as patched:
        patched.setattr("bertillery.models.encoders.encode", lambda *_: torch.ones(batch.num_tokens, 32))
        choice_logits(objective.model.train(), batch.input, question=question)
        choice_logits(objective.model.eval(), batch.input, question=question)
    noise, kept = seen
    assert torch.equal(kept, torch.ones(8, 32))
    assert {*noise.flatten().tolist()} == {0.0, 2.0}
    assert torch.equal(noise[::2], noise[1::2])
    assert len({tuple(row.tolist()) for row in noise}) == 4
    objective.train()
    seen.clear()
    objective.logits(batch)
    assert torch.equal(seen[0][::2] == 0, seen[0][1::2] == 0)
    assert (seen[0] == 0).any()


def test_choices_are_scored_by_one_output(export: Path, tmp_path: Path) -> None:
    assert main(arguments(write_choices(tmp_path), export, "model.auxiliary_lm=0")) == 0
    run = tmp_path / "runs/finetune/a"
    model: Any = AutoModelForSequenceClassification.from_pretrained(run / "export")
    assert model.score.out_features == 1
    assert json.loads((run / "finished.json").read_text())["scores"]["validation"]["accuracy"] <= 1


def stage_of(export: Path, task: Path, *more: str) -> tuple[Any, Any]:
    """An objective and a batch."""
    given = arguments(task, export, *more, "model.hidden_dropout=0", "model.attention_dropout=0")
    trainer = Finetuning(load_config(given), given).start()
    source = trainer.sources[0]
    return trainer.objective, source.collate(source.examples(0, 0)[:4])


def test_the_language_model_weighs_sequences_alike(export: Path, tmp_path: Path) -> None:
    """The mean over a sequence's tokens after the first, the frame's among them, summed over the sequences."""
    objective, batch = stage_of(export, write_choices(tmp_path))
    objective.eval()
    term = objective(batch)["lm"]
    assert (term.weight, term.count, batch.counts["sequences"]) == (0.5, "sequences", 8)
    expected, offsets = 0.0, batch.input.offsets.tolist()
    base = objective.model.base_model
    objective.model.set_attn_implementation("sdpa")
    for start, end in pairwise(offsets):
        ids = batch.input.ids[None, start:end]
        with torch.no_grad():
            hidden = base(input_ids=ids).last_hidden_state[0, :-1]
        expected += F.cross_entropy(hidden @ base.wte.weight.T, ids[0, 1:]).item()
    assert term.total.item() == pytest.approx(expected, rel=1e-4)


def test_without_weight_there_is_the_task_alone_and_with_it_all_tokens_learn(export: Path, tmp_path: Path) -> None:
    task = write_pairs(tmp_path)
    plain, batch = stage_of(export, task, "model.auxiliary_lm=0")
    assert "lm" not in plain(batch)
    objective, batch = stage_of(export, task)
    hidden = torch.ones(batch.num_tokens, 32, requires_grad=True)
    table = objective.model.base_model.wte.weight
    next_token_means(hidden, table, batch).backward()
    touched = (hidden.grad.abs().sum(1) > 0).tolist()
    last = {*(batch.input.offsets[1:] - 1).tolist()}
    assert touched == [row not in last for row in range(batch.num_tokens)]
    assert table.grad is not None
    assert (table.grad[-3:].abs().sum(1) > 0).all()


def test_a_permutation_of_the_choices_permutes_the_logits(export: Path, tmp_path: Path) -> None:
    objective, batch = stage_of(export, write_choices(tmp_path))
    logits = objective.eval().logits(batch).view(-1, 2)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    swapped = [",".join([b, second, first, label]) for b, first, second, label in (row.split(",") for row in lines[1:])]
    (tmp_path / "train.csv").write_text("\n".join([lines[0], *swapped]))
    torch.manual_seed(0)
    other, batch = stage_of(export, tmp_path / "ending.yaml")
    other.load_state_dict(objective.state_dict())
    torch.testing.assert_close(other.eval().logits(batch).view(-1, 2).flip(1), logits, atol=1e-5, rtol=0)


def test_the_rates_are_those_of_the_released_code(export: Path, tmp_path: Path) -> None:
    """138 updates: 0 at the first, 6.2047e-5 at the second, linear to 0."""
    section = load_config(arguments(write_pairs(tmp_path), export)).optim
    rate = learning_rate(section, 138)
    assert rate(0) == 0.0
    assert rate(1) == pytest.approx(6.2047e-5, rel=1e-4)
    assert rate(137) == pytest.approx(6.25e-5 / 138)
    long = learning_rate(section, 6000)
    assert [long(t) for t in (0, 6, 12)] == pytest.approx([0, 3.125e-5, 6.25e-5])


def test_what_does_not_go_together_is_refused(export: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path, "bert")
    given = arguments(write_pairs(tmp_path), Path(encoder), "model.auxiliary_lm=0.5")
    with pytest.raises(ConfigError, match="is an encoder, which has no language model of next tokens"):
        Finetuning(load_config(given), given).start()
    given = arguments(tmp_path / "same.yaml", Path(encoder), "model.add_orders=true")
    with pytest.raises(ConfigError, match="is an encoder, in which both texts of a pair see each other"):
        Finetuning(load_config(given), given).start()
    with pytest.raises(ConfigError, match=r"model\.add_orders is for pairs of texts, and same has none"):
        load_config([*arguments(tmp_path / "same.yaml", export, "model.add_orders=true"), "task.text=one"])
    (tmp_path / "tags.yaml").write_text(f"""
task: {{name: tags, type: tokens, text: tokens, label: tags, labels: [O, B-x], metrics: f1, root: {tmp_path},
        files: {{train: a.jsonl, validation: a.jsonl}}}}
""")
    (tmp_path / "a.jsonl").write_text('{"tokens": ["the", "cat"], "tags": ["O", "B-x"]}\n' * 4)
    given = arguments(tmp_path / "tags.yaml", export)
    with pytest.raises(ConfigError, match="is a decoder, which sees no later token; tasks of type tokens need"):
        Finetuning(load_config(given), given).start()

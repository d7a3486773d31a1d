"""Marked places and entities in the texts of a task: where they are, what reads them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.models.families.ernie_thu import ErnieThuConfig, ErnieThuModel
from bertillery.models.heads import add_rows
from bertillery.models.load import load, vocabulary_size
from finetune.__main__ import main
from finetune.data.splits import Task, read_task
from finetune.mentions import MentionType, _mark
from finetune.task import TaskSection, task_type_of
from tests.corpora import tiny_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
NAMES = [f"e{i}" for i in range(12)]
ROWS: list[dict[str, Any]] = [
    {"text": "w1 w2w3 w4 w5", "head": [0, 2], "tail": [8, 10], "links": [[3, 7, "e1"]], "label": "a"},
    {"text": "w7 w8 w10", "head": [6, 9], "tail": [0, 2], "links": [[0, 2, "e2"], [6, 9, "e3"]], "label": "b"},
    {"text": "w11 w13", "head": [0, 3], "tail": [4, 7], "links": [], "label": "a"},
]


def section_of(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> TaskSection:
    (folder / "g.tsv").write_text("".join(f"{a}\tr\t{b}\n" for a, b in zip(NAMES, [*NAMES[1:], "e0"], strict=True)))
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given: dict[str, Any] = {
        "name": "own", "type": "relation", "labels": ["a", "b"], "metrics": "accuracy", "root": str(folder),
        "files": dict.fromkeys(("train", "validation"), "all.jsonl"), "mentions": "links",
        "graph": {"path": ["g.tsv"], "holdout": 1e-9},
    }  # fmt: skip
    return validate(TaskSection, given | changes)


def task_of(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> tuple[MentionType, Task]:
    section = section_of(folder, rows, **changes)
    kind = task_type_of(section)
    assert isinstance(kind, MentionType)
    kind.data_dir = folder / "data"
    return kind, read_task(section, data_dir=kind.data_dir, glue_dir=None)


def ernie(folder: Path, names: list[str] = NAMES) -> Path:
    """An encoder that knows these entities, all of its weights drawn."""
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64}
    config = ErnieThuConfig(**sizes, entity_size=8, entity_heads=2, num_entities=len(names) + 1)
    model = ErnieThuModel(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.set_table(torch.cat([torch.zeros(1, 8), 3 * torch.randn(len(names), 8)]), names)
    model.save_pretrained(folder)
    tiny_tokenizer(64).save_pretrained(folder)
    return folder


def logits_of(kind: MentionType, task: Task, encoder: Path) -> torch.Tensor:
    tokenizer = kind.fitted(AutoTokenizer.from_pretrained(encoder))
    torch.manual_seed(1)
    model, _ = load(kind.model_class, encoder, **kind.settings())
    add_rows(model, vocabulary_size(tokenizer))
    examples = kind.examples(task.split("train"), tokenizer, max_length=40, seed=0)
    with torch.no_grad():
        return kind.objective(model).logits(examples.collate(examples.examples(0, 0)))


def test_markers_and_mentions_move_together() -> None:
    """What a mention names begins and ends at the same letters, wherever markers are set."""
    text, rng = "abcdefghijklmnopqrstuvwxyz", np.random.default_rng(0)
    for _ in range(200):
        a, b, c, d = sorted(rng.choice(27, 4, replace=False).tolist())
        marked, moved = _mark(text, [((a, b), "[1]"), ((c, d), "[22]")])
        assert marked.split("[1]")[1] == f" {text[a:b]} "
        assert marked.split("[22]")[1] == f" {text[c:d]} "
        start, end = sorted(rng.choice(27, 2, replace=False).tolist())
        first, behind = moved(start, end)
        assert (marked[first], marked[behind - 1]) == (text[start], text[end - 1])


def test_places_are_marked_and_entities_lie_at_the_first_tokens(tmp_path: Path) -> None:
    kind, task = task_of(tmp_path)
    tokenizer = kind.fitted(tiny_tokenizer(64))
    examples = kind.examples(task.split("train"), tokenizer, max_length=40, seed=0)
    batch = examples.collate(examples.examples(0, 0))
    tokens = tokenizer.convert_ids_to_tokens(batch.input.ids.tolist())
    assert " ".join(tokens) == (
        "[CLS] [HD] w1 [HD] w2 ##w3 [TL] w4 [TL] w5 [SEP] "
        "[CLS] [TL] w7 [TL] w8 [HD] w10 [HD] [SEP] [CLS] [HD] w11 [HD] [TL] w13 [TL] [SEP]"
    )
    beside = batch.input.beside
    shown = [(tokens[row], entity) for row, entity in zip(beside.rows.tolist(), beside.ids.tolist(), strict=True)]
    rows = {name: row for row, name in enumerate(kind.graph.names, 1)}  # pyright: ignore
    cls = ("[CLS]", 0)
    assert shown == [cls, ("w2", rows["e1"]), cls, ("w7", rows["e2"]), ("w10", rows["e3"]), cls]
    assert beside.lengths.tolist() == [2, 3, 1]
    assert vocabulary_size(tokenizer) == 66


def test_types_above_one_half_hold_of_the_marked_mention(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "mention": row["head"], "links": row["links"], "label": ["a"]} for row in ROWS]
    kind, task = task_of(tmp_path, rows, type="entity_typing", metrics="micro_f1")
    assert task.split("train").texts[0] == ["[ENT] w1 [ENT] w2w3 w4 w5", "w7 w8 [ENT] w10 [ENT]", "[ENT] w11 [ENT] w13"]
    assert kind.best(np.array([[0.5, 0.51], [0.9, 0.1]])).tolist() == [[0, 1], [1, 0]]
    model: Any = load(kind.model_class, ernie(tmp_path / "ernie"), **kind.settings())[0]
    assert model.classifier.bias.shape == (2,)
    assert logits_of(kind, task, tmp_path / "ernie").shape == (3, 2)


def test_markers_may_be_pieces_of_the_vocabulary(tmp_path: Path) -> None:
    """As in the released code, which has # and $."""
    kind, task = task_of(tmp_path, markers=["w20", "w22"])
    tokenizer = kind.fitted(tiny_tokenizer(64))
    assert vocabulary_size(tokenizer) == 64
    assert task.split("train").texts[0][1] == "w22 w7 w22 w8 w20 w10 w20"


def test_what_is_cut_off_names_nothing(tmp_path: Path) -> None:
    kind, task = task_of(tmp_path)
    examples = kind.examples(task.split("train"), kind.fitted(tiny_tokenizer(64)), max_length=5, seed=0)
    beside = examples.collate(examples.examples(0, 0)).input.beside
    assert beside.lengths.tolist() == [1, 2, 1]
    assert examples.num_cut == 3


def test_a_dictionary_finds_what_no_column_gives(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(64)
    tokenizer.add_tokens(["e4"])
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps({"id": name, "label": f"w8 {name}"}) for name in NAMES))
    rows = [{**row, "text": row["text"].replace("w8", "w8 e4"), "head": [9, 12]} for row in ROWS[1:2]]
    kind, task = task_of(
        tmp_path, rows, mentions=None, graph={"path": ["g.tsv"], "entities": "f.jsonl", "holdout": 1e-9}
    )
    examples = kind.examples(task.split("train"), tokenizer, max_length=40, seed=0)
    assert kind.rows["e4"] in examples.collate(examples.examples(0, 0)).input.beside.ids
    assert examples.about == "mentions of entities: 1 found by the dictionary"


def test_entities_count_for_their_own_example_alone(tmp_path: Path) -> None:
    encoder = ernie(tmp_path / "ernie")
    found = logits_of(*task_of(tmp_path), encoder)
    other = [{**ROWS[0], "links": [[3, 7, "e5"]]}, *ROWS[1:]]
    changed = logits_of(*task_of(tmp_path, other), encoder)
    assert (found[0] - changed[0]).abs().max() > 1e-4
    torch.testing.assert_close(found[1:], changed[1:])


def test_without_a_graph_an_ernie_is_a_bert(tmp_path: Path) -> None:
    """The same weights under BERT's names, but for the bias of the entities' projection, which is 0 in a BERT."""
    encoder = ernie(tmp_path / "ernie")
    kind, task = task_of(tmp_path, graph=None, mentions=None)
    tokenizer = kind.fitted(AutoTokenizer.from_pretrained(encoder))
    torch.manual_seed(1)
    model: Any = load(kind.model_class, encoder, **kind.settings())[0]
    add_rows(model, vocabulary_size(tokenizer))
    for layer in model.bert.encoder.layer[1:]:
        layer.intermediate.dense_entities.bias.data.zero_()
    stock = BertForSequenceClassification(
        BertForSequenceClassification.config_class(**{**model.config.to_dict(), "model_type": "bert"})
    ).eval()
    stock.load_state_dict({name: value for name, value in model.state_dict().items() if "_entities" not in name})
    examples = kind.examples(task.split("train"), tokenizer, max_length=40, seed=0)
    batch = examples.collate(examples.examples(0, 0))
    assert batch.input.beside is None
    with torch.no_grad():
        found = kind.objective(model).logits(batch)
        padded = tokenizer(task.split("train").texts[0], padding=True, return_tensors="pt")
        torch.testing.assert_close(found, stock(**padded).logits, rtol=1e-4, atol=1e-5)
    assert not any(each.requires_grad for name, each in model.named_parameters() if "_entities" in name)


def refused(folder: Path, row: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        task_of(folder, [ROWS[0], {**ROWS[1], **row}], **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"head": [6, 10]}, "'head' holds [6, 10], which is no part of a text of 9 characters"),
        ({"head": [6]}, "'head' holds [6]; a place is [start, end]"),
        ({"head": "here"}, "'here' where a list is expected"),
        ({"head": [1, 4]}, "'tail' [0, 2] and 'head' [1, 4] overlap"),
        ({"links": [[6, 12, "e1"]]}, "the mention [6, 12, 'e1'] is no part of a text of 9 characters"),
        ({"links": [[0, 4, "e1"], [3, 5, "e2"]]}, "the mentions [0, 4, 'e1'] and [3, 5, 'e2'] overlap"),
        ({"links": [[0, 2, "Q9"]]}, "a mention of 'Q9', and the graph has no such entity"),
        ({"links": [["w7", "e1"]]}, "a mention is [start, end, name]"),
    ],
    ids=str,
)
def test_what_is_no_place_or_mention_names_file_and_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    found = refused(tmp_path, row)
    assert "all.jsonl:2" in found
    assert says in found


def test_unknown_entities_are_left_out_and_counted_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "links": [[3, 7, "Q9"], [8, 10, "e1"]]}, *ROWS[1:]]
    kind, task = task_of(tmp_path, rows, unknown="skip")
    examples = kind.examples(task.split("train"), kind.fitted(tiny_tokenizer(64)), max_length=40, seed=0)
    assert "4 given, 1 of them of entities that the graph lacks" in examples.about
    assert examples.collate(examples.examples(0, 0)).input.beside.lengths.tolist() == [2, 3, 1]


def test_a_table_of_another_graph_is_refused(tmp_path: Path) -> None:
    encoder = ernie(tmp_path / "ernie", [*NAMES[1:], "other"])
    with pytest.raises(ConfigError, match=r"task\.graph: 12 entities, and the model has 12 others"):
        logits_of(*task_of(tmp_path), encoder)


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    for changes, says in (
        ({"graph": None}, "of which graph"),
        ({"spans": ["head"]}, "relation takes 2"),
        ({"markers": ["[X]"]}, "relation takes 2"),
        ({"markers": ["a b", "c"]}, "each is one word"),
    ):
        with pytest.raises(ConfigError, match=says):
            section_of(tmp_path, **changes)


def test_an_export_predicts_as_the_run_did(tmp_path: Path) -> None:
    """The stock class, on a padded batch with the rows of the entities."""
    encoder = ernie(tmp_path / "ernie")
    rows = [{**ROWS[0], "links": [[3, 7, f"e{i}"]], "label": "ab"[i % 2]} for i in range(4)]
    section = section_of(tmp_path, rows)
    (tmp_path / "t.yaml").write_text(json.dumps({"task": section.model_dump(mode="json")}))
    arguments = [
        str(tmp_path / "t.yaml"), f"model.from={encoder}", "recipe=none", f"run.dir={tmp_path}/runs", "run.name=a",
        f"run.data_dir={tmp_path}/data", "run.device=cpu", "run.precision=fp32", "tracking.wandb=off",
        "optim.learning_rate=1.0e-3", "train.steps=2", "train.phases=[{batch_size: 4, sequence_length: 32}]",
    ]  # fmt: skip
    assert main(arguments) == 0
    path = tmp_path / "runs/finetune/a"
    model: Any = AutoModelForSequenceClassification.from_pretrained(path / "export")
    tokenizer = AutoTokenizer.from_pretrained(path / "export")
    inputs = tokenizer(["[HD] w1 [HD] w2w3 [TL] w4 [TL] w5"] * 4, return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])[1:5] == ["[HD]", "w1", "[HD]", "w2"]
    named = torch.zeros_like(inputs["input_ids"])
    named[:, 4] = torch.tensor([model.base_model.names.index(f"e{i}") + 1 for i in range(4)])
    with torch.no_grad():
        found = model(**inputs, entity_ids=named).logits.softmax(-1)
    assert (found[0] - found[1]).abs().max() > 1e-4
    lines = [line.split("\t") for line in (path / "predictions/validation.tsv").read_text().splitlines()]
    assert lines[0][3:] == ["p(a)", "p(b)"]
    torch.testing.assert_close(found, torch.tensor([[float(p) for p in row[3:]] for row in lines[1:]]))

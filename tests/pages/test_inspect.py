"""What the pages about models say is what the stock models compute, whatever the family."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoTokenizer,
    BertConfig,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
)

import bertillery.models.families.rnn_seq2seq as rnn
from bertillery.config.section import InputError
from bertillery.models.export import export_model
from bertillery.models.families.ernie_thu import ErnieThuConfig, ErnieThuForPreTraining
from bertillery.models.heads import draw_head, head_parameters
from bertillery.models.load import load
from finetune.data.splits import Split, Task
from finetune.record import Record
from finetune.task_types.graph_choice import Type
from pages import links
from pages.blocks import Heads, Marks, Page, Table
from pages.inspect import main, page
from pages.render import page_html
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import SIZES
from tests.finetune.test_graph_choice import task_of
from tests.finetune.texts import write_encoder
from tests.knowledge.mentions import small_graph
from tests.pages.folders import HOSTILE
from tests.prompting.exports import write_causal
from tests.translation.models import transformer

TEXT, PAIR = "w1 w2 w4 w5 w7", "w8 w10 w11"
MODEL: dict[str, Any] = {**SIZES, "vocab_size": 64, "max_position_embeddings": 64, "initializer_range": 0.5}
LABELS: dict[str, Any] = {"id2label": {0: "O", 1: "B-a"}, "label2id": {"O": 0, "B-a": 1}}


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer(64).save_pretrained(folder)
    return folder


def looked_at(folder: Path, text: str = TEXT, pair: str | None = None) -> Page:
    with torch.inference_mode():
        return page(str(folder), text, pair)


def blocks(found: Page, kind: type) -> list[Any]:
    return [block for section in found.shown for block in section.blocks if isinstance(block, kind)]


def table(found: Page, caption: str) -> dict[str, list[str]]:
    (only,) = [each for each in blocks(found, Table) if each.caption.startswith(caption)]
    return {row[0]: [*row[1:]] for row in only.rows[1:]}


def drawn(found: Page) -> np.ndarray:
    """The weights (heads, T, S) in the pictures."""
    (heads,) = blocks(found, Heads)
    assert [len(layer) for layer in heads.layers] == [len(heads.layers[0])] * len(heads.layers)
    pictures = [base64.b64decode(head.picture.split(",")[1]) for head in heads.heads]
    return np.stack([np.asarray(Image.open(BytesIO(each)).convert("RGBA"))[..., 3] for each in pictures]) / 255


def percent(share: Any) -> str:
    return f"{float(share):.1%}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_bert_guesses_masks_judges_pairs_and_looks(tmp_path: Path) -> None:
    """As the stock model does, with eager attention."""
    folder = save(BertForPreTraining(BertConfig(**MODEL)), tmp_path / "bert")
    found = looked_at(folder, "w1 [MASK] w4", PAIR)
    stock = BertForPreTraining.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = tiny_tokenizer(64)("w1 [MASK] w4", PAIR, return_tensors="pt")
    with torch.no_grad():
        outputs = stock(**inputs, output_attentions=True)
    follows, random = outputs.seq_relationship_logits[0].softmax(-1)
    assert table(found, "Pair")["the second text follows the first"] == [percent(follows)]
    assert table(found, "Pair")["it is a random one"] == [percent(random)]
    best = outputs.prediction_logits[0, 2].softmax(-1).topk(5)
    pieces: Any = tiny_tokenizer(64).convert_ids_to_tokens(best.indices.tolist())
    assert table(found, "Guesses")["2. [MASK]"] == [
        f"{piece} {share:.0%}" for piece, share in zip(pieces, best.values.tolist(), strict=True)
    ]
    assert drawn(found) == pytest.approx(torch.cat(outputs.attentions).flatten(0, 1).numpy(), abs=0.6 / 255)


def test_each_token_is_masked_alone(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
    folder = save(DistilBertForMaskedLM(DistilBertConfig(**sizes, initializer_range=0.5)), tmp_path / "distilbert")
    found = looked_at(folder)
    stock = AutoModelForMaskedLM.from_pretrained(folder).eval()
    for place in range(1, 6):
        inputs = tiny_tokenizer(64)(TEXT, return_tensors="pt")
        true = int(inputs["input_ids"][0, place])
        inputs["input_ids"][0, place] = tiny_tokenizer(64).mask_token_id
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            share = stock(**inputs).logits[0, place].softmax(-1)[true]
        (row,) = [row for name, row in table(found, "Guesses").items() if name.startswith(f"{place}. ")]
        assert row[0] == percent(share)


def test_an_albert_judges_the_order(tmp_path: Path) -> None:
    folder = save(AlbertForPreTraining(AlbertConfig(**MODEL, embedding_size=16)), tmp_path / "albert")
    inputs = tiny_tokenizer(64)(TEXT, PAIR, return_tensors="pt")
    with torch.no_grad():
        share = AlbertForPreTraining.from_pretrained(folder).eval()(**inputs).sop_logits[0].softmax(-1)
    assert table(looked_at(folder, TEXT, PAIR), "Pair")["the texts are in order"] == [percent(share[0])]
    assert not [each for each in blocks(looked_at(folder), Table) if each.caption.startswith("Pair")]


def test_an_electra_marks_what_was_replaced_and_its_generator_guesses(tmp_path: Path) -> None:
    folder = save(ElectraForPreTraining(ElectraConfig(**MODEL, embedding_size=16)), tmp_path / "electra")
    save(ElectraForMaskedLM(ElectraConfig(**MODEL, embedding_size=16)), folder / "generator")
    found = looked_at(folder)
    with torch.no_grad():
        logits = (
            ElectraForPreTraining.from_pretrained(folder).eval()(**tiny_tokenizer(64)(TEXT, return_tensors="pt")).logits
        )
    replaced, masked = blocks(found, Marks)
    assert [mark.share for mark in replaced.marks] == pytest.approx(logits[0, 1:-1].sigmoid().tolist(), abs=1e-5)
    assert len(masked.marks) == 5


def test_heads_of_tasks_decide(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(64)
    folder = save(BertForSequenceClassification(BertConfig(**MODEL, **LABELS)), tmp_path / "classes")
    with torch.no_grad():
        logits = (
            BertForSequenceClassification.from_pretrained(folder).eval()(**tokenizer(TEXT, return_tensors="pt")).logits
        )
    shares = logits[0].softmax(-1)
    assert table(looked_at(folder), "Decision") == {"O": [percent(shares[0])], "B-a": [percent(shares[1])]}
    folder = save(BertForTokenClassification(BertConfig(**MODEL, **LABELS)), tmp_path / "tags")
    with torch.no_grad():
        logits = (
            BertForTokenClassification.from_pretrained(folder).eval()(**tokenizer(TEXT, return_tensors="pt")).logits
        )
    (marks,) = blocks(looked_at(folder), Marks)
    names = ["O" if best == 0 else "B-a" for best in logits[0, 1:-1].argmax(-1).tolist()]
    assert [mark.below or "O" for mark in marks.marks] == names


def test_answers_lie_in_the_context(tmp_path: Path) -> None:
    folder = save(BertForQuestionAnswering(BertConfig(**MODEL)), tmp_path / "answers")
    inputs = tiny_tokenizer(64)(TEXT, PAIR, return_tensors="pt")
    with torch.no_grad():
        outputs = BertForQuestionAnswering.from_pretrained(folder).eval()(**inputs)
    start, end = (logits[0, 7:10].softmax(-1) for logits in (outputs.start_logits, outputs.end_logits))
    spans = {(i, j): float(start[i] * end[j]) for i in range(3) for j in range(i, 3)}
    (first, last), share = max(spans.items(), key=lambda item: item[1])
    found = table(looked_at(folder, TEXT, PAIR), "Answers")
    assert next(iter(found.items())) == (" ".join(PAIR.split()[first : last + 1]), [percent(share)])
    assert "PAIR" in page_html(looked_at(folder))


def test_a_causal_model_says_what_follows_and_sees_no_later_token(tmp_path: Path) -> None:
    folder = write_causal(tmp_path / "causal")
    found = looked_at(folder, "the cat sat")
    stock: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer("the cat sat", add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        outputs = stock(ids, output_attentions=True)
    shares = outputs.logits[0].softmax(-1)
    assert (
        sorted(row[0] for row in table(found, "What follows").values())
        == sorted(percent(share) for share in shares[-1].topk(10).values)
        or len(table(found, "What follows")) < 10
    )  # two tokens may be shown alike
    (marks,) = blocks(found, Marks)
    own = shares[:-1].gather(1, ids[0, 1:, None])[:, 0]
    assert [mark.share for mark in marks.marks] == pytest.approx(own.tolist(), abs=1e-5)
    assert drawn(found) == pytest.approx(torch.cat(outputs.attentions).flatten(0, 1).numpy(), abs=0.6 / 255)


def translator(model: Any, folder: Path) -> Path:
    """With a tokenizer of words whose padding and end are those of the tiny models."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel(
            {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(27))])}, "<unk>"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def test_a_translation_is_aligned_with_its_source(tmp_path: Path) -> None:
    model: Any = transformer("post")
    folder = translator(model, tmp_path / "marian")
    found = looked_at(folder, "w1 w5 w9", "w2 w3")
    (heads,) = blocks(found, Heads)
    assert ([*heads.queries], [*heads.keys]) == (["w2", "w3", "</s>"], ["w1", "w5", "w9", "</s>"])
    model.set_attn_implementation("eager")
    ids, entering = torch.tensor([[4, 8, 12, 1]]), torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        weights = model(input_ids=ids, decoder_input_ids=entering, output_attentions=True).cross_attentions
    assert drawn(found) == pytest.approx(torch.cat(weights).flatten(0, 1).numpy(), abs=0.6 / 255)
    assert len(table(found, "Translations")) > 0


@pytest.mark.parametrize("attention", ["none", "dot"])
def test_a_recurrent_model_is_aligned_where_it_has_attention(tmp_path: Path, attention: str) -> None:
    config = rnn.RnnSeq2SeqConfig(
        vocab_size=30, hidden_size=16, embedding_size=16, attention=attention, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, encoder_hidden_size=8,
    )  # fmt: skip
    folder = translator(rnn.RnnSeq2SeqForConditionalGeneration(config).eval(), tmp_path / "rnn")
    assert len(blocks(looked_at(folder, "w1 w5 w9"), Heads)) == (attention != "none")


def test_entities_are_linked_shown_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention is that of the text with its entities, which the last layers mix in."""
    graph = small_graph()
    config = ErnieThuConfig(**MODEL, entity_size=12, entity_heads=3, num_entities=41)
    model = ErnieThuForPreTraining(config).eval()
    model.bert.set_table(torch.randn(41, 12), [*graph.names])
    folder = save(model, tmp_path / "ernie")
    assert "is not known" in page_html(looked_at(folder))
    monkeypatch.setattr("pages.inspect.graph_of", lambda start: graph)
    monkeypatch.setattr(links, "link_texts", lambda *given: np.array([0, 3, 0, 9, 0]))
    found = looked_at(folder)
    (_, entities) = blocks(found, Marks)
    assert [mark.below for mark in entities.marks] == ["", "e2", "", "e8", ""]
    named = table(found, "Named")
    assert [row[0] for row in named.values()] == ["e2", "e8"]
    inputs = tiny_tokenizer(64)(TEXT, return_tensors="pt")
    shown = torch.tensor([[0, 0, 3, 0, 9, 0, 0]])
    from transformers.models.bert.modeling_bert import BertSelfAttention

    model.set_attn_implementation("eager")
    weights: list[torch.Tensor] = []
    for layer in model.bert.encoder.layer:
        own: Any = layer.attention.self
        assert isinstance(own, BertSelfAttention)
        own.register_forward_hook(lambda _, __, outputs: weights.append(outputs[1]))
    with torch.no_grad():
        model(**inputs, entity_ids=shown)
    assert drawn(found) == pytest.approx(torch.cat(weights).flatten(0, 1).numpy(), abs=0.6 / 255)


def kagnet(folder: Path) -> tuple[Path, Type, Task]:
    """An export as its run leaves it, with the run's configuration beside."""
    encoder = write_encoder(folder / "tiny")
    kind, task = task_of(folder)
    model, _ = load(kind.model_class, encoder)
    objective, tokenizer = kind.objective(model), AutoTokenizer.from_pretrained(encoder)
    draw_head(model, head_parameters(model))
    models = objective.auxiliary_models()
    export = export_model(model, tokenizer, folder / "run/export", card="", auxiliary_models=models, max_length=40)
    values: dict[str, Any] = {"task": kind.section.model_dump(mode="json"), "run": {"data_dir": str(kind.data_dir)}}
    values["train"] = {"phases": [{"sequence_length": 40}]}
    (export.parent / "config.yaml").write_text(yaml.safe_dump(values))
    return export, kind, task


def test_a_kagnet_shows_concepts_and_paths_and_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities are those of the stock call with the same graphs, paths those that training draws."""
    export, kind, task = kagnet(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    question, choices = task.split("train").texts[0][3], ["the river", "the king", "queen"]
    found = looked_at(export, question, " the river|the king |queen")
    assert [section.title for section in found.shown] == ["Given", "Decision", "Concepts", "Paths", "Attention"]
    split = Split("given", ([question], [choices]), None, np.array(["0"], dtype=object))
    inputs = AutoTokenizer.from_pretrained(export)([question] * 3, choices, padding=True, return_tensors="pt")
    graphs = kind.table(split).take(np.arange(3))
    model: Any = AutoModelForMultipleChoice.from_pretrained(export).eval()
    with torch.no_grad():
        shares = model(**{name: each[None] for name, each in inputs.items()}, graphs=graphs).logits[0].softmax(-1)
    wanted = {choice: [percent(share)] for choice, share in zip(choices, shares, strict=True)}
    assert table(found, "Choices") == wanted
    named = table(found, "Concepts")
    assert named == {
        question: ["river, new town, town"],
        "the river": ["river"],
        "the king": ["the king"],
        "queen": ["queen"],
    }
    (paths,) = [each for each in blocks(found, Table) if "paths" in each.caption]
    assert len({row[0] for row in paths.rows[1:]}) == 3
    known, counts = kind.table(split), kind.table(split).sizes[:, 3].tolist()
    graph_paths = {kind.format_path(known, row, at) for row, count in enumerate(counts) for at in range(count)}
    assert {row[1] for row in paths.rows[1:]} <= graph_paths
    assert "river —crossed→ queen" in {row[1] for row in paths.rows[1:]}
    sums = [sum(float(row[2][:-1]) for row in paths.rows[1:] if row[0].startswith(choice)) for choice in choices]
    assert all(0 < total < 100.2 for total in sums)
    best = choices[int(shares.argmax())]
    (heads,) = blocks(found, Heads)
    assert [*heads.keys][-1 - len(best.split()) : -1] == best.split()
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_a_kagnet_away_from_its_run_is_told_its_graph(tmp_path: Path) -> None:
    export, kind, _ = kagnet(tmp_path)
    away = export.rename(tmp_path / "away")
    section = kind.section.model_dump(mode="json")
    (away / "task.yaml").write_text(Record(task=section, sequence_length=40).text())
    with pytest.raises(InputError, match=r"task\.graph\.path"):
        looked_at(away, "who ruled the town", "the king | gold")
    place = f"task.graph.path=[{tmp_path}/graph.tsv]"
    given = [f"model={away}", "text=who ruled the town", "pair=the king | gold", f"output={tmp_path}/a.html"]
    assert main([*given, place]) == 0
    assert "←ruled— the king" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_choices_are_compared(tmp_path: Path) -> None:
    folder = save(BertForMultipleChoice(BertConfig(**MODEL)), tmp_path / "choice")
    found = looked_at(folder, TEXT, "w8 w10|w11")
    inputs = tiny_tokenizer(64)([TEXT] * 2, ["w8 w10", "w11"], padding=True, return_tensors="pt")
    with torch.no_grad():
        model = BertForMultipleChoice.from_pretrained(folder).eval()
        shares = model(**{name: each[None] for name, each in inputs.items()}).logits[0].softmax(-1)
    assert table(found, "Choices") == {"w8 w10": [percent(shares[0])], "w11": [percent(shares[1])]}
    (heads,) = blocks(found, Heads)
    assert [*heads.keys][7:-1] == ["w8 w10", "w11"][int(shares.argmax())].split()
    assert "PAIR" in page_html(looked_at(folder, TEXT, "w11"))


@pytest.mark.parametrize("section", ["objective", "task"])
def test_the_graph_of_a_run_is_found(tmp_path: Path, section: str) -> None:
    """Of pretraining, and of a fine-tuning, whose files are relative to the root of its task."""
    (tmp_path / "facts.tsv").write_text("w1\tr\tw2\nw2\tr\tw3\n")
    graph = {"path": ["facts.tsv" if section == "task" else f"{tmp_path}/facts.tsv"], "holdout": 1e-9}
    reads = {"graph": graph, "type": "any"} | ({"root": str(tmp_path)} if section == "task" else {})
    values = {section: reads, "run": {"data_dir": f"{tmp_path}/data"}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(values))
    found = links.graph_of(str(tmp_path / "run/export"))
    assert not isinstance(found, str)
    assert sorted(found.names) == ["w1", "w2", "w3"]
    reads.pop("graph")
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(values))
    assert "texts alone" in str(links.graph_of(str(tmp_path / "run/export")))


def test_foreign_text_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, too, where YAML might make something else of it."""
    folder = save(BertForPreTraining(BertConfig(**MODEL)), tmp_path / "bert")
    output = tmp_path / "a" / "page.html"
    assert main([f"model={folder}", f"text={HOSTILE}", "pair=null", f"output={output}"]) == 0
    html = output.read_text(encoding="utf-8")
    assert html.count("<script") == 2  # the page's own and the tokens
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    assert "<dd><bdi>null</bdi></dd>" in html


@pytest.mark.parametrize(
    ("text", "pair", "says"),
    [
        ("w1 " * 70, None, "72 tokens.*64"),
        ("\u200b", None, "no token"),
        ("a\udcff", None, "UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, text: str, pair: str | None, says: str) -> None:
    folder = save(BertForPreTraining(BertConfig(**MODEL)), tmp_path / "bert")
    with pytest.raises(InputError, match=says):
        looked_at(folder, text, pair)

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModelForQuestionAnswering, BertTokenizer, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.models.load import load
from finetune.data.splits import Task, read_task
from finetune.task import TaskSection, task_type_of
from finetune.task_types.answers import Answer, exact_match
from finetune.task_types.base import Predicted
from finetune.task_types.windows import QuestionExamples, SpansSection, most_context
from tests.finetune.texts import TOKENIZERS, WORDS, wordpiece, write_encoder

DATA = Path(os.environ.get("BERTILLERY_DATA", Path(__file__).parents[2] / "../shared/data"))


def questions(number: int = 40, seed: int = 0, unanswerable: bool = False) -> dict[str, Any]:
    """SQuAD's form; contexts of one window or many, words that are whole and words that are cut."""
    rng = np.random.default_rng(seed)
    words = [*WORDS, "Bridge", "castles", "Élan", "1854", "Mill's", "ox"]
    paragraphs = []
    for i in range(number):
        text = [str(word) for word in rng.choice(words, rng.integers(3, 90))]
        begin = int(rng.integers(len(text)))
        end = min(len(text), begin + int(rng.integers(1, 4)))
        joined = " ".join(text) + "."
        answer = " ".join(text[begin:end])
        answers = [{"text": answer, "answer_start": len(" ".join(["", *text[:begin]]))}]
        answers = [] if unanswerable and i % 3 == 0 else answers
        qas = [{"id": f"q{i}", "question": f"What is {text[begin]}?", "answers": answers}]
        paragraphs.append({"context": joined, "qas": qas})
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


def squad(folder: Path, document: Any = None, **settings: Any) -> Task:
    (folder / "train.json").write_text(json.dumps(document or questions()))
    plain = {"name": "own", "type": "spans", "text": ["question", "context"], "label": "answers", "index": "id"}
    plain |= {"metrics": ["f1", "exact_match"], "root": folder, "validation": ["train_too"]}
    files = {"files": {"train": "train.json", "train_too": "train.json"}}
    return read_task(validate(TaskSection, plain | files | settings), data_dir=folder, glue_dir=None)


def oracle(examples: QuestionExamples, index: np.ndarray) -> np.ndarray:
    """Logits that know the answers: high at its first and last token, and at [CLS] where the window has none."""
    assert examples.spans is not None
    parts = []
    for window in examples.members(index):
        logits = np.random.default_rng(int(window)).normal(size=(int(examples.sequences.lengths[window]), 2))
        logits[examples.spans[window], [0, 1]] += 20
        parts.append(logits)
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("max_length", [64, 100, 300])
def test_who_knows_the_answers_scores_all(tmp_path: Path, name: str, max_length: int) -> None:
    """Whatever the vocabulary and the windows, if what they share is twice an answer: each answer is in one, and its
    text is the context's own."""
    task = squad(tmp_path)
    kind = task_type_of(task.section)
    split = task.split("train")
    section = SpansSection(stride=8, question_length=12)
    examples = QuestionExamples(split, TOKENIZERS[name](), section, max_length=max_length, seed=0, training=False)
    assert examples.spans is not None
    assert examples.unplaced == 0
    assert (np.add.reduceat(examples.spans[:, 0] > 0, np.cumsum(examples.per_example) - examples.per_example)).all()
    assert (examples.sequences.lengths <= max_length).all()
    index = np.random.default_rng(0).permutation(split.num_examples)[:30]
    predictions = kind.decide(oracle(examples, index), examples, index)
    assert split.labels is not None
    assert [each.text for each in predictions] == [answers[0].text for answers in split.labels[index]]
    assert kind.scores(predictions, split.labels[index]) == {"f1": 1, "exact_match": 1}


def test_who_knows_that_there_is_none_scores_all(tmp_path: Path) -> None:
    task = squad(tmp_path, questions(unanswerable=True), spans={"unanswerable": True}, metrics=["f1", "best_f1"])
    kind, split = task_type_of(task.section), task.split("train")
    examples = kind.examples(split, wordpiece(), max_length=64, seed=0)
    assert isinstance(examples, QuestionExamples)
    index = np.arange(split.num_examples)
    predictions = kind.decide(oracle(examples, index), examples, index)
    assert split.labels is not None
    assert kind.scores(predictions, split.labels) == {"f1": 1, "best_f1": 1}
    assert [each.null > 0 for each in predictions] == [not answers for answers in split.labels]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_probabilities_are_the_softmax_over_all_spans(tmp_path: Path, unanswerable: bool) -> None:
    """Of all windows, each span in the window with the most context; no answer counts as one more, where there may be
    none. The highest is the prediction, and places are those of the context."""
    section: dict[str, Any] = {"unanswerable": unanswerable, "n_best": 1000, "answer_length": 3, "stride": 9}
    task = squad(tmp_path, questions(12, unanswerable=unanswerable), spans=section)
    kind, split = task_type_of(task.section), task.split("train")
    examples = kind.examples(split, wordpiece(), max_length=40, seed=0)
    assert isinstance(examples, QuestionExamples)
    index, rng = np.arange(split.num_examples), np.random.default_rng(0)
    parts = [rng.normal(size=(int(size), 2)).astype(np.float32) for size in examples.num_outputs(index)]
    outputs = np.concatenate(parts)
    predicted = Predicted(split, outputs, kind.decide(outputs, examples, index))
    fields = kind.fields(predicted)
    assert [*fields] == ["prediction", "probability", *["null"] * unanswerable, "start", "end"]
    texts, contexts = fields["prediction"], split.texts[1]
    assert all(map(bool, texts)) != unanswerable
    cut = [text[a:b] for text, a, b in zip(contexts, fields["start"], fields["end"], strict=True)]
    assert cut == [*texts]
    for number, part in enumerate(parts):
        which = examples.members(index[number : number + 1])
        rows = np.split(part.astype(np.float64), np.cumsum(examples.sequences.lengths[which])[:-1])
        sizes = examples.sequences.sizes[1, which]
        scores, nulls = dict[tuple[int, int], float](), []
        for window, logits, size, most in zip(
            which, rows, sizes, most_context(examples.starts[which], sizes), strict=True
        ):
            inside, begin = logits[examples.first[window] :], int(examples.starts[window])
            nulls.append(logits[0].sum())
            for a in np.flatnonzero(most).tolist():
                for b in range(a, min(a + 3, int(size))):
                    scores[begin + a, begin + b] = inside[a, 0] + inside[b, 1]
        every = [*scores.values(), *[min(nulls)] * unanswerable]
        shares = np.exp(every) / np.exp(every).sum()
        assert shares.sum() == pytest.approx(1)
        assert fields["probability"][number] == pytest.approx(shares.max(), rel=1e-6)
        first, last = max(scores, key=scores.__getitem__)
        found = examples.contexts.text(int(examples.context[number]), first, last)
        assert bool(texts[number]) == (not unanswerable or int(shares.argmax()) < len(scores))
        assert not texts[number] or (texts[number], fields["start"][number]) == found


def test_windows_hold_question_and_context(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    split = squad(tmp_path).split("train")
    examples = QuestionExamples(split, tokenizer, SpansSection(stride=9), max_length=40, seed=0, training=True)
    assert examples.num_examples == len(examples.starts) > split.num_examples
    ids, types = examples.sequences.lay_out(np.arange(len(examples.starts)))
    places = np.split(np.arange(len(ids)), np.cumsum(examples.sequences.lengths)[:-1])
    question = 0
    for window, place in enumerate(places):
        question += window > 0 and examples.starts[window] == 0
        asked = tokenizer(split.texts[0][question], add_special_tokens=False)["input_ids"]
        context = tokenizer(split.texts[1][question], add_special_tokens=False)["input_ids"]
        first, size = examples.starts[window], examples.sequences.sizes[1, window]
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        assert ids[place].tolist() == [cls, *asked, sep, *context[first : first + size], sep]
        assert types[place].tolist() == [0] * (len(asked) + 2) + [1] * (size + 1)


def test_training_is_the_stock_models_loss(tmp_path: Path) -> None:
    """The sum over the windows of a batch is what the stock model gives for each alone."""
    split = squad(tmp_path).split("train")
    model, _ = load(AutoModelForQuestionAnswering, write_encoder(tmp_path / "model"), num_labels=2)
    kind = task_type_of(squad(tmp_path).section)
    examples = QuestionExamples(split, wordpiece(), SpansSection(stride=9), max_length=40, seed=0, training=True)
    batch = examples.collate(examples.examples(0, 0)[:9])
    with torch.no_grad():
        term = kind.objective(model)(batch)["cross_entropy"]
    stock = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model", num_labels=2)
    stock.load_state_dict(model.state_dict())
    total = 0.0
    for window in range(9):
        cut = slice(int(batch.input.offsets[window]), int(batch.input.offsets[window + 1]))
        start, end = batch.targets["spans"][window]
        inputs = {"input_ids": batch.input.ids[None, cut], "token_type_ids": batch.input.token_type_ids[None, cut]}
        with torch.no_grad():
            total += float(stock(**inputs, start_positions=start[None], end_positions=end[None]).loss)
    assert float(term.total) == pytest.approx(total, rel=1e-5)
    assert (term.count, batch.counts["windows"]) == ("windows", 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": [{"text": "no such", "answer_start": 0}]},
            r"train.json: question 2 \(id 'q1'\): the answer 'no such' is not in the",
        ),
        ({"answers": [{"text": "x"}]}, "answers have text and answer_start"),
        ({"answers": []}, "a question without an answer; with task.spans.unanswerable=true"),
        ({"question": " "}, "nothing in 'question'"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    document = questions(3)
    document["data"][0]["paragraphs"][1]["qas"][0] |= change
    with pytest.raises(InputError, match=message):
        squad(tmp_path, document)


def test_other_ways_to_write_questions(tmp_path: Path) -> None:
    """Over several lines, and as the Hub has them: a row a question, answers as lists."""
    wanted = squad(tmp_path).split("train")
    (tmp_path / "train.json").write_text(json.dumps(questions(), indent=2))
    rows = []
    for paragraph in questions()["data"][0]["paragraphs"]:
        (asked,) = paragraph["qas"]
        answers = {key: [each[key] for each in asked["answers"]] for key in ("text", "answer_start")}
        rows.append({**asked, "context": paragraph["context"], "answers": answers})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "packed.json.xz").write_bytes(lzma.compress((tmp_path / "train.json").read_bytes()))
    for name in ("train.json", "rows.jsonl", "packed.json"):
        split = squad(tmp_path, files={"train": name, "train_too": name}).split("train")
        assert split.texts == wanted.texts
        assert list(split.labels) == list(wanted.labels)  # pyright: ignore
        assert split.index.tolist() == [f"q{i}" for i in range(40)]


CONTEXT = "It is in Lund. 1854"


def one_question(tmp_path: Path, answers: Any, **changes: Any) -> Task:
    """The task of a question on ``CONTEXT``, as a row; unanswerable ones are allowed, so that a lost answer shows."""
    row = {"id": "q7", "question": "Where?", "context": CONTEXT, "answers": answers, **changes}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    spans = {"unanswerable": True}
    return squad(tmp_path, files={"train": "rows.jsonl", "train_too": "rows.jsonl"}, spans=spans)


@pytest.mark.parametrize("start", [9, 9.0, "9"])
@pytest.mark.parametrize("form", ["objects", "lists", "object"])
def test_a_start_is_an_integer_however_it_is_written(tmp_path: Path, start: Any, form: str) -> None:
    one = {"text": "Lund", "answer_start": start}
    answers = {"objects": [one], "lists": {key: [value] for key, value in one.items()}, "object": one}[form]
    split = one_question(tmp_path, answers).split("train")
    assert list(split.labels) == [(Answer("Lund", 9),)]  # pyright: ignore


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}])
def test_no_answer_is_an_empty_list(tmp_path: Path, answers: Any) -> None:
    assert list(one_question(tmp_path, answers).split("train").labels) == [()]  # pyright: ignore


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": "Lund", "answer_start": [9]}, "both lists or neither"),
        ({"text": ["Lund"], "answer_start": 9}, "both lists or neither"),
        ({"text": ["Lund"], "answer_start": []}, "as many of one as of the other"),
        ({"text": ["Lund", "in"], "answer_start": [9]}, "as many of one as of the other"),
        ({"text": ["Lund"]}, "answers have text and answer_start"),
        (["Lund"], "answers have text and answer_start"),
        ("Lund", "answers have text and answer_start"),
        (None, "no answer is an empty list"),
        ([{"text": "Lund", "answer_start": None}], "answer_start is None"),
        ([{"text": "Lund", "answer_start": 9.5}], r"answer_start is 9\.5"),
        ([{"text": "Lund", "answer_start": "nine"}], "answer_start is 'nine'"),
        ([{"text": "t", "answer_start": True}], "answer_start is True"),
        ([{"text": "Lund", "answer_start": -10}], "answer_start is -10"),
        ([{"text": 1854, "answer_start": 15}], "a int where a text is expected: 1854"),
    ],
)
def test_answers_of_another_type_are_refused_with_their_row(tmp_path: Path, answers: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"rows\.jsonl:1 \(id 'q7'\): .*{message}"):
        one_question(tmp_path, answers)


@pytest.mark.parametrize("changes", [{"question": 5}, {"context": 5}, {"id": None}, {"id": True}, {"id": "a\tb"}])
def test_questions_of_another_type_are_refused_with_their_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1 \("):
        one_question(tmp_path, [], **changes)


def test_two_questions_with_one_id(tmp_path: Path) -> None:
    """Predictions are written by id, which would lose one of them; training needs no ids."""
    document = questions(3)
    document["data"][0]["paragraphs"][2]["qas"][0]["id"] = "q0"
    (tmp_path / "train.json").write_text(json.dumps(document))
    first, second = (rf"train\.json: question {number} \(id 'q0'\)" for number in (1, 3))
    with pytest.raises(InputError, match=rf"own train_too: 1 of 3 rows(.|\n)*{second}: .*{first} has this id, too"):
        squad(tmp_path, document)
    (tmp_path / "valid.json").write_text(json.dumps(questions(3)))
    task = squad(tmp_path, document, files={"train": "train.json", "train_too": "valid.json"})
    assert task.split("train").num_examples == 3


def test_a_broken_document_and_no_room(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.0\.paragraphs\.0\.context: Field required; not in SQuAD's form"):
        squad(tmp_path, {"data": [{"paragraphs": [{"qas": [{"id": "q0", "question": "Who?"}]}]}]})
    with pytest.raises(InputError, match=r"data\.0: Input should be a valid dictionary; not in SQuAD's form"):
        squad(tmp_path, {"data": ["an article"]})
    with pytest.raises(InputError, match="no questions"):
        squad(tmp_path, {"data": []})
    split = squad(tmp_path).split("train")
    with pytest.raises(ConfigError, match="leaves no room for a context"):
        QuestionExamples(split, wordpiece(), SpansSection(), max_length=10, seed=0, training=True)


@pytest.mark.skipif(not (DATA / "squad").is_dir(), reason=f"no SQuAD in {DATA}; set BERTILLERY_DATA")
def test_real_answers_are_found_again(tmp_path: Path) -> None:
    """2,000 questions of SQuAD: every answer, however long, comes back, but where it ends within a token."""
    document = json.loads((DATA / "squad" / "dev-v1.1.json").read_text())
    document["data"] = document["data"][:12]
    split = squad(tmp_path, document).split("train")
    asked, contexts = (column[:2000] for column in split.texts)
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(dict.fromkeys(contexts), vocab_size=4000, show_progress=False)
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(vocab=trained.get_vocab())
    assert split.labels is not None
    part = type(split)("train", (asked, contexts), split.labels[:2000], split.index[:2000])
    assert part.num_examples == 2000
    examples = QuestionExamples(
        part, tokenizer, SpansSection(answer_length=150), max_length=384, seed=0, training=False
    )
    kind = task_type_of(squad(tmp_path).section)
    predictions = kind.decide(oracle(examples, np.arange(2000)), examples, np.arange(2000))
    pairs = [(each.text, answers[0].text) for each, answers in zip(predictions, part.labels, strict=True)]  # pyright: ignore
    assert examples.unplaced == 0
    assert sum(text not in found for found, text in pairs) == 0
    assert sum(not exact_match(found, text) for found, text in pairs) <= 10

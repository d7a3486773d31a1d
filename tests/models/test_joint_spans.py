"""ELECTRA's and ALBERT's heads for SQuAD, beside the released code written anew: padded, one window after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    ElectraConfig,
    ElectraForQuestionAnswering,
    ElectraModel,
)

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.engine.batch import PackedBatch
from bertillery.engine.loop import share_of_loss
from bertillery.models.export import export_model
from bertillery.models.heads import draw_head, head_parameters
from bertillery.models.joint_spans import HEADS, JointSpans, best_of_beam, flattened, joint_head
from bertillery.models.layers.attention import NAME
from bertillery.models.load import load, open_stock, read_config
from distill.config import load_config as distillation
from distill.task_models import open_task_teacher
from finetune import predict as evaluate
from finetune.__main__ import main
from finetune.config import load_config
from finetune.task import TaskSection, task_type_of
from finetune.task_types.spans import JointObjective
from finetune.task_types.windows import QuestionExamples, SpansSection
from tests.finetune.test_spans import questions, squad
from tests.finetune.texts import wordpiece

ROOT = Path(__file__).resolve().parents[2]
FAMILIES: dict[str, Any] = {"electra": (ElectraConfig, ElectraModel), "albert": (AlbertConfig, AlbertModel)}


def tiny_config(family: str) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "embedding_size": 16, "max_position_embeddings": 128, "initializer_range": 0.2}
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    still |= {"classifier_dropout_prob": 0.0} if family == "albert" else {}
    return FAMILIES[family][0](vocab_size=len(wordpiece()), **sizes, **still)


def write_encoder(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    FAMILIES[family][1](tiny_config(family)).save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    return folder


def model_of(family: str, seed: int = 0) -> JointSpans:
    """Random, with weights large enough for each input to matter."""
    torch.manual_seed(seed)
    model = HEADS[family]._from_config(tiny_config(family), attn_implementation=NAME).eval()
    assert isinstance(model, JointSpans)
    for name in head_parameters(model):
        torch.nn.init.normal_(model.get_parameter(name), std=0.4)
    return model


def stock_of(model: JointSpans) -> Any:
    """The same with the attention of transformers."""
    stock = type(model)(type(model.config)(**model.config.to_dict())).eval()
    stock.load_state_dict(model.state_dict())
    return stock


def examples_of(folder: Path, family: str, training: bool = True, n_best: int = 20, **more: Any) -> QuestionExamples:
    split = squad(folder, questions(20, unanswerable=True), spans={"unanswerable": True}).split("train")
    section = SpansSection(head=family, n_best=n_best, stride=9, unanswerable=True, **more)  # pyright: ignore
    return QuestionExamples(split, wordpiece(), section, max_length=40, seed=0, training=training)


def windows_of(batch: PackedBatch) -> list[dict[str, Tensor]]:
    """The windows of a batch as inputs of a stock model, one at a time."""
    cuts = [slice(int(a), int(b)) for a, b in zip(batch.input.offsets[:-1], batch.input.offsets[1:], strict=True)]
    given = {"input_ids": batch.input.ids, "token_type_ids": batch.input.token_type_ids}
    return [{name: each[None, cut] for name, each in given.items()} for cut in cuts]


def padded(windows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    longest = max(each["input_ids"].shape[1] for each in windows)

    def pad(each: Tensor) -> Tensor:
        return F.pad(each, (0, longest - each.shape[1]))

    inputs = {name: torch.cat([pad(each[name]) for each in windows]) for name in windows[0]}
    return inputs | {"attention_mask": torch.cat([pad(torch.ones_like(each["input_ids"])) for each in windows])}


def released(model: JointSpans, hidden: Tensor, types: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (s,) of a window's first token, and of its last given ``start``; the logit of no answer."""
    family, w = model.config.model_type, dict(model.named_parameters())
    mask = types.float()
    if family == "albert":
        mask[-1] = 0
    mask[0] = 1

    def masked(logits: Tensor) -> Tensor:
        return logits + 1000 * (mask - 1) if family == "electra" else logits * mask - 1e30 * (1 - mask)

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    starts = F.log_softmax(masked(dense(hidden, "start")[:, 0]), -1)
    chosen = hidden[start].expand_as(hidden)
    summary = (starts.exp()[:, None] * hidden).sum(0)
    if family == "electra":
        inner = F.gelu(dense(torch.cat([chosen, hidden], -1), "end_hidden"))
        null = dense(F.gelu(dense(torch.cat([hidden[0], summary]), "null_hidden")), "null")
    else:
        inner = torch.tanh(dense(torch.cat([hidden, chosen], -1), "end_hidden"))
        inner = (inner - inner.mean(-1, keepdim=True)) / (inner.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()
        inner = inner * w["end_layer_norm.weight"] + w["end_layer_norm.bias"]
        null = dense(torch.tanh(dense(torch.cat([summary, hidden[0]]), "null_hidden")), "null")
    return starts, F.log_softmax(masked(dense(inner, "end")[:, 0]), -1), null[0]


@pytest.mark.parametrize("family", HEADS)
def test_the_loss_is_that_of_the_released_code(tmp_path: Path, family: str) -> None:
    model, examples = model_of(family), examples_of(tmp_path, family)
    stock, batch = stock_of(model), examples.collate(examples.examples(0, 0)[::5][:12])
    objective = JointObjective(model).train()
    terms = objective(batch)
    loss = share_of_loss(terms, batch.counts)
    assert 0 < batch.targets["unanswerable"].sum() < 12
    spans, without, total = 0.0, 0.0, 0.0
    for window, inputs in enumerate(windows_of(batch)):
        first, last = batch.targets["spans"][window].tolist()
        hidden = stock.base_model(**inputs)[0][0]
        starts, ends, null = released(stock, hidden, inputs["token_type_ids"][0], first)
        unanswerable = batch.targets["unanswerable"][window].float()
        span = -(starts[first] + ends[last]) / 2
        told = F.binary_cross_entropy_with_logits(null, unanswerable)
        spans, without, total = spans + span.item(), without + told.item(), total + (span + 0.5 * told) / 12
    assert terms["cross_entropy"].total.item() == pytest.approx(spans, rel=1e-5)
    assert terms["answerability"].total.item() == pytest.approx(without, rel=1e-5)
    loss.backward()
    assert isinstance(total, Tensor)
    total.backward()
    there = dict(stock.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = there[name].grad
        assert (parameter.grad is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", HEADS)
def test_who_has_no_answer(tmp_path: Path, family: str) -> None:
    """ELECTRA is taught of questions, ALBERT of windows: one without the answer that is in another has none."""
    examples = examples_of(tmp_path, family)
    rows = examples.examples(0, 0)
    batch, spans = examples.collate(rows), examples.spans
    assert spans is not None
    of_window = spans[:, 0] == 0
    question = np.cumsum(examples.starts == 0) - 1
    of_question = np.array([not questions_[0]["answers"] for questions_ in asked()])[question]
    assert (of_question != of_window).any()
    wanted = of_question if family == "electra" else of_window
    np.testing.assert_array_equal(batch.targets["unanswerable"].numpy(), wanted)


def asked() -> list[Any]:
    return [each["qas"] for each in questions(20, unanswerable=True)["data"][0]["paragraphs"]]


@pytest.mark.parametrize("family", HEADS)
def test_a_stock_batch_and_a_packed_one_say_the_same(tmp_path: Path, family: str) -> None:
    model, examples = model_of(family), examples_of(tmp_path, family)
    batch = examples.collate(examples.examples(0, 0)[:7])
    windows = windows_of(batch)
    with torch.no_grad():
        scores = JointObjective(model).eval().logits(batch)
        out = stock_of(model)(**padded(windows))
    beam = scores.beam
    assert beam is not None
    torch.testing.assert_close(out.null_logits, scores.null, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.start_top_log_probs, beam.start_log_probs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.end_top_log_probs, beam.end_log_probs, rtol=1e-4, atol=1e-4)
    assert out.end_top_index.shape == (7, *[HEADS[family].usual_beam] * 2)
    for window, inputs in enumerate(windows):
        length = inputs["input_ids"].shape[1]
        starts = out.start_logits[window]
        assert (starts[length:] == -torch.inf).all()
        assert starts.argmax() == beam.starts[window, 0]
        assert out.end_logits[window].argmax() == beam.ends[window, 0, 0]
        hidden = stock_of(model).base_model(**inputs)[0][0]
        there, ends, null = released(model, hidden, inputs["token_type_ids"][0], int(starts.argmax()))
        known = starts[:length] > -torch.inf
        torch.testing.assert_close(starts[:length][known], there[known], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.end_logits[window, :length][known], ends[known], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.null_logits[window], null, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", HEADS)
def test_the_last_token_depends_on_the_first(tmp_path: Path, family: str) -> None:
    model, examples = stock_of(model_of(family)), examples_of(tmp_path, family)
    inputs = padded(windows_of(examples.collate(examples.examples(0, 0)[:1])))
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        ends = [model(**inputs, start_positions=torch.tensor([i])).end_logits[0] for i in (0, length // 2)]
    known = ends[0] > -torch.inf
    assert (ends[0][known] - ends[1][known]).abs().max() > 0.01


@pytest.mark.parametrize("family", HEADS)
def test_a_beam_as_wide_as_the_window_finds_the_best_of_all_spans(tmp_path: Path, family: str) -> None:
    """And a narrow one nothing better."""
    model, examples = model_of(family), examples_of(tmp_path, family)
    batch = examples.collate(examples.examples(0, 0)[:8])
    found: dict[int, list[Any]] = {}
    for width in (3, 40):
        model.config.beam_size = width
        with torch.no_grad():
            rows = flattened(JointObjective(model).eval().logits(batch)).numpy()
        assert rows.shape == (8, 1 + 2 * width + 2 * width**2)
        found[width] = []
        for window, row in enumerate(rows):
            first, size = int(examples.first[window]), int(examples.sequences.sizes[1, window])
            allowed = np.arange(size) % 5 > 0
            found[width].append(best_of_beam(row, first, allowed, answer_length=4)[1])
    for window, inputs in enumerate(windows_of(batch)):
        first, size = int(examples.first[window]), int(examples.sequences.sizes[1, window])
        best = (-np.inf, 0, 0)
        with torch.no_grad():
            hidden = stock_of(model).base_model(**inputs)[0][0]
            for a in range(size):
                starts, ends, _ = released(model, hidden, inputs["token_type_ids"][0], first + a)
                for b in range(a, min(size, a + 4)):
                    if a % 5:
                        best = max(best, (float(starts[first + a] + ends[first + b]), a, b))
        wide, narrow = found[40][window], found[3][window]
        if wide is None:
            assert best[0] == -np.inf
            continue
        assert (wide.first, wide.last) == best[1:]
        assert wide[0] == pytest.approx(best[0], abs=1e-4)
        assert narrow is None or narrow[0] <= wide[0] + 1e-5


@pytest.mark.parametrize("family", HEADS)
def test_micro_batches_change_nothing(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of terms, and predictions in the order of the questions."""
    model, training = model_of(family), examples_of(tmp_path, family)
    rows, objective = training.examples(0, 0)[:10], JointObjective(model).eval()
    with torch.no_grad():
        whole, *parts = (objective(training.collate(rows[cut])) for cut in (slice(None), slice(3), slice(3, None)))
    for name, term in whole.items():
        assert term.total.item() == pytest.approx(sum(part[name].total.item() for part in parts), rel=1e-4, abs=1e-4)
    examples = examples_of(tmp_path, family, training=False, n_best=4)
    model.config.beam_size = 4
    rows = examples.examples(0, 0)[[3, 1, 5, 0, 2]]
    alone: Any = SimpleNamespace(
        num_processes=1, process_index=0, device=torch.device("cpu"), autocast=nullcontext,
        unwrap_model=lambda each: each, reduce=lambda tensor, how: tensor,
    )  # fmt: skip
    monkeypatch.setattr(evaluate, "gather_object", lambda parts: parts)
    values = [evaluate.predict(alone, objective, examples, rows, micro_batch_tokens=n) for n in (60, 8192)]
    assert len(values[0][0]) == examples.num_outputs(rows["index"]).sum() == examples.per_example[rows["index"]].sum()
    np.testing.assert_allclose(values[0][0][:, 0], values[1][0][:, 0], atol=1e-4)
    assert values[0][1] == pytest.approx(values[1][1], rel=1e-4)


def test_predictions_put_windows_together(tmp_path: Path) -> None:
    """The answer is the most probable span of all windows, the score of none the lowest of all windows' alone."""
    examples = examples_of(tmp_path, "albert", training=False, n_best=2)
    example = int(examples.per_example.argmax())
    windows = examples.members(np.array([example]))
    assert len(windows) > 2
    rows = np.zeros((len(windows), 1 + 2 + 2 + 4 + 4), np.float32)
    for i, window in enumerate(windows):
        first, size = int(examples.first[window]), int(examples.sequences.sizes[1, window])
        middle = first + size // 2
        rows[i] = [3.0 - i, middle, 0, -1.0, -np.inf, middle + 1, middle, 0, 0, -2.0 - (i != 1), -4, -9, -9]
    found = examples.predict(example, rows)
    middle = int(examples.starts[windows[1]] + examples.sequences.sizes[1, windows[1]] // 2)
    assert found.null == 3.0 - (len(windows) - 1)
    context = examples.context[example]
    assert (found.text, found.start) == examples.contexts.text(context, middle, middle + 1)
    scores = rows[:, 3:4] + rows[:, 9:11]  # of the two spans of each window
    spans = np.exp(scores[1, 0]) / np.exp(scores).sum()
    none = 1 / (1 + np.exp(-found.null))
    assert found.null_probability == pytest.approx(none)
    assert found.probability == pytest.approx((1 - none) * spans)
    rows[:, 3] = -np.inf
    assert examples.predict(example, rows) == ("", found.null, 0, 1.0, 1.0)


def test_heads_are_drawn_as_in_the_released_code() -> None:
    """ELECTRA's from Glorot's uniform distribution, ALBERT's from the truncated normal one, biases 0."""
    for family in HEADS:
        model = HEADS[family](tiny_config(family))
        draw_head(model, head_parameters(model))
        for name in head_parameters(model):
            weight = model.get_parameter(name)
            if name.endswith("bias"):
                assert not weight.any()
            elif "layer_norm" in name:
                assert (weight == 1).all()
            elif family == "albert":
                assert weight.abs().max() <= 2 * 0.2
            else:
                bound = (6 / sum(weight.shape)) ** 0.5
                assert 0.8 * bound < weight.abs().max() <= bound
    kept, width = model_of("albert"), model_of("electra").get_parameter("end_hidden.weight").shape
    assert not hasattr(kept.get_submodule("null"), "bias") or kept.get_submodule("null").bias is None
    assert width == (512, 64)


def toy(folder: Path, encoder: Path, *more: str) -> list[str]:
    """Arguments of the command: train and validation are the same few questions."""
    (folder / "all.json").write_text(json.dumps(questions(6, seed=4, unanswerable=True)))
    task = {"name": "toy", "type": "spans", "root": str(folder), "text": ["question", "context"], "label": "answers"}
    task |= {"index": "id", "metrics": ["best_f1", "exact_match", "f1"], "spans": {"unanswerable": True, "stride": 16}}
    task |= {"files": {"train": "all.json", "validation": "all.json"}, "test": []}
    (folder / "task.yaml").write_text(json.dumps({"task": task}))
    return [
        str(folder / "task.yaml"), f"model.from={encoder}", f"run.dir={folder}/runs", "run.name=all",
        "run.device=cpu", "run.precision=fp32", 'tracking.wandb="off"', "model.hidden_dropout=0",
        "model.attention_dropout=0", "model.classifier_dropout=0", "optim.algorithm=adamw", "optim.schedule=linear",
        "optim.learning_rate=5.0e-3", "train.steps=60", "train.phases=[{batch_size: 6, sequence_length: 128}]",
        "train.log_every=20 steps", "train.evaluate_every=60 steps", "train.save_every=60 steps", *more,
    ]  # fmt: skip


ANEW = """
import json, logging, sys
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
import bertillery.models.joint_spans
model, info = AutoModelForQuestionAnswering.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = {}
for question, context, key in json.loads(sys.argv[2]):
    encoded = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        out = model(**encoded)
    a, b = int(out.start_logits.argmax()), int(out.end_logits.argmax())
    found[key] = [float(out.null_logits), context[offsets[a][0] : offsets[b][1]] if a else ""]
print(json.dumps([type(model).__name__, found]))
"""


@pytest.mark.parametrize(("family", "recipe"), [("electra", "electra_small"), ("albert", "albert")])
def test_a_run_by_the_recipe_learns_and_what_it_exports_answers_the_same(
    tmp_path: Path, family: str, recipe: str
) -> None:
    """In another process, by transformers' own way to open it, without a warning."""
    encoder = write_encoder(tmp_path / family, family)
    assert main(toy(tmp_path, encoder, f"recipe={recipe}")) == 0
    run = tmp_path / "runs" / "finetune" / "all"
    name = HEADS[family].__name__
    assert json.loads((run / "export" / "config.json").read_text())["architectures"] == [name]
    assert set(json.loads((run / "finished.json").read_text())["scores"]["validation"].values()) == {1.0}
    assert "import bertillery`" in (run / "export" / "README.md").read_text()
    texts = [
        (each["qas"][0]["question"], each["context"], each["qas"][0]["id"])
        for each in questions(6, seed=4, unanswerable=True)["data"][0]["paragraphs"]
    ]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = [each for each in texts if len(tokenizer(*each[:2])["input_ids"]) <= 128]
    assert len(texts) > 2
    done = subprocess.run(
        [sys.executable, "-c", ANEW, str(run / "export"), json.dumps(texts)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    opened, found = json.loads(done.stdout)
    assert (opened, "warn" in done.stderr.lower()) == (name, False), done.stderr
    written, nulls = (json.loads((run / "predictions" / f"validation{end}.json").read_text()) for end in ("", ".null"))
    for key, (null, text) in found.items():
        assert null == pytest.approx(nulls[key], abs=1e-3)
        if null <= 0:
            assert text == written[key]


@pytest.mark.parametrize("family", HEADS)
def test_what_is_saved_is_a_start_for_its_own_head_and_for_any_other(tmp_path: Path, family: str) -> None:
    model, tokenizer = stock_of(model_of(family)), wordpiece()
    folder = export_model(model, tokenizer, tmp_path / "export", card="# A head")
    section = {"name": "own", "type": "spans", "text": ["q", "c"], "label": "a", "metrics": "f1"}
    section |= {"files": {"train": "a.json", "validation": "b.json"}}
    for head in (family, "independent"):
        spans = {"head": head, "unanswerable": True, "n_best": 7}
        kind = task_type_of(validate(TaskSection, {**section, "spans": spans}))
        opened, report = load(kind.model_class, folder, **kind.settings())
        assert isinstance(opened, JointSpans) == (head == family)
        assert bool(report.fresh) == (head != family) != kind.head_fits(read_config(folder))
        kind.objective(opened)
        assert (getattr(opened.config, "beam_size", None) == 7) == (head == family)
        anew, _ = load(kind.model_class, folder, random=True, **kind.settings())
        assert type(anew) is type(opened)
    assert joint_head(read_config(folder)) == family
    with pytest.raises(InputError, match=r"joint head for answers .* task\.spans\.head=independent"):
        open_stock(folder)


def test_stock_models_are_opened_as_before() -> None:
    """Also one whose configuration names no class."""
    assert type(AutoModelForQuestionAnswering.from_config(tiny_config("electra"))) is ElectraForQuestionAnswering


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["task.spans.head=albert"], r"task\.spans\.head: given 'albert'.* of type electra; give independent"),
        (["task.spans={unanswerable: false, head: albert}", "task.metrics=f1"], "albert tells unanswerable questions"),
        (["task.spans.head=other"], "independent"),
    ],
)
def test_heads_that_do_not_fit(tmp_path: Path, changes: list[str], message: str) -> None:
    encoder = write_encoder(tmp_path / "electra", "electra")
    with pytest.raises(ConfigError, match=message):
        load_config(toy(tmp_path, encoder, "recipe=electra_small", *changes))


def test_students_and_teachers_have_independent_heads(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "electra", "electra")
    given = [each for each in toy(tmp_path, encoder) if not each.startswith("run.name")]
    given += ["objective.type=distilbert", "teacher.from=" + str(tmp_path / "export")]
    with pytest.raises(ConfigError, match=r"task\.spans\.head: given 'electra'; students and teachers"):
        distillation([*given, "task.spans.head=electra"])
    export_model(stock_of(model_of("electra")), wordpiece(), tmp_path / "export", card="# A head")
    config: Any = distillation(given)
    with pytest.raises(ConfigError, match=r"teacher\.from: .* has a joint head .* ARGS=.task\.spans\.head=independent"):
        open_task_teacher(config, str(encoder))

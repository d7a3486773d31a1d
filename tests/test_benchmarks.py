"""What is compared: that both sides do the same work, that the check of their losses can fail, what can be asked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from benchmarks import __main__ as command
from benchmarks import contests, ours, scoring, translation
from benchmarks.__main__ import NAMES, BenchSection
from benchmarks.contest import Contest, Ratio, measure
from benchmarks.conventional import baseline_of
from benchmarks.material import Material, random_material
from benchmarks.profile import OTHER, kind_of
from benchmarks.same import CHECKS, check, train_both
from benchmarks.workload import WORKLOADS, Workload, rows
from bertillery.config.layers import read_values
from bertillery.config.section import validate
from translation.search import DecodeSection


@pytest.fixture(scope="module")
def material() -> Material:
    return random_material(256, num_documents=60)


def small(name: str, **settings: Any) -> Workload:
    found = {"layers": 2, "width": 64, "sequence_length": 32, "batch_size": 4, **settings}
    return replace(WORKLOADS[name], **found)


def worked(contest: Contest, items: list[Any] | None = None) -> dict[str, int]:
    """What each side says it worked on, in this process."""
    items = items or [next(contest.items)]
    found = {}
    for whose, sides in (("ours", contest.ours), ("theirs", contest.theirs)):
        for label, build in sides.items():
            AcceleratorState._reset_state(True)  # the sides are of several precisions
            prepare = build()
            found[f"{whose} {label}"] = sum(prepare(item)() for item in items)
    return found


@pytest.mark.parametrize("name", WORKLOADS)
def test_all_sides_of_a_step_train_on_the_same_real_tokens(name: str, material: Material) -> None:
    contest = contests.training(name, small(name), material)
    full = WORKLOADS[name].learns in ("mlm", "causal_lm")
    chosen = next(each for each in contest.items if full or np.ptp(each["length"]))  # of unequal lengths: with padding
    found = worked(contest, [chosen])
    # Where the machine does not multiply bfloat16, two variants may be one.
    baselines = 4 if name.startswith("gpt") else 2  # nanoGPT's, too
    assert len(found) == len({variant.label for variant in WORKLOADS[name].variants}) + baselines
    assert {*found.values()} == {int(chosen["length"].sum())}


def test_a_side_that_is_given_less_is_noticed(material: Material) -> None:
    contest = contests.training("mlm_4x256_s128", small("mlm_4x256_s128"), material)
    (label, honest), *_ = contest.theirs.items()

    def cuts() -> Any:
        prepare = honest()
        return lambda rows: prepare(rows[1:])

    with pytest.raises(AssertionError, match="different amounts"):
        measure(replace(contest, ours={"ours": honest}, theirs={label: cuts}, part=lambda rows: rows), rounds=1)


def test_baselines_train_everything_but_a_teacher(material: Material) -> None:
    """Every tensor that takes part gets a gradient, so that no baseline is spared a backward pass."""
    unused = {"tinybert": "pooler"}
    for name, workload in WORKLOADS.items():
        source = ours.source(small(name), material)
        baseline = baseline_of(workload)(small(name), material, source)
        baseline.loss(baseline.collate(baseline.examples(next(rows(small(name), source))))).backward()
        still = [key for key, parameter in baseline.trained.named_parameters() if parameter.grad is None]
        assert all(unused.get(workload.learns, "nothing") in key for key in still), (name, still)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> translation.Pairs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "DATA", tmp_path_factory.mktemp("nothing"))
        return translation.Pairs(pieces=400).first(64)


def test_sides_of_a_translation_step_train_on_the_same_target_tokens(made_up: translation.Pairs) -> None:
    contest = translation.training("translation_tiny", made_up)
    assert contest.name == "translation_tiny_made_up"
    rows = made_up.examples().examples(0, 0)[:8]
    assert np.ptp(rows["length"])  # with padding
    assert {*worked(contest, [rows]).values()} == {int(made_up.examples().target.lengths[rows["index"]].sum())}
    baseline = translation._padded(made_up)
    baseline.loss(baseline.collate(baseline.examples(rows))).backward()
    still = [name for name, each in baseline.trained.named_parameters() if each.requires_grad and each.grad is None]
    assert still == []


def test_sides_of_beam_search_write_the_same(
    made_up: translation.Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "LESSONS", 2)
    monkeypatch.setattr(translation, "SENTENCES", 4)
    monkeypatch.setattr(translation, "apart", lambda function: function())
    monkeypatch.setattr(translation, "DECODING", DecodeSection(beam=5, stop="heuristic", max_length=6))
    contest = translation.beam_search("translation_beam5", made_up, tmp_path)
    assert {*worked(contest).values()} == {4}
    texts, written = next(contest.items), []
    decode = made_up.tokenizer.__class__.batch_decode
    monkeypatch.setattr(
        made_up.tokenizer.__class__,
        "batch_decode",
        lambda *given, **how: written.extend(decode(*given, **how)) or written,
    )
    translation._generate(tmp_path / "translator", bf16=False)(texts)()
    model = translation.TranslationModel.open(str(tmp_path / "translator"))
    assert [best[0][0] for best in model.translate(texts, translation.DECODING)] == written


def test_sides_score_the_same_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring, "DATA", tmp_path)
    monkeypatch.setattr(scoring, "QUESTIONS", 2)
    contest = scoring.scoring(tmp_path)
    assert contest.name == "scoring_made_up"
    assert {*worked(contest).values()} == {2}
    first, second = next(contest.items), next(contest.items)
    assert first != second
    assert {len(question) for question in first} == {scoring.ANSWERS}
    assert {context for context, _ in first[0]} == {first[0][0][0]}, "the answers to a question share its context"
    monkeypatch.setattr(scoring, "INSTALLED", False)
    assert scoring.scoring(tmp_path / "again").theirs == {}
    assert "installs lm-eval" in capsys.readouterr().out


def test_examples_predictions_and_checkpoints_are_alike(material: Material, tmp_path: Path) -> None:
    assert len({*worked(contests.examples(material, small("nsp_4x256_s128"))).values()}) == 1
    assert len({*worked(contests.text_to_ids(material)).values()}) == 1
    predictions = contests.evaluation("evaluation_qqp", small("glue_qqp"), material)
    assert len({*worked(predictions).values()}) == 1
    assert predictions.name == "evaluation_qqp_made_up"
    for name in ("checkpoint_save", "checkpoint_load"):
        contest = contests.checkpoint(name, small("mlm_12x768_s128"), material, tmp_path)
        assert {*worked(contest, [0, 1]).values()} == {2}


@pytest.mark.parametrize(("name", "bf16", "tolerance"), CHECKS.values(), ids=CHECKS)
def test_same_losses(name: str, bf16: bool, tolerance: float, material: Material) -> None:
    losses = train_both(small(name), material, bf16=bf16, steps=2)
    check(name, losses, tolerance)
    assert losses[0][1] != losses[1][1], "nothing was trained"
    mine, theirs = losses[-1]
    with pytest.raises(AssertionError, match="differ by"):
        check(name, [*losses[:-1], (mine, theirs * (1 + 2 * tolerance))], tolerance)


def test_the_check_fails_for_a_step_that_learns_otherwise(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding that attends: what a packed batch is compared with must not be deaf to it."""
    from benchmarks import same

    padded = same._padded
    monkeypatch.setattr(same, "_padded", lambda *given: {**padded(*given), "attention_mask": None})
    losses = train_both(small("glue_qqp"), material, bf16=False, steps=2)
    with pytest.raises(AssertionError, match="differ by"):
        check("glue", losses, 1e-5)


def test_ratios_are_of_the_seconds_of_one_round() -> None:
    """The baseline does three times the work in every round, whatever the work of the round."""

    def side(times: int) -> Callable[[], Any]:
        def spin(size: int) -> int:
            value = np.float64(1)
            for _ in range(times * size):
                value = value * 1.0
            return size

        return lambda: lambda size: lambda: spin(size)

    items: Iterator[int] = itertools.cycle([50_000, 150_000])
    contest = Contest("spinning", ours={"once": side(1)}, theirs={"thrice": side(3)}, items=items)
    (ratio,) = measure(contest, rounds=5)
    assert 2 < ratio.median < 4.5
    assert ratio.rates[0] > ratio.rates[1]
    assert ratio.name == "spinning/once/thrice"
    assert (ratio.clock, len(ratio.per_round)) == ("CPU", 5)


def test_what_a_side_raises_ends_the_measurement(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> Any:
        raise ValueError("no such thing")

    with pytest.raises(RuntimeError, match="error above"):
        measure(Contest("broken", ours={"a": broken}, theirs={}, items=itertools.count()), rounds=1)
    assert "no such thing" in capfd.readouterr().err


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    default = BenchSection()
    assert (default.rounds, default.threads) == (5, [1, 2])
    assert default.names == [*NAMES]
    chosen = validate(BenchSection, *read_values(["workloads=[nsp,glue_qqp]", "rounds=2", "threads=[1,2]"]))
    assert chosen.names == ["nsp_4x256_s128", "nsp_4x256_s512", "glue_qqp"]
    assert (chosen.rounds, chosen.threads) == (2, [1, 2])
    for wrong in ("workloads=[bert]", "rounds=0", "threads=[x]", "threads=[]", "speed=9"):
        assert command.main([wrong]) == 2
        assert wrong.split("=")[0] in capsys.readouterr().err


def test_the_command_prints_every_ratio_and_keeps_a_table(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "read_material", lambda _: material)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "matmul_rate", lambda _: 1e11)
    monkeypatch.setattr(command, "same_losses", lambda _: {"made up": [(1.0, 1.0)]})
    monkeypatch.setitem(WORKLOADS, "tinybert_4x256_s128", small("tinybert_4x256_s128"))
    command.main(["rounds=1", "threads=[1]", "workloads=[tinybert]"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(summary) == 2 * 2
    assert all(ratio > 0 for ratio in summary.values())
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".md"}
    kept = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert len(kept["ratios"]) == len(summary)


def test_the_table_of_a_document() -> None:
    saving = Ratio("checkpoint_save", 1, "wall", "times", "ours", "torch.save", [0.5], (0.5, 1.0))
    about = {"cpu": "a CPU", "cores": 2, "torch": "2", "transformers": "5", "commit": "abc", "changed": True}
    text = command.document(about, ["a fact"], [saving])
    assert "commit abc with changes" in text
    row = next(line for line in text.splitlines() if "checkpoint_save" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][4:] == ["0.50", "0.50", "0.50", "2.00 s", "1.00 s"]
    row = command.cells(replace(saving, unit="sentences"))
    assert row[-2:] == ["0.5/s", "1.0/s"]
    assert Ratio("a", 1, "CPU", "tokens", "ours", "b", [2.0, 4.0, 3.0], (1.0, 1.0)).median == 3.0


def test_operations_of_a_function_of_ours_are_of_its_kind() -> None:
    """Whichever it is, forward and backward; others go by their own names."""
    assert kind_of("aten::exp_", ["_CrossEntropiesBackward", "all"]) == "MLM loss"
    assert kind_of("aten::copy_", ["aten::to", "_TanhGelu"]) == "activations"
    assert kind_of("aten::copy_", ["_Linear"]) == "copies, casts"
    assert kind_of("aten::exp_") == OTHER

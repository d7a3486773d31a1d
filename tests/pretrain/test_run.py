"""Whole runs of the command, in processes of their own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, pipeline

from bertillery.engine.objective import Shown
from pretrain import prepare
from pretrain.__main__ import main
from pretrain.config import load_config
from pretrain.stage import Pretraining
from tests.corpora import write_text
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
model: {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 2, max_position_embeddings: 64}
tokenizer: {vocab_size: 200}
data: {holdout: 0.2}
objective: {type: bert}
optim: {learning_rate: 3.0e-3, warmup: 2 steps}
train:
  steps: 12
  phases: [{batch_size: 8, sequence_length: 32}]
  log_every: 1
  save_every: 4
  evaluate_every: 6
tracking: {wandb: "off"}
"""
STILL = ["model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0", "run.precision=fp32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a configuration and, after the first run, the prepared corpus."""
    path = tmp_path_factory.mktemp("pretrain")
    write_text(path / "text.txt")
    (path / "tiny.yaml").write_text(CONFIG)
    return path


def command(folder: Path, name: str, *arguments: str, processes: int = 1) -> list[str]:
    launch = ["-m"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    places = [
        f"run.name={name}",
        f"run.dir={folder}/runs",
        f"run.data_dir={folder}/data",
        f"data.path={folder}/text.txt",
    ]
    return [sys.executable, *launch, "pretrain", str(folder / "tiny.yaml"), *places, *arguments]


def run(folder: Path, name: str, *arguments: str, processes: int = 1, status: int = 0) -> str:
    done = run_program("pretrain", *command(folder, name, *arguments)[3:], processes=processes)
    assert done.status == status, done.output
    return done.output


def rows(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    result: dict[int, dict[str, Any]] = {}
    for line in (folder / "runs/pretrain" / name / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        result.setdefault(row["step"], {}).update(row)
    return result


def exported(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs/pretrain" / name / "export" / "model.safetensors")


def tokens(folder: Path, name: str) -> tuple[int, int]:
    """Tokens that a run trained on, and those that its export records."""
    path = folder / "runs/pretrain" / name
    recorded = json.loads((path / "export/config.json").read_text())["pretraining_tokens"]
    return json.loads((path / "finished.json").read_text())["tokens"], recorded


def losses(folder: Path, name: str, terms: tuple[str, ...] = ("mlm", "nsp")) -> list[float]:
    return [row[f"train/{term}"] for _, row in sorted(rows(folder, name).items()) for term in terms]


def after_step_8(folder: Path, name: str) -> str:
    """Name of a copy of a finished run, as the run was after the second of its three checkpoints."""
    killed = folder / "runs/pretrain" / f"{name}-killed"
    shutil.copytree(folder / "runs/pretrain" / name, killed)
    (killed / "finished.json").unlink()
    shutil.rmtree(killed / "export")
    shutil.rmtree(killed / "checkpoints/step-0000000012")
    return killed.name


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """One uninterrupted run, with dropout; its output."""
    return run(folder, "whole")


def test_a_run_shows_what_it_does(folder: Path, whole: str) -> None:
    for part in (
        "read ", "dropped", "train ", "held out", "parameters", "predicted ", "first example", "[CLS]", "label: ",
        "step 12/12", "tokens/s", "min left", "unigrams, and copying", "majority class", "fill-mask",
        "export", "curves.png", "next ",
    ):  # fmt: skip
        assert part in whole, part
    path = folder / "runs/pretrain/whole"
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((path / "finished.json").read_text())
    assert results["steps"] == 12
    assert set(results["held_out"]) == {"loss", "mlm", "mlm_accuracy", "nsp", "nsp_accuracy"}
    expected = {"train/mlm", "train/nsp", "learning_rate", "gradient_norm", "tokens_per_second", "examples_per_second"}
    assert expected <= set(rows(folder, "whole")[3])
    assert {"held_out/mlm", "held_out/nsp_accuracy"} <= set(rows(folder, "whole")[6])


def test_words_are_hidden_in_sentences_of_the_held_out_text(folder: Path, whole: str) -> None:
    """With their solution, and three guesses each."""
    shown = re.findall(r"^  (.*\[MASK\].*)\n    (.*); it is: (\w+)$", whole, flags=re.MULTILINE)
    assert 1 <= len(shown) <= 4
    text = "".join((folder / "text.txt").read_text().lower().split())
    for sentence, guesses, hidden in shown:
        assert "".join(sentence.replace("[MASK]", hidden).split()) in text
        assert len(re.findall(r"\S+ \(\d+%\)", guesses)) == 3


def test_the_export_is_a_stock_directory(folder: Path, whole: str) -> None:
    path = folder / "runs/pretrain/whole/export"
    for kind in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining):
        _, report = kind.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer("The old river opens.")["input_ids"][0] == tokenizer.cls_token_id
    assert len(pipeline("fill-mask", model=str(path))("The old [MASK] opens.")) == 5
    assert "| MLM accuracy" in (path / "README.md").read_text()
    trained, recorded = tokens(folder, "whole")
    per_second = [(row["tokens_per_second"], row["seconds_per_step"]) for row in rows(folder, "whole").values()]
    steps = 12 / len(per_second)
    assert trained == recorded == round(sum(speed * seconds * steps for speed, seconds in per_second))


def test_a_finished_run_is_left_alone(folder: Path, whole: str) -> None:
    path = folder / "runs/pretrain/whole"
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    assert "is finished; for another run" in run(folder, "whole")
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("loss", "accuracy", "following"),
    [(6.5, 0.2, "rates"), (7.0, 0.1, "rates"), (6.4, 0.1, "finetune"), (7.0, 0.3, "finetune")],
)
def test_what_to_type_next(folder: Path, loss: float, accuracy: float, following: str) -> None:
    """Rates are tried where every term is as good without context."""
    stage = Pretraining(load_config(command(folder, "next")[3:]))
    stage.baselines = {"mlm": 6.5, "mlm_accuracy": 0.2}
    shown = {"mlm": Shown("loss", "lower", "unigrams"), "mlm_accuracy": Shown("accuracy", "higher", "unigrams")}
    learned = stage.learned({"mlm": loss, "mlm_accuracy": accuracy}, shown)
    assert f"\nnext        make {following} " in stage.ending({"learned": learned})


def test_another_configuration_is_refused(folder: Path, whole: str) -> None:
    said = run(folder, "whole", "optim.learning_rate=1e-3", status=2)
    assert "optim.learning_rate: the saved run has 0.003, this command has 0.001" in said


def test_the_resolved_configuration_reruns_the_run(folder: Path, whole: str) -> None:
    config = folder / "runs/pretrain/whole/config.yaml"
    assert run_program("pretrain", str(config), "run.name=again").status == 0
    assert losses(folder, "again") == losses(folder, "whole")


def test_sigterm_saves_and_the_resumed_run_is_bit_exact(folder: Path, whole: str) -> None:
    """Stopped by a signal in the middle of an epoch, resumed with data workers: weights and metrics are the same."""
    process = subprocess.Popen(
        command(folder, "stopped"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step 3/12"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, said
    assert any("SIGTERM: saved step" in line for line in said)
    assert not (folder / "runs/pretrain/stopped/export").exists()
    assert "resuming at step" in run(folder, "stopped", "train.workers=2")
    assert losses(folder, "stopped") == losses(folder, "whole")
    assert tokens(folder, "stopped") == tokens(folder, "whole")
    expected = exported(folder, "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported(folder, "stopped").items())


def test_a_killed_run_resumes_from_the_newest_whole_checkpoint(folder: Path, whole: str) -> None:
    process = subprocess.Popen(
        command(folder, "killed"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 9/12"):
            process.kill()
    process.wait()
    checkpoints = folder / "runs/pretrain/killed/checkpoints"
    newest = max(path for path in checkpoints.iterdir() if path.is_dir())
    with (newest / "model.safetensors").open("r+b") as file:  # as if the disk had torn it
        file.truncate(100)
    said = run(folder, "killed")
    assert "is damaged" in said
    assert "resuming at step" in said
    assert losses(folder, "killed") == losses(folder, "whole")
    assert tokens(folder, "killed") == tokens(folder, "whole")
    expected = exported(folder, "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported(folder, "killed").items())


def test_two_processes_equal_one(folder: Path, whole: str) -> None:
    """20 steps in float32 without dropout: losses to 1e-5, whatever processes and micro-batches, split or not."""
    settings = [*STILL, "train.steps=20"]
    run(folder, "one", *settings)
    for name, more in (("two", []), ("split", ["run.sharding=full"])):
        run(folder, name, *settings, "train.micro_batch_tokens=64", *more, processes=2)
        assert losses(folder, name) == pytest.approx(losses(folder, "one"), abs=1e-5)
        rate = [row["learning_rate"] for row in rows(folder, name).values()]
        assert rate == [row["learning_rate"] for row in rows(folder, "one").values()]
        one, two = exported(folder, "one"), exported(folder, name)
        difference = torch.cat([(one[key] - two[key]).flatten() for key in one])
        assert difference.norm() / torch.cat([tensor.flatten() for tensor in one.values()]).norm() < 1e-5
        held_out = [
            json.loads((folder / f"runs/pretrain/{n}/finished.json").read_text())["held_out"] for n in ("one", name)
        ]
        assert held_out[0] == pytest.approx(held_out[1], abs=1e-5)


ALBERT = ["tokenizer.type=unigram", "objective.sharing=attention", "optim.algorithm=lamb"]
ELECTRA = ["objective.embedding_size=16", "model.hidden_act=gelu"]


@pytest.mark.parametrize(
    ("kind", "settings", "terms", "shown"),
    [
        ("albert", ALBERT, ("mlm", "sop"), ["AlbertForPreTraining", "SOP accuracy"]),
        ("electra", ELECTRA, ("generator", "discriminator", "replaced"),
         ["ElectraForPreTraining and ElectraForMaskedLM", "detection AUC"]),
    ],
)  # fmt: skip
def test_others_resume_bit_exactly_and_two_processes_equal_one(
    folder: Path, kind: str, settings: list[str], terms: tuple[str, ...], shown: list[str]
) -> None:
    """Layers shared in part under LAMB; two networks, where neither process nor micro-batch decides the samples."""
    settings = [f"objective.type={kind}", *settings, *STILL]
    said = run(folder, kind, *settings)
    assert all(part in said for part in shown)
    path = folder / "runs/pretrain" / kind
    parts: dict[str, Any] = {".": AutoModelForPreTraining}
    if kind == "electra":
        parts["generator"] = AutoModelForMaskedLM
        assert "in `generator/`: ElectraForMaskedLM" in (path / "export/README.md").read_text()
    for part, auto in parts.items():
        _, report = auto.from_pretrained(path / "export" / part, output_loading_info=True)
        assert not report["missing_keys"]

    killed = after_step_8(folder, kind)
    assert "resuming at step 8" in run(folder, killed, *settings)
    assert losses(folder, killed, terms) == losses(folder, kind, terms)
    expected = exported(folder, kind)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported(folder, killed).items())

    run(folder, f"{kind}-two", *settings, "train.micro_batch_tokens=64", processes=2)
    assert losses(folder, f"{kind}-two", terms) == pytest.approx(losses(folder, kind, terms), abs=1e-5)
    found = exported(folder, f"{kind}-two")
    difference = torch.cat([(found[name] - tensor).flatten() for name, tensor in expected.items()])
    assert difference.norm() / torch.cat([tensor.flatten() for tensor in expected.values()]).norm() < 1e-5


def test_a_signal_stops_all_processes_and_one_goes_on(folder: Path, whole: str) -> None:
    """Two processes stop after the same step; one process resumes them and ends where two would have."""
    settings = [*STILL, "train.steps=20"]
    if not (folder / "runs/pretrain/one/finished.json").exists():
        run(folder, "one", *settings)
    process = subprocess.Popen(
        command(folder, "both", *settings, processes=2),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("step 5/20"):
            process.terminate()
    process.wait()
    assert any("SIGTERM: saved step" in line for line in said), said
    assert "resuming at step" in run(folder, "both", *settings)
    assert losses(folder, "both") == pytest.approx(losses(folder, "one"), abs=1e-5)


def test_it_goes_on_from_an_export_on_another_text(
    folder: Path, whole: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes and tokenizer are the export's, and so is the loss it begins with; resuming needs it where it was."""
    run(folder, "general", "train.steps=200", "train.save_every=200", "train.evaluate_every=200")
    export = folder / "runs/pretrain/general/export"
    write_text(folder / "other.txt", seed=1)
    further = [f"model.from={export}", f"data.path={folder}/other.txt"]
    said = run(folder, "further", *further)
    assert f"weights     {export}: 46 tensors" in said
    assert "new: nothing; dropped: nothing" in said
    assert "LOAD REPORT" not in said
    first, fresh = losses(folder, "further", ("mlm",)), losses(folder, "whole", ("mlm",))
    assert first[0] < fresh[0] - 1
    (trained, recorded), (before, _) = tokens(folder, "further"), tokens(folder, "general")
    assert recorded == before + trained
    path = folder / "runs/pretrain/further"
    card = (path / "export/README.md").read_text()
    assert "weights at the start: general/export: 46 tensors" in card
    assert str(folder) not in card
    resolved = yaml.safe_load((path / "config.yaml").read_text())
    assert (resolved["model"]["from"], resolved["tokenizer"]["path"]) == (str(export), str(export))
    assert (path / "export/tokenizer.json").read_text() == (export / "tokenizer.json").read_text()

    prepare.main(command(folder, "further", *further)[3:])  # as `make data` does
    assert Path(capsys.readouterr().out.splitlines()[0]).name in (path / "export/README.md").read_text()

    killed = after_step_8(folder, "further")
    export.rename(export.with_name("gone"))
    assert main(command(folder, killed, *further)[3:]) == 2
    assert "needs it to be resumed" in capsys.readouterr().err
    export.with_name("gone").rename(export)
    assert "resuming at step 8" in run(folder, killed, *further)
    assert losses(folder, killed) == losses(folder, "further")


def test_length_phases(folder: Path, whole: str) -> None:
    short, long = "batch_size: 8, sequence_length: 16", "batch_size: 4, sequence_length: 64"
    phases = f"train.phases=[{{share: 0.9, {short}}}, {{share: 0.1, {long}}}]"
    run(folder, "phases", phases, "train.steps=10")
    in_order = [row for _, row in sorted(rows(folder, "phases").items())]
    per_step = [round(row["examples_per_second"] * row["seconds_per_step"]) for row in in_order]
    assert per_step == [8] * 9 + [4]


def test_a_growing_batch_and_a_token_budget(folder: Path, whole: str) -> None:
    """Killed within the growth of the second phase, resumed with workers: bit for bit; two processes equal one."""
    growing = "{share: 0.5, batch_size: 12, batch_from: 4, sequence_length: 32}"
    budget = "{share: 0.5, batch_tokens: 320, batch_from: 128, sequence_length: 32}"
    settings = [*STILL, f"train.phases=[{growing}, {budget}]"]
    said = run(folder, "grown", *settings)
    assert "4 to 12 x 32, 128 to 320 tokens x 32" in said
    taken = [row["examples_per_second"] * row["seconds_per_step"] for _, row in sorted(rows(folder, "grown").items())]
    assert [round(number) for number in taken[:6]] == [4, 6, 7, 9, 10, 12]
    tokens = [row["tokens_per_second"] * row["seconds_per_step"] for _, row in sorted(rows(folder, "grown").items())]
    budgets = np.array([128, 166, 205, 243, 282, 320])
    assert ((budgets - 32 < np.round(tokens[6:])) & (np.round(tokens[6:]) <= budgets)).all()

    killed = after_step_8(folder, "grown")
    assert "resuming at step 8" in run(folder, killed, *settings, "train.workers=2")
    assert losses(folder, killed) == losses(folder, "grown")
    expected = exported(folder, "grown")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported(folder, killed).items())

    run(folder, "grown-two", *settings, "train.micro_batch_tokens=64", processes=2)
    assert losses(folder, "grown-two") == pytest.approx(losses(folder, "grown"), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optim.learning_rte=1"], "unknown key (from argument 'optim.learning_rte=1'); did you mean 'learning_rate'"),
        (["train.steps=soon", "model.hiden_size=3"], "2 problems in the configuration"),
        (["train.phases=[{sequence_length: 512}]"], "sequence_length of 512 is above model.max_position_embeddings 64"),
        (["model.num_attention_heads=5"], "hidden_size 32 is not a multiple of num_attention_heads 5"),
        (["objective.type=brt"], "objective.type: given 'brt'; there are: "),
        (["tokenizer.vocab_size=30000"], "the corpus supports"),
        (["data.path=/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
        (["optim.warmup=100"], "optim.warmup: 100 steps are more than the run's 12"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_the_first_step(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(command(folder, "refused", *arguments)[3:])
    assert (status, said in capsys.readouterr().err) == (2, True)
    assert not (folder / "runs/pretrain/refused").exists()


def test_a_full_disk_leaves_the_last_checkpoint_whole(folder: Path, whole: str) -> None:
    """Files above a size cannot be written from the second checkpoint on; with room again the run goes on."""
    program = """
import resource, sys
from bertillery.run import trainer as fit
from pretrain.__main__ import main
save = fit.save_checkpoint
def limited(*arguments, step, **named):
    if step == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    return save(*arguments, step=step, **named)
fit.save_checkpoint = limited
sys.exit(main(sys.argv[1:]))
"""
    arguments = [sys.executable, "-c", program, *command(folder, "full")[3:]]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the newest complete checkpoint is" in done.stderr
    assert "step-0000000006" in done.stderr
    assert "resuming at step 6" in run(folder, "full")
    assert losses(folder, "full") == losses(folder, "whole")

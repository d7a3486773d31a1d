"""Generation: a batch gives what each prompt alone gives, and bad input is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prompting.generate import GenerateSection, generate, left_padded, main, positions
from prompting.model import CausalModel
from tests.finetune.tasks import write_encoder
from tests.prompting.exports import write_causal

PROMPTS = ["the cat", "a", "The dog sat on the mat, and the", ""]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("model"))


def test_a_padded_batch_gives_what_each_prompt_alone_gives(export: Path) -> None:
    causal = CausalModel.open(str(export))
    section = GenerateSection(model=str(export), temperature=0, max_new_tokens=12)
    together = list(generate(causal, PROMPTS, section))
    alone = [found for prompt in PROMPTS for found in generate(causal, [prompt], section)]
    assert together == alone
    assert [prompt for prompt, _ in together] == PROMPTS
    assert any(text for _, (text,) in together)


def test_padding_on_the_left_changes_no_logits_with_positions(export: Path) -> None:
    """Without positions from the mask it does: the plain forward pass counts padding."""
    model = AutoModelForCausalLM.from_pretrained(export).eval()
    causal = CausalModel.open(str(export))
    sequences = [[causal.end, *causal.ids(prompt)] for prompt in PROMPTS]
    ids, mask = left_padded(sequences, causal.end)
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, position_ids=positions(mask)).logits[:, -1]
        counted = model(ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None]).logits[:, -1]
        for row, sequence in enumerate(sequences):
            single = model(torch.tensor([sequence])).logits[0, -1]
            torch.testing.assert_close(padded[row], single, atol=1e-5, rtol=0)
    assert (counted[1] - padded[1]).abs().max() > 1e-3


def test_the_command(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts are text, also where YAML would read something else; the same seed gives the same."""
    (tmp_path / "prompts.txt").write_text("the mat\n")
    arguments = [f"model={export}", "prompt=the: cat", f"file={tmp_path}/prompts.txt", "max_new_tokens=5", "samples=2"]
    for name in ("a", "b"):
        assert main([*arguments, f"output={tmp_path}/{name}.jsonl"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the: cat", "the mat"]
    assert all(len(row["continuations"]) == 2 for row in rows)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    assert "the: cat|" in capsys.readouterr().out


def test_make_gives_the_prompt(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROMPT", "the cat")
    assert main([f"model={export}", "max_new_tokens=2"]) == 0
    assert "the cat|" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["prompt=" + "the cat " * 30], "is more than the 64 positions"),
        ([], "no prompt: give PROMPT=..."),
        (["file=none.txt"], "none.txt: no such file"),
    ],
)
def test_bad_input_is_told(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    monkeypatch.delenv("PROMPT", raising=False)
    assert main([f"model={export}", *given]) == 2
    assert said in capsys.readouterr().err


def test_an_encoder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model={write_encoder(tmp_path, 'bert')}", "prompt=a"]) == 2
    assert "is an encoder" in capsys.readouterr().err

"""Probes of learning in context: what they ask, and what a model that copies answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import prompting.probes
from prompting.model import CausalModel
from prompting.probes import ProbesSection, by_shots, copying, main, mapping, repeated
from tests.prompting.exports import write_causal

TOKENS = np.arange(1, 50)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return CausalModel.open(str(write_causal(tmp_path_factory.mktemp("model"))))


def test_the_answer_is_in_the_context() -> None:
    rng = np.random.default_rng(0)
    for shots in (1, 3):
        sequence, size = mapping(rng, TOKENS, shots)
        context = sequence[:-2].reshape(-1, 2).tolist()
        assert (size, len(context)) == (1, 4 * shots)
        assert context.count(sequence[-2:].tolist()) == shots
        sequence, size = copying(rng, TOKENS, shots)
        parts = np.append(sequence, sequence[7]).reshape(shots + 1, 8)
        assert (parts[:, :3] == parts[:, 4:7]).all()
        assert len({*parts[:, 3]} | {*parts[:, 7]}) == 2
        assert (sequence[-size:] == parts[-1, :3]).all()


def test_a_model_that_looks_back_answers_and_one_that_does_not_is_at_chance(
    causal: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking back: the next token is what followed the last time that this one was there."""

    def looks_back(_: CausalModel, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nats = np.full((len(sequences), sequences.shape[1] - 1), np.log(len(TOKENS)))
        for row, sequence in enumerate(sequences):
            for at in range(1, len(sequence) - 1):
                earlier = np.flatnonzero(sequence[:at] == sequence[at])
                if len(earlier) and sequence[earlier[-1] + 1] == sequence[at + 1]:
                    nats[row, at] = 0.0
        return nats, nats == 0

    section = ProbesSection(model=causal.start, trials=40, shots=[1, 2])
    first, second = repeated(causal, TOKENS, section)
    assert len(first) == len(second) == 31
    assert abs(first.mean() - second.mean()) < 1
    assert max(by_shots(causal, TOKENS, section, mapping).values()) < 0.2
    monkeypatch.setattr(prompting.probes, "next_token_nats", looks_back)
    first, second = repeated(causal, TOKENS, section)
    assert first.mean() - second.mean() > 1
    assert min(by_shots(causal, TOKENS, section, mapping).values()) == 1.0


def test_the_command(causal: CausalModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Examples that the model cannot read are left out."""
    assert main([f"model={causal.start}", "trials=10", f"output={tmp_path}"]) == 0
    assert "repeated block, second time" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [*results["mapping"]] == ["1", "2", "4"]
    assert (tmp_path / "probes.png").stat().st_size > 10_000

"""Probes of learning in context: their sequences, and models whose curves are known."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prompting import probes
from prompting.model import CausalModel
from prompting.probes import ProbesSection, blocks, copies, main, make_probes, mappings, measure
from tests.finetune.tasks import write_encoder
from tests.prompting.exports import write_causal

TOKENS = np.arange(10, 90)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return CausalModel.open(str(write_causal(tmp_path_factory.mktemp("model"))))


@pytest.mark.parametrize("backwards", [False, True])
def test_copies(backwards: bool) -> None:
    made = copies(np.random.default_rng(0), TOKENS, 5, 4, backwards=backwards)
    assert made.ids.shape == (5, 40)
    for sequence, candidates in zip(made.ids, made.candidates, strict=True):
        for number, example in enumerate(sequence.reshape(4, 10)):
            string, copied = example[:4], example[5:9]
            assert copied.tolist() == (string[::-1] if backwards else string).tolist()
            assert len({*string, example[4], example[9]}) == 6
            assert sorted(candidates[4 * number]) == sorted(string)
        assert {*sequence[4::10]} == {sequence[4]}
        targets = sequence[made.places]
        assert all(target in among for target, among in zip(targets, candidates, strict=True))
    assert made.shown.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert len({*map(tuple, made.ids)}) == 5


def test_mappings_stay_in_an_episode() -> None:
    made = mappings(np.random.default_rng(0), TOKENS, 5, 3)
    for sequence, candidates in zip(made.ids, made.candidates, strict=True):
        pairs = {(a, b) for a, b in sequence.reshape(-1, 2).tolist()}
        assert len(pairs) == 4
        assert {b for _, b in pairs} == {*candidates[0].tolist()}
    assert made.places.tolist() == [*range(1, 24, 2)]
    assert made.shown.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_blocks_repeat() -> None:
    made = blocks(np.random.default_rng(0), TOKENS, 5, 3, 8)
    assert (made.ids[:, :8] == made.ids[:, 16:]).all()
    assert 8 not in made.places
    assert made.shown.tolist() == [0] * 7 + [1] * 7 + [2] * 7


class Induction(nn.Module):
    """Predicts what followed the last earlier place of the present token, and is sure of it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(ids), self.size)
        for place, token in enumerate(ids.tolist()):
            earlier = [at for at in range(place) if ids[at] == token]
            if earlier:
                logits[place, ids[earlier[-1] + 1]] = 30.0
        return logits


def test_a_model_that_repeats_is_seen_to(causal: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Induction by hand: a block costs ln V the first time and nothing the second, and a mapping is known once seen.
    The logits of a sequence are those of its own tokens."""
    vocabulary = 100
    network = Induction(vocabulary)

    def encode(model: Any, stream: Any) -> torch.Tensor:
        starts = stream.offsets.tolist()
        return torch.cat([network(stream.ids[a:b]) for a, b in pairwise(starts)])

    model = nn.Module()
    model.lm_head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(probes, "encode", encode)
    fake = CausalModel("fake", model, causal.tokenizer, 64, 0)
    rng = np.random.default_rng(1)
    curve = measure(fake, blocks(rng, TOKENS, 9, 3, 8))
    assert curve.nats == [
        pytest.approx(math.log(vocabulary), rel=1e-4),
        pytest.approx(0, abs=1e-4),
        pytest.approx(0, abs=1e-4),
    ]
    assert curve.accuracy[1:] == curve.among[1:] == [1, 1]
    assert curve.error[1] == 0
    assert curve.chance == 1 / 8
    curve = measure(fake, mappings(rng, TOKENS, 9, 4))
    assert (curve.accuracy[0], curve.accuracy[1:]) == (0, [1, 1, 1])


def test_a_random_model_is_at_chance(causal: CausalModel) -> None:
    """Within four standard errors, in a sum over all probes; and a batch does not change what an episode gives."""
    made = make_probes(causal, ProbesSection(model=causal.start, trials=60))
    assert [*made] == ["copy", "reversal", "token mapping", "repeated block"]
    for episodes in made.values():
        curve = measure(causal, episodes)
        assert len(curve.nats) == episodes.shown[-1] + 1
        assert episodes.ids.shape[1] < causal.positions
        assert abs(curve.among[0] - curve.chance) < 0.15


def test_the_command(causal: CausalModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        assert main([f"model={causal.start}", "trials=4", f"output={tmp_path / name}"]) == 0
    assert (tmp_path / "a/results.json").read_bytes() == (tmp_path / "b/results.json").read_bytes()
    found = json.loads((tmp_path / "a/results.json").read_text())
    assert [*found["curves"]["copy"]] == ["nats", "accuracy", "among", "error", "chance", "by_place"]
    assert (tmp_path / "a/probes.png").stat().st_size > 5000
    assert "loss of a block, second time" in capsys.readouterr().out


def test_bad_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model={write_encoder(tmp_path, 'bert')}"]) == 2
    assert "is an encoder" in capsys.readouterr().err
    assert main([f"model={write_causal(tmp_path, positions=16)}"]) == 2
    assert "reads 16 tokens; the probes need 21" in capsys.readouterr().err

"""Beam search against exhaustive search, against transformers' own, and against itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from bertillery.config.section import ConfigError, validate
from bertillery.engine.batch import Stream
from bertillery.models.layers.attention import NAME
from bertillery.models.seq2seq import EncoderDecoder, encoder_decoder
from tests.translation.models import END, NORMS, PAD, sources, transformer
from translation.search import DecodeSection, Hypothesis, search

STOPS: dict[str, Any] = {"exact": "never", "heuristic": False, "first": True}
LENGTHS = [5, 9, 3, 5, 7]


def found(model: Any, source: Stream, n_best: int = 1, **settings: Any) -> list[list[Hypothesis]]:
    section = DecodeSection(**settings)
    return search(encoder_decoder(model), source, section, start=PAD, end=END, n_best=n_best)


@torch.no_grad()
def exhaustive_search(
    network: EncoderDecoder, source: Stream, section: DecodeSection, *, start: int, end: int
) -> list[Hypothesis]:
    """All hypotheses of one sentence of at most ``section.max_length`` tokens, best first: for
    a tiny vocabulary, since there are sum over n < T of (V-1)**(n-1), and (V-1)**(T-1) * V of the longest."""
    assert source.num_sequences == 1
    return sorted(_every(network, network.begin(source), section, start, end), key=lambda each: -each.score)


def _every(network: EncoderDecoder, state: Any, section: DecodeSection, start: int, end: int) -> Iterator[Hypothesis]:
    prefixes: list[tuple[list[int], float]] = [([], 0.0)]
    tokens, one = torch.tensor([[start]]), torch.zeros(1, dtype=torch.long)
    for length in range(1, section.max_length + 1):
        log_probs, state = network.step(state, tokens)
        sums = (torch.tensor([total for _, total in prefixes])[:, None] + log_probs[0]).tolist()
        longer, parents = [], []
        for parent, ((ids, _), row) in enumerate(zip(prefixes, sums, strict=True)):
            for token, total in enumerate(row):
                if token == end or length == section.max_length:
                    yield Hypothesis([*ids, token], total, total / section.norm(length))
                else:
                    longer.append(([*ids, token], total))
                    parents.append(parent)
        if length < section.max_length:
            prefixes, tokens = longer, torch.tensor([[ids[-1] for ids, _ in longer]])
            state = network.select(state, one, torch.tensor([parents]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("beam", [1, 2, 4])
def test_equals_generate(norm: str, stop: str, beam: int) -> None:
    """The same tokens and scores as the stock search, at every length penalty, with every rule of stopping."""
    model: Any = transformer(norm, vocab_size=24)
    source = sources(LENGTHS, vocab_size=24, seed=beam)
    for penalty in (0.0, 0.6, 1.0, 2.0):
        ours = found(model, source, beam=beam, stop=stop, length_penalty=penalty, max_length=8)
        model.set_attn_implementation("sdpa")
        for number, (best,) in enumerate(ours):
            ids = source.ids[source.offsets[number] : source.offsets[number + 1]][None]
            how: dict[str, Any] = {"length_penalty": penalty, "early_stopping": STOPS[stop]} if beam > 1 else {}
            stock = model.generate(
                ids, num_beams=beam, max_new_tokens=8, do_sample=False, return_dict_in_generate=True,
                output_scores=True, **how,
            )  # fmt: skip
            assert stock.sequences[0, 1 : len(best.ids) + 1].tolist() == best.ids
            if beam > 1:
                assert stock.sequences_scores[0].item() == pytest.approx(best.score, abs=1e-5)
        model.set_attn_implementation(NAME)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_wide_beam_is_exhaustive(norm: str, penalty: float) -> None:
    """With 6 tokens and a length of 4 there are 781 hypotheses; a beam of 200 finds the best of them in their order."""
    model = transformer(norm, vocab_size=6, seed=3)
    source = sources([3], vocab_size=6)
    section = DecodeSection(beam=200, length_penalty=penalty, max_length=4)
    every = exhaustive_search(encoder_decoder(model), source, section, start=PAD, end=END)
    (beams,) = found(model, source, n_best=200, **section.model_dump())
    assert len(every) == 781
    assert len({tuple(each.ids) for each in every}) == 781
    assert [each.ids for each in beams[:10]] == [each.ids for each in every[:10]]
    assert [each.score for each in beams] == pytest.approx([each.score for each in every[:200]], abs=1e-5)


def test_scores_are_those_of_one_forward_pass_and_the_best_come_first() -> None:
    model: Any = transformer("pre")
    source = sources(LENGTHS)
    everything = found(model, source, n_best=4, beam=4, max_length=7, normalization="gnmt", length_penalty=0.6)
    model.set_attn_implementation("eager")
    for number, hypotheses in enumerate(everything):
        ids = source.ids[source.offsets[number] : source.offsets[number + 1]][None]
        assert [each.score for each in hypotheses] == sorted((each.score for each in hypotheses), reverse=True)
        assert len({tuple(each.ids) for each in hypotheses}) == len(hypotheses) == 4
        for each in hypotheses:
            assert END not in each.ids[:-1]
            assert len(each.ids) == 7 or each.ids[-1] == END
            target = torch.tensor([[PAD, *each.ids[:-1]]])
            log_probs = model(input_ids=ids, decoder_input_ids=target).logits.log_softmax(-1)[0]
            total = log_probs[torch.arange(len(each.ids)), torch.tensor(each.ids)].sum().item()
            assert each.log_probability == pytest.approx(total, abs=1e-4)
            assert each.score == pytest.approx(total / ((5 + len(each.ids)) / 6) ** 0.6, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_batch_gives_what_each_sentence_gives_alone(beam: int) -> None:
    model, source = transformer("post"), sources(LENGTHS)
    together = found(model, source, n_best=beam, beam=beam, max_length=9)
    for number, each in enumerate(together):
        lengths = [LENGTHS[number]]
        alone = sources(lengths)
        alone.ids[:] = source.ids[source.offsets[number] : source.offsets[number + 1]]
        (expected,) = found(model, alone, n_best=beam, beam=beam, max_length=9)
        assert [one.ids for one in each] == [one.ids for one in expected]


def test_one_hypothesis_is_greedy_search() -> None:
    model: Any = transformer("post")
    source = sources([6])
    ((best,),) = found(model, source, beam=1, max_length=12)
    model.set_attn_implementation("eager")
    ids = [PAD]
    while len(ids) <= 12 and ids[-1] != END:
        logits = model(input_ids=source.ids[None], decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    assert best.ids == ids[1:]


def test_without_an_end_every_hypothesis_has_the_longest_length() -> None:
    model: Any = transformer("post")
    network = encoder_decoder(model)
    forward = network.vocabulary_logits

    def endless(states: torch.Tensor) -> torch.Tensor:
        logits = forward(states)
        logits[..., END] = -torch.inf
        return logits

    network.vocabulary_logits = endless  # pyright: ignore[reportAttributeAccessIssue]
    section = DecodeSection(beam=3, max_length=6)
    for hypotheses in search(network, sources(LENGTHS), section, start=PAD, end=END, n_best=3):
        assert [len(each.ids) for each in hypotheses] == [6, 6, 6]


def test_normalisations() -> None:
    """GNMT's at 0.6: table of lengths 1, 10, 20, 50."""
    gnmt = DecodeSection(normalization="gnmt", length_penalty=0.6)
    assert [gnmt.norm(length) for length in (1, 10, 20, 50)] == pytest.approx(
        [1.0, 1.732862, 2.354362, 3.778565], abs=1e-6
    )
    assert DecodeSection().norm(7) == 7
    assert DecodeSection(length_penalty=0).norm(7) == 1
    assert math.isclose(DecodeSection(length_penalty=0.5).norm(4), 2)


@pytest.mark.parametrize("wrong", [{"beam": 0}, {"stop": "never"}, {"length_penalty": -1}, {"normalization": "x"}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        validate(DecodeSection, wrong)


@pytest.mark.parametrize(
    "section",
    [
        DecodeSection(beam=4, length_penalty=0.6, normalization="gnmt", stop="heuristic", max_length=60),
        DecodeSection(beam=3, length_penalty=0.0, stop="first"),
        DecodeSection(beam=1, max_length=7),
        DecodeSection(),
    ],
)
def test_an_export_carries_its_search(section: DecodeSection, tmp_path: Path) -> None:
    """What was written is read; what is given beside it wins, and nothing else changes."""
    written = GenerationConfig()
    section.write_to(written)
    written.save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert DecodeSection().over(read) == section
    given = DecodeSection(beam=9, stop="first")
    assert given.over(read) == section.model_copy(update={"beam": 9, "stop": "first"})


def test_a_stock_models_search_is_read() -> None:
    """A maximal length counts the token that begins a translation; what is not said is ours."""
    stock = GenerationConfig(num_beams=6, max_length=512, early_stopping=False)
    assert DecodeSection().over(stock) == DecodeSection(beam=6, max_length=511, stop="heuristic")
    assert DecodeSection().over(GenerationConfig()) == DecodeSection()

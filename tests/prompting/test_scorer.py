"""Log-likelihoods: of the right tokens, whatever the batch, and those of the field's harness."""

from __future__ import annotations

import json
import math
import os
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bertillery.config.section import InputError
from bertillery.data.causal_tokenizer import train_byte_bpe
from bertillery.data.tokenizer import TokenizerSection
from prompting.model import CausalModel
from prompting.scorer import Request, Score, Scorer, perplexities
from tests.prompting.exports import TEXT, write_causal

DATA = Path(os.environ.get("BERTILLERY_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
LAMBADA = DATA / "fewshot_suite/lambada_openai.jsonl"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog's", "and.", "naïve", "한국", "2", "+", "2", "="]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def causal(export: Path) -> CausalModel:
    return CausalModel.open(str(export))


@pytest.fixture(scope="module")
def stock(export: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(export).eval()


def requests(number: int) -> list[Request]:
    rng = random.Random(1)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randrange(least, most)))

    return [Request(text(0, 30), f" {text(1, 8)}") for _ in range(number)] + [
        Request("", "the cat"),
        Request("a ", "b"),
    ]


def one_by_one(causal: CausalModel, stock: Any, before: list[int], after: list[int]) -> Score:
    with torch.no_grad():
        logits = stock(torch.tensor([[*before, *after][:-1]])).logits[0, -len(after) :].double()
    rows = logits.log_softmax(-1)[torch.arange(len(after)), torch.tensor(after)]
    return Score(rows.sum().item(), logits.argmax(-1).tolist() == after, len(after))


def test_scores_are_those_of_the_stock_model_on_each_alone(causal: CausalModel, stock: Any) -> None:
    """In any order, with and without others, cut from the left where the prompt is too long."""
    scorer, asked = Scorer(causal), requests(60)
    found = scorer.scores(asked)
    encoded = [scorer.encode(request) for request in asked]
    assert max(len(before) + len(after) for before, after in encoded) == causal.positions + 1
    for request, (before, after), score in zip(asked, encoded, found, strict=True):
        expected = one_by_one(causal, stock, before, after)
        assert score.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)
        assert (score.is_greedy, score.num_tokens) == (expected.is_greedy, expected.num_tokens)
        assert scorer.scores([request])[0].log_likelihood == pytest.approx(score.log_likelihood, abs=1e-4)
    backwards = scorer.scores(asked[::-1])[::-1]
    assert [s.log_likelihood for s in backwards] == pytest.approx([s.log_likelihood for s in found], abs=1e-4)


def test_a_continuation_in_two_parts_adds_up(causal: CausalModel) -> None:
    scorer = Scorer(causal)
    whole, first, second = scorer.scores(
        [Request("The cat", " sat on the mat"), Request("The cat", " sat on"), Request("The cat sat on", " the mat")]
    )
    assert whole.log_likelihood == pytest.approx(first.log_likelihood + second.log_likelihood, abs=1e-4)


def test_context_and_continuation_are_encoded_together(causal: CausalModel) -> None:
    """Spaces that end a context open the continuation; an empty context is the end-of-text token."""
    scorer = Scorer(causal)
    assert scorer.encode(Request("the cat ", "sat")) == scorer.encode(Request("the cat", " sat"))
    before, after = scorer.encode(Request("", "the cat"))
    assert before == [causal.end]
    assert after == causal.ids("the cat")
    before, after = scorer.encode(Request("the cat sat on the", " mat"))
    assert before + after == causal.ids("the cat sat on the mat")


@pytest.mark.skipif(not LAMBADA.is_file(), reason=f"{LAMBADA} is not there")
def test_no_boundary_of_a_last_word_lies_within_a_token() -> None:
    """With one space before it, for every item of LAMBADA; without one, hundreds of words would join the context."""
    rows = [json.loads(line) for line in LAMBADA.read_text(encoding="utf-8").splitlines()]
    contexts, words = [row["context"] for row in rows], [row["continuation"].strip() for row in rows]
    tokenizer: Any = train_byte_bpe(contexts[:400], TokenizerSection(type="byte_bpe", vocab_size=4096))

    def joined(space: str) -> int:
        encoded = (tokenizer(texts)["input_ids"] for texts in (contexts, passages(space)))
        return sum(whole[: len(ids)] != ids for ids, whole in zip(*encoded, strict=True))

    def passages(space: str) -> list[str]:
        return [f"{context}{space}{word}" for context, word in zip(contexts, words, strict=True)]

    assert len(rows) == 5153
    assert joined(" ") == 0
    assert joined("") > 100


def test_a_greedy_continuation_is_told(causal: CausalModel, stock: Any) -> None:
    """The most probable next token of a context is greedy, any other is not; where a token joins the one before, it is
    no continuation."""
    told = []
    for context in ("the cat", "A mat", "on", "dog's", "and the dog sat", "2 +"):
        ids = torch.tensor([causal.ids(context)])
        with torch.no_grad():
            ranked = stock(ids).logits[0, -1].argsort(descending=True).tolist()
        for place, token in enumerate(ranked[:20]):
            text = causal.tokenizer.decode([token])
            if causal.ids(context + text) == [*causal.ids(context), token]:
                (score,) = Scorer(causal).scores([Request(context, text)])
                assert score.is_greedy == (place == 0)
                told.append(score.is_greedy)
    assert {*told} == {True, False}


def test_a_text_is_read_in_windows(causal: CausalModel, stock: Any) -> None:
    """Each window but the first has one token of context: the sum is that of its parts."""
    text = TEXT[0] + TEXT[1]
    ids, total = [causal.end, *causal.ids(text)], 0.0
    for at in range(0, len(ids) - 1, causal.positions):
        after = ids[at + 1 : at + 1 + causal.positions]
        total += one_by_one(causal, stock, ids[at : at + 1], after).log_likelihood
    score = Scorer(causal).rolling(text)
    assert score.num_tokens == len(ids) - 1 > causal.positions
    assert score.log_likelihood == pytest.approx(total, abs=1e-3)
    found = perplexities([score], [text])
    assert found["byte_perplexity"] == pytest.approx(2 ** found["bits_per_byte"])
    assert found["word_perplexity"] == pytest.approx(math.exp(-total / len(text.split())), rel=1e-4)


def test_what_cannot_be_scored_is_named(causal: CausalModel) -> None:
    for continuation in ("", "the mat. " * 40):
        with pytest.raises(InputError, match="has at least one and at most 64"):
            Scorer(causal).encode(Request("a", continuation))


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed; it is the extra evaluation")
def test_scores_are_those_of_the_evaluation_harness(export: Path, causal: CausalModel) -> None:
    """To 1e-4 in log-likelihood, of requests and of whole texts."""
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    theirs: Any = HFLM(pretrained=str(export), device="cpu", batch_size=4, dtype="float32", max_length=64)
    asked = requests(40)
    instances: Any = [
        Instance("loglikelihood", {}, (request.context, request.continuation), number)
        for number, request in enumerate(asked)
    ]
    for ours, (total, greedy) in zip(Scorer(causal).scores(asked), theirs.loglikelihood(instances), strict=True):
        assert ours.log_likelihood == pytest.approx(total, abs=1e-4)
        assert ours.is_greedy == greedy
    rolling: Any = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(TEXT)]
    for text, total in zip(TEXT, theirs.loglikelihood_rolling(rolling), strict=True):
        assert Scorer(causal).rolling(text).log_likelihood == pytest.approx(total, abs=1e-3)

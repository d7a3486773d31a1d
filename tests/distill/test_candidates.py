"""Candidates for words, beside the stock model and a search over all vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from bertillery.models.load import load_tokenizer
from distill.candidates import Neighbours, is_replaceable
from tests.distill.test_augment import _LONGEST, CPU, candidates_of, sentences, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_candidates_are_those_of_the_stock_model(tmp_path: Path, family: str) -> None:
    """Against one padded batch of the plain model, on the pair as the tokenizer makes it."""
    tokens, number = candidates_of(write_model(tmp_path, family), 9), 9
    tokenizer: Any = load_tokenizer(str(tmp_path))
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    mark = "▁" if family == "albert" else ""
    given = sentences(12, 5)
    compared = dropped = 0
    for text, found in zip(given, tokens.of(given), strict=True):
        joined = " ".join(found.words)
        assert joined == " ".join(tokens.split(text))
        for place, words in found.candidates.items():
            if len(tokenizer.tokenize(found.words[place])) > 1:
                continue
            batch = tokenizer(
                joined, joined, return_tensors="pt", padding="max_length", max_length=_LONGEST,
                return_token_type_ids=family != "distilbert",
            )  # fmt: skip
            row = sum(len(tokenizer.tokenize(word)) for word in found.words[:place]) + 1
            assert tokenizer.convert_ids_to_tokens([int(batch["input_ids"][0, row])]) == [mark + found.words[place]]
            batch["input_ids"][0, row] = tokenizer.mask_token_id
            with torch.no_grad():
                top = plain(**batch).logits[0, row].topk(number).indices.tolist()
            pieces = [tokenizer.convert_ids_to_tokens(piece) or "" for piece in top]
            opening = [
                piece.removeprefix(mark)
                for piece in pieces
                if piece not in tokenizer.all_special_tokens and not piece.startswith("##") and piece.startswith(mark)
            ]
            assert words == ([word for word in opening if word] or [found.words[place]])
            compared, dropped = compared + 1, dropped + (len(words) < number)
    assert compared > 20
    assert dropped > 5


def test_of_a_long_text_the_mask_is_kept_and_what_lies_beyond_has_no_candidates(model: Path) -> None:
    tokens = candidates_of(model)
    (found,) = tokens.of(["river town " * 40])
    changed = [words != [found.words[place]] for place, words in found.candidates.items()]
    assert changed == [True] * (_LONGEST - 3) + [False] * (80 - _LONGEST + 3)
    plain, tokenizer = AutoModelForMaskedLM.from_pretrained(model).eval(), load_tokenizer(str(model))
    ids: list[int] = tokenizer.encode("river town " * 20, add_special_tokens=False)  # fits, its copy does not
    cls, sep, mask = (getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask"))
    inputs = torch.tensor([[cls, *ids[:30], mask, *ids[31:], sep, *ids[: _LONGEST - 3 - 40], sep]])
    types = torch.tensor([[0] * 42 + [1] * (_LONGEST - 42)])
    with torch.no_grad():
        top = plain(inputs, token_type_ids=types).logits[0, 31].topk(7).indices.tolist()
    (found,) = tokens.of(["river town " * 20])
    assert found.candidates[30] == [word for word in map(tokens.openings.__getitem__, top) if word]


def test_neighbours_among_the_models_own_words(model: Path) -> None:
    (found,) = candidates_of(model, 5).of(["the castle"])
    tokenizer: Any = load_tokenizer(str(model))
    embeddings = AutoModelForMaskedLM.from_pretrained(model).get_input_embeddings().weight.detach().numpy()
    mean = embeddings[tokenizer.encode("castle", add_special_tokens=False)].mean(0)
    cosine = {
        word: row @ mean / np.linalg.norm(row) / np.linalg.norm(mean)
        for word, row in ((word, embeddings[piece]) for word, piece in tokenizer.get_vocab().items())
        if is_replaceable(word)
    }
    assert found.candidates == {1: sorted(cosine, key=lambda word: -cosine[word])[:5]}


def write_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    words = ["castle", "Castle", "bridge", ".", "river", "u.s.", "tower", "hall", "London", "wall"]
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(len(words), 4)) * rng.uniform(0.1, 9, (len(words), 1))).astype(np.float32)
    lines = [" ".join([word, *map(str, row.tolist())]) for word, row in zip(words, vectors, strict=True)]
    path.write_text("\n".join([*lines[:4], ". . 0.1 0.2 0.3 0.4", *lines[4:]]) + "\n", encoding="utf-8")
    return words, vectors


def test_neighbours_in_a_file_are_the_nearest_by_cosine(tmp_path: Path, model: Path) -> None:
    words, vectors = write_vectors(tmp_path / "glove.txt")
    near = Neighbours.in_file(tmp_path / "glove.txt", CPU)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def brute(word: str) -> list[str]:
        cosines = unit @ unit[words.index(word)]
        return [words[row] for row in np.argsort(-cosines) if words[row].lower() != word.lower()][:4]

    found = near.nearest(["castle", "Castle", "Bridge", "walked"], 4)
    assert found["castle"] == brute("castle") != brute("Castle")
    assert found["Castle"] == [word.title() for word in brute("Castle")]
    assert found["Bridge"] == [word.title() for word in brute("bridge")]
    assert found["walked"] == []
    (given,) = candidates_of(model, 4, tmp_path / "glove.txt").of(["walked the castle"])
    assert given.candidates == {0: ["walked"], 2: brute("castle")}

"""Corpora by weight: their shares of the tokens, no document left out or preferred, and the same order everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertillery.config.section import ConfigError, InputError
from bertillery.data.causal_tokenizer import train_byte_bpe
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import corpus_files, prepare
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.batch import PackedBatch
from bertillery.engine.loader import Steps
from bertillery.engine.schedule import Phase
from pretrain.__main__ import main
from pretrain.config import load_config
from pretrain.mixture import Mixture
from pretrain.objectives.causal_lm import Config, Source
from tests.corpora import Tokens, random_tokens

DOCUMENTS, WEIGHTS = [40, 7, 200], [6.0, 3.0, 1.0]
BOUNDS = np.cumsum([0, *DOCUMENTS])


def tokens() -> Tokens:
    found = random_tokens(sum(DOCUMENTS), sentences=(1, 1), length=(5, 40), vocab_size=258)
    return Tokens(np.maximum(found.ids, 1), found.sentences, found.documents)


def mixture(seed: int = 3) -> Mixture:
    return Mixture(tokens(), DOCUMENTS, WEIGHTS, seed=seed)


def read(mixed: Mixture, epoch: int) -> np.ndarray:
    return mixed.documents(epoch, np.arange(mixed.num_documents))


def test_a_corpus_has_its_share_of_the_tokens_whatever_its_size() -> None:
    """Over twenty epochs, each of about as many tokens as there are."""
    mixed, sizes = mixture(), np.diff(tokens().sentences)
    found = np.concatenate([read(mixed, epoch) for epoch in range(20)])
    taken = np.bincount(np.searchsorted(BOUNDS, found, side="right") - 1, sizes[found])
    assert taken / taken.sum() == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    assert taken.sum() / 20 == pytest.approx(sizes.sum(), rel=0.01)
    assert mixed.passes == pytest.approx(mixed.shares * sizes.sum() / np.add.reduceat(sizes, BOUNDS[:-1]), rel=0.05)


def test_no_document_is_read_twice_before_the_others_of_its_corpus_once() -> None:
    mixed, seen = mixture(), np.zeros(sum(DOCUMENTS), np.int64)
    orders = []
    for epoch in range(12):
        found = read(mixed, epoch)
        orders.append(found)
        seen += np.bincount(found, minlength=len(seen))
        for first, end in itertools.pairwise(BOUNDS):
            assert seen[first:end].max() - seen[first:end].min() <= 1
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], read(mixture(seed=4), 0))
    corpus = np.searchsorted(BOUNDS, orders[0], side="right")
    assert (np.diff(corpus) != 0).mean() > 0.2, "the corpora lie one behind the other"


def test_what_stands_at_a_place_depends_on_nothing_else() -> None:
    mixed = mixture()
    whole, some = read(mixed, 5), np.array([9, 3, 3, mixed.num_documents - 1])
    assert np.array_equal(mixed.documents(5, some), whole[some])


@pytest.mark.parametrize("cross", [False, True])
def test_steps_are_the_same_from_any_place_on(cross: bool) -> None:
    """As a run that is resumed reads them, over the end of an epoch; an epoch predicts each document that it visits."""
    tokenizer = train_byte_bpe(["a cat sat"], TokenizerSection(type="byte_bpe", vocab_size=258, min_frequency=1))
    settings: dict[str, Any] = {"sequence_length": 32, "seed": 3, "mixture": mixture()}

    def steps(**more: Any) -> Steps:
        source = Source(Config(cross_document=cross), tokens(), tokenizer, **settings)
        return Steps([source], [Phase(batch_size=64)], total_steps=12, seed=3, micro_batch_tokens=10**6, **more)

    whole = steps()
    for step in (1, 7):
        resumed = steps(start=(step, whole[step - 1].cursor))
        for number in range(step, 12):
            assert same(resumed[number].micro_batches[0], whole[number].micro_batches[0])
    assert whole[11].cursor.epoch > 0
    source = Source(Config(cross_document=cross), tokens(), tokenizer, **settings)
    rows = np.concatenate([source.examples(0, block) for block in range(source.num_blocks)])
    starts = tokens().sentences[tokens().documents]
    sizes = np.diff(starts)[read(mixture(), 0)] + 1
    assert source.epoch_size().tokens == rows["length"].sum() == sizes.sum()


def same(a: PackedBatch, b: PackedBatch) -> bool:
    return bool((a.input.ids == b.input.ids).all() and (a.targets["next_ids"] == b.targets["next_ids"]).all())


def write(folder: Path) -> list[str]:
    """Two corpora, of 40 documents and of 12."""
    places = []
    for name, number in (("books", 40), ("notes", 12)):
        texts = [f"{name} number {n} has words, and {name} end at {n * n}." for n in range(number)]
        (folder / f"{name}.txt").write_text("\n\n".join(texts) + "\n")
        places.append(str(folder / f"{name}.txt"))
    return places


def section(places: list[str], **more: Any) -> CorpusSection:
    return CorpusSection.model_validate({"path": places, "holdout": 0.2, "units": "documents", **more})


def test_documents_are_counted_by_corpus_and_weights_do_not_prepare_again(tmp_path: Path) -> None:
    places, tokenizer = write(tmp_path), TokenizerSection(type="byte_bpe", vocab_size=258)
    corpus = prepare(section(places, weights=[1, 2]), tokenizer, tmp_path / "data", workers=1)
    counts = corpus.manifest["corpora"]
    assert sum(counts) == corpus.train.num_documents
    starts = corpus.train.sentences[corpus.train.documents]
    decoded = [corpus.tokenizer().decode(corpus.train.ids[a:b]) for a, b in itertools.pairwise(starts)]
    assert [str(text).split()[0] for text in decoded] == ["books"] * counts[0] + ["notes"] * counts[1]
    names = [
        corpus_files(section(places, **more), tokenizer).sha256
        for more in ({"weights": [1, 2]}, {"weights": [3, 1]}, {})
    ]
    assert names[0] == names[1] != names[2]


def test_a_run_says_how_often_it_reads_each_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before it trains, and on the card of the export."""
    places = write(tmp_path)
    given = [
        "objective.type=causal_lm", "tokenizer.vocab_size=260", f"data.path={places}", "data.weights=[0.7,0.3]",
        "data.holdout=0.2", "train.phases=[{batch_size: 8, sequence_length: 32}]", f"run.dir={tmp_path}/runs",
        "model={num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 32}",
        f"run.data_dir={tmp_path}/data", "run.threads=1", "run.precision=fp32", "train.steps=10", "run.name=a",
        "train.evaluate_every=5 steps",
    ]  # fmt: skip
    assert main(given) == 0
    said = capsys.readouterr()
    assert "books.txt: 70.0% of the tokens, read " in said.out
    assert "notes.txt: 30.0% of the tokens, read " in said.out
    card = (tmp_path / "runs/pretrain/a/export/README.md").read_text()
    assert "read" in card
    assert "70.0% of the tokens" in card


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data.path=[a,b]", "data.weights=[1]"], "weights: 1 of them, and path has 2 entries; give one for each"),
        (["data.path=[a,b]", "data.weights=[1,0]"], r"data\.weights.*greater than 0"),
        (["data.path=[a,b]", "data.weights=[1,-2]"], r"data\.weights.*greater than 0"),
        (["data.path=[a,b]", "data.weights=[1,.nan]"], r"data\.weights"),
        (["data.path=[a,b]", "data.weights=[1,1]", "objective.type=bert"], "objectives that read whole documents"),
    ],
)
def test_weights_that_do_not_fit_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(["objective.type=causal_lm", *given])


def test_a_corpus_without_text_of_its_own_is_refused(tmp_path: Path) -> None:
    books, _ = write(tmp_path)
    (tmp_path / "again.txt").write_text(Path(books).read_text())
    given = section([books, str(tmp_path / "again.txt")], weights=[1, 1])
    with pytest.raises(InputError, match=r"data\.weights: .*again\.txt has no training text that is not in"):
        prepare(given, TokenizerSection(type="byte_bpe", vocab_size=260), tmp_path / "data", workers=1)

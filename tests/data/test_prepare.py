from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]

from bertillery.config.section import ConfigError
from bertillery.data import encode, writer
from bertillery.data import prepare as module
from bertillery.data import prepared as module_of_prepared
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import corpus_files, prepare
from bertillery.data.prepared import PreparedCorpus, TokenArrays, corpus_report, write_manifest
from bertillery.data.tokenizer import TokenizerSection
from bertillery.data.writer import CorpusWriter

WORDS = (  # noqa: SIM905
    "the river runs past an old mill where people used to grind corn and sing about distant lands of green hills while "
    "quick brown foxes jump over lazy dogs whose keeper was too tired for walking home before evening came with heavy "
    "rain clouds gathering above mountains which nobody ever climbed except one young explorer named after his father"
).split()
TOKENIZER = TokenizerSection(vocab_size=120)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(4, 12))).capitalize() + "."


def documents(count: int, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    return [
        [" ".join(sentence(rng) for _ in range(rng.randrange(1, 4))) for _ in range(rng.randrange(1, 4))]
        for _ in range(count)
    ]


def write(path: Path, docs: list[list[str]]) -> str:
    path.write_text("\n\n".join("\n".join(doc) for doc in docs) + "\n")
    return str(path)


def section(path: str, **settings: Any) -> CorpusSection:
    return CorpusSection.model_validate({"path": path, "holdout": 0.2, **settings})


def decoded(prepared: PreparedCorpus, part: TokenArrays) -> list[list[str]]:
    tokenizer = prepared.tokenizer()
    texts: list[str] = []
    for start, end in zip(part.sentences, part.sentences[1:]):  # noqa: B905
        texts.append(str(tokenizer.decode(part.ids[start:end])))
    return [texts[start:end] for start, end in zip(part.documents, part.documents[1:])]  # noqa: B905


def files_of(prepared: PreparedCorpus) -> dict[str, bytes]:
    files = [file for file in sorted(prepared.path.rglob("*")) if file.is_file() and file.name != "checked.json"]
    return {str(file.relative_to(prepared.path)): file.read_bytes() for file in files}


def spelled(text: str) -> str:
    return text.lower().replace(".", " .")


def test_sentences_and_documents_come_back_as_they_were(tmp_path: Path) -> None:
    docs = documents(80)
    prepared = prepare(section(write(tmp_path / "a.txt", docs)), TOKENIZER, tmp_path / "cache")
    expected = [[spelled(text.strip()) for paragraph in doc for text in segment("en", paragraph)] for doc in docs]
    train, valid = decoded(prepared, prepared.train), decoded(prepared, prepared.valid)
    clean = lambda doc: [spelled(text.replace(" .", ".")) for text in doc]  # noqa: E731
    assert sorted(map(clean, train + valid)) == sorted(expected)
    assert [doc for doc in expected if doc in list(map(clean, train))] == list(map(clean, train)), "order is kept"
    assert 4 < len(valid) < 32
    assert prepared.train.ids.dtype == np.uint16
    assert not prepared.train.ids.flags.writeable
    assert (np.diff(prepared.train.sentences) > 0).all()
    assert (np.diff(prepared.train.documents) > 0).all()
    assert (prepared.unigrams == np.bincount(prepared.train.ids, minlength=120)).all()


def test_manifest_and_report_state_the_numbers(tmp_path: Path) -> None:
    docs = documents(60)
    prepared = prepare(section(write(tmp_path / "a.txt", docs)), TOKENIZER, tmp_path / "cache")
    manifest = prepared.manifest
    assert manifest["read"] == {
        "files": 1, "documents": 60, "paragraphs": sum(map(len, docs)),
        "characters": sum(len(text) for doc in docs for text in doc), "repeated": 0, "undecodable": 0,
        "passed_over": {},
    }  # fmt: skip
    assert manifest["train"]["documents"] + manifest["valid"]["documents"] == 60
    assert manifest["train"]["tokens"] == prepared.train.num_tokens
    report = corpus_report(prepared)
    assert f"{prepared.train.num_tokens:,} tokens" in report
    assert "60 documents" in report
    assert "120 pieces" in report
    assert "in use; 0.00% of tokens unknown" in report
    some = np.where(np.arange(120) == 1, 7, prepared.unigrams * 0 + 1)
    assert f"120 in use; {7 / 126:.2%} of tokens unknown" in corpus_report(replace(prepared, unigrams=some))


def test_the_report_says_how_much_text_the_unknown_tokens_hold(tmp_path: Path) -> None:
    """Runs of over 100 letters are one [UNK] each: few tokens, most of the text."""
    rng = random.Random(0)
    docs = documents(60)
    for doc in docs:
        doc[-1] += " " + " ".join("".join(rng.choices(WORDS, k=100)) for _ in range(2))
    lost = sum(len(word) for doc in docs for text in doc for word in text.split() if len(word) > 100)
    share = lost / sum(len(text) for doc in docs for text in doc)
    prepared = prepare(section(write(tmp_path / "a.txt", docs)), TOKENIZER, tmp_path / "cache")
    report = corpus_report(prepared)
    assert share > 0.5
    assert f"of tokens unknown, with {share:.2%} of the characters" in report
    assert f"{share:.0%} of the characters are lost in unknown tokens" in report
    assert "tokenizer.type=unigram" in report
    few = corpus_report(replace(prepared, manifest={**prepared.manifest, "unknown": 0.01}))
    assert "with 1.00% of the characters" in few
    assert "lost" not in few


def test_the_report_says_what_was_not_read(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write(tmp_path / "text/a.txt", documents(60))
    for name in ("a.md", "b.md", "c.pdf"):
        (tmp_path / "text" / name).write_text("text")
    report = corpus_report(prepare(section(str(tmp_path / "text")), TOKENIZER, tmp_path / "cache"))
    assert "3 files of other types: 2 .md, 1 .pdf" in report


def test_the_report_of_whole_documents_speaks_of_no_sentences(tmp_path: Path) -> None:
    data = section(write(tmp_path / "a.txt", documents(60))).model_copy(update={"units": "documents"})
    tokenizer = TokenizerSection(type="characters", vocab_size=300)
    lines = corpus_report(prepare(data, tokenizer, tmp_path / "cache")).splitlines()
    (train,) = (line for line in lines if line.startswith("train"))
    assert "sentence" not in train
    assert re.search(r"train +[\d,]+ documents \(mean [\d.]+ tokens\), [\d,]+ tokens", train)


def test_repetitions_are_dropped_and_counted(tmp_path: Path) -> None:
    docs = documents(40)
    long = "This paragraph is a notice that stands on every single page, and it is longer than eighty characters."
    short = "A short one may repeat."
    pages = [[f"Page {i}.", long, short] for i in range(5)]
    repeated = [*docs, docs[3], [docs[5][0], "But another end."], *pages, [long]]
    prepared = prepare(section(write(tmp_path / "a.txt", repeated)), TOKENIZER, tmp_path / "cache")
    long_first = int(len(docs[5][0]) >= encode.MIN_REPEATED)
    assert prepared.manifest["duplicates"] == {"documents": 1, "paragraphs": 4 + 1 + long_first}
    kept = decoded(prepared, prepared.train) + decoded(prepared, prepared.valid)
    assert sum("notice" in text for doc in kept for text in doc) == 1
    assert sum("may repeat" in text for doc in kept for text in doc) == 5
    assert len(kept) == len(docs) + 1 + 5
    assert all(kept), "the last document was nothing but a repetition"


def test_a_document_of_one_long_paragraph_is_no_repetition_of_itself(tmp_path: Path) -> None:
    docs = [[" ".join(doc[0] for _ in range(4))] for doc in documents(30)]
    prepared = prepare(section(write(tmp_path / "a.txt", docs)), TOKENIZER, tmp_path / "cache")
    assert prepared.manifest["duplicates"] == {"documents": 0, "paragraphs": 0}
    assert prepared.train.num_documents + prepared.valid.num_documents == 30


def test_held_out_files_lose_nothing_to_the_training_text(tmp_path: Path) -> None:
    docs = documents(40)
    train, valid = write(tmp_path / "train.txt", docs), write(tmp_path / "valid.txt", docs[:5])
    prepared = prepare(section(train, valid=valid), TOKENIZER, tmp_path / "cache")
    assert prepared.valid.num_documents == 5
    assert prepared.train.num_documents == 35


def test_the_holdout_follows_the_content_not_the_order(tmp_path: Path) -> None:
    docs = documents(60)
    one = prepare(section(write(tmp_path / "a.txt", docs)), TOKENIZER, tmp_path / "cache")
    other = prepare(section(write(tmp_path / "b.txt", docs[::-1])), TOKENIZER, tmp_path / "cache")
    assert decoded(one, one.valid) == decoded(other, other.valid)[::-1]
    assert one.manifest["tokenizer"] == other.manifest["tokenizer"]


def test_prepared_twice_gives_the_same_bytes_and_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = section(write(tmp_path / "a.txt", documents(60)))
    one, other = prepare(data, TOKENIZER, tmp_path / "one"), prepare(data, TOKENIZER, tmp_path / "two")
    assert files_of(one) == files_of(other)
    assert one.path.name == other.path.name
    assert [p.name for p in (tmp_path / "one").iterdir()] == [one.path.name], "nothing is left beside it"
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
    assert prepare(data, TOKENIZER, tmp_path / "one").path == one.path


def test_another_text_or_setting_is_another_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", documents(60))
    names = {prepare(section(path), TOKENIZER, tmp_path / "cache").path.name}
    names.add(prepare(section(path, holdout=0.3), TOKENIZER, tmp_path / "cache").path.name)
    names.add(prepare(section(path), TokenizerSection(vocab_size=110), tmp_path / "cache").path.name)
    write(tmp_path / "a.txt", documents(61))
    names.add(prepare(section(path), TOKENIZER, tmp_path / "cache").path.name)
    assert len(names) == 4


def test_several_processes_give_the_bytes_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_DOCUMENTS", 7)
    data = section(write(tmp_path / "a.txt", documents(100)))
    one, other = prepare(data, TOKENIZER, tmp_path / "one", 1), prepare(data, TOKENIZER, tmp_path / "two", 3)
    assert files_of(one) == files_of(other)


@pytest.mark.parametrize("batches", [1, 4, 9])
def test_a_kill_and_a_second_call_give_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    monkeypatch.setattr(encode, "_BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(writer, "_COMMIT_CHARACTERS", 1500)
    data = section(write(tmp_path / "a.txt", documents(100)))
    whole = prepare(data, TOKENIZER, tmp_path / "one", 1)
    append, count = CorpusWriter.append, 0

    def interrupted(writer: CorpusWriter, encoded: encode.Encoded) -> None:
        nonlocal count
        append(writer, encoded)
        count += 1
        if count == batches:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(CorpusWriter, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, TOKENIZER, tmp_path / "two", 1)
    assert not (tmp_path / "two" / whole.path.name).exists()
    monkeypatch.setattr(module, "train_wordpiece", lambda *_: pytest.fail("the tokenizer was there already"))
    appended = 0

    def counting(*arguments: Any) -> None:
        nonlocal appended
        appended += 1
        append(*arguments)

    monkeypatch.setattr(CorpusWriter, "append", counting)
    assert files_of(prepare(data, TOKENIZER, tmp_path / "two", 1)) == files_of(whole)
    assert appended == 15 if batches == 1 else appended < 15


def test_a_real_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(writer, "_COMMIT_CHARACTERS", 1500)
    path = write(tmp_path / "a.txt", documents(100))
    whole = prepare(section(path), TOKENIZER, tmp_path / "one", 1)
    script = f"""
import os, signal, sys
from pathlib import Path
from bertillery.data import encode
from bertillery.data import writer
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.tokenizer import TokenizerSection
encode._BATCH_DOCUMENTS, writer._COMMIT_CHARACTERS = 7, 1500
append, count = writer.CorpusWriter.append, []
def killed(*arguments):
    append(*arguments)
    count.append(1)
    if len(count) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
writer.CorpusWriter.append = killed
prepare(CorpusSection(path=[{path!r}], holdout=0.2), TokenizerSection(vocab_size=120), Path(sys.argv[1]), 1)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "two")]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert files_of(prepare(section(path), TOKENIZER, tmp_path / "two", 1)) == files_of(whole)


def test_a_kill_behind_the_move_leaves_nothing_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = section(write(tmp_path / "a.txt", documents(60)))

    def killed(folder: Path, **_: Any) -> None:
        if folder.suffix == ".partial":
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, TOKENIZER, tmp_path / "cache")
    assert len([*(tmp_path / "cache").iterdir()]) == 2
    prepared = prepare(data, TOKENIZER, tmp_path / "cache")
    assert [*(tmp_path / "cache").iterdir()] == [prepared.path]


def test_a_corpus_is_on_disk_before_anything_depends_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = set(), os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    prepared = prepare(section(write(tmp_path / "a.txt", documents(60))), TOKENIZER, tmp_path / "cache")
    files = [prepared.path.parent, prepared.path, *prepared.path.rglob("*")]
    assert [file for file in files if file.stat().st_ino not in synced] == []


def test_an_existing_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    first = prepare(section(write(tmp_path / "a.txt", documents(60))), TOKENIZER, tmp_path / "cache")
    existing = TokenizerSection(path=str(first.path / "tokenizer"))
    second = prepare(section(write(tmp_path / "b.txt", documents(30, seed=1))), existing, tmp_path / "cache")
    assert second.manifest["tokenizer"] == first.manifest["tokenizer"]


def test_the_folder_follows_the_tokenizer_not_where_it_is(tmp_path: Path) -> None:
    data = section(write(tmp_path / "a.txt", documents(60)))
    here, there = tmp_path / "here", tmp_path / "there"
    trained = prepare(data, TOKENIZER, tmp_path / "cache").tokenizer()
    trained.save_pretrained(here)
    trained.save_pretrained(there)
    one, other = (prepare(data, TokenizerSection(path=str(p)), tmp_path / "cache").path for p in (here, there))
    assert one == other
    prepare(data, TokenizerSection(vocab_size=110), tmp_path / "cache").tokenizer().save_pretrained(here)
    again = prepare(data, TokenizerSection(path=str(here)), tmp_path / "cache")
    assert again.path != one
    assert len(again.unigrams) == 110


def test_corpora_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        prepare(section(write(tmp_path / "a.txt", [])), TOKENIZER, tmp_path / "cache")
    few = section(write(tmp_path / "a.txt", documents(8)), holdout=1e-9)
    with pytest.raises(ValueError, match=r"no held-out text: of 8 documents data.holdout=1e-09 holds out 0; .*valid"):
        prepare(few, TokenizerSection(vocab_size=70), tmp_path / "cache")
    same = write(tmp_path / "a.txt", documents(20))
    with pytest.raises(ValueError, match=r"no training text: data.path holds nothing new"):
        prepare(section(same, valid=same), TokenizerSection(vocab_size=70), tmp_path / "cache")
    with pytest.raises(ConfigError, match="asked 30522 pieces"):
        prepare(section(same), TokenizerSection(), tmp_path / "cache")


def test_one_document_with_held_out_files_is_enough(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "a.txt", documents(1)), write(tmp_path / "b.txt", documents(1, seed=1))
    tokenizer = TokenizerSection(vocab_size=64)
    assert prepare(section(train, valid=valid), tokenizer, tmp_path / "cache").train.num_documents == 1


def test_sentences_without_tokens_and_documents_of_them_vanish(tmp_path: Path) -> None:
    docs = [*documents(30), ["\x01\x02\x03"], ["\u200b", "A word. \x07"]]
    prepared = prepare(section(write(tmp_path / "a.txt", docs)), TOKENIZER, tmp_path / "cache")
    assert prepared.train.num_documents + prepared.valid.num_documents == 31
    assert (np.diff(prepared.train.sentences) > 0).all()


SPACES = [chr(point) for point in range(0x80, 0x3001) if chr(point).isspace()]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{ord(space):x}")
def test_an_initial_apart_from_its_full_stop(space: str) -> None:
    found = encode.sentences("en", f"They lacked vitamin C{space}. Scurvy{space}followed. It was cured.")
    assert " ".join(found) == f"They lacked vitamin C . Scurvy{space}followed. It was cured.", "nothing else changes"
    assert found[-1] == "It was cured."


class PanicException(BaseException):
    """As Rust's in its Python bindings."""


def test_a_paragraph_that_the_splitter_fails_at_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(language: str, paragraph: str) -> list[str]:
        if "gathering" in paragraph:
            raise PanicException("byte index 22 is not a char boundary")
        return segment(language, paragraph)

    monkeypatch.setattr(encode, "segment", fails)
    monkeypatch.setattr(encode, "_BATCH_DOCUMENTS", 7)
    path = write(tmp_path / "a.txt", [*documents(30), ["The hills. People gathering corn."]])
    one, two = (prepare(section(path), TOKENIZER, tmp_path / f"{n}", workers=n) for n in (1, 2))
    assert files_of(one) == files_of(two)
    found = [text for part in (one.train, one.valid) for document in decoded(one, part) for text in document]
    assert "the hills. people gathering corn." in [text.replace(" .", ".") for text in found]


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    prepared = prepare(section(write(tmp_path / "a.txt", documents(60))), TOKENIZER, tmp_path / "cache")
    ids = prepared.path / "train" / "ids.bin"
    os.truncate(ids, ids.stat().st_size - 2)
    with pytest.raises(ValueError, match=r"damaged: train/ids.bin has \d+ bytes instead of \d+; delete the folder"):
        PreparedCorpus.open(prepared.path)
    ids.unlink()
    with pytest.raises(ValueError, match=r"train/ids.bin is missing"):
        PreparedCorpus.open(prepared.path)
    manifest = json.loads((prepared.path / "manifest.json").read_text())
    (prepared.path / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(ValueError, match="format 0"):
        PreparedCorpus.open(prepared.path)
    with pytest.raises(ValueError, match="not a prepared corpus"):
        PreparedCorpus.open(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus to make damaged copies of."""
    folder = tmp_path_factory.mktemp("sound")
    return prepare(section(write(folder / "a.txt", documents(60))), TOKENIZER, folder / "cache").path


def test_a_changed_byte_of_any_file_is_found_and_named(sound: Path, tmp_path: Path) -> None:
    """Also where size and time of modification are as before."""
    corpus = shutil.copytree(sound, tmp_path / "corpus")
    PreparedCorpus.open(corpus)
    files = [file for file in sorted(corpus.rglob("*")) if file.is_file() and file.name != "checked.json"]
    assert {"ids.bin", "unigrams.npy", "tokenizer.json", "manifest.json"} <= {file.name for file in files}
    for file in files:
        stat, content = file.stat(), file.read_bytes()
        at = len(content) // 2
        at = content.index(b'"tokens": ') + 10 if file.name == "manifest.json" else at  # a digit stays one
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        name = re.escape(file.relative_to(corpus).as_posix())
        with pytest.raises(ValueError, match=rf"damaged: {name} has a wrong|{name}: damaged.*delete the folder"):
            PreparedCorpus.open(corpus)
        file.write_bytes(content)
        PreparedCorpus.open(corpus)
    (corpus / "tokenizer" / "added_tokens.json").write_text('{"the": 5}')
    with pytest.raises(ValueError, match=r"tokenizer/added_tokens.json is not part of the corpus; delete that file"):
        PreparedCorpus.open(corpus)


def test_a_corpus_is_read_once_and_its_cost_said(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bertillery.data.prepared")
    with monkeypatch.context() as context:
        context.setattr(module_of_prepared, "sha256", lambda _: pytest.fail("read again"))
        PreparedCorpus.open(sound)  # it was fingerprinted when it was made
    assert not caplog.text
    corpus = shutil.copytree(sound, tmp_path / "corpus")
    assert PreparedCorpus.open(corpus).fingerprint == PreparedCorpus.open(sound).fingerprint
    assert re.search(r"checking the prepared corpus \S+/corpus \(0\.\d MB\), once.*checked in \d", caplog.text, re.S)
    caplog.clear()
    PreparedCorpus.open(corpus)
    (corpus / "checked.json").write_text("{")
    assert not caplog.text
    PreparedCorpus.open(corpus)
    assert "checked in" in caplog.text


@pytest.mark.parametrize("part", ["train", "valid"])
def test_what_a_run_would_hang_at_is_refused_whoever_made_it(sound: Path, tmp_path: Path, part: str) -> None:
    """A manifest can be right about files that are wrong."""
    corpus = shutil.copytree(sound, tmp_path / "corpus")
    manifest = PreparedCorpus.open(corpus).manifest
    for name, kind, place, value, said in (
        ("ids", np.uint16, 3, 120, "ids.bin has a token beyond the 120"),
        ("sentences", np.int64, 1, 0, r"sentences.bin do not ascend"),
        ("sentences", np.int64, 0, 1, r"sentences.bin do not ascend"),
        ("documents", np.int64, 2, 0, r"documents.bin do not ascend"),
    ):
        file = corpus / part / f"{name}.bin"
        content = file.read_bytes()
        values = np.frombuffer(content, kind).copy()
        values[place] = value
        file.write_bytes(values.tobytes())
        write_manifest(corpus, manifest)
        (corpus / "checked.json").unlink()
        with pytest.raises(ValueError, match=rf"{part}: damaged: .*{said}"):
            PreparedCorpus.open(corpus)
        file.write_bytes(content)


def test_a_full_disk_says_where_and_that_it_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = section(write(tmp_path / "a.txt", documents(60)))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(CorpusWriter, "append", full)
        with pytest.raises(OSError, match=r"no space left while preparing .*\.partial.*continues from there"):
            prepare(data, TOKENIZER, tmp_path / "cache")
    prepare(data, TOKENIZER, tmp_path / "cache")


def test_sampling_is_bounded_and_independent_of_the_order() -> None:
    docs = [(False, doc) for doc in documents(300)]
    sample = module._sample(docs, 5000)
    assert 1250 < sum(map(len, sample)) <= 5000
    assert sorted(sample) == sorted(module._sample(docs[::-1], 5000))
    size = sum(len("\n".join(doc)) for _, doc in docs)
    assert len(module._sample(docs * 3, size)) == 300, "a repeated document counts once"
    assert len(module._sample([docs[0]] * 1000, 10)) == 1


def test_other_packages_may_leave_the_embedded_corpus_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without docstrings changes nothing: only the prepared text tells."""
    found = []
    for installed in ("these", "others"):
        monkeypatch.setattr("bertillery.data.pydocs.fingerprint", lambda installed=installed: installed)
        found.append(corpus_files(CorpusSection(), TOKENIZER))
    before, now = found
    assert before.sha256 != now.sha256
    assert before.may_equal(now)
    assert str(before).startswith("the documentation that is installed (")

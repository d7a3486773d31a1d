"""The report says what the files of runs say, in HTML and in Markdown, and shows foreign text as text."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bertillery.config.section import InputError
from bertillery.report.table import escaped
from bertillery.system.printable import printable
from pages.blocks import Page, Table
from pages.chart import Chart
from pages.cost import cost_of
from pages.render import page_html
from pages.report import main, report
from pages.runs import Run, find
from pages.scores import read_published, task_tables
from tests.pages.folders import HOSTILE, write_comparison, write_context, write_run

BEFORE = Path(__file__).resolve().parents[1] / "before" / "runs"


class Read(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & {*self.open[-1:]}:
            self.texts.append(data)


def table(page: Page, caption: str) -> list[list[str]]:
    found = [block for section in page.shown for block in section.blocks if isinstance(block, Table)]
    (only,) = [block.rows for block in found if block.caption == caption]
    return [[*row] for row in only]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, accuracy in ((1, 0.5), (2, 0.6), (3, 0.9)):
        write_run(tmp_path, seed=seed, accuracy=accuracy, text=HOSTILE)
    write_run(tmp_path, model="other", accuracy=0.4)
    write_context(tmp_path)
    write_comparison(tmp_path)
    return tmp_path


def test_scores_have_their_spread_baselines_and_published_rows(tmp_path: Path) -> None:
    for seed, accuracy in ((1, 0.5), (2, 0.6), (3, 0.9)):
        write_run(tmp_path, task="sst2", seed=seed, accuracy=accuracy)
    write_run(tmp_path, task="sst2", model="other", accuracy=0.4)
    (found,) = task_tables("sst2", find([tmp_path]).runs, read_published())
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["small"] == ["accuracy", "3", "60.00", "66.67", "20.82", "50.00", "90.00"]
    assert rows["other"] == ["accuracy", "1", "40.00", "", "", "", ""]
    assert rows["majority, without an encoder"][2] == "25.00"
    published = [found.rows[number] for number in found.theirs]
    assert ["BERT-Base, published (Devlin et al. 2019, table 1; test set)", "accuracy", "", "93.50"] in [
        [*row[:4]] for row in published
    ]
    assert all("published" in row[0] for row in published)
    assert not any("published" in row[0] for number, row in enumerate(found.rows) if number not in found.theirs)


def test_what_a_run_cost_is_summed_over_its_starts(tmp_path: Path) -> None:
    """Ten steps on two processes, ten on one, two seconds each."""
    cost = cost_of(Run.read(write_run(tmp_path, processes=2)))
    assert cost.device_hours == pytest.approx((10 * 2 * 2 + 10 * 2) / 3600)
    assert cost.flops == pytest.approx(1e12 * (10 * 2 * 2 + 10 * 2))
    assert cost.tokens == pytest.approx(100 * 20 * 2)
    assert (cost.device, cost.memory_gib) == ("A CPU", 3.0)


def test_the_page_says_what_the_files_say(runs: Path) -> None:
    page = report(find([runs]))
    overview = table(page, "Runs")
    assert overview[1][:3] == ["mood/other/seed-1", "finetune", "mood"]
    assert overview[1][4:] == ["train.csv, valid.csv", "20", "accuracy 40.00 (validation)", "finished"]
    students = table(page, "big and its students")
    assert students[2] == ["little", "accuracy 72.00", "90.0 %", "200", "0.0", "10"]
    shots = table(page, "copa, in context")
    assert shots[2][1:7] == ["4", "2", "65.00", "60.00", "70.00", "5.00"]
    charts = {block.title: block for section in page.shown for block in section.blocks if isinstance(block, Chart)}
    assert charts["copa: accuracy in context"].series[0].points == [(0.0, 50.0), (4.0, 65.0)]
    assert charts["mood: accuracy"].levels == {"majority": 0.25}
    assert [each.name for each in charts["mood: accuracy"].series] == [
        "other",
        *(f"small, seed-{i}" for i in (1, 2, 3)),
    ]
    text = page_html(page)
    for said in (
        "python -m finetune task.yaml run.seed=1",
        "9 rows, sha256 cccccccccccccccc",
        "torch 2.13.0",
        "a" * 12,
    ):
        assert said in text
    assert "/somewhere" not in text


def test_html_and_markdown_have_the_same_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"runs=[{runs}]", f"output={runs / 'out'}"]) == 0
    assert "4 runs" in capsys.readouterr().out
    markdown = (runs / "out" / "report.md").read_text(encoding="utf-8")
    html = (runs / "out" / "report.html").read_text(encoding="utf-8")
    texts = {*Read(html).texts}
    tables = [block for part in report(find([runs])).shown for block in part.blocks if isinstance(block, Table)]
    cells = {cell for each in tables for row in each.rows for cell in row if re.search(r"\d", cell)}
    assert len(cells) > 40
    assert cells <= texts
    assert [cell for cell in cells if escaped(cell) not in markdown] == []
    pictures = re.findall(r"\]\((report/[\w.-]+\.svg)\)", markdown)
    assert len(pictures) == html.count("<svg")
    for picture in pictures:
        assert (runs / "out" / picture).read_text(encoding="utf-8").startswith("<svg xmlns")


def test_foreign_text_is_shown_as_text(runs: Path) -> None:
    """No element and no attribute comes of it, nothing is a template, and no character turns the text around."""
    html = page_html(report(find([runs])))
    found = Read(html)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not any(tag == "img" or any(name.startswith("on") for name in values) for tag, values in found.tags)
    shown = printable(HOSTILE).replace("\t", " ")
    assert any("<script>alert(1)</script>" in text and "{{ 7 * 7 }}" in text and "שלום" in text for text in found.texts)
    assert any(text.startswith(shown[:40]) for text in found.texts)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)


def test_a_page_loads_nothing(runs: Path) -> None:
    found = Read(page_html(report(find([runs]))))
    for _, values in found.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (values.get(name) or "#").startswith(("#", "data:"))
    (policy,) = [v["content"] for tag, v in found.tags if tag == "meta" and v.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_runs_of_earlier_versions_are_reported() -> None:
    """They do not say how they were started."""
    page = report(find([BEFORE]))
    assert len(table(page, "Runs")) == 14
    assert "python -m pretrain tests/before/runs/pretrain/bert/config.yaml" in page_html(page)


def test_what_is_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    write_run(tmp_path, seed=1)
    broken = write_run(tmp_path, seed=2)
    (broken / "finished.json").write_text("{")
    found = find([tmp_path])
    assert len(found.runs) == 1
    assert "finished.json" in found.left_out[0]
    assert "Left out: " in page_html(report(found))
    shutil.rmtree(tmp_path / "finetune" / "mood" / "small" / "seed-1")
    with pytest.raises(InputError, match=r"no run.*finished\.json"):
        find([tmp_path])


def test_folders_of_exports_are_not_runs(tmp_path: Path) -> None:
    """W&B's copy of a configuration has the same name."""
    run = write_run(tmp_path)
    copied = run.parent / "wandb" / "files"
    copied.mkdir(parents=True)
    shutil.copy(run / "config.yaml", copied)
    assert len(find([tmp_path, run]).runs) == 1


def test_published_scores_are_of_tasks_and_metrics_of_ours() -> None:
    """Else they would never be shown."""
    root = Path(__file__).resolve().parents[2] / "configs" / "finetune"
    for entry in read_published():
        for task, scores in entry.scores.items():
            text = (root / f"{task}.yaml").read_text(encoding="utf-8")
            assert all(metric in text for metric in scores), (entry.model, task)
            assert all(0 <= value <= 100 for value in scores.values())


def test_each_start_of_a_run_is_recorded(tmp_path: Path) -> None:
    """And read back; a line that was cut is left out."""
    from bertillery.run.starts import note_start, read_starts

    given = {"processes": 1, "device": "cpu", "precision": "no", "environment": {"python": "3"}, "data": {}}
    note_start(tmp_path, step=0, **given)
    note_start(tmp_path, step=7, **given)
    with (tmp_path / "starts.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 9})[:-3])
    assert [start.step for start in read_starts(tmp_path)] == [0, 7]

"""The pages in a real browser, without a network: nothing runs that should not, and everything can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertForPreTraining

from bertillery.system.printable import printable
from pages import screenshots
from pages.inspect import page
from pages.render import write_page
from pages.report import report
from pages.runs import find
from tests.pages.folders import HOSTILE, write_comparison, write_context, write_run
from tests.pages.test_inspect import MODEL, save

pytestmark = pytest.mark.skipif(screenshots.missing() is not None, reason=screenshots.missing() or "")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for seed, accuracy in ((1, 0.5), (2, 0.75)):
        write_run(folder / "runs", seed=seed, accuracy=accuracy, text=HOSTILE)
    write_context(folder / "runs")
    write_comparison(folder / "runs")
    write_page(report(find([folder / "runs"])), folder / "report.html")
    torch.manual_seed(0)
    model = save(BertForPreTraining(BertConfig(**MODEL)), folder / "bert")
    with torch.inference_mode():
        write_page(page(str(model), f"w1 w2 {HOSTILE}", "w4 w5"), folder / "inspect.html")
    return {name: folder / f"{name}.html" for name in ("report", "inspect")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with screenshots.browser() as found:
        yield found


@pytest.mark.parametrize("name", ["report", "inspect"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1120), ("dark", 390)])
def test_a_page_opens(browser: Any, files: dict[str, Path], name: str, scheme: Any, width: int) -> None:
    """Without errors, dialogs or requests; no wider than the window; in the colours that are asked for."""
    wrong: list[str] = []
    browser.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    browser.on("dialog", lambda dialog: wrong.append(dialog.message))
    browser.on("weberror", lambda error: wrong.append(str(error.error)))
    browser.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    with screenshots.opened(browser, files[name].as_uri(), scheme=scheme, width=width) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
        assert shown.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        text = shown.evaluate("document.body.innerText")
        assert "<script>alert(1)</script>" in text
        assert printable(HOSTILE)[:30] in text
    assert wrong == []


def test_the_attention_of_a_head_can_be_read_with_the_keyboard(browser: Any, files: dict[str, Path]) -> None:
    """What is said of a token are the weights of the head that was chosen."""
    with screenshots.opened(browser, files["inspect"].as_uri()) as shown:
        shown.wait_for_selector(".lines-of-attention path")
        button = shown.locator(".thumbs button").nth(3)
        button.focus()
        shown.keyboard.press("Enter")
        assert shown.locator(".thumbs button[aria-pressed=true]").count() == 1
        assert button.get_attribute("aria-pressed") == "true"
        assert "Layer 2, head 2" in shown.locator(".which").inner_text()
        shown.locator("select.query").select_option("1")
        said = shown.locator(".which").inner_text()
        assert "w1 looks at" in said
        shares = [int(part.split()[-2]) for part in said.rstrip(".").split("looks at")[1].split(", ")]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 102
        lines = shown.locator(".lines-of-attention path").count()
        shown.locator("select.query").select_option("-1")
        assert shown.locator(".lines-of-attention path").count() > lines


def test_what_a_screen_reader_needs_is_there(browser: Any, files: dict[str, Path]) -> None:
    """Each picture has words, each table a head, headings follow each other, and what scrolls can be reached."""
    for file in files.values():
        with screenshots.opened(browser, file.as_uri(), width=390) as shown:
            assert shown.evaluate("document.documentElement.lang") == "en"
            assert shown.evaluate("[...document.querySelectorAll('svg')].every(one => one.getAttribute('aria-label'))")
            assert shown.evaluate("[...document.images].every(one => one.alt)")
            assert shown.evaluate(
                "[...document.querySelectorAll('table')].every(one => one.querySelector('th[scope=col]'))"
            )
            assert shown.evaluate("document.querySelectorAll('h1').length") == 1
            assert shown.evaluate("[...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0)")
            links = "[...document.querySelectorAll('nav a')].every(one => document.getElementById(one.hash.slice(1)))"
            assert shown.evaluate(links)


def test_text_in_plots_can_be_selected(browser: Any, files: dict[str, Path]) -> None:
    with screenshots.opened(browser, files["report"].as_uri()) as shown:
        shown.locator(".plot text", has_text="majority").first.click(click_count=3)
        assert "majority" in shown.evaluate("getSelection().toString()")


def test_screenshots_are_small_and_differ(browser: Any, files: dict[str, Path], tmp_path: Path) -> None:
    made = screenshots.photograph(browser, files["report"].as_uri(), tmp_path / "a", height=400)
    light, dark = (Image.open(file).convert("L") for file in made)
    assert light.size == dark.size == (1120 + 16 + 390, 400)
    assert (light.getpixel((3, 3)), dark.getpixel((3, 3))) == (255, 16)
    assert {file.name for file in tmp_path.iterdir()} == {"a-light.png", "a-dark.png"}
    assert all(file.stat().st_size < 150_000 for file in tmp_path.iterdir())

"""The report escapes all names, makes no request, sorts and filters, and stays small."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import metrics
from evaluation.figures import FIGURES, Results
from evaluation.report import MAX_MISTAKES, list_mistakes, write_report
from evaluation.trained import TrainedModel
from tests.browser import Browser, needs_browser
from training import history
from training.data import Dataset
from vit import VisionTransformer

NASTY = [
    "<img src=x onerror=alert(1)>", "\"><script>alert(2)</script>", "' onmouseover='alert(3)", "</style>{{ 7 * 7 }}",
    "&lt;b&gt;", "https://example.com/x.png", "javascript:alert(4)", "猫\udcff", "x" * 80, "cat",
]  # fmt: skip


def results_of(names: list[str], num_images: int = 60, img_size: int = 8, epochs: int = 2, **parts) -> Results:
    """An evaluation of random predictions, of which about half are right."""
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, len(names), num_images))
    logits = torch.from_numpy(random.normal(size=(num_images, len(names)))).float()
    logits[range(0, num_images, 2), labels[::2]] += 9
    images = torch.from_numpy(random.integers(0, 256, (num_images, 3, img_size, img_size), dtype=np.uint8))
    records = {name: [1.0 + i for i in range(epochs)] for name in history.new_history("test")}
    config = {"dataset": names[0], "img_size": img_size, "num_epochs": epochs}
    saved = {
        "model_name": "VisionTransformer", "config": config, "precision": "float32", "epoch": 2, "history": records,
        "data": {"class_names": names, "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    model = VisionTransformer(8, 4, embed_dim=12, depth=1, num_heads=1, num_classes=len(names))
    trained = TrainedModel(Path("nowhere") / f"{names[0].replace('/', '')}.pth", saved, model, torch.device("cpu"))
    evaluation = {**trained.describe(), "dataset": names[0], "split": "test", "chosen_on": "test"}
    evaluation |= {**metrics.measure(logits, labels, names), **parts}
    return Results(evaluation, Dataset(names, images, labels, images, labels), trained, logits)


class Page(HTMLParser):
    """The tags, attributes, addresses and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.attributes, self.addresses, self.text = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def nasty(tmp_path) -> Path:
    (tmp_path / "confusion_matrix.png").write_bytes(b"\x89PNG of a figure")
    write_report(tmp_path / "report.html", results_of(NASTY), {"attention": NASTY[0]})
    return tmp_path / "report.html"


def test_names_are_shown_as_text_everywhere(nasty):
    page = Page(nasty)
    for name in NASTY:
        shown = name.replace("\udcff", "?")
        assert page.text.count(shown) >= 2  # the table and the mistakes
        assert page.attributes.count(("data-true", shown)) + page.attributes.count(("data-predicted", shown)) > 0
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "49" not in re.findall(r"</style>(\d+)", page.text)
    assert "{{ 7 * 7 }}" in page.text


def test_all_addresses_are_inside_the_page(nasty):
    page = Page(nasty)
    assert len(page.addresses) > 20
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", address) for address in page.addresses)
    assert not re.search(r"@import|url\(", page.source)


def test_only_the_pages_own_script_may_run_and_no_request_is_allowed(nasty):
    source = nasty.read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>\n</body>", source, re.DOTALL)
    script = script.split("<script>")[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_figures_are_shown_with_how_to_read_them(nasty):
    page = Page(nasty)
    assert base64.b64encode(b"\x89PNG of a figure").decode() in page.source
    assert "Confusion matrix" in page.text
    assert "Each row is a true class, each column a predicted one; the diagonal is correct." in page.text
    assert "the model is overconfident, above it" not in page.text  # how to read reliability.png, which is not there
    assert f"attention: {NASTY[0]}" in page.text


@pytest.mark.parametrize(
    ("chosen_on", "said"),
    [
        (
            "test",
            "on these same test images.*slightly optimistic: it is the best of 2 epochs.*last epoch has 2.00 %",
        ),
        ("val", "chosen on held-out training images; the test images played no part"),
        (None, "is unknown whether the checkpoint was chosen on these images"),
    ],
)
def test_the_page_says_on_which_images_the_checkpoint_was_chosen(tmp_path, chosen_on, said):
    write_report(tmp_path / "report.html", results_of(["a", "b"], chosen_on=chosen_on), {})
    assert re.search(said, " ".join(Page(tmp_path / "report.html").text.split()))


def test_the_speed_is_all_images_over_all_the_time(tmp_path):
    results = results_of(["a", "b"])
    speeds = results.trained.saved["history"]["images_per_second"]
    speeds[:] = [400.0, 100.0]  # as where the first epoch has small images
    write_report(tmp_path / "report.html", results, {})
    assert "at 160 images/s" in Page(tmp_path / "report.html").text


def test_a_checkpoint_without_the_rest_of_its_run_says_how_far_its_history_goes(tmp_path):
    """As where best_model.pth was copied to another folder: its own history ends with its epoch."""
    results = results_of(["a", "b"], chosen_on="test")
    results.trained.saved["config"]["num_epochs"] = 5
    write_report(tmp_path / "report.html", results, {})
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "Training for 2 of 5 epochs took" in text
    assert "the best of" not in text


def test_the_page_says_that_a_run_has_no_history(tmp_path):
    write_report(tmp_path / "report.html", results_of(["a", "b"], epochs=0), {})
    assert "no finished epoch, or its history is missing" in Page(tmp_path / "report.html").text


@pytest.mark.parametrize("gap", ["overconfident", "underconfident", "told from chance"])
def test_the_calibration_is_said_in_words(tmp_path, gap):
    results = results_of(["a", "b"])
    interval = {"overconfident": [0.1, 0.3], "underconfident": [-0.3, -0.1], "told from chance": [-0.1, 0.1]}[gap]
    results.evaluation["calibration"]["overconfidence_interval"] = interval
    write_report(tmp_path / "report.html", results, {})
    assert gap in Page(tmp_path / "report.html").text


@pytest.mark.parametrize(("num_classes", "img_size"), [(10, 32), (1000, 8), (20, 128)])
def test_the_page_is_small_whatever_the_run(tmp_path, num_classes, img_size):
    names = [f"{i} {'x' * 80}" for i in range(num_classes)]
    for name in FIGURES:
        (tmp_path / f"{name}.png").write_bytes(b"x" * 120_000)  # 12 figures of 120 kB: the usual
    write_report(tmp_path / "report.html", results_of(names, 2000, img_size), {})
    page = Page(tmp_path / "report.html")
    assert len(page.source.encode()) < 5e6
    assert page.tags.count("figure") == 10  # all but those of --corruptions and --compare
    assert 50 < page.tags.count("li") <= MAX_MISTAKES


def test_where_pictures_are_large_each_pair_of_classes_keeps_its_most_confident_mistake(tmp_path):
    results = results_of(["a", "b", "c"], 2000, 128)
    logits = results.logits
    logits[0], results.labels[0] = torch.tensor([0.1, 0.0, 0.2]), 1  # the least confident mistake, and the only
    others = (results.labels == 1) & (logits.argmax(dim=1) == 2)  # of its pair
    others[0] = False
    logits[others, 1] = 99.0
    shown = list_mistakes(results)
    assert len(shown) < MAX_MISTAKES  # their bytes are too many
    assert ("b", "c") in {(row["true"], row["predicted"]) for row in shown}
    confidences = [row["probability"] for row in shown]
    assert confidences == sorted(confidences, reverse=True)


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        yield browser


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_it_without_requests_errors_or_horizontal_scrolling(nasty, browser, width, dark):
    nasty.with_name("confusion_matrix.png").write_bytes(b"")
    browser.open(nasty, width, dark)
    assert [url for url in browser.requests if not url.startswith("data:")] == [nasty.resolve().as_uri()]
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark


@needs_browser
def test_in_a_browser_the_table_sorts_and_the_mistakes_filter(nasty, browser):
    browser.open(nasty, 1280)
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[%d].textContent)"
    before = browser.evaluate(column % 0)
    click = "document.querySelectorAll('table.sortable th button')[%d].click()"
    browser.evaluate(click % 1)
    numbers = [int(text) for text in browser.evaluate(column % 1)]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    browser.evaluate(click % 1)
    assert [int(text) for text in browser.evaluate(column % 1)] == numbers[::-1]
    assert browser.evaluate("document.querySelector('th[aria-sort=descending]').textContent") == "images"
    assert sorted(browser.evaluate(column % 0)) == sorted(before)

    shown = "[...document.querySelectorAll('.mistakes li')].filter(x => x.offsetParent).map(x => x.dataset.true)"
    everything = browser.evaluate(shown)
    for name in set(everything):
        browser.evaluate(
            f"(() => {{ const s = document.querySelector('select[name=true]'); s.value = {name!r};"
            " s.dispatchEvent(new Event('change')) })()"
        )
        assert browser.evaluate(shown) == [name] * everything.count(name)
    assert browser.problems == []


@needs_browser
def test_without_scripts_and_in_print_the_mistakes_are_shown_without_the_form(nasty, browser):
    for options in ({"scripts": False}, {"media": "print"}):
        browser.open(nasty, 800, **options)
        visible = "[...document.querySelectorAll('%s')].filter(x => x.offsetParent).length"
        assert browser.evaluate(visible % ".mistakes li") > 10
        assert browser.evaluate(visible % ".filters") == 0

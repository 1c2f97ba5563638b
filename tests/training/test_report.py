"""The page: whole, self-contained, honest about what is missing, and no wider than the screen."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from tests.browser import measured, needs_browser
from training.comparisons import planned_comparisons
from training.report import write_report
from training.results import Results, read_results, write_results

from .synthetic_results import ANGLE_ERROR, DIGIT_ERROR, build_results

FIGURES = {
    "answer",
    "learning-curves-digit",
    "learning-curves-angle",
    "final-error-digit",
    "final-error-angle",
    "confusion-regression",
    "confusion-classification",
    "angle-residuals",
    "reliability-digit",
    "reliability-angle",
    "gradient-by-probability",
    "gradient-by-probability-logarithmic",
    "recovery-accuracy",
    "sensitivity-digit",
    "sensitivity-angle",
}


def unfinished() -> Results:
    """Interrupted in the second seed of the second objective, before every experiment."""
    results = build_results(complete=False, experiments=False, parity=False)
    runs = [run for run in results.runs if run.task == "digit"][:5]
    runs[-1] = runs[-1].model_copy(update={"complete": False, "details": None, "epochs": runs[-1].epochs[:1]})
    return results.model_copy(update={"runs": runs})


def diverged() -> Results:
    nan = float("nan")
    return build_results(
        digit={**DIGIT_ERROR, "cross-entropy": (0.02, nan, 0.02)},
        angle={**ANGLE_ERROR, ("regression-mse", "direct"): (nan, nan, nan)},
    )


def harder() -> Results:
    """Only one of the harder versions of the digits was asked for."""
    results = build_results(angle={}, experiments=False)
    described = [item for item in results.objectives if item.head == "classification"]
    names = {item.name for item in described}
    task = {"task": "label-noise-40"}
    return results.model_copy(
        update={
            "objectives": [item.model_copy(update=task) for item in described],
            "runs": [run.model_copy(update=task) for run in results.runs if run.objective in names],
            "misread": None,
        }
    )


WORLDS = {
    "complete": build_results,
    "one seed": lambda: build_results(seeds=1),
    "nothing": lambda: build_results(digit={}, angle={}, complete=False, experiments=False, parity=False),
    "begun": lambda: unfinished().model_copy(update={"runs": [unfinished().runs[-1]]}),
    "unfinished": unfinished,
    "diverged": diverged,
    "without details": lambda: build_results(details=False),
    "failed parity": lambda: build_results(angle={}, details=False, experiments=False, parity_passed=False),
    "digit only": lambda: build_results(angle={}),
    "harder": harder,
}


class Page(HTMLParser):
    """Collects what the tests ask about."""

    void = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a world by name, written once."""
    return cache(lambda name: write_report(WORLDS[name](), tmp_path_factory.mktemp("world")))


@pytest.fixture
def complete(written):
    return written("complete")


# No other test looks at these, and each is a page of figures.
ONLY_HERE = ("begun", "without details", "digit only")


@pytest.fixture(params=[pytest.param(w, marks=pytest.mark.thorough if w in ONLY_HERE else ()) for w in WORLDS])
def world(request, written):
    return written(request.param)


def test_nothing_comes_from_elsewhere(world):
    text = world.read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, target)
    assert not re.search(r"@import|url\((?!#)", text)


def test_accessible_bones(world):
    page = Page(world.read_text(encoding="utf-8"))
    assert dict(page.tags)["html"]["lang"] == "en"
    assert page.count("title") == 1
    assert any(attributes.get("name") == "viewport" for tag, attributes in page.tags if tag == "meta")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawings = [attributes for _, attributes in page.tags if attributes.get("class") == "drawing"]
    # The two that can be played with are no figures.
    assert len(drawings) == page.count("svg") - 2 == page.count("figure") == page.count("figcaption")
    assert all(len(attributes["aria-label"] or "") > 40 for attributes in drawings)
    for _, attributes in page.tags:
        if attributes.get("aria-labelledby"):
            assert attributes["aria-labelledby"] in ids
        link = attributes.get("href") or ""
        if link.startswith("#"):
            assert link[1:] in ids
    sliders = [attributes for tag, attributes in page.tags if tag == "input"]
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert {slider["id"] for slider in sliders} == labelled


def test_references_inside_the_drawings_resolve(complete):
    text = complete.read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    targets = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets
    assert targets <= ids


def test_every_figure_is_a_picture(complete):
    directory = complete.parent / "figures"
    assert {path.name for path in directory.iterdir()} == {
        f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")
    }
    for name in FIGURES:
        pixels = imread(directory / f"{name}.png")
        assert min(pixels.shape[:2]) > 300
        assert np.ptp(pixels[..., :3]) > 0.5
        root = ElementTree.parse(directory / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10


def test_every_figure_is_on_the_page_once(complete):
    page = Page(complete.read_text(encoding="utf-8"))
    assert sorted(str(attributes["id"]) for tag, attributes in page.tags if tag == "figure") == sorted(FIGURES)


def test_figures_of_partial_results_are_pictures_too(world):
    for path in (world.parent / "figures").glob("*.png"):
        assert np.ptp(imread(path)[..., :3]) > 0.5


def test_same_results_same_bytes(complete, tmp_path):
    write_report(build_results(), tmp_path)
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (complete.parent, tmp_path)
    )
    assert first == second


def test_page_gives_the_numbers(complete):
    text = Page(complete.read_text(encoding="utf-8")).text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        "8.71 ± 0.16°",
        "60,000 images to train on, 10,000 to test on",
        "python -m training.compare --seeds 3",
        "torch 2.14.1",
        "MSE is for classification and CEE for regression",
        "Deep Learning from Scratch",
        "235,146",
    ):
        assert expected in text
    assert re.search(r"97\.97 % \(97\.\d+ to 98\.\d+\)", text)
    assert "not complete" not in text
    assert "FAILED" not in text


def test_the_first_screen_is_one_sentence_one_picture_and_three_numbers(complete):
    text = complete.read_text(encoding="utf-8")
    first = text[text.index('<section class="answer"') : text.index("<nav")]
    page = Page(first)
    assert first.count('class="sentence"') == 1
    assert page.count("figure") == 1
    assert page.count("li") == 3
    # Its words are defined where they stand.
    for word in ("CEE", "raw outputs", "regression head", "classification head"):
        assert f"<em>{word}</em>" in first
    assert "best learning rate" in page.text
    assert "epochs (3 and 5) was not tuned" in page.text


def test_what_to_use_ends_the_page_and_machine_details_come_late(complete):
    text = complete.read_text(encoding="utf-8")
    places = [text.index(f'id="{place}"') for place in ("answer", "gradient", "recovery", "source", "digit", "angle")]
    assert places == sorted(places)
    assert text.index("x86_64, cpu") > text.index('id="numbers"')
    assert text.index('id="use"') > text.index("x86_64, cpu")
    rows = re.findall(r"<tr><th scope=\"row\">([^<]+)</th>", text[text.index('id="use"') :])
    assert len(rows) == 5


def test_a_real_misread_digit_is_shown(complete):
    text = complete.read_text(encoding="utf-8")
    assert 'alt="A handwritten 7, test image 7"' in text
    assert "data:image/png;base64," in text


def test_diverged_runs_are_marked(written):
    text = Page(written("diverged").read_text(encoding="utf-8")).text
    assert "Some trainings diverged cross-entropy (digit, seed 1)" in text
    assert "diverged in 3 of 3" in text
    assert "diverged from 1 of 3 seeds" in text or "diverged from 3 of 3 seeds" in text


def test_failed_parity_is_loud(written):
    page = Page(written("failed parity").read_text(encoding="utf-8"))
    assert any(attributes.get("role") == "alert" for _, attributes in page.tags)
    assert "Parity failed: MSE" in page.text
    assert "✗ FAILED" in page.text
    assert page.text.index("Parity failed") < page.text.index("What to use when")


def test_partial_results_say_so(written):
    text = Page(written("unfinished").read_text(encoding="utf-8")).text
    assert "This run is not complete" in text
    assert "Finished trainings: 4." in text
    assert "Begun but not finished, shown in the learning curves only: 1." in text
    assert "Classification head, MSE on raw outputs (digit)" in text
    assert "Parity not checked" in text


def test_a_harder_version_alone_is_answered_and_what_was_not_asked_is_left_out(written):
    text = written("harder").read_text(encoding="utf-8")
    page = Page(text)
    assert "With 40 % of the training labels wrong, MSE on raw outputs is 0.47 points more accurate than" in page.text
    assert "more digits read right with MSE on raw outputs than with cross-entropy" in page.text
    assert "A category, and many labels are wrong" in page.text
    assert 'id="answer"' in text
    assert 'id="label-noise"' in text
    assert "The run ended before" not in page.text
    for place in ("gradient", "recovery", "source", "digit", "angle", "probabilities"):
        assert f'id="{place}"' not in text


def test_one_seed_says_so(written):
    text = Page(written("one seed").read_text(encoding="utf-8")).text
    assert "One seed" in text
    assert "±" not in text.replace("±45°", "").replace("± is", "")


def test_hostile_words_are_only_words(tmp_path):
    results = build_results(angle={}, details=False, experiments=False)
    objectives = [item.model_copy(update={"title": "<img src=x> & co"}) for item in results.objectives]
    text = write_report(results.model_copy(update={"objectives": objectives, "command": "</code><script>"}), tmp_path)
    page = Page(text.read_text(encoding="utf-8"))
    assert page.count("img") == 0
    assert page.count("script") == 1


def test_values_that_are_not_finite_survive_the_file(tmp_path):
    write_results(diverged(), tmp_path / "results.json")
    before, after = (planned_comparisons(found) for found in (diverged(), read_results(tmp_path / "results.json")))
    assert [item.verdict for item in before] == [item.verdict for item in after]
    assert "none" in {item.verdict for item in after}


MEASURE = """<script>
addEventListener("load", () => {
  const slider = document.querySelector("#slide-probability");
  const cells = () => [...document.querySelectorAll("#play-probability td")].map((e) => e.textContent);
  slider.value = 500; slider.dispatchEvent(new Event("input")); const half = cells();
  slider.value = 900; slider.dispatchEvent(new Event("input")); const sure = cells();
  const height = document.documentElement.scrollHeight;
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
  const outside = [...document.querySelectorAll("main *")].filter(
    (e) => !e.closest(".scroll table") && !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 0.5);
  parent.postMessage(JSON.stringify({
    wide: innerWidth, height, half, sure, spoken: slider.getAttribute("aria-valuetext"),
    document: document.documentElement.scrollWidth,
    outside: outside.map((e) => e.tagName + "." + e.className),
    drawings: [...document.querySelectorAll(".drawing svg")].map((e) => e.getBoundingClientRect().width),
    columns: getComputedStyle(document.querySelector(".play")).gridTemplateColumns.split(" ").length}), "*");
});
</script>"""

# A frame, because a browser's own window is never narrower than 500 pixels.
FRAME = """<!doctype html><pre id="measured"></pre>
<script>addEventListener("message", (e) => { document.getElementById("measured").textContent = e.data; });</script>
<iframe src="page.html" style="border: 0; width: WIDTHpx; height: 1000px"></iframe>"""


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_the_window(complete, tmp_path, width):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(complete.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    found = measured(frame.as_uri(), tmp_path / "profile", seconds=5)
    assert found["wide"] == width
    assert found["document"] <= width
    assert found["outside"] == []
    assert found["columns"] == (2 if width == 1280 else 1)
    # A phone shows it all in a page that can be scrolled through, the details folded.
    assert found["height"] <= 8000
    # Half sure: 0.6931 and 0.5 by cross-entropy; for the mean of squares, 0.25 (1 + 1/9) / 10.
    assert found["half"] == ["0.6931", "0.5000", "0.6931", "0.5000", "0.0278", "0.0278"]
    assert found["sure"][:2] == ["0.1054", "0.1000"]
    assert found["spoken"] == "0.9000"
    assert len(found["drawings"]) == len(FIGURES)
    assert all(300 < drawing <= width for drawing in found["drawings"])

"""The page of a run: what it holds, that it is safe and needs nothing else, and that it works in a browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import Browser, find_browser
from PIL import Image
from tiny import tiny_config

from torchcaps.cli import main
from torchcaps.config import Config, LossConfig, ModelConfig
from torchcaps.examine.found import CapsuleLayerFacts, Examination, Placebo
from torchcaps.forms import ScoreForm
from torchcaps.inspect.couplings import Box
from torchcaps.models import create_model
from torchcaps.papers import registry
from torchcaps.report import report, write_report
from torchcaps.report.page import render
from torchcaps.report.report import draw_history, look, read_story
from torchcaps.scores import score_word
from torchcaps.train import fit, load_run, opened
from torchcaps.train.display import Display

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">$\\frac'
SMALL = {"channels": 16, "primary": 4, "kernel": 3, "stride": 1, "class_pose": 8}


def capsnet_config(out: Path) -> Config:
    """A demo in small: CapsNet with a decoder, two epochs of the digits."""
    config = tiny_config(out, batch_size=128, recipe="digits", loss=LossConfig("margin", reconstruction=0.0005))
    return replace(config, model=ModelConfig("capsnet", SMALL))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report."""
    folder = fit(capsnet_config(tmp_path_factory.mktemp("runs"))).folder
    write_report(folder)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


class Reader(HTMLParser):
    """The tags of a page, its words, and the addresses that it would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            str(value) for name, value in attrs if name in ("src", "srcset", "href", "xlink:href", "action")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_data(page: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[0])


def test_page_is_whole_and_fetches_nothing(run: Path) -> None:
    page = (run / "report.html").read_text()
    reader = Reader(page)
    result = json.loads((run / "result.json").read_text())
    text = " ".join(reader.words)
    assert f"{result['test_accuracy']:.2%}" in text and f"{result['test_errors']:,} of 360 wrong" in text
    assert f"On all 360 images of the test split: {result['test_accuracy']:.2%} right." in text
    for heading in ("Look inside", "Learning", "Right and wrong", "Worst mistakes", "Time", "Do it again"):
        assert heading in text
    assert '"batch_size": 128' in text and "torchcaps train digits --model.options" in text
    assert all(address.startswith(("#", "data:")) for address in reader.fetched), reader.fetched
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert len(page) < 3_000_000
    examples = page_data(page)["examples"]
    assert {example["right"] for example in examples} == {True, False}
    assert all(example["sweep"]["rows"] == 8 and example["sheet"]["columns"] == 11 for example in examples)
    assert all(len(example["routed"][0]["strength"]) == 3 for example in examples)


def test_page_explains_terms_at_their_first_use_and_folds_the_rest(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<h1>capsnet on digits</h1>" in page and "<title>capsnet on digits</title>" in page
    assert "recipe digits, seed 0" in page and "<details open" not in page
    said = re.findall(r"<dfn>(.*?)</dfn>", page) + [
        term for part in page_data(page)["terms"].values() for term, _ in part
    ]
    for term in (
        "capsule",
        "pose",
        "parent",
        "vote",
        "routing",
        "coupling",
        "iteration",
        "length",
        "epoch",
        "calibration",
    ):
        assert said.count(term) == 1, term
    assert page.index("<dfn>capsule</dfn>") < page.index('<div id="examples">')
    for example in page_data(page)["examples"]:
        assert sorted(example["telling"]) == list(range(8))


@pytest.mark.parametrize("word", ["length", "probability"])
def test_probability_is_said_only_where_a_score_is_one(run: Path, word: str) -> None:
    sight = look(read_story(run))
    assert sight.word == "length"
    page = render(read_story(run), {}, replace(sight, word=word))
    words = " ".join(Reader(page[: page.index('<script type="application/json"')]).words) + json.dumps(
        page_data(page)["terms"]
    )
    assert ("probabilit" in words) is (word == "probability")
    assert ("%" in words.split("Worst mistakes")[-1].split("Time")[0]) is (word == "probability")


def test_words_of_scores() -> None:
    assert score_word(ScoreForm("length", "none")) == "length"
    assert score_word(ScoreForm("length", "softmax")) == score_word(ScoreForm("probability", "none")) == "probability"
    assert score_word(ScoreForm("logit", "none")) == "score"


def test_title_does_not_say_where_data_lie(run: Path) -> None:
    story = read_story(run)
    for name, said in (("folder:/home/me/flowers", "flowers"), ("npz:blood.npz", "blood.npz"), ("mnist", "mnist")):
        config = replace(story.config, data=replace(story.config.data, name=name))
        assert f"<h1>capsnet on {said}</h1>" in render(replace(story, config=config), {}, "")


def test_figures_are_written_for_papers(run: Path) -> None:
    names = {path.stem for path in (run / "figures").iterdir()}
    plots = {"loss", "accuracy", "timing", "confusion", "class-accuracy", "calibration"}
    assert names == plots | {"reconstructions", "routing-stack-0"}
    for name in names:
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_unfinished_run_is_shown_on_its_validation_split(copy: Path) -> None:
    (copy / "result.json").unlink()
    page = write_report(copy, "stopped & saved").read_text()
    words = " ".join(Reader(page).words)
    assert "unfinished, 2 of 2 epochs" in words and "stopped & saved" in words
    assert "of the validation split" in words and "test split" not in words
    validation = json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])["validation_accuracy"]
    assert f"{validation:.2%}" in words


def test_what_was_measured_stands_beside_the_page(run: Path) -> None:
    record = json.loads((run / "evaluation.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert (record["accuracy"], record["images"]) == (result["test_accuracy"], result["test_images"])
    with (run / "by-class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list("0123456789")
    found = sum(int(row["found"]) for row in rows)
    assert found == result["test_images"] - result["test_errors"]
    with (run / "confusion.csv").open(newline="") as file:
        header, *counts = csv.reader(file)
    assert header == ["shown", *"0123456789"] and record["of_run"] is True
    assert sum(int(counts[n][n + 1]) for n in range(10)) == found


@pytest.mark.slow
def test_a_report_is_never_replaced_by_a_poorer_one(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (copy / "report.html").read_bytes()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"data": {"name": "folder:gone"}}))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert main(["inspect", str(copy)]) == 0
    printed = capsys.readouterr()
    assert "report.html stays as it was, since a new one would show less: there is no folder gone" in printed.err
    assert printed.out.strip() == str(copy / "report.html")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
    (copy / "report.html").unlink()
    assert "there is no folder gone" in write_report(copy).read_text()
    assert "there is no folder gone" in write_report(copy).read_text()  # of two poor ones the later
    (copy / "report.html").write_bytes(page)
    (copy / "config.json").write_text(json.dumps(config))
    assert write_report(copy).read_bytes() != b""


def test_the_page_that_is_kept_is_the_one_that_is_named(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["inspect", str(copy), "--out", str(out)]) == 0
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"data": {"name": "folder:gone"}}))
    capsys.readouterr()
    assert main(["inspect", str(copy), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")


def test_a_diverged_run_has_a_page_that_a_browser_can_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    model, config = load_run(copy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    monkeypatch.setattr(opened, "load_run", lambda _: (model, config))
    page = write_report(copy).read_text()
    assert "Calibration, not a number, as scores of these images are none" in page and "mean error" not in page
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[0]
    (first, *_) = json.loads(data, parse_constant=refuse)["examples"]
    assert first["probabilities"] == [None] * 10
    record = json.loads((copy / "evaluation.json").read_text(), parse_constant=refuse)
    assert record["calibration"]["error"] is None


@pytest.mark.parametrize(("asked", "there"), [("cpu", "cpu"), ("mps", "auto")])
def test_the_images_are_looked_at_where_the_run_was_trained(
    asked: str, there: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story, seen = read_story(run), []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    build = opened.build_measuring
    monkeypatch.setattr(opened, "build_measuring", lambda *given: seen.append(given[1]) or build(*given))
    look(replace(story, config=replace(story.config, device=asked)))
    assert seen == [there]


def test_a_figure_of_examples_shows_each_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right ones first, though there be few, then the mistakes."""
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(report, "draw_reconstructions", lambda model, images, labels, classes: shown.append(images))
    sight = look(read_story(run))
    examples = [
        replace(each, image=torch.full_like(each.image, n / 10), predicted=[n], targets=[0 if n < 3 else n], routed=[])
        for n, each in enumerate(sight.examples[:5])
    ]
    shown.clear()
    report.draw_examples(create_model("tiny", num_classes=10), examples, sight.classes, torch.device("cpu"))
    assert (shown[0][:, 0, 0, 0] * 10).round().tolist() == [0, 3, 4, 1, 2]


@pytest.mark.slow
def test_images_that_are_not_those_of_the_run_are_said(copy: Path) -> None:
    warning = "The test images are not those of the run: they were changed since."
    assert warning not in (copy / "report.html").read_text()
    held = json.loads((copy / "model.json").read_text())
    held["data"]["test"]["sha256"] = "0" * 64
    (copy / "model.json").write_text(json.dumps(held))
    assert warning in write_report(copy).read_text()


def test_run_that_never_saved_says_so(copy: Path) -> None:
    (copy / "report.html").unlink()
    for name in ("best", "last"):
        shutil.rmtree(copy / name)
    for name in ("result.json", "metrics.jsonl", "environment.json"):
        (copy / name).unlink()
    words = " ".join(Reader(write_report(copy).read_text()).words)
    assert "no checkpoint in" in words and "unfinished, 0 of 2 epochs" in words and "Do it again" in words


@pytest.mark.slow
def test_model_without_capsules_or_decoder_has_a_report(tmp_path: Path) -> None:
    page = write_report(fit(tiny_config(tmp_path, epochs=1)).folder).read_text()
    words = " ".join(Reader(page).words)
    assert "Confusion" in words and "Look inside" in words
    assert not any(example["decodes"] or example["routed"] for example in page_data(page)["examples"])


def hostile(run: Path) -> str:
    """The page of a run whose every name is an attack."""
    story = read_story(run, HOSTILE)
    story = replace(
        story,
        config=replace(story.config, recipe=HOSTILE, data=replace(story.config.data, name=HOSTILE)),
        environment={HOSTILE: HOSTILE},
        folder=Path(HOSTILE),
    )
    sight = replace(look(read_story(run)), classes=(HOSTILE,) * 10)
    return render(story, draw_history(story), sight)


def test_names_are_escaped(run: Path) -> None:
    page = hostile(run)
    tags = Reader(page).tags
    assert tags.count("script") == 2 and "img" not in tags
    assert page_data(page)["classes"] == [HOSTILE] * 10
    assert "&lt;/script&gt;" in page


def test_class_names_in_figures_are_no_formulas(copy: Path) -> None:
    from torchcaps.inspect import figures

    with figures.style():
        plot = figures.draw_class_accuracy(torch.tensor([0.5, 1.0]), ["$\\frac", "<b>"])
    assert "$\\frac" in figures.to_svg(plot) and "<b>" not in figures.to_svg(plot)
    figures.save_figure(plot, copy / "plot")
    assert (copy / "plot.pdf").exists()


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    config = tiny_config(tmp_path / "runs")
    monkeypatch.setitem(registry._RECIPES, "tiny", lambda: config)
    return config


def test_commands_write_the_page(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "--epochs", "1"]) == 0
    page = recipe.out / "tiny-0" / "report.html"
    first = page.read_text()
    page.unlink()
    capsys.readouterr()
    assert main(["inspect", str(page.parent)]) == 0
    assert capsys.readouterr().out.split() == [str(page)]
    assert page_data(page.read_text()) == page_data(first)
    assert main(["inspect", str(recipe.out)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_failed_run_has_a_page_that_says_why(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "tiny", "--optimiser.lr", "1e38", "--optimiser.weight-decay", "1e6", "--optimiser.name", "sgd"])
        == 1
    )
    words = " ".join(Reader((recipe.out / "tiny-0" / "report.html").read_text()).words)
    assert "the loss is" in words and "unfinished" in words
    assert "has no report" not in capsys.readouterr().err


def test_interrupted_run_has_a_page(
    recipe: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Display, "end_epoch", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["train", "tiny"]) == 130
    assert "to continue: torchcaps train tiny --resume" in capsys.readouterr().err
    words = " ".join(Reader((recipe.out / "tiny-0" / "report.html").read_text()).words)
    assert "unfinished, 1 of 2 epochs" in words and "stopped after step" in words


def test_report_that_fails_takes_nothing_from_the_run(
    recipe: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("torchcaps.report.report.write_report", fail)
    assert main(["train", "tiny", "--epochs", "1"]) == 0
    printed = capsys.readouterr()
    assert "has no report (by zero)" in printed.err and printed.out.splitlines()[-1] == str(recipe.out / "tiny-0")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with Browser(path) as opened:
        yield opened


SHOWN = "getComputedStyle(document.querySelector({0!r})).backgroundPosition"
SWEEP, HEAT, INPUT = ".sweep i.picture", ".route i.heat", ".views i.picture"
MOVE = (
    "(s => {{ s.value = {1}; s.dispatchEvent(new Event('input', {{bubbles: true}})) }})(document.querySelector({0!r}))"
)


def test_page_works_in_a_browser(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    examples = page_data((run / "report.html").read_text())["examples"]
    assert browser.run("document.querySelectorAll('.thumb').length") == len(examples)
    before = browser.run(SHOWN.format(SWEEP))
    browser.run(MOVE.format(".sweep input", 0))
    assert browser.run(SHOWN.format(SWEEP)) != before
    assert browser.run("document.querySelector('.sweep .name span').textContent") == "\N{MINUS SIGN}0.50"
    before = browser.run(SHOWN.format(HEAT))
    browser.run(MOVE.format(".bar input", 0))
    assert browser.run(SHOWN.format(HEAT)) != before
    picture = "getComputedStyle(document.querySelector('.views i.picture')).backgroundImage"
    before = browser.run(picture)
    browser.run("document.querySelectorAll('.thumb')[1].click()")
    assert browser.run(picture) != before
    decoded = "document.querySelector('.views > div:nth-child(2) .name').textContent"
    browser.run("document.querySelectorAll('.class')[7].click()")
    assert browser.run(decoded) == "decoded as 7"
    browser.run("document.querySelector('.part button').click()")  # all sliders move by themselves
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("document.querySelector('.sweep input').value") != "5"
    assert browser.faults == []
    assert {address for address in browser.requests if not address.startswith("data:")} == {
        browser.run("location.href")
    }


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_its_width_in_both_schemes(browser: Browser, run: Path, width: int, dark: bool) -> None:
    browser.open(run / "report.html", width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    ink, paper = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    brightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1]) is dark


def test_an_examined_run_fits_a_phone(browser: Browser, run: Path, tmp_path: Path) -> None:
    layers = tuple(
        CapsuleLayerFacts(f"network.stack.{n}", "inverted-attention", (0.5,), (0.5,), (0.5,), 0.123, 0.5, 1.2e-5, 0.5)
        for n in range(3)
    )
    placebos = (Placebo("of another image, other class", 0.5, 0.5, 500),)
    story = replace(read_story(run), examination=Examination("test", 500, 0.5, 3, placebos, layers))
    (tmp_path / "report.html").write_text(render(story, {}, look(read_story(run))))
    browser.open(tmp_path / "report.html", 390)
    assert browser.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("shade", [0.02, 0.98])
def test_couplings_are_seen_on_dark_and_bright_pictures(
    browser: Browser, run: Path, tmp_path: Path, dark: bool, shade: float
) -> None:
    """The three thirds of a picture of one shade, given less, an equal share and more, look different."""
    story, sight = read_story(run), look(read_story(run))
    example = sight.examples[0]
    maps = torch.tensor([-0.1, 0.0, 0.1]) + example.routed[0].equal
    layer = replace(example.routed[0], maps=maps.expand(3, 10, 3, 3), box=Box())
    photo = replace(example, image=torch.full((3, 30, 30), shade), decoded=None, sweep=None, routed=[layer])
    (tmp_path / "report.html").write_text(render(story, {}, replace(sight, examples=[photo])))
    browser.open(tmp_path / "report.html", dark=dark)
    tile = browser.run(
        "(r => [r.x, r.y, r.width, r.height])(document.querySelector('.route .tile').getBoundingClientRect())"
    )
    browser.shoot(tmp_path / "page.png")
    left, top, width, height = (int(x) for x in tile)
    with Image.open(tmp_path / "page.png") as shot:
        seen = [
            torch.tensor(shot.convert("RGB").getpixel((left + width * n // 6, top + height // 2))) for n in (1, 3, 5)
        ]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (seen[one] - seen[other]).abs().max() > 60, seen


def test_hostile_names_stay_words_in_a_browser(browser: Browser, run: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(hostile(run))
    browser.open(tmp_path / "report.html")
    browser.run("document.querySelectorAll('.thumb')[1].click()")
    assert browser.run("document.title") != "owned"
    assert HOSTILE in browser.run("document.querySelector('.class span').textContent")
    assert browser.faults == []

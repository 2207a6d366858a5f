"""Measured numbers of README and docs stand in blocks made from the lines of results, and nowhere else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import draw_speed
import draw_two_cores
import pytest
from blocks import BLOCK, PAGES, renew

from torchcaps.papers import list_tables
from torchcaps.tables.summary import Summary

NUMBER = re.compile(
    r"\d ?%|\d ?(?:ms|µs|MB|MiB|GB|GiB|kB)\b|\d(?: percentage)? points?\b|\d (?:images/s|images a second)"
    r"|\d (?:per ?cent|milliseconds|min)\b|\d ?x\b(?! ?\d|/)"
    r"|\d (?:core-)?(?:seconds|minutes|hours)\b|\d [sh]\b"
    r"|\b(?:[Aa]ccurac(?:y|ies)|[Ee]rrors?|[Ll]oss(?:es)?)\b[^\d.;:]{0,16}\d*\.\d"
    r"|\d(?:x| times) (?:as |the )?(?:fast|many|much|long|large|small|short|slow|less|fewer|more|time\b|memory)"
    r"|\d of the (?:time|memory|votes' size)"
)
TABLES = {"speed.md", "costs-xnodr.md", "costs-encapnet.md"}  # made whole by scripts, see test_published_costs.py too
STATED = {  # what a paper prints, a setting, a limit or a size, and nothing measured: sentences by their page
    "data.md": {
        "rotation within 20 degrees, shear within 0.2, height and width each within 20%,",
        "reads fewer versions (all take 3.1 GB)",
        "Decoded pictures are held in memory up to 2 GiB of all splits together.",
    },
    "discriminative-routing.md": {'So the paper\'s "at least 20 % below DR" holds against einsum,'},
    "use.md": {"(of more than 2 GiB:"},
    "xnodr-xnidr.md": {
        "- 135.98%, 87.20%, 12.78% and 5.87% are ratios of rounded totals;",
        "section 4.6.2 has the first as it is counted, 135.60%.",
    },
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_what_the_lines_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == renew(text), "python docs/blocks.py writes them anew"


def measured(text: str) -> list[str]:
    """Sentences with numbers as measured ones are written, outside blocks, code and links."""
    text = BLOCK.sub("", text)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", " ", text, flags=re.DOTALL)
    sentences = re.split(r"(?<=[.:;!?])\s+|\n\s*\n|\n(?=[|#-])", text)
    return [" ".join(each.split()) for each in sentences if NUMBER.search(each)]


@pytest.mark.parametrize(
    "sentence",
    [
        "It takes 3 ms here.",
        "The paper has 94.85 %, ours 93.2%.",
        "It is 1.4 times faster.",
        "Its accuracy is 89.27 against 89.28 without it.",
        "Error 15.74.",
        "It ends with errors of 9.01 percent.",
        "It takes 12 milliseconds, or 3 min.",
        "That is a speed-up of 4.8x, or 36.0 x faster.",
        "Its train loss falls from 0.025 to 0.104.",
        "Training takes 2x the memory.",
        "Accuracy 0.20, flat.",
        "It holds 0.24 of the votes' size.",
        "It gains 0.4 points.",
        "109.59 images/s are trained.",
    ],
)
def test_a_number_outside_a_block_is_found(sentence: str) -> None:
    inside = "<!-- block: routings -->\n99.1 %\n<!-- end -->\n"
    assert measured(f"{inside}{sentence} `--x 5 %`, two classes of 10.") == [sentence]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in TABLES], ids=lambda page: page.name)
def test_no_measured_number_stands_outside_a_block(page: Path) -> None:
    known, found = STATED.get(page.name, set()), measured(page.read_text(encoding="utf-8"))
    assert [each for each in found if not any(part in each for part in known)] == []
    assert [part for part in known if not any(part in each for each in found)] == [], "no sentence says so any more"


def test_the_page_of_speed_is_what_the_lines_say() -> None:
    page = Path(draw_speed.__file__).with_name("speed.md")
    made = draw_speed.page(draw_speed.newest(draw_speed.RESULTS))
    assert page.read_text(encoding="utf-8") == made, "python docs/draw_speed.py writes it anew"


def test_the_picture_of_two_cores_is_what_the_lines_say() -> None:
    assert draw_two_cores.PICTURE.read_text(encoding="utf-8") == draw_two_cores.svg(), "python docs/blocks.py"


def test_a_run_short_of_its_paper_stands_out_and_what_was_not_run_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    table = next(each for each in list_tables() if each.id == "fm/table2")
    first, second, *_ = draw_two_cores.tested(table)
    assert first.published and not first.metric.lower
    printed, other = (float(cell.published[0].text) for cell in (first, second))
    one = Summary("fast", "", (printed - 2.5,), ({"seconds": 7200, "environment": {"threads": 2}},), False)
    two = Summary("fast", "", (other - 1, other + 1), one.records * 2, False)
    made = tuple(draw_two_cores.Run(table, *each) for each in ((first, one), (second, two)))
    monkeypatch.setattr(draw_two_cores, "runs", lambda: made)
    _, short, fair = draw_two_cores.cells()
    assert short[6:] == (f"{printed - 2.5:.2f}", "**-2.50**", "1", "4.0")
    assert fair[6:8] == (f"{other:.2f} ± 1.41", "+0.00")
    assert next(row for row in draw_two_cores.missing() if "table2" in row[0] and "fm" in row[0])[2] == "2"
    again = replace(one, records=({**one.records[0], "config_hash": "0"},))
    twice = tuple(draw_two_cores.Run(table, *each) for each in ((first, again), (second, again)))
    monkeypatch.setattr(draw_two_cores, "runs", lambda: twice)
    assert len([*draw_two_cores.cells()]) == 2, "a run that fills two cells stands once, below the head"
    monkeypatch.setattr(draw_two_cores, "runs", lambda: made)
    (panel, *_) = draw_two_cores.draw().axes
    dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert any(set(line.get_ydata()) == {printed} for line in dashed)


def test_ratios_of_networks_are_given_with_their_range_and_without_skipped_steps(tmp_path: Path) -> None:
    line = {
        "benchmark": "networks/deep",
        "batch": 8,
        "goal": 5,
        "passed": True,
        "fp32_speed_up": 9.5,
        "fp32_images_per_second": 50.0,
        "einsum_images_per_second": 5.0,
        "images_per_second": 60.0,
        "skipping_images_per_second": 12.5,
    }
    lines = [line | {"speed_up": ratio} for ratio in (20.25, 13.0, 12.0)]
    path = tmp_path / "benchmarks.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
    row = draw_speed.network_row(draw_speed.newest(path)["networks/deep"])
    said = "12.0x (float32: 9.5x; float32 over einsum that skips: 4.0x; in 3 measurements 12.0 to 20.2x)"
    assert said in row and row[-1] == "5x"
    row = draw_speed.network_row(line | {"speed_up": 12.0, "like_for_like": 5.5, "baseline": 2})
    assert row[-2:] == ("12.0x (float32: 9.5x; like for like: 5.5x)", "5x, reached")


def test_each_table_of_a_paper_is_listed_once_on_its_page() -> None:
    listed = [
        name
        for page in PAGES
        for name in re.findall(r"^- \[.*?\]\(\.\./results/tables/(.*?)\.md\)", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert sorted(listed) == sorted(table.id for table in list_tables())

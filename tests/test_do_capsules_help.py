"""The page that asks whether capsules help says no more than its lines, on lines that are made up here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blocks
import draw_help
import help_advice
import help_blocks
import help_examined
import help_runs
import pytest
from help_runs import ROUTINGS, SHARES, Study, better, heads, twin_of

from torchcaps.compare.comparison import Comparison
from torchcaps.compare.rows import T_95, Gap, gap
from torchcaps.config import to_plain
from torchcaps.examine.found import CapsuleLayerFacts, Examination, Placebo
from torchcaps.examine.placebos import ONE, OTHER
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.records import config_hash, read_records

Line = dict[str, Any]
PAGE = Path(draw_help.__file__).with_name("do-capsules-help.md")


def _key(head: str, share: float, data: str = "cifar10") -> Line:
    """What a line of this head is found by."""
    (cell,) = Comparison(data=data, fractions=(share,)).cells([head])
    return {"cell": cell.id, "config_hash": config_hash(apply_budget(cell.how.build(), "cpu", cell))}


def runs(head: str, share: float, tested: Sequence[float], validated: float = 0.5, data: str = "cifar10") -> list[Line]:
    """Lines of runs of seeds 0, 1, ...; accuracies in percent, that on validation as a share."""
    size = {"parameters": 1234, "seconds": 240.0, "cpu_seconds": 120.0, "environment": {"threads": 1}}
    return [
        _key(head, share, data)
        | {"budget": "cpu", "seed": seed, "test_accuracy": each / 100, "validation_accuracy": validated, **size}
        for seed, each in enumerate(tested)
    ]


def examined(head: str, share: float, seed: int, right: float, other: float, changed: float) -> Line:
    """A line of an examination: accuracy as it is and with another class's couplings, and the answers they change."""
    placebos = (Placebo(ONE, right, 0.125, 500), Placebo(OTHER, other, changed, 500))
    layer = CapsuleLayerFacts("capsules.0", head, (0.0, 0.25), (0.0, 0.5), (0.1, 0.375), 0.3, 0.0, 1e-3, 0.0)
    below = CapsuleLayerFacts("capsules.children", "", (), (), (0.1,), 0.3, 0.0625, 1e-3, 0.03125)
    found = Examination("test", 500, right, 2, placebos, (below, layer))
    return _key(head, share) | {"budget": "examine", "seed": seed, "examination": to_plain(found)}


def made(records: Sequence[Line], kind: str, *words: str) -> list[list[str]]:
    """The cells of a table."""
    found = next(getattr(each, kind) for each in (help_blocks, help_examined) if hasattr(each, kind))
    return [list(row) for row in found(Study(records), *words)]


@pytest.mark.parametrize("freedom", range(2, len(T_95) + 2))
def test_the_quantiles_are_those_of_students_t(freedom: int) -> None:
    top, steps = T_95[freedom - 2], 200_000
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    middles = ((n + 0.5) * top / steps for n in range(steps))
    inside = 2 * scale * sum((1 + t * t / freedom) ** (-(freedom + 1) / 2) for t in middles) * top / steps
    assert inside == pytest.approx(0.95, abs=2e-5)


def test_a_difference_is_decided_where_its_interval_leaves_out_zero() -> None:
    wide, narrow = Gap((1.0, 2.0, 3.0)), Gap((1.2, 2.0, 2.8))  # the half of an interval is 2.484 deviations
    assert wide.interval == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    assert (wide.side, str(wide)) == (0, "+2.00 ± 1.00 (3)")
    assert (narrow.side, str(narrow)) == (1, "**+2.00 ± 0.80 (3)**")
    assert Gap((-1.2, -2.0, -2.8)).side == -1
    assert (Gap((9.0,)).side, Gap((9.0,)).interval, str(Gap((9.0,)))) == (0, None, "+9.00 (1)")
    alike = Gap((0.8, 0.8))  # four of 500 images, twice
    assert (alike.side, alike.interval, str(alike)) == (0, None, "+0.80 ± 0.00 (2)")


def test_only_runs_of_the_same_seed_are_compared() -> None:
    lines = [*runs("fm", 0.01, (30, 40, 50)), *runs("uniform", 0.01, (29, 38))]
    lines[3]["seed"], lines[4]["seed"] = 1, 2
    rows = Study(lines).rows(0.01)
    assert gap(rows["fm"], rows["uniform"]) == Gap((pytest.approx(11.0), pytest.approx(12.0)))
    assert gap(rows["fm"], rows["twin"]) is None


def test_a_run_that_failed_has_no_accuracy_and_is_named() -> None:
    failed = _key("fm", 0.01) | {"budget": "cpu", "seed": 0, "failure": "loss is nan"}
    (row,) = (row for row in made([failed, *runs("linear", 0.01, (30,))], "share", "0.01") if row[0] == "`fm`")
    assert row[1:] == ["1 failed: loss is nan", "", "", "", "", ""]


def test_each_head_stands_beside_the_network_of_its_own_size() -> None:
    rows = Study([]).rows(0.01)
    assert twin_of("em", rows).head == "em-twin" and twin_of("fm", rows).head == "twin"
    assert {*ROUTINGS} <= {*heads()} and {"linear", "uniform", "twin"} <= {*heads()}


def test_to_help_is_to_lie_above_every_control() -> None:
    above, below, open_ = Gap((2.0, 2.1, 2.0)), Gap((-2.0, -2.1, -2.0)), Gap((1.0, -1.0, 1.0))
    assert better(above, above) == "yes" and better(above, open_) == "not decided"
    assert better(above, below) == "no" and better(None, below) == "no"
    assert better(above, None) == "a control is not run"


STUDIED = [  # at a hundredth: fm is best on validation and lies above all; em is best on test, and has no say
    *runs("linear", 0.01, (30, 31, 32)),
    *runs("twin", 0.01, (31, 32, 33)),
    *runs("em-twin", 0.01, (38, 41, 44)),
    *runs("uniform", 0.01, (33, 34.5, 36)),
    *runs("fm", 0.01, (35, 36, 37.5), validated=0.6),
    *runs("em", 0.01, (40, 41, 42)),
    *runs("linear", 1.0, (70,)),
    *runs("uniform", 1.0, (69,)),
]


def test_the_head_that_is_judged_was_chosen_on_validation() -> None:
    first, tenth, whole = made(STUDIED, "verdicts")[1:]
    twin, linear = "**+4.17 ± 0.29 (3)**", "**+5.17 ± 0.29 (3)**"
    assert first == [
        "1 % of the images (450)",
        *("`fm`", twin, linear, "yes"),
        *("`fm`", "**+1.67 ± 0.29 (3)**", "yes"),
    ]
    assert tenth[1:] == ["not run", "", "", "not run", "not run", "", "not run"]
    assert whole[1:] == ["`uniform`", "not run", "-1.00 (1)", "a control is not run", "not run", "", "not run"]
    assert help_blocks.answer(Study(STUDIED)).splitlines() == [
        "- **Do capsules help?** 1 % of the images: yes (judged by `fm`, the best on validation); "
        "10 % of the images: not run; all images: a control is not run (judged by `uniform`, the best on validation).",
        "- **Does routing help?** 1 % of the images: yes (judged by `fm`, the best on validation); "
        "10 % of the images: not run; all images: not run.",
    ]


def test_an_order_is_claimed_where_it_is_decided() -> None:
    assert help_blocks.against(Study(STUDIED), "0.01").splitlines() == [
        "- Against the twin: above `uniform`, `fm`; below none; not decided `em`.",
        "- Against `linear`: above `uniform`, `fm`, `em`; below none; not decided none.",
        "- Against `uniform`: above `fm`, `em`; below none; not decided none.",
    ]
    assert help_blocks.against(Study(STUDIED), "0.1") == help_blocks.share(Study(STUDIED), "0.1") == "Not run."
    assert "not run beside it `uniform`" in help_blocks.against(Study(STUDIED), "1")


def test_a_share_s_table_has_the_controls_in_front_and_what_was_not_run() -> None:
    table = made(STUDIED, "share", "0.01")
    named = [row[0].strip("`") for row in table[1:]]
    assert named[:4] == ["em-twin", "uniform", "twin", "linear"] and sorted(named) == sorted(heads())
    rows = {row[0].strip("`"): row[1:] for row in table[1:]}
    assert rows["fm"][0] == "36.17 ± 1.26 (3)" and rows["fm"][4:] == ["1,234", "2.0"]
    assert rows["em"][1] == "+0.00 ± 2.00 (3)" and rows["dynamic"] == ["not run", "", "", "", "", ""]
    assert rows["em-twin"][1] == "" and rows["linear"][1:3] == ["**-1.00 ± 0.00 (3)**", ""]


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((8.0, 8.5, 9.0), "confirmed"),
        ((12.0, 12.1, 12.2), "confirmed"),
        ((4.0, 4.1, 4.2), "refuted in size, capsules lie above"),
        ((0.5, -0.5, 0.0), "refuted"),
        ((-9.0, -9.1, -9.2), "refuted"),
        ((0.0, 8.0, 16.0), "not decided"),
        ((8.4,), "not decided (too few seeds)"),
    ],
)
def test_a_claim_is_judged_by_the_interval(differences: tuple[float, ...], said: str) -> None:
    assert help_blocks.judge(Gap(differences), 8.39) == said


def test_the_report_s_claim_is_judged_of_its_own_routing_and_of_the_best() -> None:
    lines = [*STUDIED, *runs("self-attention", 0.01, (31, 32.5, 32.5))]
    first, *_, last = made(lines, "report")[1:]
    assert first[:4] == ["1 %", "48.12", "39.73", "+8.39"]
    assert first[4:6] == ["+0.00 ± 0.50 (3)", "refuted"]
    assert first[6:] == ["`fm`", "**+4.17 ± 0.29 (3)**", "refuted in size, capsules lie above"]
    assert last[4:] == ["not run", "not run", "`uniform`", "not run", "not run"]
    assert help_blocks.reported(Study(lines)).endswith(
        "`self-attention`: refuted (+0.00 ± 0.50 (3) points); "
        "`fm`: refuted in size, capsules lie above (**+4.17 ± 0.29 (3)** points)."
    )


EXAMINED = [
    *(examined("dynamic", 0.1, seed, 0.5, 0.45 - 0.005 * seed, 0.25) for seed in range(3)),
    *(examined("em", 0.1, seed, 0.5, 0.5 + 0.01 * (seed - 1), 0.0625) for seed in range(3)),
]


def test_what_couplings_of_another_class_cost_is_decided_by_the_same_rule() -> None:
    rows = {row[0]: row[1:] for row in made(EXAMINED, "placebos", "0.1")}
    assert rows["`dynamic`"] == ["3", "50.0", "50.0 (12.5)", "", "", "", "44.5 (25.0)", "**+5.50 ± 0.50 (3)**"]
    assert rows["`em`"][-1] == "+0.00 ± 1.00 (3)" and rows["`fm`"] == ["not run", "", "", "", "", "", "", ""]
    few, some, whole = help_examined.couplings(Study(EXAMINED)).splitlines()[1:]
    assert few == "  - 1 % of the images: not run." and whole == "  - all images: not run."
    assert some == (
        "  - 10 % of the images: from 6.2 % (`em`) to 25.0 % (`dynamic`) of the answers change, accuracy falls in "
        "`dynamic`, rises in none; not decided: `em`."
    )


def test_the_measures_are_those_of_the_class_capsules_and_of_their_children() -> None:
    head, *table = made(EXAMINED, "measures", "0.1")
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in table}
    told = rows["`em`"]
    assert (told["T"], told["from the image"], told["D"]) == ("0.250", "0.500", "0.375")
    assert (told["dead children (%)"], told["starved children (%)"], told["R² of the angle"]) == ("6.2", "3.1", "")
    assert rows["`twin`"]["T"] == "not run"
    assert help_examined.measures(Study(EXAMINED), "1") == "Not examined."


def test_runs_of_one_precision_face_each_other_where_there_are_such() -> None:
    def of(precision: str, lines: list[Line]) -> list[Line]:
        return [line | {"environment": {"threads": 1, "precision": precision}} for line in lines]

    lines = [*of("bf16-mixed", runs("fm", 1.0, (70, 71))), *of("32-true", runs("fm", 1.0, (74,)))]
    lines += [*of("32-true", runs("twin", 1.0, (73, 73)))]
    rows = Study(lines).rows(1.0)
    found = gap(rows["fm"], rows["twin"])
    assert found is not None and found.differences == pytest.approx((1, -2)) and found.mixed
    assert str(found) == "-0.50 ± 2.12 (2) ‡" and not gap(rows["fm"], rows["fm"]).mixed  # pyright: ignore
    assert rows["fm"].accuracy is not None and rows["fm"].accuracy.mean == pytest.approx(70.5)  # the first of a seed


def test_a_head_with_seeds_enough_is_judged_where_there_is_one() -> None:
    lines = [*runs("fm", 1.0, (70, 71, 72), validated=0.5), *runs("dynamic", 1.0, (75,), validated=0.9)]
    assert help_runs.chosen(help_runs.capsules(Study(lines).rows(1.0))).head == "fm"  # pyright: ignore
    assert help_runs.chosen(help_runs.capsules(Study(lines[3:]).rows(1.0))).head == "dynamic"  # pyright: ignore


def test_accuracy_falls_where_more_images_are_lost_than_changed_answers_let_chance_lose() -> None:
    """Three seeds that lose 4, 4 and 3 of 500 agree, but of the 113 answers that changed that is little."""
    found = [
        examined("dynamic", 0.1, seed, 0.5, 0.5 - lost / 500, changed / 500)
        for seed, (lost, changed) in enumerate(((4, 46), (4, 43), (3, 24)))
    ]
    assert "accuracy falls in none" in help_examined.couplings(Study(found))
    rows = {row[0]: row for row in made(found, "placebos", "0.1")}
    assert rows["`dynamic`"][-1] == "+0.73 ± 0.12 (3)"


def test_what_to_start_with_is_the_cheapest_that_nothing_is_decided_to_lie_above() -> None:
    plain = runs("linear", 1.0, (70, 71, 72))
    assert help_advice.start(Study(plain).whole("cifar10"))[1] == "`linear`, the plain head"
    lines = [*plain, *runs("uniform", 1.0, (72, 73, 74.5)), *runs("fm", 1.0, (73, 72, 75), validated=0.6)]
    taken, said = help_advice.start(Study(lines).whole("cifar10"))
    assert taken.head == "uniform" and said.endswith("on all of CIFAR-10 **+2.17 ± 0.29 (3)** points above `linear`")
    lines += runs("em", 1.0, (76, 77, 78), validated=0.7)
    taken, said = help_advice.start(Study(lines).whole("cifar10"))
    assert taken.head == "em" and said.endswith("points above `uniform`")
    lines += runs("twin", 1.0, (80, 81, 82))
    assert help_advice.start(Study(lines).whole("cifar10"))[0].head == "twin"


def test_readme_and_the_page_of_routings_name_the_routings_that_are_decided() -> None:
    sets = ("fashion-mnist", "cifar10")
    lines = [line for data in sets for line in runs("uniform", 1.0, (72, 73, 74), data=data)]
    lines += [*runs("fm", 1.0, (73, 74, 75.2), data="fashion-mnist"), *runs("fm", 1.0, (71, 72, 73.2))]
    lines += [*runs("xnodr", 1.0, (70,)), *runs("dynamic", 1.0, (71,))]
    study = Study(lines)
    said = (
        "Routings above `uniform`: on Fashion-MNIST `fm`; on CIFAR-10 none; of these 2 comparisons each is judged alone"
    )
    assert said in help_advice.readme(study)  # xnodr and dynamic have one seed, which decides nothing
    told = help_advice.readme(Study([*lines, *runs("linear", 1.0, (70, 71, 72)), *runs("twin", 1.0, (71,))]))
    assert "**+2.00 ± 0.00 (3)** points above `linear`, and +1.00 (1 seed) above `twin`. Routings above" in told
    said = help_advice.advice(study)
    assert "- **Against `uniform`**: on Fashion-MNIST above `fm`; below none; not decided none; on CIFAR-10 " in said
    assert "on CIFAR-10 above none; below `fm`; not decided `dynamic`, `xnodr`." in said
    assert "- **Binary weights**: points of `xnodr` above `dynamic`: on CIFAR-10 -1.00 (1)." in said


def test_the_picture_has_a_line_for_each_head_that_was_run_and_empty_marks_of_one_seed() -> None:
    left, right = draw_help.draw(Study(STUDIED)).axes
    assert left.get_legend_handles_labels()[1] == ["twin", "linear", "uniform", "fm", "em"]
    assert right.get_legend_handles_labels()[1] == ["linear", "uniform", "fm", "em"]
    drawn = [line for line in left.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "_", "|")]
    assert sum(line.get_markerfacecolor() == "none" for line in drawn) == 2  # linear and uniform, all images
    assert draw_help.accuracies(Study(STUDIED), "linear") == [(0.01, (30, 31, 32)), (1.0, (70,))]
    (share, apart), *others = draw_help.differences(Study(STUDIED), "em")
    assert (share, others) == (0.01, []) and apart == pytest.approx((2, 0, -2))


@pytest.mark.parametrize(
    ("records", "decided"),
    [([], False), (STUDIED, True), (EXAMINED, True), (runs("uniform", 0.1, (40, 41)), False)],
    ids=["no line", "runs", "examinations alone", "one head"],
)
def test_the_page_is_made_of_any_lines(records: list[Line], decided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(records)
    monkeypatch.setattr(blocks, "_study", lambda: study)
    text = PAGE.read_text(encoding="utf-8")
    made_anew = "".join(blocks.make(command) for _, command, _ in blocks.BLOCK.findall(text))
    assert ("| **" in made_anew) == decided and "ot run" in made_anew
    assert draw_help.svg(study).count("</svg>") == 1


def test_the_picture_is_what_the_lines_say() -> None:
    assert draw_help.PICTURE.read_text(encoding="utf-8") == draw_help.svg(Study(read_records(draw_help.RUNS)))


def test_every_share_of_the_page_has_its_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in ("against", "share", "placebos", "measures"):
        for share in SHARES:
            assert f"<!-- block: help {kind} {share:g} -->" in text
    assert help_runs.DATA == "cifar10"

"""`torchcaps compare`: the heads differ in nothing but their routing, and the table says only what the lines say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from torchcaps import create_model, list_models
from torchcaps.cli import main, reporting
from torchcaps.compare import costs as measuring
from torchcaps.compare import examined, figures, page, shares, writing
from torchcaps.compare.comparison import Comparison, changed_files
from torchcaps.compare.costs import find_costs
from torchcaps.compare.figures import apart
from torchcaps.compare.heads import CONTROLS, all_heads, choose_heads
from torchcaps.compare.rows import Row
from torchcaps.compare.usual import settle_data, usual_data
from torchcaps.compare.writing import list_run, name_page
from torchcaps.config import CoefficientConfig, Config, DataConfig, LossConfig, ModelConfig, to_plain
from torchcaps.examine import examination, robustness
from torchcaps.examine.found import CapsuleLayerFacts, Curve, Equivariance, Examination, Negation, Placebo, Trees
from torchcaps.fields import replace_field
from torchcaps.revisions import revisions_of
from torchcaps.routing import list_routings
from torchcaps.tables.budget_names import COST
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell, Train
from torchcaps.tables.fill import Outcome, Settings
from torchcaps.tables.plan import Job
from torchcaps.tables.records import config_hash, name_machine
from torchcaps.tables.summary import Summary


@pytest.mark.parametrize("head", all_heads())
def test_every_head_learns_on_the_small_network(head):
    torch.manual_seed(0)
    options = {} if head == "linear" else {"iterations": 2, "scaled": True}
    name = head if head != "twin" else "dynamic-twin"
    model = create_model(f"small-resnet.{name}", num_classes=3, in_channels=2, image_size=(19, 26), width=4, **options)
    with torch.no_grad():  # away from a start at which logits of 0 send nothing back
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    output = model(torch.rand(5, 2, 19, 26))
    assert output.scores.shape == (5, 3)
    torch.nn.functional.cross_entropy(output.scores, torch.tensor([0, 1, 2, 0, 1])).backward()
    apart = {id(parameter) for parameter in model.coefficients()}
    for name, parameter in model.named_parameters():
        alike = name.endswith("read.linear.bias") and parameter.numel() == 1  # of all classes: no softmax depends on it
        if id(parameter) not in apart and "beta" not in name and not alike:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_scaled_head_multiplies_its_scores():
    torch.manual_seed(0)
    plain = create_model("small-resnet.dynamic", image_size=16, width=4).eval()
    scaled = create_model("small-resnet.dynamic", image_size=16, width=4, scaled=True).eval()
    scaled.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(scaled(images).scores, 10 * plain(images).scores)


def test_primary_capsules_hold_about_as_many_numbers_as_there_are_channels():
    images = torch.rand(2, 1, 16, 16)
    for routing, shape in (("dynamic", (2, 2, 2, 2, 8)), ("em", (2, 2, 2, 1, 16))):
        model = create_model(f"small-resnet.{routing}", image_size=16, width=4)
        assert model(images).capsules[0].poses.shape == shape, routing


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="width is 0"):
        create_model("small-resnet.dynamic", width=0)
    with pytest.raises(ValueError, match=r"no model is named 'small-resnet.dinamic'; the nearest is 'small-resnet.dy"):
        create_model("small-resnet.dinamic")
    assert (
        len([name for name in list_models("small-resnet.*") if not name.endswith("-twin")]) == len(list_routings()) + 1
    )


def test_configs_of_a_comparison_differ_in_the_head_alone():
    comparison = Comparison("small-resnet", "cifar10")
    bare = {"model": ModelConfig(), "coefficients": CoefficientConfig()}
    configs = [replace(comparison.config(head), **bare) for head in all_heads()]
    assert all(config == configs[0] for config in configs)
    assert configs[0].loss == LossConfig("cross-entropy") and configs[0].data.augment.flip
    assert not Comparison(data="mnist").config("dynamic").data.augment.flip  # a mirrored 2 is no 2


def test_with_the_own_loss_each_head_has_that_of_its_paper():
    comparison = Comparison(loss="own")
    assert comparison.id == "small-resnet/fashion-mnist/own-loss"
    names = {head: comparison.config(head).loss.name for head in all_heads()}
    assert names["dynamic"] == names["uniform"] == "margin" and names["em"] == "spread"
    assert names["linear"] == names["fm"] == names["inverted-attention"] == "cross-entropy"
    assert "scaled" not in comparison.config("dynamic").model.options


def test_the_controls_are_always_compared():
    assert choose_heads(["em"]) == [*CONTROLS, "em", "em-twin"] and choose_heads([]) == all_heads()
    twins = {head for head in all_heads() if head.endswith("twin")}
    assert "twin" in twins and set(all_heads()) - twins == {"linear", *(spec.name for spec in list_routings())}
    with pytest.raises(ValueError, match="no routing is named 'dynamik'; the nearest is 'dynamic'"):
        choose_heads(["dynamik"])


def line(comparison: Comparison, head: str, accuracy: float, seed: int = 0) -> dict:
    """A line as a finished run leaves it."""
    (cell,) = comparison.cells([head])
    config = apply_budget(cell.how.build(), "cpu", cell)
    name = {"cell": cell.id, "budget": "cpu", "seed": seed, "config_hash": config_hash(config)}
    return name | {"test_accuracy": accuracy, "seconds": 60.0, "environment": {"cpu": "abacus", "threads": 1}}


def cost(comparison: Comparison, head: str, multiply_adds: int) -> dict:
    (cell,) = comparison.cells([head])
    numbers = {"parameters": 1234, "multiply_adds": multiply_adds, "step_ms": 5.0, "step_memory_mb": 7.0}
    times = {"latency_1_ms": 0.5, "latency_128_ms": 9.0, "convention": 2, "environment": {"cpu": "abacus"}}
    return {"cell": cell.id, "budget": COST, "config_hash": config_hash(cell.how.build()), **numbers, **times}


def test_the_table_ranks_by_accuracy_behind_the_controls_and_says_who_beats_them():
    comparison = Comparison()
    accuracies = {
        "linear": (0.90, 0.91, 0.92),
        "uniform": (0.80, 0.82, 0.81),
        "em": (0.91, 0.905, 0.925),
        "dynamic": (0.95, 0.96, 0.97),
        "xnodr": (0.70, 0.71),
    }
    lines = [line(comparison, head, a, seed) for head, pair in accuracies.items() for seed, a in enumerate(pair)]
    lines.append(cost(comparison, "em", 3_000_000))
    rows = page.collect(comparison, choose_heads(["em", "dynamic", "fm", "xnodr"]), "cpu", lines)
    assert [row.head for row in page.ranked(rows)] == [*CONTROLS, "em-twin", "dynamic", "em", "xnodr", "fm"]
    text = page.markdown(comparison, rows, "cpu")
    assert "| dynamic | 96.00 ± 1.00 (3) | 97.00 | " in text and "| fm | not run |" in text
    assert "| em | 91.33 ± 1.04 (3) | 92.50 | 1,234 | 3.00 | 5.0 | 7 | 0.50 | 9.0 |" in text
    behind = "below none; not decided {}`xnodr`; not run beside it `fm`."
    assert f"Against `linear`: above `dynamic`; {behind.format('`em`, ')}" in text
    assert f"Against `uniform`: above `dynamic`, `em`; {behind.format('')}" in text
    assert "Against `twin`" not in text and page.RULE in text
    assert "14, 1.0 min a run" in text


def test_a_single_run_beats_nobody():
    comparison = Comparison()
    lines = [line(comparison, head, a) for head, a in (("linear", 0.1), ("uniform", 0.2), ("em", 0.9))]
    text = page.markdown(comparison, page.collect(comparison, choose_heads(["em"]), "cpu", lines), "cpu")
    assert "Against `linear`: above none; below none; not decided `em`." in text


def test_counts_of_what_ran_are_marked():
    comparison = Comparison()
    older = cost(comparison, "em", 3_000_000)
    del older["convention"]
    for line, mark in ((older, r"\*"), (cost(comparison, "em", 3_000_000), "")):
        text = page.markdown(comparison, page.collect(comparison, ["em"], "cpu", [line]), "cpu")
        assert f"| 3.00{mark} |" in text and (r"\* an older count" in text) == bool(mark)


def test_the_newest_costs_of_the_same_network_count():
    comparison = Comparison()
    (cell,) = comparison.cells(["em"])
    other = cost(comparison, "em", 1) | {"config_hash": "of-another"}
    assert find_costs([other], cell) is None
    found = find_costs([cost(comparison, "em", 1), cost(comparison, "em", 2), other], cell)
    assert found is not None and found["multiply_adds"] == 2


def test_costs_name_where_they_were_measured_and_why_they_could_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(measure: Callable, config: Config, **options: object) -> dict:
        raise ValueError("the process that measures was ended, as systems do that run out of memory")

    cells = Comparison().cells(["em"])
    monkeypatch.setattr(measuring, "alone", ended)
    said: list[str] = []
    failed = measuring.record_missing(cells, tmp_path / "runs.jsonl", "cpu", said.append)
    assert "was ended" in failed[cells[0].name] and len(said) == 1
    environment = {"gpu": "RTX", "cpu": "an EPYC", "threads": 2, "torch": "2"}
    places = {device: page._place({"environment": environment | {"device": device}}) for device in ("cpu", "cuda")}
    assert places["cpu"].startswith("an EPYC, 2 thread(s)") and places["cuda"].startswith("RTX, torch 2")
    assert page._place({"environment": environment}).startswith("RTX")  # an older line does not say it


@pytest.mark.parametrize("costs", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "costs"])
def test_compare_runs_once_measures_and_draws(
    costs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(reporting, "report", lambda *args: None)
    results = tmp_path / "results"
    flags = ["--data", "digits", "--routings", "uniform", "--seeds", "1", "--budget", "smoke"]
    command = ["compare", *flags, "--out", str(tmp_path / "runs"), "--results", str(results), "--device", "cpu"]
    assert main([*command, "--costs"] if costs else command) == 0
    lines = [json.loads(text) for text in (results / "runs.jsonl").read_text().splitlines()]
    assert [(each["cell"], each["budget"]) for each in lines] == [
        (f"compare/small-resnet/digits/{head}", kind) for kind in (COST, "smoke")[not costs :] for head in CONTROLS
    ]
    for each in lines[:2] if costs else ():
        assert each["parameters"] > 0 and each["multiply_adds"] > 0 and each["latency_1_ms"] < each["latency_128_ms"]
    table = (results / "compare/small-resnet/digits-smoke.md").read_text()
    assert table in capsys.readouterr().out and f"{100 * lines[-len(CONTROLS)]['test_accuracy']:.2f} (1)" in table
    if costs:  # against which the picture has the accuracies
        assert (results / "compare/small-resnet/digits-smoke.svg").read_text().startswith("<?xml")
    assert main(command) == 0
    assert len((results / "runs.jsonl").read_text().splitlines()) == len(lines)

    looked_at = []

    def examine(folder: Path, **_: object) -> Examination:
        looked_at.append(folder)
        return Examination("test", 5, 0.5, None, (Placebo("uniform", 0.4, 0.125, 5),))

    monkeypatch.setattr(examination, "examine_run", examine)
    for _ in range(2):
        assert main([*command, "--examine"]) == 0
    assert len(looked_at) == len(set(looked_at)) == len(CONTROLS)
    written = (results / "compare/small-resnet/digits-smoke.md").read_text()
    assert "## What routing does" in written and "| uniform |  | 12.5 |" in written


def test_a_run_that_cannot_be_examined_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Examination:
        raise ValueError("the network's scores are not finite")

    monkeypatch.setattr(examination, "examine_run", refuse)
    monkeypatch.setattr(examined, "find_finished", lambda *_: tmp_path)
    said, (cell,) = [], Comparison().cells(["em"])
    assert isinstance(cell.how, Train)
    job = Job(cell, "cpu", cell.how.build())
    examined.record_examinations([job], Settings(tmp_path / "runs.jsonl", tmp_path, say=said.append))
    assert said == [f"{job.label}: cannot be examined: the network's scores are not finite"]
    assert not (tmp_path / "runs.jsonl").exists()


def test_what_cannot_be_compared_is_said_in_a_line(capsys) -> None:
    assert main(["compare", "--data", "fashion-mnst"]) == 2
    assert "no data set is named 'fashion-mnst'; the nearest is 'fashion-mnist'" in capsys.readouterr().err
    assert main(["compare", "--data", "digits", "--backbone", "resnet18x", "--show"]) == 2
    assert "resnet18x" in capsys.readouterr().err


def test_names_in_the_picture_are_apart_and_near_where_they_belong() -> None:
    assert apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert apart([0.5, 0.5, 0.52], 0.1) == pytest.approx([0.5067 - 0.1, 0.5067, 0.5067 + 0.1], abs=1e-4)
    assert apart([0.3, 0.42, 0.42], 0.1) == pytest.approx([0.28, 0.38, 0.48])
    assert apart([], 0.1) == []


def test_routings_are_chosen_by_pattern_and_plain_networks_stand_behind() -> None:
    assert choose_heads(["xn*", "resnet18.linear"]) == [*CONTROLS, "xnidr", "xnodr", "xnodr-xnidr", "resnet18.linear"]
    with pytest.raises(ValueError, match="no routing is named"):
        choose_heads(["zz*"])
    assert Comparison().config("resnet18.linear").model == ModelConfig("resnet18.linear")


def test_a_sweep_makes_a_row_of_each_value() -> None:
    comparison = Comparison(sweep=("optimiser.lr", "0.01", "1e-3"))
    cells = comparison.cells(["linear", "em"])
    assert [cell.name for cell in cells[:2]] == ["linear@optimiser.lr=0.01", "linear@optimiser.lr=1e-3"]
    assert [cell.how.build().optimiser.lr for cell in cells] == [0.01, 0.001] * 2
    assert replace_field(comparison.config("em"), "data.augment.flip", "False").data.augment.flip is False
    with pytest.raises(ValueError, match=r"optimiser\.lr cannot be 'fast'; here it is 0\.002"):
        Comparison(sweep=("optimiser.lr", "fast")).cells(["em"])[0].how.build()
    with pytest.raises(
        ValueError, match=r"no field of a config is named 'optimiser\.rl'; the nearest is 'optimiser\.lr'"
    ):
        Comparison(sweep=("optimiser.rl", "1")).cells(["em"])[0].how.build()
    with pytest.raises(ValueError, match=r"no field of a config is named 'lr'; the nearest is 'optimiser\.lr'"):
        Comparison(sweep=("lr", "1")).cells(["em"])[0].how.build()


def test_an_option_is_swept_where_a_head_has_it() -> None:
    """Whether or not the usual config says it; heads without it have one row."""
    heads = ["linear", "uniform", "twin", "fm", "em"]
    cells = Comparison(sweep=("model.options.iterations", "1", "2")).cells(heads)
    assert [cell.name for cell in cells] == [*heads[:-1], *(f"em@model.options.iterations={n}" for n in (1, 2))]
    assert [cell.how.build().model.options.get("iterations") for cell in cells[4:]] == [1, 2]
    (cell,) = Comparison(sweep=("model.options.hidden", "8,8")).cells(["em"])
    assert cell.how.build().model.options["hidden"] == (8, 8)
    _, cell = Comparison(sweep=("model.options.routing_start", "learnt")).cells(["em", "dynamic"])
    assert cell.how.build().model.options["routing_start"] == "learnt"
    with pytest.raises(
        ValueError, match=r"no option of these heads is named .*\.iteratons'; the nearest is .*\.iterations'"
    ):
        Comparison(sweep=("model.options.iteratons", "1")).cells(["linear", "em"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("width 16 0", "linear@model.options.width=0: width is 0; it must be at least 1"),
        (
            "routing_over parents nobody",
            "dynamic@model.options.routing_over=nobody: option over of routing 'dynamic' is",
        ),
    ],
)
def test_a_value_that_a_model_does_not_take_is_said_before_anything_runs(values, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torchcaps.cli.comparing.fill", lambda *args: pytest.fail("a run was begun"))
    words = (
        f"compare --data.name digits --routings dynamic --sweep model.options.{values} --seeds 1 --results {tmp_path}"
    )
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_data_are_as_usual_but_for_what_flags_say() -> None:
    assert settle_data(DataConfig("cifar10"), {"data.name", "seeds"}) is None
    settled = settle_data(DataConfig("cifar10", limit=50), {"data.name", "data.limit"})
    assert settled == replace(usual_data("cifar10"), limit=50)


def test_parameters_are_filled_without_costs() -> None:
    (row,) = page.collect(Comparison(data="digits"), ["linear"], "cpu", [])
    model = create_model("small-resnet.linear", in_channels=1, image_size=8)
    assert row.cost is None and row.parameters == sum(weight.numel() for weight in model.parameters())


def test_the_table_is_written_after_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With what there is then, and quietly: the second run may be cut."""
    table, seen = tmp_path / "results/compare/small-resnet/digits.md", []

    def fill(jobs, settings):
        for _ in jobs[:2]:
            settings.finish(tmp_path)
            seen.append(table.read_text())
        return Outcome(left=len(jobs) - 2)

    monkeypatch.setattr(reporting, "report", lambda *args: None)
    monkeypatch.setattr("torchcaps.cli.comparing.fill", fill)
    words = ["compare", "--data.name", "digits", "--routings", "em", "--seeds", "1", "--out", str(tmp_path / "runs")]
    assert main([*words, "--results", str(tmp_path / "results")]) == 0
    assert len(seen) == 2 and all("| em | not run |" in text for text in seen)
    assert capsys.readouterr().out.count("# Routings on") == 1


def test_what_could_not_be_trained_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The table is written all the same."""
    monkeypatch.setattr("torchcaps.cli.comparing.fill", lambda jobs, settings: Outcome(1, (jobs[0].label,)))
    words = ["compare", "--data.name", "digits", "--routings", "em", "--seeds", "1", "--out", str(tmp_path / "runs")]
    assert main([*words, "--results", str(tmp_path / "results")]) == 2
    assert "could not be trained" in capsys.readouterr().err
    assert (tmp_path / "results/compare/small-resnet/digits.md").exists()


def test_runs_of_a_changed_file_are_named() -> None:
    cell = Cell("mine", "mine", "", Train(lambda: Config(imports=("a.py 2", "b.py 1"))), home="compare/x")
    older = {"cell": "compare/x/mine", "config": {"imports": ["a.py 1", "b.py 1"]}}
    assert list(changed_files([cell], [older])) == [("mine", "a.py")]
    for fine in ([], [older | {"cell": "other"}], [older | {"config": {"imports": ["b.py 1", "a.py 2"]}}]):
        assert list(changed_files([cell], fine)) == []


def test_a_row_of_what_routing_does_shows_means_over_the_runs() -> None:
    one = Examination(
        "test",
        10,
        0.5,
        3,
        placebos=(Placebo("one iteration", 0.5, 0.25, 10),),
        trees=(Trees("a", 5, 2, 1.0), Trees("b", 5, 5, 2.0)),
        negation=(Negation("stack.0", -1.0, 0.0),),
        robustness=(Curve("angle", (0.0, 30.0), (0.9, 0.5), (1.0, 0.6)),),
        equivariance=(Equivariance("angle", 0.5, 5),),
    )
    other = replace(one, placebos=(Placebo("one iteration", 0.5, 0.75, 10),), equivariance=())
    config = Comparison(data="digits").config("em")
    lines = [
        {"budget": "examine", "config_hash": config_hash(config), "seed": n, "examination": to_plain(each)}
        for n, each in enumerate((one, other))
    ]
    found = examined.find_examinations(lines, config)
    assert found == [one, other] and examined.find_examinations(lines, config, [1]) == [other]
    head, rule, row = examined.describe_examinations({"em": found, "fm": []})[-3:]
    shown = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert shown["changed by R = 1 (%)"] == "50.0" and shown["by uniform"] == "" and shown["trees a class"] == "3.5"
    assert shown["told from its negative"] == "0.000" and shown["kept at 30\u00b0 (%)"] == "60.0"
    assert shown["R\u00b2 of the angle |"] == "0.500 |" and rule.count("---") == len(examined.COLUMNS) + 1
    assert examined.describe_examinations({"em": []}) == []


def test_runs_that_have_nothing_to_keep_do_not_enter_the_mean() -> None:
    kept, none = (
        Examination("test", 10, 0.5, 3, robustness=(Curve("angle", (0.0, 30.0), (0.5, 0.3), shares),))
        for shares in ((1.0, 0.6), (None, None))
    )
    for runs, shown in (([kept, none], "60.0"), ([none], "")):
        head, _, row = examined.describe_examinations({"em": runs})[-3:]
        assert dict(zip(head.split(" | "), row.split(" | "), strict=True))["kept at 30\u00b0 (%)"] == shown


def test_shares_of_the_data_make_rows_with_more_passes() -> None:
    comparison = Comparison(data="cifar10", fractions=(0.01, 1))
    cells = {cell.name: cell for cell in comparison.cells(["linear", "em"])}
    assert list(cells) == [f"{head}@data.fraction={share}" for head in ("linear", "em") for share in ("0.01", "1")]
    few, whole = (cells[f"em@data.fraction={share}"] for share in ("0.01", "1"))
    assert few.how.build().data.fraction == 0.01 and few.how.build().epochs == 10 * whole.how.build().epochs
    assert apply_budget(few.how.build(), "cpu", few).epochs == 100
    assert apply_budget(few.how.build(), "fast", few).epochs == 10 * 30
    assert apply_budget(few.how.build(), "smoke", few).data.fraction == 1
    (base,) = Comparison(data="cifar10").cells(["em"])
    assert config_hash(whole.how.build()) == config_hash(base.how.build())


def test_depths_make_rows_of_heads_with_capsules() -> None:
    comparison = Comparison(data="digits", depths=(1, 3))
    cells = {cell.name: cell.how.build() for cell in comparison.cells(["linear", "dynamic", "dynamic-twin"])}
    assert list(cells) == [
        "linear@depth=1",
        *(f"{head}@depth={depth}" for head in ("dynamic", "dynamic-twin") for depth in (1, 3)),
    ]
    assert "hidden" not in cells["dynamic@depth=1"].model.options
    assert cells["dynamic@depth=3"].model.options["hidden"] == (16, 16)
    model = create_model("small-resnet.dynamic", image_size=16, width=4, hidden=(3, 2))
    assert [each.transform.sizes.parents for each in model.head.stack.layers] == [3, 2, 10]
    with pytest.raises(ValueError, match=r"hidden is \(0,\); each layer must have at least 1 capsule"):
        create_model("small-resnet.dynamic", image_size=16, hidden=(0,))


def test_one_thing_is_varied_at_a_time() -> None:
    with pytest.raises(ValueError, match="give one of --sweep, --fractions and --depth"):
        Comparison(fractions=(0.1,), depths=(1,)).cells(["linear"])
    with pytest.raises(ValueError, match=r"fractions are \(0.0,\); each is a share above 0, at most 1"):
        Comparison(fractions=(0.0,)).cells(["linear"])
    with pytest.raises(ValueError, match=r"depths are \(0,\); there is at least 1 layer"):
        Comparison(depths=(0,)).cells(["linear"])


def test_accuracy_is_drawn_against_the_share_of_the_data(tmp_path: Path) -> None:
    def row(head: str, *values: float) -> Row:
        return Row(head, Summary("cpu", "", values, (), False), None)

    rows = [row("em@data.fraction=1", 0.9, 0.8), row("em@data.fraction=0.1", 0.5), row("linear@data.fraction=1")]
    curves = shares.by_share(rows)
    assert [point[0] for point in curves["em"]] == [0.1, 1.0] and list(curves) == ["em"]
    axes = figures.draw_shares(rows).axes[0]
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.get_legend().get_texts()] == ["em"]
    assert [writing.suffix(each) for each in (Comparison(fractions=(1,)), Comparison())] == ["-fractions", ""]
    assert curves["em"] == [(0.1, 0.5, None), (1.0, pytest.approx(0.85), pytest.approx(0.0707, abs=1e-4))]
    empty = {float(line.get_xdata()[0]) for line in axes.lines if line.get_markerfacecolor() == "none"}
    assert empty == {0.1}


def test_small_shares_are_named_as_they_are() -> None:
    shares = ("0.001", "0.05", "1")
    rows = [Row(f"em@data.fraction={share}", Summary("cpu", "", (0.5, 0.6), (), False), None) for share in shares]
    axis = figures.draw_shares(rows).axes[0].xaxis
    major, minor = axis.get_major_formatter(), axis.get_minor_formatter()
    assert [major(value) for value in (0.001, 0.01, 1.0)] == ["0.1%", "1%", "100%"]
    assert [minor(value) for value in (0.04, 0.05)] == ["", "5%"]


def test_what_is_shown_of_changed_images_is_measured() -> None:
    assert examined.FAR["angle"] in robustness.ANGLES and examined.FAR["scale"] in robustness.SCALES
    assert set(examined.FAR) == {"angle", "scale"}


def test_a_page_is_of_one_budget_and_one_kind_of_data() -> None:
    comparison = Comparison(data="cifar10", fractions=(0.1,))
    assert name_page(comparison, "cpu", ()) == "small-resnet/cifar10-fractions"
    changed = name_page(comparison, "smoke", ["augment.flip=False", "std=(0.1, 0.2)"])
    assert changed == "small-resnet/cifar10-fractions-smoke-augment.flip=False-std=_0.1_0.2_"
    for budget, epoch in (
        ("cpu", "of the epoch that is best on validation"),
        ("fast", "of the last epoch"),
    ):
        text = page.markdown(comparison, [], budget, ["augment.flip=False"])  # pyright: ignore[reportArgumentType]
        assert epoch in text and text.startswith("# Routings on small-resnet, cifar10, augment.flip=False\n")


def test_a_page_keeps_the_rows_of_heads_that_were_run_before(tmp_path: Path) -> None:
    comparison = Comparison(data="digits")
    (cell,) = [each for each in comparison.cells(all_heads()) if each.name == "em"]
    assert cell.build is not None
    config = apply_budget(cell.build(), "cpu", cell)
    line = {"cell": cell.id, "budget": "cpu", "seed": 0, "config_hash": config_hash(config),
            "revisions": revisions_of(config), "test_accuracy": 0.5, "environment": {}}  # fmt: skip
    assert list_run(comparison, ["linear", "fm"], "cpu", [line]) == ["linear", "em", "fm"]
    assert list_run(comparison, ["linear", "fm"], "smoke", [line]) == ["linear", "fm"]


def test_shares_that_a_budget_sets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--show --data.name digits --fractions 0.1 1 --budget smoke --routings em"
    assert main(["compare", "--results", str(tmp_path), *words.split()]) == 2
    assert "--sweep data.fraction: budget smoke makes" in capsys.readouterr().err


def test_a_sweep_has_files_of_its_own() -> None:
    sweeps = [("optimiser.lr", "1"), ("optimiser.weight-decay", "0"), ("model.options.iterations", "1")]
    found = [writing.suffix(Comparison(sweep=each)) for each in sweeps]
    assert found == ["-optimiser.lr", "-optimiser.weight_decay", "-model.options.iterations"]


def test_as_many_heads_as_there_are_have_colours_of_their_own() -> None:
    summary = Summary("cpu", "", (0.5, 0.6), (), False)
    rows = [Row(f"{head}@data.fraction={share}", summary, None) for head in all_heads() for share in (0.1, 1)]
    lines = [line for line in figures.draw_shares(rows).axes[0].lines if not line.get_label().startswith("_")]
    assert len({line.get_color() for line in lines}) == len(lines) == len(all_heads())


def test_controls_are_marked_as_such_whatever_their_name_and_single_runs_are_empty() -> None:
    def row(head: str, *values: float) -> Row:
        times = {"step_ms": 1.0, "latency_128_ms": 2.0}
        return Row(head, Summary("cpu", "", values, (), False), times)

    rows = [row("em", 0.5, 0.6), row("em-twin", 0.6, 0.7), row("uniform@epochs=5", 0.9)]
    axes = figures.draw(rows).axes[0]
    marks = {float(line.get_ydata()[0]): line for line in axes.lines if line.get_marker() == "o"}
    routing, control = figures.INK["accent"], figures.INK["second"]
    assert [marks[key].get_color() for key in sorted(marks)] == [routing, control, control]
    assert [marks[key].get_markerfacecolor() for key in sorted(marks)] == [routing, control, "none"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["routing", "control", "a single run"]


def test_a_head_is_judged_by_the_twin_of_its_size() -> None:
    comparison = Comparison()
    accuracies = {"twin": 0.9, "em": 0.8, "em-twin": 0.7, "dynamic": 0.8}
    lines = [line(comparison, head, a + seed / 1000, seed) for head, a in accuracies.items() for seed in range(3)]
    text = page.markdown(comparison, page.collect(comparison, choose_heads(["em", "dynamic"]), "cpu", lines), "cpu")
    assert "Against `twin`, or NAME`-twin` where there is one: above `em`; below `dynamic`;" in text


def swept(comparison: Comparison, accuracies: dict[str, float]) -> str:
    """The table of a sweep in which each row has three runs about its accuracy."""
    rows = []
    for cell in comparison.cells(["linear", "uniform", "twin", "em", "em-twin"]):
        records = tuple({"seed": seed, "test_accuracy": accuracies[cell.name] + seed / 1000} for seed in range(3))
        rows.append(Row(cell.name, Summary("cpu", "", (), records, False), None))
    return page.markdown(comparison, rows, "cpu")


def test_of_a_sweep_over_an_option_a_head_is_judged_by_the_twin_of_its_size() -> None:
    above, below = (f"em@model.options.iterations={value}" for value in (1, 3))
    accuracies = {"linear": 0.5, "uniform": 0.9, "twin": 0.9, "em-twin": 0.7, above: 0.8, below: 0.6}
    text = swept(Comparison(sweep=("model.options.iterations", "1", "3")), accuracies)
    assert f"Against `twin`, or NAME`-twin` where there is one: above `{above}`; below `{below}`;" in text
    assert f"Against `linear`: above `{above}`, `{below}`; below none;" in text


@pytest.mark.parametrize(
    ("field", "comparison"),
    [
        ("data.fraction", Comparison(fractions=(0.1, 1))),
        ("optimiser.lr", Comparison(sweep=("optimiser.lr", "0.1", "1"))),
    ],
)
def test_of_a_sweep_heads_are_judged_by_controls_of_the_same_value(field: str, comparison: Comparison) -> None:
    few, whole = (f"@{field}={value}" for value in ("0.1", "1"))
    least = {"linear": 0.5, "uniform": 0.7, "twin": 0.9, "em-twin": 0.5, "em": 0.6}
    most = {"linear": 0.9, "uniform": 0.7, "twin": 0.7, "em-twin": 0.9, "em": 0.8}
    accuracies = {f"{head}{few}": a for head, a in least.items()} | {f"{head}{whole}": a for head, a in most.items()}
    text = swept(comparison, accuracies)
    assert f"Against `linear`, of the same value: above `em{few}`; below `em{whole}`; not decided none." in text
    assert f"Against `uniform`, of the same value: above `em{whole}`; below `em{few}`; not decided none." in text
    mine = "Against `twin`, or NAME`-twin` where there is one, of the same value"
    assert f"{mine}: above `em{few}`; below `em{whole}`; not decided none." in text


def test_of_a_depth_that_a_control_has_not_nothing_is_said_against_it() -> None:
    rows = []
    for cell in Comparison(data="digits", depths=(1, 3)).cells(["linear", "uniform", "dynamic"]):
        accuracy = 0.5 + 0.1 * cell.name.startswith("dynamic")
        records = tuple({"seed": seed, "test_accuracy": accuracy + seed / 1000} for seed in range(3))
        rows.append(Row(cell.name, Summary("cpu", "", (), records, False), None))
    text = page.markdown(Comparison(data="digits", depths=(1, 3)), rows, "cpu")
    assert "Against `linear`, of the same value: above `dynamic@depth=1`; below none;" in text
    assert "Against `uniform`, of the same value: above `dynamic@depth=1`, `dynamic@depth=3`; below none;" in text


@pytest.mark.parametrize(("device", "named"), [("cpu", "abacus, 1 thread(s)"), ("cuda", "H1"), (None, "H1")])
def test_a_run_is_of_the_machine_that_computed_it(device: str | None, named: str) -> None:
    where = {"gpu": "H1", "cpu": "abacus", "threads": 1} | ({} if device is None else {"device": device})
    assert name_machine(where) == named
    run = line(Comparison(), "em", 0.5) | {"environment": where}
    text = page.markdown(Comparison(), page.collect(Comparison(), ["em"], "cpu", [run]), "cpu")
    assert f"; {named}, torch" in text


def test_activations_and_gradients_stand_by_layer() -> None:
    layers = tuple(
        CapsuleLayerFacts(f"stack.{n}", "em", (0.5,), (0.0,), (0.1,), 0.25 * (n + 1), 0.0, 0.01, 0.0) for n in range(2)
    )
    lines = examined.describe_depth({"em@depth=2": [Examination("test", 1, 1.0, 3, layers=layers)], "fm": []})
    assert lines[-2:] == ["| em@depth=2 | stack.0 | 0.25 | 0.01 |", "| em@depth=2 | stack.1 | 0.5 | 0.01 |"]
    assert examined.describe_depth({"fm": []}) == []


def test_of_layers_without_a_gradient_none_enters_the_mean() -> None:
    runs = [
        Examination(
            "test", 1, 1.0, 3, layers=(CapsuleLayerFacts("stack.0", "em", (), (), (), 0.5, 0.0, gradient, None),)
        )
        for gradient in (None, 0.01)
    ]
    assert examined.describe_depth({"em": runs})[-1] == "| em | stack.0 | 0.5 | 0.01 |"
    assert examined.describe_depth({"em": runs[:1]})[-1] == "| em | stack.0 | 0.5 |  |"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sweep epochs 5 20", "--sweep epochs: budget cpu makes 10 of 5"),
        ("--sweep precision fp32 bf16", "--sweep precision: budget cpu makes 'auto' of"),
        ("--sweep schedule.name cosine step --budget fast", "--sweep schedule.name: budget fast makes 'one-cycle'"),
        ("--sweep seed 1 2", "--sweep seed: "),
    ],
)
def test_a_sweep_over_what_the_budget_sets_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    """Rows had been named by values that no run had."""
    assert main(["compare", "--show", "--data.name", "digits", "--results", str(tmp_path), *words.split()]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_sweep_is_named_as_flags_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--sweep optimiser.weight-decay 0 1e-4 --data.name digits --routings em"
    assert main(["compare", "--show", "--results", str(tmp_path), *words.split()]) == 0
    shown = capsys.readouterr().out
    assert "| em@optimiser.weight-decay=0 |" in shown and "| em@optimiser.weight-decay=1e-4 |" in shown


def test_small_shares_get_more_passes_in_every_budget() -> None:
    for budget, epochs in (
        ("cpu", {"0.01": 100, "1": 10}),
        ("fast", {"0.01": 300, "1": 30}),
        ("short", {"0.01": 80, "1": 8}),
    ):
        cells = Comparison(fractions=(0.01, 1.0)).cells(["em"])
        built = [(cell.name.rpartition("=")[2], cell.build, cell) for cell in cells]
        found = {name: apply_budget(build(), budget, cell).epochs for name, build, cell in built if build is not None}
        assert found == epochs, budget

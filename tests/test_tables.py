"""The tables of the papers: all of them there, each cell complete, and its network the one that is registered."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from torchcaps.config import AugmentConfig, Config, LossConfig, from_plain, to_plain
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.models import create_model
from torchcaps.papers import find_cell, find_tables, list_tables
from torchcaps.routing.discriminative import Discriminative
from torchcaps.tables import summary
from torchcaps.tables.arguments import model_arguments
from torchcaps.tables.budget_names import BUDGETS, Budget
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell, Combine, Count, Formula, Impossible, Paper, Published, Quoted, Train
from torchcaps.tables.cells import table as register
from torchcaps.tables.metrics import PARAMETERS, SIZE, STORED, Metric
from torchcaps.tables.records import config_hash
from torchcaps.tables.render import View, html, view
from torchcaps.tables.summary import Summary, difference
from torchcaps.train.check import check_config

TABLES = {
    "efficient-capsnet": ["table2"],
    "self-routing": ["table-poster"],
    "variational-bayes": ["table-quoted", "text-readme"],
    "discriminative": ["table2", "figure2", "figure3", "figure4", "text-multimnist"],
    "encapnet": [
        *("table1", "table3", "table4", "table5", "figure2", "figure4", "text-feedback", "text-crops"),
        *("text-costs", "text-days", "text-feedback-gain", "text-memory", "text-routing"),
    ],
    "fm": [
        *(f"table{number}" for number in range(1, 7)),
        *("figure4", "figure5", "text-ablations", "text-affnist", "text-multimnist", "text-residual"),
    ],
    "inverted-attention": [
        *("table1", "figure4", "figure5"),
        *(f"text-{name}" for name in ("losses", "pose", "related", "start", "windows")),
    ],
    "xnodr": [
        *(f"{kind}{number}" for kind in ("table", "figure") for number in range(4, 10)),
        *("text-both", "text-costs", "text-quoted", "text-wins"),
    ],
}
CELLS = [cell for table in list_tables() for cell in table.cells]
BUILT = {config_hash(cell.build()): cell for cell in CELLS if cell.build is not None}
COUNTED_OTHERWISE = {  # parameters that are not the printed ones, and why: see the notes of these cells
    "encapnet/table1/dynamic-size": "151.27",
    "encapnet/table1/em-size": "151.90",
    "encapnet/table1/cnn-size": "24.04",
    "encapnet/table1/cnn-wide-size": "146.04",
    "encapnet/table1/master-size": "25.75",
    "inverted-attention/figure5/cnn-dense-parameters": "42.51",
}


def networks() -> dict[str, dict]:
    """What `create_model` is called with by the recipes, and by what `cpu` makes of them: each once, under a name."""
    found: dict[str, tuple[str, dict]] = {}
    for cell in BUILT.values():
        assert cell.build is not None
        configs = [cell.build()]
        if isinstance(cell.how, Train) and cell.how.cpu is not None:
            configs.append(apply_budget(configs[0], "cpu", cell))
        for config in configs:
            arguments = model_arguments(config)
            found.setdefault(json.dumps(arguments, sort_keys=True), (config.recipe or cell.id, arguments))
    return dict(found.values())


NETWORKS = networks()


def build(cell: str) -> Config:
    found = find_cell(cell).build
    assert found is not None
    return found()


def test_every_table_is_there() -> None:
    assert {table.id for table in list_tables()} == {
        f"{paper}/{name}" for paper, names in TABLES.items() for name in names
    }


def test_cells_have_names_of_their_own() -> None:
    assert [name for name, count in Counter(cell.id for cell in CELLS).items() if count > 1] == []
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cell.name) for cell in CELLS)


@pytest.mark.parametrize("table", list_tables(), ids=lambda table: table.id)
def test_every_cell_says_where_it_stands(table) -> None:
    assert table.cells and table.printed and table.title and table.paper.citation
    for cell in table.cells:
        assert cell.row and cell.column and cell.metric.name, cell.id
        for published in cell.published:
            assert published.text == published.text.strip() != ""
            assert not published.std or (published.number is not None and float(published.std) >= 0)
            assert published.kind == "mean" or not published.std


def test_only_what_can_be_run_has_a_recipe() -> None:
    for cell in CELLS:
        assert (cell.build is None) == isinstance(cell.how, Quoted | Impossible | Combine | Formula), cell.id
        if isinstance(cell.how, Quoted):
            assert cell.published, f"{cell.id} quotes nothing"
        if isinstance(cell.how, Impossible):
            assert cell.how.reason, cell.id
        if isinstance(cell.how, Combine):
            parts = [find_cell(name) for name in cell.how.parts]
            assert len(parts) > 1 and all(part.metric == cell.metric for part in parts), cell.id


@pytest.mark.parametrize("cell", BUILT.values(), ids=lambda cell: cell.id)
def test_recipe_is_a_complete_config(cell: Cell) -> None:
    assert cell.build is not None
    config = cell.build()
    assert from_plain(Config, json.loads(json.dumps(to_plain(config)))) == config
    assert config.data.name in CATALOGUE
    if isinstance(cell.how, Train):
        names = [apply_budget(config, budget, cell).recipe for budget in BUDGETS]
        assert len(set(names)) == len(BUDGETS)
        for budget in BUDGETS:
            check_config(apply_budget(config, budget, cell))


def once_each() -> list[Any]:
    """The names of networks; those that differ from an earlier one in values alone are built where there is time."""
    found: list[Any] = []
    seen: set[tuple] = set()
    for name, arguments in NETWORKS.items():
        kind = (arguments["name"], *sorted(arguments))
        found.append(pytest.param(name, marks=pytest.mark.slow if kind in seen else ()))
        seen.add(kind)
    return found


@pytest.mark.parametrize("name", once_each())
def test_recipe_names_a_model_and_its_options(name: str) -> None:
    """Of full size, hence without memory."""
    with torch.device("meta"):
        assert sum(each.numel() for each in create_model(**NETWORKS[name]).parameters())


SIZES = [
    cell
    for cell in CELLS
    if cell.metric in (PARAMETERS, SIZE, STORED) and isinstance(cell.how, Count)
    if any(each.number is not None for each in cell.published)
]


@pytest.mark.parametrize("cell", SIZES, ids=lambda cell: cell.id)
def test_parameters_are_those_that_are_printed(cell: Cell) -> None:
    assert isinstance(cell.how, Count)
    (printed,) = (each.text for each in cell.published)
    expected = COUNTED_OTHERWISE.get(cell.id, printed)
    assert f"{cell.how.measure(cell.how.build()):.{len(printed.partition('.')[2])}f}" == expected
    assert expected == printed or cell.note


def test_formulas_give_what_is_printed() -> None:
    found = [cell for cell in CELLS if isinstance(cell.how, Formula)]
    assert {cell.home for cell in found} >= {"xnodr/text-wins", "xnodr/text-costs", "encapnet/text-feedback-gain"}
    for cell in found:
        assert isinstance(cell.how, Formula)
        assert [cell.metric.show(cell.how.value)] == [each.text for each in cell.published], cell.id


OTHERWISE = {  # a cell: the one that it is a variant of, and the options of the model that are its own
    "encapnet/text-routing/softmax-j": ("encapnet/table1/dynamic-cifar10", {"over": "parents"}),
    "encapnet/text-routing/not-normalised": ("encapnet/table1/em-cifar10", {"normalise": False}),
    "encapnet/text-feedback-gain/raw-l2": ("encapnet/table3/ot", {"extractor": False, "cost": "l2"}),
    "encapnet/table1/master-aide-code-cifar10": (
        "encapnet/table1/master-aide-cifar10",
        {"version": "route3", "aide": "all", "branch_norm": True, "affine": True},
    ),
    "fm/table2/ours-8-9-8-svhn": ("fm/table2/ours-svhn", {"blocks": (8, 9, 8)}),
    "fm/text-ablations/vectors-cifar10": ("fm/table2/ours-cifar10", {"matrix": False}),
    "fm/text-ablations/sums-svhn": ("fm/table2/ours-svhn", {"mean": False}),
    "inverted-attention/text-start/random": (
        "inverted-attention/table1/attention-simple-cifar10-r2",
        {"start": "random"},
    ),
    "inverted-attention/text-pose/pose-64": ("inverted-attention/table1/attention-simple-cifar10-r5", {"pose": 64}),
    "inverted-attention/table1/attention-resnet-cifar100-eq3-r1": (
        "inverted-attention/table1/attention-resnet-cifar100-r1",
        {"scope": "image"},
    ),
    "inverted-attention/text-windows/resnet-scrambled-cifar100-r2": (
        "inverted-attention/table1/attention-resnet-cifar100-r2",
        {"scrambled": True},
    ),
    "xnodr/figure6/resnet-xnodr-plain-midpoint": (
        "xnodr/figure6/resnet-xnodr-plain",
        {"routing_threshold": "midpoint"},
    ),
    "xnodr/figure4/mobilenet-xnidr-plain-midpoint": (
        "xnodr/figure4/mobilenet-xnidr-plain",
        {"routing_threshold": "midpoint"},
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_the_text_says_is_tried_on_the_network_of_a_table(name: str) -> None:
    other, options = OTHERWISE[name]
    base = build(other)
    options = base.model.options | options
    assert build(name) == replace(base, model=replace(base.model, options=options))


def test_losses_that_a_paper_names_and_does_not_choose_have_cells() -> None:
    for data, loss in (("mnist", "margin"), ("cifar10", "margin"), ("multimnist", "squared-hinge")):
        name = f"xnodr/table4/resnet-xnidr-up-{data}"
        theirs, ours = build(f"{name}-{loss}"), build(name)
        assert theirs == replace(ours, loss=replace(ours.loss, name=loss)) != ours
    for routing in ("fm", "dynamic", "em"):
        config = build(f"fm/table3/{routing}-code")
        assert config.loss.name == "normalised-cross-entropy" and config.optimiser.decay == "kernels"
        assert ("halved" in config.model.options) == (routing == "fm")
    for system in ("fm", "dynamic-3", "dynamic-1"):
        config = build(f"fm/figure5/cifar10-{system}")
        assert build(f"fm/figure5/cifar10-{system}-cross-entropy") == replace(config, loss=LossConfig("cross-entropy"))
    for loss in ("margin", "spread"):
        assert build(f"inverted-attention/text-losses/attention-simple-cifar10-{loss}").loss.name == loss
    assert build("discriminative/text-multimnist/l1-decoder").loss.reconstruction == 0.0005


def test_both_projections_are_binary_on_both_backbones() -> None:
    cells = find_tables("xnodr/text-both")[0].cells
    models = [cell.build().model.name for cell in cells if cell.build is not None]
    assert {*models} == {f"{backbone}.xnodr-xnidr" for backbone in ("resnet50", "mobilenetv2_100")}
    assert {each.text for cell in cells for each in cell.published} == {"predicts awfully"}


@pytest.mark.parametrize("budget", ["full", "cpu"])
def test_coefficients_start_where_parents_are_as_long_with_any_number_of_children(budget: Budget) -> None:
    """The variance of a sum over N children is that of N b0^2, whatever the network."""
    names = [f"table2/{data}-{rule}" for data in ("mnist", "fashion-mnist", "cifar10") for rule in ("l2-fc", "control")]
    for name in [*names, "text-multimnist/l2", "text-multimnist/control"]:
        cell = find_cell(f"discriminative/{name}")
        assert isinstance(cell.how, Train)
        config = apply_budget(cell.how.build(), budget, cell)
        with torch.device("meta"):
            model = create_model(**model_arguments(config))
        (routing,) = (each for each in model.modules() if isinstance(each, Discriminative))
        assert routing.sizes.children * routing.initial_value**2 == pytest.approx(300, rel=0.05), name


def test_dynamic_routing_without_a_decoder_stands_beside_learnt_coefficients_without() -> None:
    for table in ("table2", "figure3"):
        for data in ("mnist", "fashion-mnist", "cifar10"):
            bare, learnt = (find_cell(f"discriminative/{table}/{data}-{name}-fc") for name in ("dr", "l2"))
            assert bare.build is not None and learnt.build is not None
            dynamic, other = bare.build(), learnt.build()
            assert not bare.published and dynamic.model.name == "capsnet" and not dynamic.model.options["decoder"]
            alike = replace(other, model=dynamic.model)
            assert dynamic == alike, (table, data)
            assert data != "mnist" or ("32 without a decoder" in bare.note and other.batch_size == 32)
    for name in ("mnist-control", "fashion-mnist-control", "cifar10-control"):
        assert not find_cell(f"discriminative/table2/{name}").published


def test_table_1_of_inverted_attention_is_the_papers_protocol() -> None:
    """REFERENCE: 350 epochs, the rate falls at 150 and 250, SGD 0.1; the baselines of capsules by Adam."""
    rates = {"attention": ("sgd", 0.1), "cnn": ("sgd", 0.1), "dynamic": ("adam", 1e-3), "em": ("adam", 1e-2)}
    losses = {"attention": "cross-entropy", "cnn": "cross-entropy", "dynamic": "margin", "em": "spread"}
    for routing, (optimiser, rate) in rates.items():
        for data in ("cifar10", "cifar100"):
            suffix = "" if routing == "cnn" else "-r2"
            cell = find_cell(f"inverted-attention/table1/{routing}-simple-{data}{suffix}")
            assert cell.build is not None
            config = cell.build()
            assert (config.optimiser.name, config.optimiser.lr, config.loss.name) == (optimiser, rate, losses[routing])
            assert (config.epochs, config.batch_size, config.schedule.gamma) == (350, 128, 0.1)
            assert config.schedule.milestones == (150, 250)
            assert config.data.augment == AugmentConfig(crop=4, flip=True)
            assert config.data.std == (0.2023, 0.1994, 0.2010)
            assert optimiser != "sgd" or (config.optimiser.momentum, config.optimiser.weight_decay) == (0.9, 5e-4)
            assert ("best of 1 to 5 iterations" in find_cell(cell.id.removesuffix("-r2")).note) == (routing != "cnn")
    build = find_cell("inverted-attention/figure5/matrix").build
    assert build is not None
    config = build()
    assert (config.epochs, config.data.compose.epoch, config.data.augment) == (350, 60_000, AugmentConfig())


def test_rows_of_fms_released_code_follow_the_released_recipe() -> None:
    """REFERENCE, 4.1 to 4.4: what the code does and the paper does not say, or says otherwise."""
    for data in ("fashion-mnist", "cifar10", "svhn"):
        for figure, crop in (("figure4", 0), ("figure5", 4)):
            for system in ("fm", "dynamic-3", "dynamic-1"):
                paper, code = (build(f"fm/{figure}/{data}-{system}{end}") for end in ("", "-code"))
                assert (paper.data.standardise, paper.loss.average) == ("none", False)
                assert (code.data.standardise, code.data.standardise_first, code.loss.average) == ("image", True, True)
                assert code.data.augment.crop == paper.data.augment.crop == crop
                assert {"channels": 64, "primary": 8, "start": "keras"}.items() <= code.model.options.items()
                assert paper.optimiser == code.optimiser and paper.optimiser.eps == 1e-7
    for data in ("fashion-mnist", "cifar10", "svhn"):
        config = build(f"fm/table2/ours-{data}")
        assert (config.data.standardise, config.data.standardise_first, config.data.augment.crop) == ("image", True, 4)
        assert (config.optimiser.weight_decay, config.optimiser.decay) == (2e-4, "kernels")
    for end in ("", "-affine-digits"):
        paper, code = (build(f"fm/table3/fm{loss}{end}") for loss in ("", "-code"))
        assert (paper.optimiser.weight_decay, paper.loss.name) == (0, "margin")
        assert (code.optimiser.weight_decay, code.optimiser.decay, code.optimiser.eps) == (2e-4, "kernels", 1e-7)
        assert code.loss.name == "normalised-cross-entropy"
        assert code.model.options["score"] == "squash" and code.model.options["halved"] is False
    for row in ("fm", *(f"{routing}-r{n}" for routing in ("dynamic", "em") for n in (1, 2, 3))):
        paper, code = (build(f"fm/table6/{row}{end}") for end in ("", "-code"))
        assert paper.loss.name == code.loss.name == "cross-entropy"
        assert (paper.epochs, code.epochs) == (120, 200)
        assert (code.optimiser.weight_decay, code.optimiser.decay) == (2e-4, "kernels")
        schedule = code.schedule
        assert (schedule.name, schedule.gamma, schedule.step_size, schedule.continuous) == (
            "exponential",
            0.5,
            20_000,
            True,
        )


def test_table_3_of_fm_is_there_for_affine_digits() -> None:
    """All its losses and iterations, on the set that is at hand; three iterations are the row without a number."""
    trained = [cell.name for cell in find_tables("fm/table3")[0].cells if isinstance(cell.how, Train | Combine)]
    assert {name for name in trained if not name.endswith("-affine-digits")} == {
        name.removesuffix("-affine-digits") for name in trained if name.endswith("-affine-digits")
    }
    for routing in ("dynamic", "em"):
        assert build(f"fm/table3/{routing}-r3-affine-digits") == build(f"fm/table3/{routing}-affine-digits")
        for iterations in (1, 2):
            config = build(f"fm/table3/{routing}-r{iterations}-affine-digits")
            assert (config.data.test, config.model.options["iterations"]) == ("affine-digits", iterations)


def test_wrong_names_are_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match="no table is named 'discriminative/table1'; the nearest is"):
        find_tables("discriminative/table1")
    with pytest.raises(
        ValueError, match="no cell of discriminative/table2 is named 'mnist-l3'; the nearest is 'mnist-l"
    ):
        find_cell("discriminative/table2/mnist-l3")


def test_counts_are_not_trained() -> None:
    assert all(cell.metric.unit in ("M", "MB", "Mb", "ms", "s") for cell in CELLS if isinstance(cell.how, Count))


def test_the_mean_of_parts_is_of_runs_with_the_same_seed_and_a_best_is_of_the_part_that_has_it() -> None:
    """They had been paired by their places in the file, and the part with the best mean had given the best run."""
    errors = {"a": {1: 5, 2: 40}, "b": {0: 10, 1: 22, 2: 25}}
    parts = {
        name: Summary(
            "full", "", tuple(map(float, by.values())), tuple({"seed": s, "e": e} for s, e in by.items()), True
        )
        for name, by in errors.items()
    }
    metric = Metric("error", "%", lambda record: float(record["e"]), lower=True)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "summarise", lambda name, budget, records: parts[name])
        patch.setattr(summary, "find_cell", lambda name: name)
        for how, published in (("mean", ()), ("best", (Published("5", "best", runs=2),)), ("best", (Published("5"),))):
            cell = Cell("x", "row", "column", Combine(how, ("a", "b")), published, metric)
            found.append(summary._combine(cell, cell.how, "full", []).values)
    assert found == [(13.5, 32.5), (5.0, 40.0), (10.0, 22.0, 25.0)]
    assert difference(Published("5", "best"), parts["a"]) is None  # nobody says of how many it is the best
    assert difference(Published("4", "best", runs=2), parts["a"]) == 1.0
    three = Summary("full", "", (5.0, 40.0, 1.0), (), True)
    assert difference(Published("4", "best", runs=2), three) == 1.0  # the third run does not count
    assert difference(Published("4", "best", runs=4), three) is None


def test_runs_of_another_precision_stand_apart_below_a_table() -> None:
    cell = find_tables("discriminative/table2")[0].cells[0]
    assert isinstance(cell.how, Train)
    name = config_hash(apply_budget(cell.how.build(), "full", cell))
    records = [
        {
            "budget": "full",
            "seed": seed,
            "config_hash": name,
            "test_accuracy": 0.5,
            "environment": {**where, "cpu": "X"},
        }
        for seed, where in enumerate([{"precision": "32-true"}, {"precision": "bf16-mixed"}, {}])
    ]
    runs = view(find_tables("discriminative/table2")[0], records).runs
    places = [run.partition("; ")[2].partition("; torch")[0] for run in runs]
    assert places == ["X, None thread(s); 32-true", "X, None thread(s); bf16-mixed", "X, None thread(s)"]


def test_a_page_loads_nothing_from_elsewhere():
    page = html(View("<Table>", "accuracy", "", [], [], []))
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy == [
        "default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_a_table_has_a_name_that_listings_can_place():
    paper = Paper("mine", "Mine 2026")
    with pytest.raises(ValueError, match="a table is named 'readme'; it must begin with table, figure or text"):
        register(paper, "readme", "README", "accuracy")
    with pytest.raises(ValueError, match="'fm/table2' is registered twice"):
        register(Paper("fm", "x"), "table2", "Table 2", "x")(lambda: iter(()))

"""What a configuration computes cannot change unseen: revisions, and the frozen curves that ask for them."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import get_args

import frozen
import pytest
import torch
from tiny import tiny_config

from torchcaps import create_model, list_models, revisions
from torchcaps.config import ComposeConfig, Config, DataConfig, LossName, ModelConfig
from torchcaps.layers.decoders import DeconvDecoder, DenseDecoder
from torchcaps.layers.transforms import Transform
from torchcaps.models.registry import find_factory
from torchcaps.models.smaller import SelectedTransform
from torchcaps.revisions import Revision, read_older, revisions_of, routing_of, with_model
from torchcaps.routing import Routing, list_routings, routing_class
from torchcaps.tables.records import config_hash, count_hash, describe_run
from torchcaps.train import RunFolder, fit, load_run
from torchcaps.train.resuming import find_unfinished
from torchcaps.train.statistics import list_norms

KNOWN = frozen.read()
CHANGED = Revision("model", "tiny*", 2, "its scores were halved", with_model("tiny*"), {"width": 3})


@pytest.fixture
def none_yet(monkeypatch):
    """As if nothing had been changed so far."""
    monkeypatch.setattr(revisions, "REVISIONS", ())


@pytest.mark.parametrize("name", frozen.RUNS)
def test_a_changed_curve_raises_a_revision(name):
    kept, config = KNOWN[name], frozen.RUNS[name]
    assert kept["run"] == frozen.name_of(config), "another tiny run: python tests/frozen.py"
    assert kept["revisions"] == frozen.raised(config), "write the new curve: python tests/frozen.py"
    losses = frozen.measure(config)
    assert frozen.same(kept["losses"], losses), (
        f"{kept['losses']} is {losses} now: add an entry to torchcaps/revisions.py, then python tests/frozen.py"
    )


def test_a_curve_sees_a_small_change():
    config = frozen.RUNS["routing dynamic"]
    changed = replace(config, optimiser=replace(config.optimiser, lr=0.0101))
    assert not frozen.same(KNOWN["routing dynamic"]["losses"], frozen.measure(changed))


OURS = [name for name in list_models() if find_factory(name).__module__.startswith("torchcaps.")]
LARGE = ("resnet50.", "resnet18.", "mobilenetv2_100.")


def test_every_part_has_a_curve():
    models = [key.removeprefix("model ") for key in frozen.RUNS if key.startswith("model ")]
    heads = {"small-resnet", "mobilenetv2_035", "mobilenetv2_100", "resnet18", "resnet50"}
    for name in OURS:
        base = name.rpartition(".")[0]
        assert base in heads or any(fnmatchcase(name, each) for each in models), name
    ours = [spec.name for spec in list_routings() if routing_class(spec.name).__module__.startswith("torchcaps.")]
    assert {f"routing {name}" for name in ours} <= set(frozen.RUNS)
    assert {f"loss {name}" for name in get_args(LossName)} - {"loss margin"} <= set(frozen.RUNS)


def test_every_transform_and_decoder_has_a_curve():
    """Which the tiny runs build; a selected one is what is left of a trained network, and is never trained."""
    held = set()
    for config in frozen.RUNS.values():
        size = config.data.enlarge or config.data.image_size or 8
        with torch.device("meta"):
            model = create_model(config.model.name, in_channels=1, image_size=size, **config.model.options)
        held |= {type(each) for each in model.modules()}
    assert set(_below(Transform)) - {SelectedTransform} <= held
    assert {DenseDecoder, DeconvDecoder} <= held


def _below(kind):
    for each in kind.__subclasses__():
        yield from [each, *_below(each)] if each.__module__.startswith("torchcaps.") else []


@pytest.mark.parametrize("name", [name for name in OURS if not name.startswith(LARGE)])
def test_routing_and_batch_norm_of_a_config_are_those_of_its_model(name):
    with torch.device("meta"):
        model = create_model(name, in_channels=3, image_size=32)
    held = {each.spec.name for each in model.modules() if isinstance(each, Routing)}
    named = routing_of(ModelConfig(name))
    assert held == ({named} if named else set())
    assert revisions._norm_momentum(ModelConfig(name)) == min(
        (each.momentum for each in list_norms(model)), default=None
    )


def test_data_that_are_concerned():
    """What a recorded run trains on or is measured by, where that is another than it was; and nothing else."""

    def found(name, epochs=10, **changes):
        compose = changes.pop("compose", ComposeConfig())
        data = DataConfig(name, compose=compose, **changes)
        keys = revisions_of(Config(model=ModelConfig("capsnet"), data=data, epochs=epochs))
        return {key.removeprefix("data ") for key in keys if key.startswith("data ")}

    assert found("expanded-mnist", test="affine-digits") == found("affine-digits") == {"affine-digits"}
    assert found("expanded-mnist", test="affnist") == set()
    assert found("cifar10", fraction=0.9) == found("mnist", fraction=0.1) == found("folder:a") == set()
    assert found("mnist", fraction=0.95) == found("folder:a", fraction=0.1) == {"fraction"}
    assert found("smallnorb-azimuth") == {"smallnorb"} and found("smallnorb", validation=0.0) == set()
    assert found("multimnist-xnodr") == {"streams"} and found("multimnist-xnodr", epochs=1) == set()
    assert found("multimnist-xnodr", compose=ComposeConfig(epoch=30_000)) == set(), "the second pass begins inside one"
    assert found("multimnist") == found("diverse-multimnist", compose=ComposeConfig(epoch=30_000)) == set()
    assert found("multimnist", compose=ComposeConfig(base="npz:a.npz", epoch=0)) == {"streams"}


def test_entries_are_in_order():
    keys = [(each.key, each.number) for each in revisions.REVISIONS]
    assert len(set(keys)) == len(keys)
    for key in {key for key, _ in keys}:
        numbers = sorted(number for name, number in keys if name == key)
        assert numbers == list(range(2, 2 + len(numbers)))


def test_a_revision_enters_hash_line_and_run(tmp_path, monkeypatch, none_yet):
    config = tiny_config(tmp_path)
    before = config_hash(config)
    old = fit(config)
    assert describe_run(old.folder)["config_hash"] == before
    monkeypatch.setattr(revisions, "REVISIONS", (CHANGED,))
    assert revisions_of(config) == {"model tiny*": 2}
    assert revisions_of(Config()) == {}
    assert config_hash(config) != before
    assert config_hash(Config()) == config_hash(Config(), {})
    new = fit(config)
    line = describe_run(new.folder)
    assert (line["config_hash"], line["revisions"]) == (config_hash(config), {"model tiny*": 2})
    assert json.loads((new.folder / "model.json").read_text())["revisions"] == {"model tiny*": 2}
    assert describe_run(old.folder)["config_hash"] == before  # an older run keeps its name


def test_a_count_is_not_renamed_by_a_change_of_training(tmp_path, monkeypatch, none_yet):
    config = tiny_config(tmp_path)
    before = config_hash(config)
    monkeypatch.setattr(revisions, "REVISIONS", (replace(CHANGED, training=True),))
    assert config_hash(config) != before
    assert count_hash(config) == before


def test_an_older_run_is_read_with_the_older_options(tmp_path, monkeypatch, none_yet):
    folder = fit(tiny_config(tmp_path)).folder
    monkeypatch.setattr(revisions, "REVISIONS", (replace(CHANGED, older={"norm": False}),))
    assert (load_run(folder)[0].origin or {})["norm"] is False
    assert read_older(ModelConfig("tiny", {"width": 5}), {}) == {"norm": False, "width": 5}
    assert read_older(ModelConfig("tiny", {"width": 5}), {"model tiny*": 2}) == {"width": 5}
    monkeypatch.setattr(revisions, "REVISIONS", (replace(CHANGED, older=None),))
    with pytest.raises(ValueError, match=r"revision 1 of model 'tiny\*'.*halved\): train it again"):
        load_run(folder)
    monkeypatch.setattr(revisions, "REVISIONS", (replace(CHANGED, older=None, training=True),))
    load_run(folder)


def test_a_run_of_a_later_version_is_refused(tmp_path):
    run = RunFolder(fit(tiny_config(tmp_path)).folder)
    run.write("model.json", run.read("model.json") | {"revisions": {"model tiny*": 2}})
    with pytest.raises(ValueError, match="this torchcaps has 1: update it"):
        load_run(run.path)


def test_a_run_does_not_go_on_under_another_revision(tmp_path, monkeypatch, none_yet):
    config = tiny_config(tmp_path)
    run = RunFolder(fit(config).folder)
    (run.path / "result.json").unlink()
    assert find_unfinished(config).path == run.path
    monkeypatch.setattr(revisions, "REVISIONS", (replace(CHANGED, training=True),))
    with pytest.raises(ValueError, match=r"begun with revision 1 of 'model tiny\*', which is 2 now"):
        find_unfinished(config)


@pytest.mark.parametrize("head", ["inverted-attention", "inverted-attention-c"])
def test_older_heads_of_inverted_attention_are_read_with_scaled_agreements(head):
    """Networks `attention-*` always said so themselves, and with one iteration nothing agrees."""
    older = Config(model=ModelConfig(f"small-resnet.{head}"))
    assert revisions_of(older) == {f"routing {head}": 2}
    options = read_older(older.model, {})
    assert options == {"routing_scaled": True}
    agreed = [
        routing.scale
        for model in (ModelConfig(older.model.name, options), older.model)
        for routing in create_model(model.name, **model.options).modules()
        if isinstance(routing, Routing)
    ]
    assert agreed == [0.25, 1.0]
    for same in (
        ModelConfig(older.model.name, {"iterations": 1}),
        ModelConfig(older.model.name, {"routing_scaled": False}),
        ModelConfig("attention-simple-cifar10", {"activations": head.endswith("-c")}),
        ModelConfig("small-resnet.dynamic"),
    ):
        assert revisions_of(Config(model=same)) == {}
    raised = {f"routing {head}": 2, "model capsnet": 2}
    assert revisions_of(Config(model=ModelConfig("capsnet", {"routing": head}))) == raised

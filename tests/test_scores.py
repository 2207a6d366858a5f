"""What a score is, as each model declares it, is what comes out; a loss that takes it for another thing is refused."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import pytest
import torch

from torchcaps import create_model, list_models
from torchcaps.cli import parse_flags
from torchcaps.cli.flags import given_fields
from torchcaps.cli.training import finish
from torchcaps.config import Config, LossConfig, LossName, ScoreKind
from torchcaps.losses import score_form, takes_scores, usual_loss
from torchcaps.models.registry import find_factory
from torchcaps.papers import create_recipe, list_recipes

LARGE = ("mobilenetv2_", "resnet")  # networks of timm's, whose heads are those of others
WIDE, LIKE = "variational-bayes-64-16-32-32", ("-feedback", "-cifar100")  # whose scores are read as another's are
NARROW = {"channels": 16, "types": 4, "width": 8}


def narrowed(name: str) -> dict[str, Any]:
    """Options that make a registered model small, where it has such."""
    known = inspect.signature(find_factory(name)).parameters
    return {option: value for option, value in NARROW.items() if option in known and type(known[option].default) is int}


OURS = [name for name in list_models() if find_factory(name).__module__.startswith("torchcaps.")]


def check(name: str) -> None:
    """Compare what the model declares with the scores of noise, dim and bright."""
    torch.manual_seed(0)
    side = 36 if name == "efficient-capsnet-multimnist" else 40  # its last convolution fits images of 36 pixels alone
    model = create_model(name, num_classes=7, in_channels=3, image_size=side, **narrowed(name))
    scores = torch.cat([model(size * torch.rand(4, 3, side, side)).scores for size in (1, 30)]).detach()
    bounded = bool(((scores >= 0) & (scores <= 1)).all())
    assert model.scores in ("length", "probability", "logit")
    assert bounded == (model.scores != "logit"), (name, model.scores, scores.min(), scores.max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(WIDE) or name.endswith(LIKE) else ())
        for name in OURS
        if not name.startswith(LARGE)
    ],
)
def test_scores_are_what_the_model_declares(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith(LARGE)])
def test_scores_of_large_networks_are_what_they_declare(name: str) -> None:
    check(name)


LOSSES = get_args(LossName)


def test_a_loss_takes_logits_or_what_lies_in_0_1() -> None:
    logits = {"cross-entropy", "binary-cross-entropy"}
    for loss in LOSSES:
        assert takes_scores(loss, "logit") == (loss in logits)
        assert takes_scores(loss, "length") == takes_scores(loss, "probability") == (loss not in logits)
        assert takes_scores(loss, None)
    for kind in get_args(ScoreKind):
        for shown in (1, None):
            assert takes_scores(usual_loss(kind, shown), kind)


def test_a_manifest_says_what_the_model_declares() -> None:
    assert score_form(LossConfig("cross-entropy")).kind == "logit"
    assert score_form(LossConfig("cross-entropy"), scores="length").kind == "length"
    assert score_form(LossConfig("cross-entropy"), scores="length").to_probability == "softmax"


def test_a_learnt_scale_makes_logits() -> None:
    for name in ("small-resnet.dynamic", "small-resnet.em", "small-resnet.fm"):
        assert create_model(name, scaled=True).scores == "logit"
    assert create_model("dynamic-diverse-multimnist", head="length", channels=8).scores == "length"


def told(capsys: pytest.CaptureFixture[str], recipe: str, *flags: str) -> tuple[Config, str]:
    base = create_recipe(recipe)
    parsed, _ = parse_flags(base, list(flags))
    config = finish(recipe, base, parsed, given_fields(flags))
    return config, capsys.readouterr().err


def refused(recipe: str, *flags: str) -> str:
    base = create_recipe(recipe)
    with pytest.raises(ValueError, match=r"take --loss\.name") as caught:
        finish(recipe, base, parse_flags(base, list(flags))[0], given_fields(flags))
    return str(caught.value)


def test_a_loss_by_flag_that_contradicts_the_scores_is_refused_and_the_right_one_named() -> None:
    assert refused("digits", "--loss.name", "cross-entropy") == (
        "loss.name is 'cross-entropy', but the scores of capsnet are lengths of capsules, in [0, 1): "
        "take --loss.name margin"
    )
    assert refused("digits", "--model.name", "small-resnet.fm", "--loss.name=margin").endswith("cross-entropy")
    assert refused("classify", "--model.name", "small-resnet.em", "--loss.name", "cross-entropy").endswith("spread")
    assert refused("fm/table2/ours-cifar10", "--loss.name", "margin").endswith("cross-entropy")


def test_the_loss_follows_another_model_and_papers_keep_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    config, said = told(capsys, "digits", "--model.name", "small-resnet.fm")
    assert (config.loss.name, config.loss.reconstruction) == ("cross-entropy", 0.0)
    assert "the scores of small-resnet.fm are logits: loss cross-entropy" in said
    assert "small-resnet.fm decodes nothing: loss.reconstruction 0" in said
    assert told(capsys, "digits", "--model.options", "channels", "64")[1] == ""
    papers = ((name, create_recipe(name)) for name in list_recipes("xnodr*"))
    paper = next(name for name, each in papers if each.model.name.endswith(".linear") and each.loss.name == "margin")
    assert told(capsys, paper, "--model.options", "hidden", "64,64")[0].loss.name == "margin"

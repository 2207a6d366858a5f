"""Each loss against its formula, written as loops over images and classes in float64."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.config import LossConfig, ScoreKind
from torchcaps.inspect.measured import READINGS, to_probabilities
from torchcaps.losses import (
    build_criterion,
    cross_entropy,
    multi_hot,
    normalised_cross_entropy,
    score_loss,
    score_threshold,
    usual_loss,
)
from torchcaps.models import Output

NAMES = get_args(get_type_hints(LossConfig)["name"])
IMAGES = torch.zeros(5, 1, 2, 2, dtype=torch.float64)


def scores_and_targets(several: bool = False) -> tuple[Tensor, Tensor]:
    """Scores in (0, 1) of 5 images and 4 classes; of several labels, two in each image."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    shown = torch.rand(5, 4, generator=generator).topk(2 if several else 1, 1).indices
    return scores, torch.zeros(5, 4, dtype=torch.float64).scatter_(1, shown, 1.0)


def of_image(name: str, scores: list[float], targets: list[float], progress: float) -> float:
    """The loss of one image, from its formula."""
    there = [j for j, target in enumerate(targets) if target]
    absent = [j for j, target in enumerate(targets) if not target]
    match name:
        case "margin":
            present = sum(max(0.0, 0.9 - scores[j]) ** 2 for j in there)
            return present + 0.5 * sum(max(0.0, scores[j] - 0.1) ** 2 for j in absent)
        case "spread":
            margin = 0.2 + 0.7 * progress
            return sum(max(0.0, margin - (scores[t] - scores[i])) ** 2 for t in there for i in absent)
        case "squared-hinge":
            signs = [1.0 if target else -1.0 for target in targets]
            return sum(max(0.0, 1 - y * s) ** 2 for y, s in zip(signs, scores, strict=True)) / len(scores)
        case "cross-entropy":
            total = sum(math.exp(s) for s in scores)
            return -sum(math.log(math.exp(scores[j]) / total) for j in there) / len(there)
        case "normalised-cross-entropy":
            return -sum(math.log(scores[j] / sum(scores)) for j in there) / len(there)
        case _:
            assert name == "binary-cross-entropy"
            shares = [1 / (1 + math.exp(-s)) for s in scores]
            logs = [math.log(p if target else 1 - p) for p, target in zip(shares, targets, strict=True)]
            return -sum(logs) / len(scores)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_formula(name, progress, several):
    scores, targets = scores_and_targets(several)
    expected = [of_image(name, s, t, progress) for s, t in zip(scores.tolist(), targets.tolist(), strict=True)]
    loss = score_loss(LossConfig(name))(scores, targets, progress)
    torch.testing.assert_close(loss.item(), sum(expected) / 5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_a_gradient_and_falls_along_it(name):
    scores, targets = scores_and_targets()
    criterion = build_criterion(LossConfig(name))

    def loss(x: Tensor) -> Tensor:
        return criterion(Output(x), IMAGES, targets)

    assert torch.autograd.gradcheck(loss, scores.requires_grad_())
    (gradient,) = torch.autograd.grad(loss(scores), scores)
    assert loss(scores - 1e-3 * gradient) < loss(scores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_loss_is_finite_where_all_scores_are_equal(name, value):
    scores = torch.full((5, 4), value, requires_grad=True)
    _, targets = scores_and_targets()
    loss = build_criterion(LossConfig(name))(Output(scores), IMAGES, targets.float())
    loss.backward()
    assert scores.grad is not None and loss.isfinite() and scores.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cross-entropy", "normalised-cross-entropy"])
def test_an_image_without_labels_adds_nothing(name):
    scores, targets = torch.rand(2, 3, requires_grad=True), torch.tensor([[0, 0, 0], [0, 1, 1]]).float()
    criterion = cross_entropy if name == "cross-entropy" else normalised_cross_entropy
    loss = criterion(scores, targets)
    torch.testing.assert_close(loss, criterion(scores[1:], targets[1:]) / 2)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient[0].any() and gradient[1].any()


def test_the_margin_loss_of_zero_capsules_is_a_sum_over_classes_and_its_average_a_tenth_of_it():
    """0.81 of ten classes; code that averages over the classes gets 0.081, and weighs a decoder ten times more."""
    output, targets = Output(torch.zeros(3, 10)), F.one_hot(torch.tensor([1, 5, 9]), 10).float()
    images = IMAGES[:3].float()
    assert build_criterion(LossConfig("margin"))(output, images, targets).item() == pytest.approx(0.81)
    assert build_criterion(LossConfig("margin", average=True))(output, images, targets).item() == pytest.approx(0.081)


def test_a_fixed_margin_does_not_grow():
    scores, targets = scores_and_targets()
    fixed = score_loss(LossConfig("spread", spread_margin=(0.9, 0.9)))
    assert fixed(scores, targets, 0.0) == fixed(scores, targets, 1.0)
    growing = score_loss(LossConfig("spread"))
    assert growing(scores, targets, 0.0) < growing(scores, targets, 0.5) < fixed(scores, targets, 0.5)


def test_what_a_model_adds_is_added():
    scores, targets = scores_and_targets()
    bare, penalty = Output(scores), torch.tensor(0.25, dtype=torch.float64)
    criterion = build_criterion(LossConfig())
    added = criterion(bare._replace(aux={"penalty": penalty}), IMAGES, targets)
    torch.testing.assert_close(added, criterion(bare, IMAGES, targets) + penalty)


def test_the_weight_of_what_a_model_adds_is_a_flag_and_may_rise():
    scores, targets = scores_and_targets()
    terms = torch.tensor([0.25, 0.5], dtype=torch.float64)
    output = Output(scores, aux={"penalty": 10 * terms.sum(), "penalties": terms})

    def added(progress: float, **flags: float) -> float:
        loss = build_criterion(LossConfig(**flags))(output, IMAGES, targets, progress)  # pyright: ignore[reportArgumentType]
        return float(loss - build_criterion(LossConfig())(Output(scores), IMAGES, targets))

    assert [added(progress) for progress in (0.0, 1.0)] == pytest.approx([7.5, 7.5])
    assert [added(progress, penalty=0.1) for progress in (0.0, 1.0)] == pytest.approx([0.075, 0.075])
    shares = [added(progress, penalty=0.1, penalty_warmup=0.4) / 0.075 for progress in (0.0, 0.1, 0.4, 1.0)]
    assert shares == pytest.approx([0, 0.25, 1, 1])
    assert added(0.1, penalty_warmup=0.4) == pytest.approx(7.5 / 4)
    assert added(1.0, penalty=0.0) == 0


def test_the_threshold_is_a_probability_where_scores_are_logits_of_labels():
    assert score_threshold(LossConfig("margin", threshold=0.4)) == 0.4
    assert score_threshold(LossConfig("binary-cross-entropy")) == 0
    logit = score_threshold(LossConfig("binary-cross-entropy", threshold=0.8))
    assert torch.tensor(logit).sigmoid().item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", NAMES)
def test_scores_read_as_probabilities_rise_with_the_score(name):
    assert set(READINGS) == set(NAMES)
    scores = torch.tensor([[0.1, 0.5, 0.9]])
    read = to_probabilities(scores, name)
    assert ((read >= 0) & (read <= 1)).all() and (read.diff() > 0).all()


def test_smoothing_spreads_a_share_of_the_target_over_all_classes():
    scores, targets = scores_and_targets()
    ours = build_criterion(LossConfig("cross-entropy", smoothing=0.2))(Output(scores), IMAGES, targets)
    torchs = F.cross_entropy(scores, targets.argmax(1), label_smoothing=0.2)
    torch.testing.assert_close(ours, torchs)
    plain = build_criterion(LossConfig("cross-entropy"))(Output(scores), IMAGES, targets)
    assert abs(float(plain - ours)) > 1e-3


@pytest.mark.parametrize("name", ["cross-entropy", "normalised-cross-entropy", "binary-cross-entropy"])
def test_smoothing_is_of_the_targets_and_weights_are_of_the_labels_before_it(name):
    scores, targets = scores_and_targets()
    scores = scores.sigmoid() if name == "normalised-cross-entropy" else scores
    classes, labels = targets.shape[1], targets.argmax(1)
    smoothed = build_criterion(LossConfig(name, smoothing=0.1))
    exact = build_criterion(LossConfig(name))(Output(scores), IMAGES, 0.9 * targets + 0.1 / classes)
    torch.testing.assert_close(smoothed(Output(scores), IMAGES, targets), exact)
    weights = torch.linspace(0.5, 3, classes)
    each = [smoothed(Output(scores[n : n + 1]), IMAGES[:1], targets[n : n + 1]) for n in range(len(scores))]
    found = build_criterion(LossConfig(name, smoothing=0.1), weights)(Output(scores), IMAGES, targets)
    torch.testing.assert_close(found, (weights[labels] * torch.stack(each)).mean())


@pytest.mark.parametrize("name", NAMES)
def test_labels_in_the_place_of_targets_are_refused_where_they_would_broadcast(name):
    """As many images as classes: class indices [b] pass for a row of targets."""
    scores, labels = torch.rand(4, 4), torch.arange(4)
    weighted = build_criterion(LossConfig(name), torch.ones(4))
    for targets in (labels, labels.float(), multi_hot(labels, 4)[:1], multi_hot(labels, 4)[..., None]):
        message = rf"scores are \[4, 4\] and targets \{list(targets.shape)}; both must be .*multi_hot"
        for loss in (build_criterion(LossConfig(name)), weighted):
            with pytest.raises(ValueError, match=message):
                loss(Output(scores), IMAGES[:4], targets)
        with pytest.raises(ValueError, match=message):
            score_loss(LossConfig(name))(scores, targets, 1.0)


def test_the_page_about_a_loop_of_ones_own_runs_as_written(capsys):
    page = (Path(__file__).parent.parent / "docs/start/own-loop.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for program in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(program, scope)
        assert scope["loss"].isfinite()
    assert capsys.readouterr().out == "length\n" and scope["model"].scores == "logit"
    for kind in get_args(ScoreKind):
        names = [usual_loss(kind, shown).replace("-", "_") for shown in (1, None)]
        row = next(line for line in page.splitlines() if line.startswith(f'| `"{kind}"`'))
        assert [name.removesuffix("_loss") for name in re.findall(r"`(\w+)`", row)] == names


def test_targets_are_made_of_class_indices_of_any_whole_type_or_of_sets_of_as_many_classes():
    hot = F.one_hot(torch.tensor([2, 0]), 3).float()
    for kind in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(multi_hot(torch.tensor([2, 0], dtype=kind), 3), hot)
    assert torch.equal(multi_hot(hot.bool(), 3), hot)
    for labels in (hot[:, :2], hot[None], torch.tensor([2.0, 0.0]), torch.tensor([True, False]), torch.tensor(2)):
        with pytest.raises(ValueError, match=r"they must be class indices \[b\], whole numbers, or sets \[b, 3\]"):
            multi_hot(labels, 3)

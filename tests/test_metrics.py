"""Measures of several labels, and the meter that sums them."""

from __future__ import annotations

import pytest
import torch

from torchcaps.metrics import exact_match, labels_found, predict, xnodr_top2
from torchcaps.train.meter import Meter

#                          both right       one of two       the other of two  none             one shown
SCORES = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.2, 0.6], [0.2, 0.6, 0.9], [0.7, 0.1, 0.6], [0.1, 0.6, 0.2]])
TARGETS = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=torch.uint8)


def test_predictions():
    assert predict(SCORES, 2).int().tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 1]]
    assert predict(SCORES, None, 0.5).int().tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 1, 0]]
    assert predict(SCORES, None, 0.85).int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_measures():
    predicted = predict(SCORES, None)
    assert exact_match(predicted, TARGETS).tolist() == [True, False, False, False, True]
    assert labels_found(predicted, TARGETS).tolist() == [2, 1, 1, 0, 1]
    assert xnodr_top2(SCORES, TARGETS).tolist() == [True, True, False, False, True]


def test_xnodr_top2_is_keras_top_k_of_a_two_hot_target():
    """Keras: the class of the largest target, the first of equal ones, is among the k highest predictions."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 10, generator=generator)
    targets = torch.zeros(200, 10).scatter_(1, torch.rand(200, 10, generator=generator).argsort(1)[:, :2], 1)
    for row, target, found in zip(scores.tolist(), targets.tolist(), xnodr_top2(scores, targets).tolist(), strict=True):
        label = target.index(max(target))
        assert found == (sum(score > row[label] for score in row) < 2)


@pytest.mark.parametrize(("shown", "right", "found"), [(None, 2, 5), (2, 1, 5), (1, 1, 3)])
def test_meter_of_label_sets(shown, right, found):
    meter = Meter(torch.device("cpu"), shown)
    for rows in (slice(0, 2), slice(2, 5)):
        meter.update(torch.tensor(1.0), SCORES[rows], TARGETS[rows])
    score = meter.compute()
    assert (score.images, score.images - score.errors) == (5, right)
    assert score.label_accuracy == found / 8 and score.xnodr_top2 == 3 / 5


def test_meter_of_single_labels_and_its_state():
    meter, resumed = (Meter(torch.device("cpu")) for _ in range(2))
    right = meter.update(torch.tensor(2.0), SCORES[:4], torch.tensor([0, 1, 2, 0]))
    assert right.tolist() == [True, False, True, True]
    resumed.load(meter.state())
    resumed.update(torch.tensor(1.0), SCORES[4:], torch.tensor([1]))
    score = resumed.compute()
    assert (score.errors, score.images, score.label_accuracy, score.xnodr_top2) == (1, 5, None, None)
    assert abs(score.loss - 9 / 5) < 1e-6


def test_a_meter_that_is_reset_has_taken_nothing_in():
    meter = Meter(torch.device("cpu"), classes=2)
    meter.update(torch.tensor(1.0), torch.eye(2), torch.tensor([1, 0]))
    meter.reset()
    meter.update(torch.tensor(0.0), torch.eye(2), torch.tensor([0, 1]))
    assert meter.compute().mean_class_accuracy == 1.0 and meter.compute().images == 2


def test_the_top_five_are_counted_of_single_labels():
    meter = Meter(torch.device("cpu"))
    scores = torch.arange(7.0).flip(0).expand(3, 7)  # class 0 is highest
    meter.update(torch.tensor(0.0), scores, torch.tensor([0, 4, 5]))
    score = meter.compute()
    assert score.top5_accuracy == 2 / 3 and score.errors == 2 and score.xnodr_top2 is None


def test_a_top_five_of_five_classes_or_fewer_is_not_stated():
    for classes in (3, 5):
        meter = Meter(torch.device("cpu"))
        meter.update(torch.tensor(0.0), torch.rand(4, classes), torch.zeros(4, dtype=torch.int64))
        assert meter.compute().top5_accuracy is None

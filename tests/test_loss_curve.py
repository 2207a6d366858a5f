"""A fixed-seed run keeps its loss curve: whoever changes what is computed must say so here."""

import pytest
import torch

from torchcaps import create_model
from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data import load_data
from torchcaps.losses import margin_loss, multi_hot, reconstruction_loss

CURVES = {
    "dynamic": [0.81757849, 0.77383292, 0.61166292, 0.54787624, 0.65111405, 0.55767071],
    "inverted-attention": [1.3158561, 3.9185426, 0.76173997, 1.3338203, 0.86454177, 0.65977478],
    "uniform": [0.81757897, 0.77395606, 0.61385405, 0.54527217, 0.63032246, 0.55930722],
}


def curve(routing):
    """Losses of six steps of Adam on the real digits."""
    config = DataConfig("digits", image_size=12, augment=AugmentConfig(shift=1))
    data = load_data(config)
    torch.manual_seed(0)
    model = create_model("capsnet", image_size=12, channels=8, primary=2, kernel=3, routing=routing)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _, (images, labels) in zip(range(6), data.training(config, 64, seed=0).epoch(0), strict=False):
        output = model(images, labels)
        loss = margin_loss(output.scores, multi_hot(labels, 10))
        loss = loss + 0.0005 * reconstruction_loss(output.aux["reconstruction"], images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("routing", CURVES)
def test_loss_curve_is_kept(routing):
    """Bit-identical on one machine; machines differ in the order of float32 sums, which Adam amplifies a little."""
    assert curve(routing) == pytest.approx(CURVES[routing], rel=2e-5)

"""Measure a model over the batches of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from torchcaps.config import LossConfig
from torchcaps.data import Batches
from torchcaps.losses import build_criterion, multi_hot, score_threshold
from torchcaps.train.meter import Meter, Score


@torch.no_grad()
def evaluate(
    fabric: Fabric,
    model: nn.Module,
    batches: Batches | Sequence[Batches],
    loss: LossConfig,
    num_classes: int,
    watch: Callable[[Tensor, Tensor], object] | None = None,
) -> Score:
    """Return the mean `loss` and the accuracy of `model` over `batches`, of one split or several, taken together over
    all processes.

    The model sees no labels, as in use: a decoder reconstructs from the capsule that wins. Where reconstructions are
    part of the loss it decodes each class that an overlapped image shows, and that is compared with its own part. It
    goes by the inner module, not DDP's, since processes may have different numbers of batches; it is left in evaluation
    mode. Of several views of an image the scores are averaged; what is reconstructed is the first view. `watch` is
    called with the scores [b, classes] and the labels of each batch of this process.
    """
    model.eval()
    several = [batches] if isinstance(batches, Batches) else batches
    criterion, parts = build_criterion(loss), loss.reconstruction > 0
    meter = Meter(fabric.device, several[0].images.shown, score_threshold(loss), classes=num_classes)
    for split, step, (images, labels) in ((each, *found) for each in several for found in enumerate(each.epoch(0))):
        if not len(labels):
            continue
        shown = split.parts(0, step) if parts else None
        chosen = None if shown is None else shown.labels
        views = images.unbind(1) if images.ndim == 5 else (images,)
        with fabric.autocast():
            outputs = [model(view.contiguous(memory_format=torch.channels_last), chosen) for view in views]
        images, output = views[0] if shown is None else shown.pixels, outputs[0]
        if len(views) > 1:
            output = output._replace(scores=torch.stack([each.scores for each in outputs]).mean(0))
        meter.update(criterion(output, images, multi_hot(labels, num_classes)), output.scores, labels)
        if watch is not None:
            watch(output.scores, labels)
    return meter.compute()

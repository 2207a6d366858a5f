"""A network of stages: what a feedback unit can be put on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torchcaps.config import ScoreKind
from torchcaps.models.registry import Model, Output


class StagedModel(Model):
    """A stem, stages of which each one's first layer changes the maps and the others keep their shape, and a head.

    The parts of any convolutional network can be so arranged, e.g. of timm's ResNet: its stem up to the pooling,
    `layer1` to `layer4`, and pooling and linear layer as head.

    Args:
        stem: from images to the first maps.
        stages: each from maps to maps, of at least one layer.
        head: from the last maps to scores [b, classes], which are logits.
        image: (channels, height, width) of the images.
        capsules: types per position of all maps, whose channels hold poses side by side; None for plain maps.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Sequential],
        head: nn.Module,
        image: tuple[int, int, int],
        capsules: int | None = None,
    ):
        super().__init__()
        for number, stage in enumerate(stages, 1):
            if not isinstance(stage, nn.Sequential):
                raise ValueError(f"stage {number} is of {type(stage).__name__}; it must be an nn.Sequential of layers")
        if not stages or min(len(stage) for stage in stages) < 1:
            raise ValueError(f"{len(stages)} stages were given; there must be one, and a layer in each")
        self.stem, self.stages, self.head = stem, nn.ModuleList(stages), head
        self.image, self.capsules = image, capsules

    @property
    def scores(self) -> ScoreKind:
        return "logit"

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        maps = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return self.read(maps)

    def read(self, maps: Tensor) -> Output:
        """Return what the head says of the last maps."""
        return Output(self.head(maps), (), {})

"""CapsNet (Sabour, Frosst and Hinton 2017): convolution, primary capsules, class capsules, dense decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from torchcaps.config import ScoreKind
from torchcaps.layers import CapsuleLayer, CapsuleStack, DenseDecoder, LinearTransform, PrimaryCapsules, chosen_class
from torchcaps.layers.keras import glorot_normal_, glorot_uniform_, he_normal_
from torchcaps.models.network import read_classes
from torchcaps.models.registry import Model, Output, register_model
from torchcaps.names import check_choice
from torchcaps.routing import routing_class

STARTS = ("torch", "keras")


@register_model("capsnet")
class CapsNet(Model):
    """Conv 9x9 -> ReLU -> primary capsules 9x9 stride 2 -> routing -> length of each class capsule.

    8,215,568 parameters for 28x28x1 and 10 classes, decoder included.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        channels: of the first convolution.
        primary: types of primary capsules.
        primary_pose, class_pose: elements of a pose.
        kernel, stride: of the two convolutions (stride is the second's; the first has 1).
        routing: a registered routing that needs no activations.
        iterations: of the routing, at least 1.
        decoder: whether there is one; without it nothing is reconstructed.
        hidden: capsules, of `class_pose` elements, in each layer between the primary and the class capsules.
        leak: slope of the first activation below 0; 0 is ReLU.
        routing_options: keyword arguments of the routing, in all layers.
        start: first weights: "torch" has convolutions as torch does, and transforms normal with 0.1; "keras" as
            `start_as_released`.
        masked: see `DenseDecoder`; False: 13,401,920 parameters for 40x40x1, as Zhao et al. 2020 count them (Table 3).

    Raises:
        ValueError: for images too small for the two kernels, where the message names the smallest side that works; for
            sizes below 1.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        channels: int = 256,
        primary: int = 32,
        primary_pose: int = 8,
        class_pose: int = 16,
        kernel: int = 9,
        stride: int = 2,
        routing: str = "dynamic",
        iterations: int = 3,
        decoder: bool = True,
        hidden: tuple[int, ...] = (),
        leak: float = 0.0,
        routing_options: dict[str, object] | None = None,
        masked: bool = True,
        start: str = "torch",
    ):
        super().__init__()
        check_choice("start", start, STARTS)
        for name, value in {"channels": channels, "primary": primary, "kernel": kernel, "stride": stride}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not (masked or decoder):
            raise ValueError("masked is False, but decoder is False: it says what a decoder sees, so leave it out")
        positions = [(side - 2 * (kernel - 1) - 1) // stride + 1 for side in image_size]
        if min(positions) < 1:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} are too small for two {kernel}x{kernel} convolutions: "
                f"the smallest side that works is {2 * kernel - 1}; give a larger image_size or a smaller kernel"
            )
        self.stem = nn.Conv2d(in_channels, channels, kernel)
        self.primary = PrimaryCapsules(channels, primary, primary_pose, kernel, stride)
        self.activation = nn.LeakyReLU(leak) if leak else nn.ReLU()
        capsules = [primary * positions[0] * positions[1], *hidden, num_classes]
        poses = [primary_pose] + [class_pose] * (len(capsules) - 1)
        transforms = [
            LinearTransform(*sizes, std=0.1) for sizes in zip(capsules, capsules[1:], poses, poses[1:], strict=False)
        ]
        options: dict[str, Any] = routing_options or {}
        layers = [CapsuleLayer(transform, routing, **options) for transform in transforms]
        if start == "keras":
            start_as_released(self.stem, self.primary, transforms)
        self.stack = CapsuleStack(layers, iterations)
        self.read = read_classes(routing_class(routing).spec, class_pose)
        image = (in_channels, *image_size)
        self.decoder = DenseDecoder(num_classes, class_pose, image, masked=masked) if decoder else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Map images [b, c, h, w] in [0, 1] -> `Output`; scores [b, classes] are the lengths of the class capsules.

        Below 1, unless the routing makes other scores: activations, or logits where poses are layer-normed.
        """
        primary = self.primary(self.activation(self.stem(images)))
        steps = self.stack(primary)
        classes = steps[-1].capsules
        scores = self.read(classes)  # [b, j]
        aux: dict = {"steps": steps}
        if self.decoder is not None:
            aux["reconstruction"] = self.reconstruct(classes.poses, chosen_class(scores, labels))
        return Output(scores, (primary, *(step.capsules for step in steps)), aux)

    @property
    def scores(self) -> ScoreKind:
        return self.read.scores

    def reconstruct(self, poses: Tensor, chosen: Tensor) -> Tensor:
        return super().reconstruct(poses, chosen) if self.decoder is None else self.decoder(poses, chosen)

    def coefficients(self) -> list[nn.Parameter]:
        return self.stack.coefficients()

    def objective(self, output: Output, targets: Tensor, batch: int | None = None) -> Tensor:
        return self.stack.objective(output.aux["steps"], targets, batch)


def start_as_released(stem: nn.Conv2d, primary: PrimaryCapsules, transforms: Sequence[LinearTransform]) -> None:
    """Draw the first weights as in the code of Zhao et al. 2020, section 4.1, which are Keras' own.

    Glorot's in the first convolution and in the transforms, He's in the primary capsules; no biases. Keras has a
    transform as [children, d, (parents d')] and takes the children for places of a kernel: they count in both fans, so
    that 288 children of 8 elements and 10 parents of 16 start with a deviation of 0.0064.
    """
    glorot_uniform_(stem)
    he_normal_(primary.conv)
    for transform in transforms:
        parents, children, child_pose, parent_pose = transform.shape
        glorot_normal_(transform.weight, children * child_pose, children * parents * parent_pose)

"""Primary capsules in place of a network's last convolution (Sun et al. 2023, figure 1b), xnorized (appendix B) or not.

Figure 1 exchanges the last convolution and all dense layers for PrimaryCaps and XnODR or XnIDR; the paper's counts have
a bare reshape of pooled features (`heads.CapsuleHead`). Both have W [160, 10, 8, 16] on MobileNet V2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, PrimaryCapsules
from torchcaps.models.heads import RoutedHead, choose_reader, feature_shape, takes_vectors
from torchcaps.names import whole
from torchcaps.routing import list_routings
from torchcaps.votes import Threshold


class PrimaryHead(RoutedHead):
    """A map of features through PrimaryCaps to class capsules, whose lengths are the scores.

    PrimaryCaps is a 1x1 convolution whose channels are cut into squashed capsules. Its map is pooled to the mean over
    the positions, as the network's own last map is: section 4.6.2 gives the layer 160 children at every image size.
    With `conv` it is not: a 3x3 layer of convolutional capsules of as many types, routed the same way, stands on the
    map, and the class capsules see each of its positions. XnODR xnorizes the projections of both layers, whose weights
    start in reach of the squash (`start`).

    Args:
        routing: a registered one that takes squashed vectors: dynamic, XnODR, XnIDR, both, uniform, discriminative.
        in_features: channels, height and width of the map.
        num_classes: class capsules, at least 1.
        primary: types of capsules.
        pose, class_pose: elements of a child's and of a class capsule's pose.
        conv: whether a layer of convolutional capsules stands between.
        xnorized: whether the convolution of PrimaryCaps is one of signs and scales (Eq. 20).
        iterations: of the routing, at least 1.
        scaled: see `CapsuleHead`.
        threshold: of the signs of an xnorized PrimaryCaps, see `XnorConv2d`; XnODR's own is among its options.
        routing_options, options: see `CapsuleHead`.

    Raises:
        ValueError: for routings that take other children, for sizes below 1, and for a threshold where PrimaryCaps is
            not xnorized.
    """

    def __init__(
        self,
        routing: str,
        in_features: tuple[int, ...],
        num_classes: int,
        primary: int,
        pose: int = 8,
        class_pose: int = 16,
        conv: bool = False,
        xnorized: bool = False,
        iterations: int = 3,
        scaled: bool = False,
        threshold: Threshold = "zero",
        routing_options: Mapping[str, object] | None = None,
        **options: Any,
    ):
        super().__init__()
        options |= routing_options or {}
        if not takes_vectors(routing):
            known = [spec.name for spec in list_routings() if takes_vectors(spec.name)]
            raise ValueError(f"PrimaryCaps makes squashed vectors: {', '.join(known)} take these, {routing!r} does not")
        primary, pose, class_pose = whole("primary", primary), whole("pose", pose), whole("class_pose", class_pose)
        num_classes = whole("num_classes", num_classes)
        if threshold != "zero" and not xnorized:
            raise ValueError(f"threshold is {threshold!r}, but this PrimaryCaps has no signs: use 'routing_threshold'")
        channels, height, width = feature_shape(in_features)
        self.in_shape = (channels, height, width) if conv else (channels, None, None)
        signs = threshold if xnorized else None
        self.primary = PrimaryCapsules(channels, primary, pose, kernel=1, stride=1, pooled=not conv, xnorized=signs)
        if conv:
            window, children = 9 * primary, primary * height * width
            std, last = start(window, primary, pose), start(children, num_classes, class_pose)
            transforms = [
                ConvTransform(primary, primary, pose, pose, kernel=3, padding=1, std=std),
                LinearTransform(children, num_classes, pose, class_pose, std=last),
            ]
        else:
            transforms = [LinearTransform(primary, num_classes, pose, class_pose)]
        self.stack = CapsuleStack([CapsuleLayer(each, routing, **options) for each in transforms], iterations)
        self.read = choose_reader(routing, class_pose, scaled)


def start(children: int, parents: int, pose: int) -> float:
    """Return the standard deviation of weights with which parents of `pose` elements have length 1/3 at first, of
    children of length 1/2.

    A vote of such a child has elements of std / 2, so that the sum of all by coupling 1 / parents has length sqrt(1/2),
    which squash makes 1/3. By the default, for children of unit variance, a second layer would start at 1e-5. Longer
    ones would put half of XnODR's weights beyond 1, where a sign has no gradient.
    """
    return math.sqrt(2) * parents / math.sqrt(children * pose)
